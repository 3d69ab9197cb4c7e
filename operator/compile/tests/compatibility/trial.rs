//! Trials of a field: an object is compiled without it and with it, and the difference tells what it does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::Value;
use slotmesh_compile::{CompileOptions, Compiler, Kind, Object, ObjectKey, ObjectName, Report, Severity};
use slotmesh_xds::{ResourceName, ResourceType, Version};

use crate::{
    listing::{Leaf, set},
    requests::Requests,
};

/// A field, and another one with the value that it has before that field, or what lies in it, is tried.
pub type Before = (&'static str, &'static str, Value);

/// An object of a kind among others, and what is known of its fields.
pub struct Subject {
    pub kind: Kind,
    /// As it stands in `apiVersion`.
    pub api: &'static str,
    /// Compiled beside it.
    pub world: Vec<Object>,
    pub options: CompileOptions,
    /// The objects that every trial begins with.
    pub object: Value,
    /// All fields that the page is about.
    pub leaves: Vec<Leaf>,
    /// Fields, and what is set before they, or what lies in them, can be tried: with the field and without it.
    pub before: Vec<Before>,
    /// Trials by hand, of the fields whose values matter.
    pub trials: Vec<Trial>,
    /// Trials with a proxy, of fields that don't act without one.
    pub requests: Requests,
    /// Fields, and the test that shows them act: its file, and its name. The longest path that fits counts.
    pub shown: Vec<(&'static str, &'static str, &'static str)>,
    /// Fields without effect, and who acts on them.
    pub noted: Vec<(&'static str, &'static str)>,
}

/// One trial.
pub struct Trial {
    pub path: String,
    /// It stands on the page, beside others of the same field.
    pub told: bool,
    pub value: Value,
    /// As [`Subject::before`], for this trial.
    pub before: Vec<(String, Value)>,
}

/// A trial with this value.
pub fn with(path: impl Into<String>, value: impl Into<Value>) -> Trial {
    Trial { path: path.into(), told: false, value: value.into(), before: Vec::new() }
}

/// A trial with this value, which the page names.
pub fn told(path: impl Into<String>, value: impl Into<Value>) -> Trial {
    Trial { told: true, ..with(path, value) }
}

impl Trial {
    /// Where this is set as well, before.
    pub fn where_is(mut self, path: impl Into<String>, value: impl Into<Value>) -> Self {
        self.before.push((path.into(), value.into()));
        self
    }
}

/// The effect of a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The compiled resources differ.
    Acts,
    /// It differs where a proxy looks at requests.
    ActsByProxy,
    /// A report names it, or what it lies in; what that means, where it is said.
    Refused(Option<String>),
    /// Nothing differs, and nobody says anything.
    Nothing,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Acts => "acts",
            Self::ActsByProxy => "acts with the proxy",
            Self::Refused(_) => "refused by name",
            Self::Nothing => "no effect",
        })
    }
}

/// Everything that agents are sent, and what is said of one object.
struct Compiled {
    resources: BTreeMap<(ResourceType, ResourceName), Version>,
    classes: Vec<String>,
    reports: BTreeSet<Report>,
}

impl Subject {
    /// The outcome of a field that has this value, in an object in which `before` is set. Where it doesn't act,
    /// it is tried with a proxy, too.
    pub fn outcome(&self, path: &str, value: &Value, before: &[(String, Value)]) -> Result<Outcome, String> {
        let plain = self.try_one(path, value, (&self.before, before), self.options.clone())?;
        if plain == Outcome::Acts || self.requests.trials.is_empty() {
            return Ok(plain);
        }
        let by_hand = self.requests.trials.iter().find(|trial| trial.path == path);
        let (value, before) = by_hand.map_or((value, before), |trial| (&trial.value, &trial.before));
        let options = CompileOptions { proxy: true, ..self.options.clone() };
        match self.try_one(path, value, (&self.requests.before, before), options)? {
            Outcome::Acts => Ok(Outcome::ActsByProxy),
            _ => Ok(plain),
        }
    }

    fn try_one(
        &self,
        path: &str,
        value: &Value,
        (of_fields, before): (&[Before], &[(String, Value)]),
        options: CompileOptions,
    ) -> Result<Outcome, String> {
        let mut without = self.object.clone();
        let of_field = of_fields.iter().filter(|(of, ..)| path.starts_with(of));
        of_field.for_each(|(_, path, value)| set(&mut without, path, value.clone()));
        before.iter().for_each(|(path, value)| set(&mut without, path, value.clone()));
        let mut with = without.clone();
        set(&mut with, path, value.clone());
        if with == without {
            return Err(format!("{} {path}: the trial changes nothing", self.kind));
        }
        let (without, with) = (self.compile(path, &without, &options)?, self.compile(path, &with, &options)?);
        let differs = without.resources != with.resources || without.classes != with.classes;
        let mut named = with.reports.difference(&without.reports).filter(|report| {
            // A note is of what acts, or of what it does besides.
            let told = report.severity != Severity::Note || !differs;
            told && report.field.as_deref().is_some_and(|field| is_named(path, field))
        });
        Ok(match named.next() {
            Some(report) => Outcome::Refused(report.consequence.clone()),
            None if differs => Outcome::Acts,
            None => Outcome::Nothing,
        })
    }

    fn compile(&self, path: &str, object: &Value, options: &CompileOptions) -> Result<Compiled, String> {
        let object = read(self.kind, object).map_err(|error| format!("{} {path}: {error}", self.kind))?;
        let key = object.key();
        let mut compiler = Compiler::new(options.clone());
        self.world.iter().chain([&object]).for_each(|object| compiler.apply(object, None));
        compiler.flush();
        let resources = compiler.resources().into_iter().map(|r| ((r.ty, r.name), r.version)).collect();
        let pods = self.world.iter().chain([&object]).map(Object::key).filter(|key| key.kind == Kind::Pod);
        let classes = pods.map(|pod| compiler.caller_class(&pod.name)).collect();
        let reports = compiler.reports().filter(|report| is_about(report, &key)).cloned().collect();
        Ok(Compiled { resources, classes, reports })
    }
}

fn is_about(report: &Report, key: &ObjectKey) -> bool {
    report.object.kind == key.kind.as_str()
        && ObjectName::new(report.object.namespace.clone(), report.object.name.clone()) == key.name
}

/// Tells whether a report about `field` is one about `path`: about the field, what it lies in, or what lies in it.
fn is_named(path: &str, field: &str) -> bool {
    let mut named = String::new();
    for (i, part) in field.split('[').enumerate() {
        // Which of a list doesn't matter.
        match part.split_once(']') {
            Some((index, rest)) if i > 0 && index.parse::<usize>().is_ok() => {
                named.push_str("[]");
                named.push_str(rest);
            }
            _ => named.push_str(part),
        }
    }
    let within = |outer: &str, inner: &str| {
        inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    within(&named, path) || within(path, &named)
}

fn read(kind: Kind, object: &Value) -> serde_json::Result<Object> {
    macro_rules! read {
        ($($known:ident: $of:ty),* $(,)?) => {
            match kind {
                $(Kind::$known => serde_json::from_value::<$of>(object.clone())?.into(),)*
                Kind::Namespace => unreachable!("it isn't compiled"),
            }
        };
    }
    use k8s_openapi::api::{core::v1, discovery::v1 as discovery, networking::v1 as networking};
    use slotmesh_crds::{self as istio, gateway, own};
    Ok(read! {
        Service: v1::Service,
        EndpointSlice: discovery::EndpointSlice,
        Pod: v1::Pod,
        Node: v1::Node,
        ServiceCidr: networking::ServiceCIDR,
        VirtualService: istio::VirtualService,
        DestinationRule: istio::DestinationRule,
        ServiceEntry: istio::ServiceEntry,
        WorkloadEntry: istio::WorkloadEntry,
        Sidecar: istio::Sidecar,
        GrpcRoute: gateway::GrpcRoute,
        HttpRoute: gateway::HttpRoute,
        TlsRoute: gateway::TlsRoute,
        TcpRoute: gateway::TcpRoute,
        ReferenceGrant: gateway::ReferenceGrant,
        TrafficPolicy: own::TrafficPolicy,
        SlotProfile: own::SlotProfile,
    })
}
