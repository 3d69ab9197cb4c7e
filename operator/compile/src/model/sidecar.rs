//! Sidecars: which hosts callers of a namespace see, and what becomes of connections to others.

use std::sync::Arc;

use slotmesh_crds as crds;

use super::{Age, Labels, Read};
use crate::{CompileOptions, ObjectName, report::Findings};

/// A valid Sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sidecar {
    pub(crate) age: Age,
    /// The labels of the callers of its namespace that it is for; `None` for all.
    pub(crate) callers: Option<Labels>,
    /// The hosts that they see; `None` for everything.
    seen: Option<Vec<Seen>>,
    /// Connections to what they don't see are refused.
    pub(crate) refuses: bool,
}

/// Hosts that callers see.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    place: Place,
    host: SeenHost,
}

/// In which namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Any,
    /// The caller's.
    Own,
    Named(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SeenHost {
    One(String),
    /// All that end so.
    Under(String),
}

impl Sidecar {
    /// The number of hosts and wildcards that it names; `None` where it takes none from sight.
    pub(crate) fn named(&self) -> Option<usize> {
        self.seen.as_ref().map(Vec::len)
    }

    /// Tells whether a caller of `own`, where that is known, sees a host of this namespace.
    pub(crate) fn sees(&self, own: Option<&str>, namespace: &str, host: &str) -> bool {
        let Some(seen) = &self.seen else { return true };
        seen.iter().any(|seen| {
            let here = match &seen.place {
                Place::Any => true,
                Place::Own => own == Some(namespace),
                Place::Named(named) => **named == *namespace,
            };
            here && match &seen.host {
                SeenHost::One(one) => one == host,
                SeenHost::Under(suffix) => host.ends_with(suffix.as_str()),
            }
        })
    }
}

impl Read<crds::Sidecar> for Sidecar {
    /// Reads a Sidecar; `None` when it must be refused.
    fn read(
        object: &crds::Sidecar,
        _: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let crds::SidecarSpec { workload_selector, egress, outbound_traffic_policy, rest } = &object.spec;
        // What is for the receiving side is none of ours; the rest is told.
        found.unsupported_rest("spec", rest);
        let callers = workload_selector.as_ref().map(|selector| {
            found.unsupported_rest("spec.workloadSelector", &selector.rest);
            if selector.labels.is_empty() {
                found.refuse(
                    "spec.workloadSelector.labels",
                    "no label is given; name one that the callers carry",
                );
            }
            Arc::new(selector.labels.clone())
        });
        let mut seen = Vec::new();
        for (i, listener) in egress.iter().enumerate() {
            let at = format!("spec.egress[{i}]");
            for name in listener.rest.keys() {
                found.unsupported(format!("{at}.{name}"), "its hosts are seen whatever is connected to");
            }
            for (h, text) in listener.hosts.iter().enumerate() {
                match read_host(text) {
                    Some(host) => seen.extend(host),
                    None => {
                        let fault = format!(
                            "{text:?} is no NAMESPACE/HOST, such as ./*, istio-system/* or */web.example.com"
                        );
                        found.refuse(format!("{at}.hosts[{h}]"), fault);
                    }
                }
            }
        }
        let refuses = match outbound_traffic_policy.as_ref().map(|policy| {
            found.unsupported_rest("spec.outboundTrafficPolicy", &policy.rest);
            policy.mode.as_deref().unwrap_or_default()
        }) {
            None | Some("" | "ALLOW_ANY") => false,
            Some("REGISTRY_ONLY") => {
                let what = "only connections to addresses of Services and ServiceEntries are refused; others are left alone";
                found.note("spec.outboundTrafficPolicy.mode", what);
                true
            }
            Some(other) => {
                let fault = format!("{other:?} is no mode; write ALLOW_ANY or REGISTRY_ONLY");
                found.refuse("spec.outboundTrafficPolicy.mode", fault);
                false
            }
        };
        let seen = (!egress.is_empty()).then_some(seen);
        (!found.refused()).then(|| Self { age: Age::of(&object.metadata), callers, seen, refuses })
    }
}

/// A host that callers see; nothing of it where its namespace is `~`. `None` where it is none.
fn read_host(text: &str) -> Option<Option<Seen>> {
    let (place, host) = text.split_once('/')?;
    let place = match place {
        "~" => return Some(None),
        "*" => Place::Any,
        "." => Place::Own,
        "" => return None,
        named => Place::Named(Arc::from(named)),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = match host.strip_prefix('*') {
        None if host.is_empty() => return None,
        None => SeenHost::One(host.to_owned()),
        Some(rest) if rest.contains('*') || !(rest.is_empty() || rest.starts_with('.')) => return None,
        Some(rest) => SeenHost::Under(rest.to_owned()),
    };
    Some(Some(Seen { place, host }))
}
