//! The objects because of which connections to an address go where they go, for a person who asks.
//!
//! Invariant: all of it is what the units of the Service were compiled from. It is worked out when it is asked for, by
//! looking through what is compiled, and costs an event nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use slotmesh_xds::{ResourceName, ResourceType};

use crate::{
    Index, Kind, ObjectKey, ObjectName, ObjectRef, Report, ServiceId, Unit, conditions::parties,
    unit::Compiled,
};

/// Objects that take part in where connections to a Service go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// The Service, or the host of a ServiceEntry.
    pub service: ServiceId,
    /// The objects, by kind and name.
    pub objects: Vec<OriginObject>,
    /// The endpoints that EndpointSlices name.
    pub endpoints: Vec<EndpointOrigin>,
}

/// An object and its part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginObject {
    /// The object.
    pub object: ObjectRef,
    /// Kind, namespace and name.
    pub key: ObjectKey,
    /// Resources that are as they are because of it, where others could have made them.
    pub makes: BTreeSet<(ResourceType, ResourceName)>,
    /// Reports about it that hold at this Service, or at all.
    pub reports: Vec<Report>,
}

/// An endpoint that an EndpointSlice names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointOrigin {
    /// The slice.
    pub slice: ObjectRef,
    /// The address.
    pub address: IpAddr,
    /// The Pod behind it.
    pub pod: Option<ObjectName>,
    /// Its state in the slice.
    pub readiness: Readiness,
}

/// State of an endpoint in its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Connections may go to it.
    Ready,
    /// It terminates and serves: connections go to it where no endpoint is ready.
    Terminating,
    /// It isn't ready.
    NotReady,
}

/// The objects behind a listener; `None` where there is none of this name.
pub(crate) fn origins<'r>(
    index: &Index,
    compiled: &HashMap<Unit, Compiled>,
    reports_about: impl Fn(&ObjectKey) -> Vec<&'r Report>,
    listener: &ResourceName,
) -> Option<Origins> {
    let is_it = |compiled: &Compiled| {
        compiled.resources.iter().any(|one| one.ty == ResourceType::Listener && one.name == *listener)
    };
    let service = compiled.iter().find_map(|(unit, compiled)| match unit {
        Unit::Routing(service) if is_it(compiled) => Some(service.clone()),
        _ => None,
    })?;
    let mut makes: BTreeMap<ObjectKey, BTreeSet<(ResourceType, ResourceName)>> = BTreeMap::new();
    for unit in [Unit::Clusters, Unit::Endpoints, Unit::Routing].map(|unit| unit(service.clone())) {
        for (resource, makers) in compiled.get(&unit).into_iter().flat_map(|compiled| &compiled.made) {
            for maker in makers {
                makes.entry(maker.object.clone()).or_default().insert(resource.clone());
            }
        }
        parties(index, &unit).into_iter().for_each(|party| _ = makes.entry(party).or_default());
    }
    makes.extend(index.provider(&service).map(|provider| (provider, BTreeSet::new())));
    let slices = index.slices(&service).map(|(name, _)| name.clone());
    makes.extend(slices.map(|name| (ObjectKey { kind: Kind::EndpointSlice, name }, BTreeSet::new())));
    let objects = makes.into_iter().map(|(key, makes)| {
        let about = reports_about(&key).into_iter();
        let here = about.filter(|report| report.at.as_ref().is_none_or(|at| *at == service));
        OriginObject {
            object: index.object_ref(key.kind, &key.name),
            makes,
            reports: here.cloned().collect(),
            key,
        }
    });
    let objects = objects.collect();
    let endpoints = index.slices(&service).flat_map(|(name, slice)| {
        let slice_ref = index.object_ref(Kind::EndpointSlice, name);
        slice.endpoints.iter().map(move |endpoint| EndpointOrigin {
            slice: slice_ref.clone(),
            address: endpoint.ip,
            pod: endpoint.pod.clone(),
            readiness: match (endpoint.ready, endpoint.fallback) {
                (true, _) => Readiness::Ready,
                (false, true) => Readiness::Terminating,
                (false, false) => Readiness::NotReady,
            },
        })
    });
    let mut endpoints: Vec<_> = endpoints.collect();
    endpoints.sort_by(|a, b| (a.address, &a.slice).cmp(&(b.address, &b.slice)));
    Some(Origins { service, objects, endpoints })
}
