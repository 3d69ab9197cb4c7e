//! The objects behind the answer, told by whoever compiles them.

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr};

use slotmesh_admin::{OriginsView, paths};

use super::expected::Expected;
use crate::{
    ask::{AskedAgent, encoded},
    render::Paint,
};

/// The objects behind a listener; `None` where nobody answers who compiles them.
pub fn origins(asked: &AskedAgent, served_by: Option<SocketAddr>, listener: &str) -> Option<OriginsView> {
    let page = format!("{}/{}", paths::ORIGINS, encoded(listener));
    let sites = asked.servers(served_by).unwrap_or_default();
    sites.iter().find_map(|site| site.find(&page).ok().flatten())
}

/// Objects, with what is to be said of them, and endpoints that no connection goes to.
pub fn text(origins: &OriginsView, records: Option<&Expected>) -> String {
    let mut text = format!("\nBecause of (Service {}):\n", origins.service);
    for origin in &origins.objects {
        let place = origin.file.as_ref().map_or(String::new(), |file| {
            let line = origin.line.map_or(String::new(), |line| format!(":{line}"));
            format!(" ({file}{line})")
        });
        let makes = match origin.makes.as_slice() {
            [] => String::new(),
            makes => format!(": makes {}", makes.join(", ")),
        };
        _ = writeln!(text, "  {}{place}{makes}", origin.object);
        for report in &origin.reports {
            let said = format!("{}: {}", report.severity, report.text());
            _ = writeln!(text, "    {}", Paint::Yellow.on(&said));
        }
    }
    let chosen: BTreeSet<&str> = records
        .iter()
        .flat_map(|records| records.clusters.iter().flat_map(|cluster| &cluster.endpoints))
        .filter_map(|endpoint| Some(endpoint.address.rsplit_once(':')?.0.trim_matches(['[', ']'])))
        .collect();
    let mut left_out =
        origins.endpoints.iter().filter(|one| !chosen.contains(one.address.as_str())).peekable();
    if left_out.peek().is_some() {
        text += "Endpoints that these connections don't go to:\n";
    }
    for endpoint in left_out {
        let pod = endpoint.pod.as_ref().map_or(String::new(), |pod| format!(", Pod {pod}"));
        let why = match endpoint.readiness.as_str() {
            "ready" => "ready, but in no cluster that they are led to, or not for callers on this node",
            other => other,
        };
        _ = writeln!(text, "  {}: {why} ({}{pod})", endpoint.address, endpoint.slice);
    }
    text
}
