//! The answer in words and tables.

use std::fmt::Write as _;

use slotmesh_admin::{AskedInForce, ConnectionsInForce, NodeInForce, OriginsView, VerdictInForce};

use super::{
    Explained,
    args::Caller,
    because,
    compare::count,
    expected::{Expected, ExpectedCluster},
    request,
};
use crate::render::{Columns, Paint, or_dash};

/// The verdict in words. `absent`: why the caller takes no part, where that is known.
pub fn meaning(
    asked: &AskedInForce,
    from: &Caller,
    records: Option<&Expected>,
    absent: Option<&str>,
) -> String {
    let (to, Caller { namespace, name }) = (&asked.to, from);
    let other = "kube-proxy, or whatever routes Services here in its place";
    match (asked.verdict, &asked.listener) {
        (VerdictInForce::NotAttached, _) => {
            let why = absent.map_or(
                "`slotmesh get workloads` lists the workloads that are attached".to_owned(),
                str::to_owned,
            );
            format!(
                "{namespace}/{name} isn't attached on this node: its connections are decided by {other}; {why}"
            )
        }
        (VerdictInForce::NotOurs, None) => {
            format!("{to} is no address of slotmesh's: connections to it are decided by {other}")
        }
        (VerdictInForce::NotOurs, Some(listener)) => format!(
            "listener {listener} has {to}, but leaves it alone, or leads to what has never been in force: connections \
             to it are decided by {other}"
        ),
        (VerdictInForce::Refused, _) => {
            let empty = records.iter().flat_map(|records| &records.clusters);
            let empty: Vec<&str> =
                empty.filter(|one| one.endpoints.is_empty()).map(|one| one.name.as_str()).collect();
            let of = if empty.is_empty() { String::new() } else { format!(" of {}", empty.join(", ")) };
            format!("connects are refused at once (ECONNREFUSED): there is no endpoint to choose{of}")
        }
        (VerdictInForce::Routed, _) if asked.refused > 0 => {
            let share = f64::from(asked.refused) / f64::from(asked.asked) * 100.0;
            format!(
                "connects are routed, but for {share:.1}% that are refused: their cluster has no endpoint"
            )
        }
        (VerdictInForce::Routed, _) => "connects are routed".to_owned(),
    }
}

/// All that there is to say.
pub fn text(explained: &Explained, wide: bool) -> String {
    let Explained { from, asked, node, records, differences, origins, left_out, request, meaning } =
        explained;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| _ = writeln!(text, "{name:<9} {value}");
    let class = asked.class.as_ref().map_or(String::new(), |class| format!(" (class {class})"));
    line("From", &format!("{from}{class}{}", node.as_ref().map(on_node).unwrap_or_default()));
    line("To", &format!("{}/{}", asked.to, asked.protocol));
    if let Some(records) = records {
        line("Listener", &format!("{}, chain {}", records.listener, or_dash(records.chain.as_ref())));
        if let Some(route) = &records.route {
            line("Route", &format!("{route}, virtual host {}", or_dash(records.virtual_host.as_ref())));
        }
        if let Some(proxy) = &records.proxy {
            let below = "what stands below is for callers without one";
            let at = if proxy.is_empty() { String::new() } else { format!(" at {proxy}") };
            line("Proxy", &format!("the caller's takes the connection{at} and decides by request; {below}"));
        }
    }
    let paint = match asked.verdict {
        VerdictInForce::Routed if asked.refused == 0 => Paint::Green,
        VerdictInForce::Refused => Paint::Red,
        _ => Paint::Yellow,
    };
    line("Verdict", &paint.on(meaning));
    for cluster in records.iter().flat_map(|records| &records.clusters) {
        for limit in limits(cluster, origins.as_ref()) {
            line("Limit", &limit);
        }
    }
    if let Some(request) = request {
        text += &request::text(request);
    }
    if let Some(records) = records {
        text.push('\n');
        text += &shares(asked, records, wide).to_string();
    }
    match origins {
        Some(origins) => text += &because::text(origins, left_out),
        None if asked.listener.is_some() => {
            let why =
                "Nobody who compiles the objects answers; --served-by names an operator's admin interface.";
            _ = writeln!(text, "\n{}", Paint::Faint.on(why));
        }
        None => {}
    }
    for difference in differences {
        _ = writeln!(text, "{}", Paint::Red.on(&format!("error: {difference}")));
    }
    text
}

/// ` on node worker-1 (eu/a)`
fn on_node(node: &NodeInForce) -> String {
    let NodeInForce { name, region, zone, sub_zone } = node;
    if name.is_empty() {
        return String::new();
    }
    let place: Vec<&str> =
        [region, zone, sub_zone].map(String::as_str).into_iter().filter(|part| !part.is_empty()).collect();
    let place = if place.is_empty() { String::new() } else { format!(" ({})", place.join("/")) };
    format!(" on node {name}{place}")
}

/// Each limit of a cluster, and how near it is.
fn limits(cluster: &ExpectedCluster, origins: Option<&OriginsView>) -> Vec<String> {
    let ConnectionsInForce { active, opened: _, refused, too_fast } =
        cluster.connections.clone().unwrap_or_default();
    let objects = origins.iter().flat_map(|origins| &origins.objects);
    let of_kind =
        |object: &str| object.starts_with("TrafficPolicy ") || object.starts_with("DestinationRule ");
    let makers: Vec<&str> = objects.map(|one| one.object.as_str()).filter(|object| of_kind(object)).collect();
    let by = if makers.is_empty() { String::new() } else { format!(", by {}", makers.join(" or ")) };
    let name = &cluster.name;
    let mut limits = Vec::new();
    if let Some(most) = cluster.max_connections {
        let is = if active >= u64::from(most) { "reached: further connects are refused; " } else { "" };
        limits.push(format!(
            "{is}{active} of at most {most} connections of this node to {name} are open, and {refused} connects were refused\
             {by}"
        ));
    }
    if let Some(rate) = &cluster.new_connections {
        let whom = if rate.per == "caller" { "of each caller " } else { "" };
        limits.push(format!(
            "{} new connections a second {whom}to {name}, {} at once: {too_fast} connects came too fast and were refused{by}",
            rate.per_second, rate.burst
        ));
    }
    limits
}

/// A row for each endpoint, and for each cluster without one.
fn shares(asked: &AskedInForce, records: &Expected, wide: bool) -> Columns {
    let mut header =
        vec!["CLUSTER", "WEIGHT", "ENDPOINT", "WEIGHT", "RECORDS", "KERNEL", "LOCALITY", "STATE"];
    if wide {
        header.extend(["BALANCE"]);
    }
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let mut table = Columns::new(header).paint("STATE", |state| (state != "in").then_some(Paint::Yellow));
    for cluster in &records.clusters {
        let (name, weight, balance) = (&cluster.name, cluster.weight.to_string(), &cluster.balance);
        let mut add = |endpoint: [String; 6]| {
            let mut row = vec![name.clone(), weight.clone()];
            row.extend(endpoint);
            if wide {
                row.push(balance.clone());
            }
            table.row(row);
        };
        let dash = || "-".to_owned();
        if cluster.endpoints.is_empty() {
            let state = if cluster.in_force { "no endpoint of this family" } else { "not in force" };
            add([dash(), dash(), percent(cluster.share), dash(), dash(), state.to_owned()]);
        }
        for endpoint in &cluster.endpoints {
            let counted = count(asked, name, &endpoint.address);
            let counted = (asked.asked > 0).then(|| percent(f64::from(counted) / f64::from(asked.asked)));
            let state = endpoint.left_out_seconds.map_or_else(
                || "in".to_owned(),
                |seconds| format!("left out for {seconds} s: connects to it failed"),
            );
            add([
                endpoint.address.clone(),
                endpoint.weight.to_string(),
                percent(endpoint.share),
                or_dash(counted),
                or_dash(endpoint.locality.as_ref()),
                state,
            ]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use slotmesh_admin::{OriginView, RateInForce};

    use super::*;

    #[test]
    fn limits_say_how_near_they_are() {
        let cluster = ExpectedCluster {
            name: "web".to_owned(),
            max_connections: Some(3),
            new_connections: Some(RateInForce { per_second: 5, burst: 9, per: "caller".to_owned() }),
            connections: Some(ConnectionsInForce { active: 3, opened: 9, refused: 4, too_fast: 2 }),
            ..ExpectedCluster::default()
        };
        let origin = |object: &str| OriginView {
            object: object.to_owned(),
            file: None,
            line: None,
            resource_version: None,
            makes: Vec::new(),
            reports: Vec::new(),
        };
        let origins = OriginsView {
            service: "shop/web".to_owned(),
            objects: vec![origin("Service shop/web"), origin("TrafficPolicy shop/web")],
            endpoints: Vec::new(),
        };
        let said = limits(&cluster, Some(&origins));
        assert!(said.iter().all(|said| said.ends_with(", by TrafficPolicy shop/web")), "{said:?}");
        assert!(said[0].starts_with("reached: ") && said[0].contains("3 of at most 3"), "{said:?}");
        assert!(
            said[0].contains("4 connects were refused") && said[1].contains("2 connects came"),
            "{said:?}"
        );
        let idle = ExpectedCluster { connections: None, new_connections: None, ..cluster };
        assert!(limits(&idle, None)[0].starts_with("0 of at most 3"));
    }

    #[test]
    fn a_node_is_called_by_its_name_and_place() {
        let node = |name: &str, zone: &str| NodeInForce {
            name: name.to_owned(),
            zone: zone.to_owned(),
            ..NodeInForce::default()
        };
        assert_eq!(on_node(&node("", "z1")), "");
        assert_eq!(on_node(&node("a", "")), " on node a");
        assert_eq!(on_node(&node("a", "z1")), " on node a (z1)");
    }
}
