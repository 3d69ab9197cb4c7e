//! Kinds that nobody enforces here, and on which somebody may rely: Istio's security policies.
//!
//! That a cluster has such a kind is seen of its definition, so no right to read the policies is needed; which there
//! are isn't known. Each is told once, as what isn't supported.

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{ResourceExt as _, core::PartialObjectMeta};
use kube_runtime::watcher::Event;
use slotmesh_compile::{ObjectRef, Report, Severity};

use crate::watch::parse::{SECURITY, SECURITY_GROUP};

type Definition = PartialObjectMeta<CustomResourceDefinition>;

/// Which of them the cluster has.
#[derive(Debug, Default)]
pub(super) struct Unenforced {
    there: BTreeSet<&'static str>,
    /// Those of the list under way.
    listed: Option<BTreeSet<&'static str>>,
}

/// The name of the definition of a kind.
fn definition_of(kind: &str) -> String {
    let kind = kind.to_lowercase();
    let plural = kind.strip_suffix('y').map_or_else(|| format!("{kind}s"), |stem| format!("{stem}ies"));
    format!("{plural}.{SECURITY_GROUP}")
}

/// The kind that a definition's name stands for, if it is one of these.
fn kind_of(definition: &str) -> Option<&'static str> {
    SECURITY.iter().map(|(kind, _)| *kind).find(|kind| definition_of(kind) == definition)
}

fn report(kind: &'static str) -> Report {
    let name = definition_of(kind);
    let object = ObjectRef { kind: kind.into(), namespace: "".into(), name: "".into(), source: None };
    let means = SECURITY.iter().find(|(of, _)| *of == kind).map_or("", |(_, means)| means);
    let message = format!("the cluster has this kind ({name}), and slotmesh doesn't read it");
    Report::new(object, None, Severity::NotSupported, message).meaning(format!("where there is one, {means}"))
}

impl Unenforced {
    /// Takes in what happened to a definition. Returns what is to be said from now on, and what no longer.
    pub(super) fn observe(&mut self, event: &Event<Definition>) -> (Vec<Report>, Vec<Report>) {
        let of = |definition: &Definition| kind_of(&definition.name_any());
        let before = self.there.clone();
        match event {
            Event::Init => self.listed = Some(BTreeSet::new()),
            Event::InitApply(definition) => {
                if let Some(listed) = &mut self.listed {
                    listed.extend(of(definition));
                }
            }
            Event::InitDone => self.there = self.listed.take().unwrap_or_default(),
            Event::Apply(definition) => self.there.extend(of(definition)),
            Event::Delete(definition) => {
                if let Some(kind) = of(definition) {
                    self.there.remove(kind);
                }
            }
        }
        let reports = |kinds: &BTreeSet<&'static str>, but: &BTreeSet<&'static str>| {
            kinds.difference(but).map(|kind| report(kind)).collect()
        };
        (reports(&self.there, &before), reports(&before, &self.there))
    }
}

#[cfg(test)]
mod tests {
    use kube::core::ObjectMeta;

    use super::*;

    fn definition(name: &str) -> Definition {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        PartialObjectMeta { metadata, ..PartialObjectMeta::default() }
    }

    fn said(reports: &[Report]) -> Vec<String> {
        reports.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_kind_is_told_once_while_the_cluster_has_it() {
        let mut unenforced = Unenforced::default();
        let policies = definition("authorizationpolicies.security.istio.io");
        for event in [Event::Init, Event::InitApply(definition("gateways.networking.istio.io"))] {
            assert_eq!(unenforced.observe(&event), (vec![], vec![]));
        }
        unenforced.observe(&Event::InitApply(policies.clone()));
        let (appeared, gone) = unenforced.observe(&Event::InitDone);
        assert_eq!(
            said(&appeared),
            [
                "AuthorizationPolicy: the cluster has this kind (authorizationpolicies.security.istio.io), and slotmesh \
             doesn't read it; where there is one, nothing enforces it: connections that it denies are made"
            ]
        );
        assert!(gone.is_empty() && appeared[0].severity == Severity::NotSupported);
        assert_eq!(unenforced.observe(&Event::Apply(policies.clone())), (vec![], vec![]), "once");
        let (appeared, _) =
            unenforced.observe(&Event::Apply(definition("peerauthentications.security.istio.io")));
        assert!(said(&appeared)[0].starts_with("PeerAuthentication: "));
        // A list after a break in the watch: what isn't in it is gone.
        unenforced.observe(&Event::Init);
        unenforced.observe(&Event::InitApply(policies));
        let (appeared, gone) = unenforced.observe(&Event::InitDone);
        assert_eq!((appeared.len(), gone.len()), (0, 1));
        assert!(said(&gone)[0].starts_with("PeerAuthentication: "));
        // Others have kinds of such a name, too.
        assert_eq!(kind_of("authorizationpolicies.policy.linkerd.io"), None);
    }
}
