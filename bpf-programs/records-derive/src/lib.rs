//! `#[derive(Record)]` and `#[derive(Member)]`: what a record points at, told by its field types.
//!
//! Flatten, recovery and dumping all follow from the constants generated here, so a new record type
//! or field needs no code in any of them.

use proc_macro::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Fields, LitInt, Type, parse_macro_input, spanned::Spanned};

/// Implements `Record` for a `#[repr(C)]` struct whose first field is `header: RecordHeader`.
///
/// `#[record(kind = N)]` names the record kind, unique among all records; `tail = T` names the type
/// of the elements (their number stands in the header) that follow the fixed part.
#[proc_macro_derive(Record, attributes(record))]
pub fn record(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand_record(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Implements `Member` for a `#[repr(C)]` struct that is part of a record.
#[proc_macro_derive(Member)]
pub fn member(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand_member(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}

fn expand_record(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let (mut kind, mut tail) = (None::<LitInt>, None::<Type>);
    for attr in input.attrs.iter().filter(|a| a.path().is_ident("record")) {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("kind") {
                kind = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("tail") {
                tail = Some(meta.value()?.parse()?);
            } else {
                return Err(meta.error("expected `kind` or `tail`"));
            }
            Ok(())
        })?;
    }
    let Some(kind) = kind else {
        return Err(syn::Error::new(input.span(), "a record needs #[record(kind = N)]"));
    };
    let first = named_fields(input)?.iter().next().and_then(|f| f.ident.as_ref());
    if first.is_none_or(|name| name != "header") {
        return Err(syn::Error::new(input.span(), "the first field of a record is `header: RecordHeader`"));
    }
    let name = &input.ident;
    let member = expand_member(input)?;
    let tail_member = match &tail {
        Some(tail) => quote!(::core::option::Option::Some(&<#tail as crate::layout::Member>::SHAPE)),
        None => quote!(::core::option::Option::None),
    };
    let tail_type = tail.map_or_else(|| quote!(()), |tail| quote!(#tail));
    Ok(quote! {
        #member

        impl crate::layout::Record for #name {
            type Tail = #tail_type;
            const KIND: crate::layout::RecordKind = crate::layout::RecordKind::new(#kind);
            const LAYOUT: crate::layout::Layout = crate::layout::Layout {
                kind: <Self as crate::layout::Record>::KIND,
                fixed: &<Self as crate::layout::Member>::SHAPE,
                tail: #tail_member,
            };
        }
    })
}

fn expand_member(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let name = &input.ident;
    let fields = named_fields(input)?.iter().map(|field| {
        let (ident, ty) = (&field.ident, &field.ty);
        quote! {
            crate::layout::Field {
                name: ::core::stringify!(#ident),
                offset: ::core::mem::offset_of!(#name, #ident),
                shape: &<#ty as crate::layout::Member>::SHAPE,
            }
        }
    });
    Ok(quote! {
        impl crate::layout::Member for #name {
            const SHAPE: crate::layout::Shape = crate::layout::Shape {
                name: ::core::stringify!(#name),
                size: ::core::mem::size_of::<#name>(),
                points: crate::layout::Points::Nothing,
                fields: &[#(#fields),*],
            };
        }
    })
}

fn named_fields(
    input: &DeriveInput,
) -> syn::Result<&syn::punctuated::Punctuated<syn::Field, syn::Token![,]>> {
    match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => Ok(&fields.named),
            other => Err(syn::Error::new(other.span(), "expected named fields")),
        },
        _ => Err(syn::Error::new(input.span(), "expected a struct")),
    }
}
