//! Where a route's destination leads: to a cluster that exists and that the object may send connections to, or nowhere,
//! for a reason that is told.

use super::reports::ports;
use crate::{
    Index, Kind, ObjectKey, Reason,
    backends::{Backend, backend},
    model::{Caller, Connection, Destination, PortKey},
};

/// A destination that a route can't lead to.
pub(super) struct Missing {
    pub(super) field: String,
    pub(super) reason: Reason,
    pub(super) fault: String,
}

/// The cluster of a destination.
pub(super) fn destination_cluster(
    index: &Index,
    by: &ObjectKey,
    at: &str,
    destination: &Destination,
    connection: &Connection<'_>,
) -> Result<String, Missing> {
    let backend = destination_backend(index, by, at, destination, connection)?;
    Ok(backend.name(&index.host(&destination.service)))
}

/// The endpoints of a destination.
pub(super) fn destination_backend<'a>(
    index: &'a Index,
    by: &ObjectKey,
    at: &str,
    destination: &'a Destination,
    connection: &Connection<'_>,
) -> Result<Backend<'a>, Missing> {
    let Destination { service: name, subset, .. } = destination;
    let [of_name, of_port] = match by.kind {
        Kind::VirtualService => ["host", "port.number"],
        _ => ["name", "port"],
    };
    let missing = |field: &str, fault: String| Missing {
        field: format!("{at}.{field}"),
        reason: Reason::BackendNotFound,
        fault,
    };
    // First, so that nobody learns what is in a namespace that doesn't let him.
    if let Some(service) = name.object().filter(|service| !index.permits(by, service)) {
        let fault = format!(
            "no ReferenceGrant in namespace {} lets {} of namespace {} send connections to Service {}",
            service.namespace, by.kind, by.name.namespace, service.name
        );
        return Err(Missing { reason: Reason::RefNotPermitted, ..missing("namespace", fault) });
    }
    let service = index.service_for(by.kind, name).ok_or_else(|| missing(of_name, index.not_found(name)))?;
    let port = connection.port;
    let mut alike = service.ports.iter().map(|of| of.key).filter(|key| key.protocol == port.protocol);
    let key = match (destination.port, alike.next(), alike.next()) {
        (Some(number), ..) => PortKey { number, protocol: port.protocol },
        (None, Some(only), None) => only,
        (None, ..) => port,
    };
    if service.port(key).is_none() {
        let PortKey { number, protocol } = key;
        let has = ports(service);
        let fault = format!("{} has no {protocol} port {number} (it has {has})", index.display_name(name));
        return Err(missing(of_port, fault));
    }
    backend(index, name, (key, subset), connection.caller, &by.name.namespace).ok_or_else(|| {
        let rules = index.rules(name, Caller::Of(&by.name.namespace));
        let known: Vec<_> = rules.subsets().into_keys().collect();
        let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let fault = format!(
            "no DestinationRule in force defines subset {subset} of {} (defined: {has})",
            index.display_name(name)
        );
        missing("subset", fault)
    })
}
