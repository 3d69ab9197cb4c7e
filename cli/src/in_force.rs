//! What a node has in force, as tables.
//!
//! A resource is listed where its name, or one that it leads to, is asked for: by its whole name, or by the Service that
//! stands in it (`reviews`, `shop/reviews`, `reviews.shop.svc.cluster.local`).

use slotmesh_admin::{
    ActionInForce, AssignmentInForce, ChainInForce, ClusterInForce, HostInForce, ListenerInForce,
    LocalityInForce, RouteInForce, WeightedInForce, WorkloadInForce,
};

use crate::render::{Columns, or_dash};

/// Something that can be listed.
pub trait InForce {
    /// Names by which it is asked for.
    fn names(&self) -> Vec<&str>;
    /// Its columns.
    fn columns(wide: bool) -> Columns;
    /// Adds its rows.
    fn rows(&self, table: &mut Columns, wide: bool);
}

/// Tells whether a name is what somebody asks for.
pub fn is_meant(name: &str, wanted: &str) -> bool {
    // A Service as kubectl names it, as the beginning of a host name.
    let host = match wanted.split_once('/') {
        Some((namespace, service)) => format!("{service}.{namespace}."),
        None => format!("{wanted}."),
    };
    let mut parts = name.split(['|', '_', '/']);
    name == wanted || parts.any(|part| part == wanted || part.starts_with(&host))
}

/// Names that a part of a listener leads to.
fn leads_to(action: &ActionInForce) -> Vec<&str> {
    let rules = action.virtual_hosts.iter().flat_map(|host| &host.routes);
    let weighted = action.clusters.iter().chain(rules.flat_map(|rule| &rule.clusters));
    let names = [&action.cluster, &action.route].into_iter().flatten().map(String::as_str);
    names.chain(weighted.map(|one| one.cluster.as_str())).collect()
}

/// Clusters and their shares: `v1 90, v2 10`; one alone without a number.
fn shares(clusters: &[WeightedInForce]) -> String {
    match clusters {
        [one] => one.cluster.clone(),
        all => all.iter().map(|one| format!("{} {}", one.cluster, one.weight)).collect::<Vec<_>>().join(", "),
    }
}

/// Where the first route of a virtual host leads.
fn of_host(host: &HostInForce) -> String {
    host.routes.first().map_or_else(|| "-".to_owned(), |rule| shares(&rule.clusters))
}

/// Where connections go, in one cell.
pub fn target(action: &ActionInForce) -> String {
    let ActionInForce { cluster, route, clusters, virtual_hosts, proxy: _ } = action;
    match (cluster, route) {
        (Some(cluster), _) => cluster.clone(),
        (None, Some(route)) => format!("route {route}"),
        (None, None) if !clusters.is_empty() => shares(clusters),
        (None, None) if !virtual_hosts.is_empty() => {
            virtual_hosts.iter().map(of_host).collect::<Vec<_>>().join("; ")
        }
        (None, None) => "-".to_owned(),
    }
}

/// The first of a list, and how many more there are.
fn first(list: &[String]) -> String {
    match list {
        [] => "-".to_owned(),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} +{}", rest.len()),
    }
}

/// Whose connections a chain is for.
pub fn callers(chain: &ChainInForce) -> String {
    match (chain.port, chain.callers.as_slice()) {
        (Some(port), _) => format!("port {port}"),
        (None, []) => "all".to_owned(),
        (None, callers) => first(callers),
    }
}

impl InForce for ListenerInForce {
    fn names(&self) -> Vec<&str> {
        let leads = self.chains.iter().flat_map(|chain| leads_to(&chain.to));
        let addresses =
            self.addresses.iter().flat_map(|at| [at.as_str(), at.rsplit_once(':').map_or("", |at| at.0)]);
        [self.name.as_str()].into_iter().chain(addresses).chain(leads).collect()
    }

    fn columns(wide: bool) -> Columns {
        let mut header = vec!["NAME", "ADDRESSES", "CALLERS", "TO"];
        if wide {
            header.extend(["CHAIN", "VERSION"]);
        }
        Columns::new(header)
    }

    fn rows(&self, table: &mut Columns, wide: bool) {
        let addresses = if wide { self.addresses.join(",") } else { first(&self.addresses) };
        for chain in &self.chains {
            let mut row = vec![self.name.clone(), addresses.clone(), callers(chain), target(&chain.to)];
            if wide {
                row.extend([or_dash(chain.name.as_ref()), self.version.clone()]);
            }
            table.row(row);
        }
    }
}

impl InForce for RouteInForce {
    fn names(&self) -> Vec<&str> {
        let rules = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        let clusters = rules.flat_map(|rule| rule.clusters.iter().map(|one| one.cluster.as_str()));
        [self.name.as_str()].into_iter().chain(clusters).collect()
    }

    fn columns(wide: bool) -> Columns {
        let mut header = vec!["NAME", "VIRTUAL-HOST", "DOMAINS", "TO"];
        if wide {
            header.extend(["PROXY", "VERSION"]);
        }
        Columns::new(header)
    }

    fn rows(&self, table: &mut Columns, wide: bool) {
        for host in &self.virtual_hosts {
            let domains = if wide { host.domains.join(",") } else { first(&host.domains) };
            let mut row = vec![self.name.clone(), host.name.clone(), domains, of_host(host)];
            if wide {
                row.extend([or_dash(self.proxy.as_ref()), self.version.clone()]);
            }
            table.row(row);
        }
    }
}

impl InForce for ClusterInForce {
    fn names(&self) -> Vec<&str> {
        vec![&self.name]
    }

    fn columns(wide: bool) -> Columns {
        let mut header = vec!["NAME", "BALANCE", "MAX-CONNECTIONS", "LEFT-OUT"];
        if wide {
            header.extend(["AFFINITY", "ASSIGNMENT", "VERSION"]);
        }
        Columns::new(header)
    }

    fn rows(&self, table: &mut Columns, wide: bool) {
        let left_out = self.ejected.len().to_string();
        let mut row = vec![self.name.clone(), self.balance.clone(), or_dash(self.max_connections), left_out];
        if wide {
            let affinity = self.affinity_seconds.map(|seconds| format!("{seconds}s"));
            row.extend([or_dash(affinity), or_dash(self.assignment.as_ref()), self.version.clone()]);
        }
        table.row(row);
    }
}

/// A locality as `region/zone/subZone`.
pub fn place(locality: &LocalityInForce) -> String {
    let LocalityInForce { region, zone, sub_zone } = locality;
    let parts = [region, zone, sub_zone].map(String::as_str);
    parts.join("/").trim_end_matches('/').to_owned()
}

impl InForce for AssignmentInForce {
    fn names(&self) -> Vec<&str> {
        let addresses = self.members.endpoints.iter().map(|endpoint| endpoint.address.as_str());
        [self.name.as_str()].into_iter().chain(addresses).collect()
    }

    fn columns(wide: bool) -> Columns {
        let mut header = vec!["NAME", "ADDRESS", "WEIGHT", "SHARE", "LOCALITY"];
        if wide {
            header.push("VERSION");
        }
        Columns::new(header)
    }

    fn rows(&self, table: &mut Columns, wide: bool) {
        let is_v4 = |address: &str| !address.starts_with('[');
        for endpoint in &self.members.endpoints {
            // A connection chooses among those of its own family.
            let same = self.members.endpoints.iter();
            let same = same.filter(|other| is_v4(&other.address) == is_v4(&endpoint.address));
            let sum: f64 = same.map(|other| f64::from(other.weight)).sum();
            let locality = self.members.localities.get(endpoint.locality).map(place);
            let mut row = vec![
                self.name.clone(),
                endpoint.address.clone(),
                endpoint.weight.to_string(),
                format!("{:.1}%", f64::from(endpoint.weight) / sum * 100.0),
                or_dash(locality.filter(|place| !place.is_empty())),
            ];
            if wide {
                row.push(self.version.clone());
            }
            table.row(row);
        }
    }
}

impl InForce for WorkloadInForce {
    fn names(&self) -> Vec<&str> {
        vec![&self.name, &self.namespace]
    }

    fn columns(_wide: bool) -> Columns {
        Columns::new(["NAMESPACE", "NAME", "CLASS", "CGROUP"])
    }

    fn rows(&self, table: &mut Columns, _wide: bool) {
        let Self { namespace, name, cgroup, class } = self;
        table.row([namespace.clone(), name.clone(), or_dash(class.as_ref()), cgroup.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_by_each_of_its_names() {
        let cluster = "outbound|80|v1|reviews.shop.svc.cluster.local";
        for wanted in [cluster, "reviews", "shop/reviews", "reviews.shop", "reviews.shop.svc.cluster.local"] {
            assert!(is_meant(cluster, wanted), "{wanted}");
        }
        for wanted in ["review", "shop", "shop/review", "other/reviews", "cluster.local", ""] {
            assert!(!is_meant(cluster, wanted), "{wanted:?}");
        }
        assert!(is_meant("10.96.0.10_80", "10.96.0.10"));
    }

    #[test]
    fn shares_are_within_a_family() {
        let json = r#"{"name": "a", "version": "1", "endpoints": [{"address": "10.0.0.1:80", "weight": 3},
            {"address": "10.0.0.2:80", "weight": 1, "locality": 1}, {"address": "[fd00::1]:80", "weight": 7}],
            "localities": [{"region": "", "zone": "", "subZone": ""}, {"region": "eu", "zone": "a", "subZone": ""}]}"#;
        let assignment: AssignmentInForce = serde_json::from_str(json).unwrap();
        let mut table = AssignmentInForce::columns(false);
        assignment.rows(&mut table, false);
        let expected = "\
NAME   ADDRESS        WEIGHT   SHARE    LOCALITY
a      10.0.0.1:80    3        75.0%    -
a      10.0.0.2:80    1        25.0%    eu/a
a      [fd00::1]:80   7        100.0%   -
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn each_way_of_a_listener_has_its_row() {
        let json = r#"{"name": "l", "version": "1", "addresses": ["10.0.0.1:80", "10.0.0.2:80"], "chains": [
            {"name": "x", "callers": ["shop", "shop#1"], "to": {"clusters": [{"cluster": "v1", "weight": 9},
            {"cluster": "v2", "weight": 1}]}}, {"name": null, "port": 81, "to": {"route": "r"}},
            {"name": "all", "port": null, "to": {"virtualHosts": [{"name": "h", "domains": ["*"], "routes":
            [{"name": "r", "clusters": [{"cluster": "c", "weight": 1}]}]}], "addresses": 0}}]}"#;
        let listener: ListenerInForce = serde_json::from_str(json).unwrap();
        let mut table = ListenerInForce::columns(false);
        listener.rows(&mut table, false);
        let expected = "\
NAME   ADDRESSES        CALLERS   TO
l      10.0.0.1:80 +1   shop +1   v1 9, v2 1
l      10.0.0.1:80 +1   port 81   route r
l      10.0.0.1:80 +1   all       c
";
        assert_eq!(table.to_string(), expected);
        assert_eq!(
            listener.names(),
            ["l", "10.0.0.1:80", "10.0.0.1", "10.0.0.2:80", "10.0.0.2", "v1", "v2", "r", "c"]
        );
    }
}
