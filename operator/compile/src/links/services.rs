//! How Services and ServiceEntries take part in the reverse indexes: what they are called, which addresses they claim, and
//! whom they select.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use super::{Claim, Model, Relations};
use crate::{
    Kind, ObjectKey, ObjectName, ServiceId, Unit,
    model::{PortKey, Service, ServiceEntry, ServicePort},
    relation::Label,
};

impl Service {
    /// All addresses; whether it is an external one.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (IpAddr, bool)> {
        let external = self.external.iter().map(|(ip, _)| (*ip, true));
        self.vips.iter().map(|ip| (*ip, false)).chain(external)
    }

    fn claims(&self) -> impl Iterator<Item = ((IpAddr, PortKey), bool)> {
        let at = |ip| self.ports.iter().map(move |port| (ip, port.key));
        let all =
            self.addresses().flat_map(move |(ip, is_external)| at(ip).map(move |vip| (vip, is_external)));
        all.chain(self.ports.iter().flat_map(|port| self.node_ports(port)).map(|vip| (vip, true)))
    }

    /// The NodePorts of a port, each with the address that stands for all nodes' of a family.
    pub(crate) fn node_ports(&self, port: &ServicePort) -> impl Iterator<Item = (IpAddr, PortKey)> + use<> {
        let key = port.node_port.map(|number| PortKey { number, protocol: port.key.protocol });
        let families = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let has = families.map(|all| self.vips.iter().any(|vip| vip.is_ipv4() == all.is_ipv4()));
        let families = families.into_iter().zip(has).filter_map(|(all, has)| has.then_some(all));
        key.into_iter().flat_map(move |key| families.clone().map(move |all| (all, key)))
    }

    /// How many NodePorts it has.
    fn count_node_ports(&self) -> usize {
        self.ports.iter().flat_map(|port| self.node_ports(port)).count()
    }

    fn claim(&self, name: &ServiceId, by: &ObjectKey, is_external: bool) -> Claim {
        Claim { kind: by.kind, is_external, age: self.age, object: by.clone(), service: name.clone() }
    }

    /// One label that each workload of its namespace has which it selects.
    pub(crate) fn selection(&self, namespace: &Arc<str>) -> Option<Label> {
        let (key, value) = self.selector.first_key_value()?;
        Some((namespace.clone(), key.clone(), value.clone()))
    }

    /// `by` is the object that says so.
    fn link_as(&self, name: &ServiceId, by: &ObjectKey, to: &mut Relations) {
        to.host(name, by, true);
        to.node_ports += self.count_node_ports();
        for (vip, is_external) in self.claims() {
            to.claims.link(vip, self.claim(name, by, is_external));
        }
        self.external.iter().for_each(|(ip, _)| to.external_addresses.link(*ip, by.name.clone()));
        for ip in &self.vips {
            if by.kind == Kind::Service {
                to.service_addresses.link(*ip, by.name.clone());
            } else {
                to.entry_addresses.entry(*ip).or_default().insert((name.clone(), by.name.clone()));
                to.host_addresses.link(name.clone(), (*ip, by.name.clone()));
            }
        }
        if let Some(label) = self.selection(&by.name.namespace) {
            to.selecting.link(label, (name.clone(), by.clone()));
        }
    }

    fn unlink_as(&self, name: &ServiceId, by: &ObjectKey, from: &mut Relations) {
        from.host(name, by, false);
        from.node_ports -= self.count_node_ports();
        for (vip, is_external) in self.claims() {
            from.claims.unlink(&vip, &self.claim(name, by, is_external));
        }
        self.external.iter().for_each(|(ip, _)| from.external_addresses.unlink(ip, &by.name));
        for ip in &self.vips {
            if by.kind == Kind::Service {
                from.service_addresses.unlink(ip, &by.name);
                continue;
            }
            from.host_addresses.unlink(name, &(*ip, by.name.clone()));
            if let Some(hosts) = from.entry_addresses.get_mut(ip) {
                hosts.remove(&(name.clone(), by.name.clone()));
                if hosts.is_empty() {
                    from.entry_addresses.remove(ip);
                }
            }
        }
        if let Some(label) = self.selection(&by.name.namespace) {
            from.selecting.unlink(&label, &(name.clone(), by.clone()));
        }
    }

    /// Marks all that depends on it under this name.
    fn touch_as(&self, key: &ServiceId, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.insert(Unit::Clusters(key.clone()));
        dirty.insert(Unit::Endpoints(key.clone()));
        dirty.insert(Unit::Routing(key.clone()));
        relations.touch_routes_to(key, dirty);
        for (vip, _) in self.claims() {
            dirty.extend(relations.claims.of(&vip).map(|claim| Unit::Routing(claim.service.clone())));
        }
        // Where it has a cluster IP, no other Service has it as an external address, on any port.
        for ip in &self.vips {
            dirty
                .extend(relations.external_addresses.of(ip).map(|other| Unit::Routing(other.clone().into())));
        }
        // Whether others have the addresses of ServiceEntries depends on whether these are in force.
        let of_host = relations.host_addresses.of(key).map(|(ip, _)| *ip);
        for ip in self.vips.iter().copied().chain(of_host) {
            relations.touch_entries_at(ip, ip, dirty);
        }
    }
}

fn service_key(name: &ObjectName) -> ObjectKey {
    ObjectKey { kind: Kind::Service, name: name.clone() }
}

impl Model for Service {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        self.link_as(&ServiceId::from(key.clone()), &service_key(key), to);
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        self.unlink_as(&ServiceId::from(key.clone()), &service_key(key), from);
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        self.touch_as(&ServiceId::from(key.clone()), relations, dirty);
    }
}

impl Model for ServiceEntry {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        let by = ObjectKey { kind: Kind::ServiceEntry, name: key.clone() };
        for host in &self.hosts {
            to.service_entries.link(host.name.clone(), (self.age, key.clone()));
            host.service.link_as(&host.name, &by, to);
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        let by = ObjectKey { kind: Kind::ServiceEntry, name: key.clone() };
        for host in &self.hosts {
            from.service_entries.unlink(&host.name, &(self.age, key.clone()));
            host.service.unlink_as(&host.name, &by, from);
        }
    }

    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        self.hosts.iter().for_each(|host| host.service.touch_as(&host.name, relations, dirty));
    }
}
