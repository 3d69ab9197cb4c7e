//! Matchers that lead each class of callers to an action of its own.

use prost::Name;
use slotmesh_xds::{
    CallerClass, OneOfClasses,
    envoy::{
        envoy::extensions::filters::udp::udp_proxy::v3::Route as UdpRoute,
        google::protobuf::StringValue,
        xds::{
            core::v3::TypedExtensionConfig as MatcherExtension,
            r#type::matcher::v3::{
                Matcher,
                matcher::{
                    MatcherList, MatcherType, OnMatch,
                    matcher_list::{FieldMatcher, Predicate, predicate, predicate::SinglePredicate},
                    on_match,
                },
            },
        },
    },
};

use super::{CallerChain, any};

/// The name of the chain of the callers with this number.
pub(super) fn callers_chain(number: usize) -> String {
    format!("callers-{}", number + 1)
}

/// Leads to an action for each class of callers, and to one for all others. Envoy knows no such input: it, and the way to compare it
/// with many classes at once, are extensions of slotmesh's own.
pub(super) fn matcher(
    callers: &[CallerChain],
    action: impl Fn(usize) -> OnMatch,
    others: OnMatch,
) -> Matcher {
    let matchers = callers.iter().enumerate().map(|(i, caller)| {
        let classes = OneOfClasses { classes: caller.classes.clone() };
        let predicate = SinglePredicate {
            input: Some(extension(CallerClass::EXTENSION, &CallerClass {})),
            matcher: Some(predicate::single_predicate::Matcher::CustomMatch(extension(
                OneOfClasses::EXTENSION,
                &classes,
            ))),
        };
        FieldMatcher {
            predicate: Some(Predicate { match_type: Some(predicate::MatchType::SinglePredicate(predicate)) }),
            on_match: Some(action(i)),
        }
    });
    Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: matchers.collect() })),
        on_no_match: Some(Box::new(others)),
    }
}

/// To the chain of this name.
pub(super) fn go_to(chain: &str) -> OnMatch {
    let action = MatcherExtension {
        name: chain.to_owned(),
        typed_config: Some(any(&StringValue { value: chain.to_owned() })),
    };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..Default::default() }
}

fn extension<M: Name>(name: &str, message: &M) -> MatcherExtension {
    MatcherExtension { name: name.to_owned(), typed_config: Some(any(message)) }
}

/// Datagrams go to this cluster.
pub(super) fn datagrams_to(cluster: &str) -> OnMatch {
    let route = UdpRoute { cluster: cluster.to_owned() };
    let action = MatcherExtension { name: cluster.to_owned(), typed_config: Some(any(&route)) };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..Default::default() }
}
