//! `xds.type.matcher.v3.Matcher`: callers of a listener, told apart by their classes.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use slotmesh_records::{Callers, name_hash};
use slotmesh_xds::{
    CallerClass, OneOfClasses, Transport,
    envoy::{
        envoy::config::listener::v3 as proto,
        xds::r#type::matcher::v3::{
            self as proto_matcher,
            matcher::{
                MatcherList, MatcherType, OnMatch,
                matcher_list::{
                    FieldMatcher, Predicate,
                    predicate::{MatchType, single_predicate},
                },
                on_match,
            },
        },
    },
};

use super::Chain;
use crate::config::{At, Invalid, decode_any, invalid, unsupported};

/// The chains that a matcher tells apart by the class of the caller, then the one for everybody else.
pub(super) fn by_caller<'m>(
    matcher: &proto_matcher::Matcher,
    chains: &'m [proto::FilterChain],
    default: Option<&'m proto::FilterChain>,
) -> Result<Vec<Chain<'m>>, Invalid> {
    let at = At::ROOT.field("filter_chain_matcher");
    let (matches, on_no_match) = matches_of(&at, matcher)?;
    let mut named = HashMap::with_capacity(chains.len());
    for (i, chain) in chains.iter().enumerate() {
        let of_chain = At::ROOT.element("filter_chains", i);
        if chain.filter_chain_match.is_some() {
            let what = "a matcher tells chains apart already";
            return Err(unsupported(of_chain.field("filter_chain_match"), what));
        }
        if named.insert(chain.name.as_str(), Chain::from_proto(&of_chain, Transport::Tcp, chain)?).is_some() {
            return Err(invalid(of_chain.field("name"), "an earlier chain has the same name"));
        }
    }
    let mut valid = Vec::with_capacity(chains.len() + 1);
    for Matched { at, callers, on_match } in matches {
        let at = at.field("on_match");
        let name = goes_to(&at, on_match)?;
        let chain = named
            .remove(name)
            .ok_or_else(|| invalid(at, format!("there is no chain {name:?}, or another match has it")))?;
        let callers = callers.into_iter().map(Cow::Owned).collect();
        valid.push(Chain { callers, ..chain });
    }
    let everybody = match (on_no_match, default) {
        (Some(on_no_match), None) => {
            let at = at.field("on_no_match");
            let name = goes_to(&at, Some(on_no_match))?;
            named.remove(name).ok_or_else(|| invalid(at, format!("there is no chain {name:?}")))?
        }
        (None, Some(default)) => {
            Chain::from_proto(&At::ROOT.field("default_filter_chain"), Transport::Tcp, default)?
        }
        _ => {
            return Err(invalid(
                at,
                "on_no_match or a default_filter_chain has to say where others go, and not both",
            ));
        }
    };
    valid.push(everybody);
    Ok(valid)
}

/// A match of some classes of callers.
pub(super) struct Matched<'m> {
    pub(super) at: At<'m>,
    pub(super) callers: Vec<String>,
    pub(super) on_match: Option<&'m OnMatch>,
}

/// The matches of a matcher by the class of the caller, each of classes of its own, and what is done for all others.
pub(super) fn matches_of<'m>(
    at: &'m At<'m>,
    matcher: &'m proto_matcher::Matcher,
) -> Result<(Vec<Matched<'m>>, Option<&'m OnMatch>), Invalid> {
    let proto_matcher::Matcher { on_no_match, matcher_type } = matcher;
    let Some(MatcherType::MatcherList(MatcherList { matchers })) = matcher_type else {
        return Err(unsupported(at, "only a matcher_list"));
    };
    let mut matches = Vec::with_capacity(matchers.len());
    let mut classes = HashSet::new();
    for (i, FieldMatcher { predicate, on_match }) in matchers.iter().enumerate() {
        let at = at.element("matcher_list.matchers", i);
        let callers = callers(&at.field("predicate"), predicate.as_ref())?;
        if let Some(twice) = callers.iter().find(|class| !classes.insert(name_hash(class))) {
            return Err(invalid(at.field("predicate"), format!("class {twice:?} has a chain already")));
        }
        matches.push(Matched { at, callers, on_match: on_match.as_ref() });
    }
    if classes.len() > Callers::MOST as usize {
        let what = format!("{} classes of callers; at most {}", classes.len(), Callers::MOST);
        return Err(unsupported(at, what));
    }
    Ok((matches, on_no_match.as_deref()))
}

/// The name of the chain to which a match leads.
fn goes_to<'m>(at: &At<'_>, on_match: Option<&'m OnMatch>) -> Result<&'m str, Invalid> {
    match on_match {
        Some(OnMatch { keep_matching: false, on_match: Some(on_match::OnMatch::Action(action)) }) => {
            Ok(&action.name)
        }
        _ => Err(unsupported(at, "only an action that names a filter chain")),
    }
}

/// The classes that a predicate names. Both its parts are extensions of slotmesh's own.
fn callers(at: &At<'_>, predicate: Option<&Predicate>) -> Result<Vec<String>, Invalid> {
    let known = "only the class of the caller, one of several";
    let Some(Predicate { match_type: Some(MatchType::SinglePredicate(single)) }) = predicate else {
        return Err(unsupported(at, known));
    };
    let input = single.input.as_ref().and_then(|input| input.typed_config.as_ref());
    let custom = match &single.matcher {
        Some(single_predicate::Matcher::CustomMatch(custom)) => custom.typed_config.as_ref(),
        _ => None,
    };
    match (input, custom) {
        (Some(input), Some(custom))
            if input.type_url == CallerClass::TYPE_URL && custom.type_url == OneOfClasses::TYPE_URL =>
        {
            let OneOfClasses { classes } = decode_any(at, "OneOfClasses", custom)?;
            if classes.is_empty() || classes.iter().any(String::is_empty) {
                return Err(invalid(at, "a class has a name, and a chain has one class at least"));
            }
            Ok(classes)
        }
        _ => Err(unsupported(at, known)),
    }
}
