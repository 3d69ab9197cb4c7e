//! The objects that the compiler understands, and how they are named.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize as _, Deserializer, Serialize, Serializer, de::DeserializeSeed};
use slotmesh_crds::{self as crds, gateway, own};

use crate::kinds::{Kind, kinds};

/// Namespace and name of an object. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name `name` in `namespace`.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The name of the object of this kind with this metadata. An object without namespace is in
    /// `default`; one whose kind has none is in "".
    pub fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        let namespace =
            if kind.is_namespaced() { meta.namespace.as_deref().unwrap_or("default") } else { "" };
        Self::new(namespace, meta.name.as_deref().unwrap_or_default())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// The identity of an object: its kind, namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// Namespace and name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Where an object was read, when it was a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The path of the file.
    pub file: Arc<str>,
    /// Its document, counted from 1; `None` for the file as a whole.
    pub document: Option<usize>,
    /// The line on which the document begins, where that is known.
    pub line: Option<usize>,
    /// It doesn't say in which namespace the object is.
    pub in_default: bool,
}

impl Source {
    /// A file as a whole.
    pub fn file(file: Arc<str>) -> Self {
        Self { file, document: None, line: None, in_default: false }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.document {
            Some(document) => write!(f, "{}, document {document}", self.file),
            None => f.write_str(&self.file),
        }
    }
}

macro_rules! make_object {
    ($($kind:ident $name:literal $plural:literal: $object:ty => $model:ty, $field:ident; $spec:expr;)*) => {
        /// One object of the cluster. Cheap to clone.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = $name] $kind(Arc<$object>),)*
        }

        $(impl From<$object> for Object {
            fn from(object: $object) -> Self {
                Self::$kind(Arc::new(object))
            }
        })*

        impl Object {
            /// The object's metadata.
            pub fn meta(&self) -> &ObjectMeta {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                }
            }

            /// The object's metadata, to be changed. An object that others hold, too, is copied.
            pub fn meta_mut(&mut self) -> &mut ObjectMeta {
                match self {
                    $(Self::$kind(object) => &mut Arc::make_mut(object).metadata,)*
                }
            }

            /// The object's kind.
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }
        }

        /// A kind is the seed of its objects: it decodes one of them.
        impl<'de> DeserializeSeed<'de> for Kind {
            type Value = Object;

            fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Object, D::Error> {
                match self {
                    $(Self::$kind => <$object>::deserialize(from).map(Object::from),)*
                }
            }
        }

        impl Serialize for Object {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$kind(object) => object.serialize(to),)*
                }
            }
        }
    };
}
kinds!(make_object);

impl Object {
    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: ObjectName::of(self.kind(), self.meta()) }
    }
}

/// The longest name that an object may have (a DNS subdomain).
const MAX_NAME: usize = 253;

/// Why this can't be the name of an object, if it can't.
pub(crate) fn name_fault(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is empty".to_owned());
    }
    if name.len() > MAX_NAME {
        return Some(format!("has {} characters, the longest allowed name has {MAX_NAME}", name.len()));
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    name.chars()
        .find(|c| !allowed(*c))
        .map(|c| format!("contains {c:?}; use lower-case letters, digits, '-' and '.'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_of_few_characters() {
        assert!(name_fault(&"x".repeat(MAX_NAME)).is_none());
        assert!(name_fault(&"x".repeat(MAX_NAME + 1)).unwrap().contains("254 characters"));
        assert!(name_fault("a|b").is_some());
    }
}
