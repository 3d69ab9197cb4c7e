//! The objects behind the answer, told by whoever compiles them.

use std::fmt::Write as _;

use slotmesh_admin::{OriginsView, paths};

use super::compare::LeftOut;
use crate::{
    ask::{AdminSite, encoded},
    render::Paint,
};

/// The objects behind a listener; `None` where there are none, or nobody answers.
pub fn origins(server: &AdminSite, listener: &str) -> Option<OriginsView> {
    server.find(&format!("{}/{}", paths::ORIGINS, encoded(listener))).ok().flatten()
}

/// Objects, with what is to be said of them, and endpoints that no connection goes to.
pub fn text(origins: &OriginsView, left_out: &[LeftOut]) -> String {
    let mut text = format!("\nBecause of (Service {}):\n", origins.service);
    for origin in &origins.objects {
        let file = origin.file.as_ref().map(|file| {
            let line = origin.line.map_or(String::new(), |line| format!(":{line}"));
            format!("{file}{line}")
        });
        let version = origin.resource_version.as_ref().map(|version| format!("resourceVersion {version}"));
        let place = file.or(version).map_or(String::new(), |place| format!(" ({place})"));
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
    if origins.endpoints.is_empty() {
        text += "No EndpointSlice of the Service names an endpoint: no Pod matches its selector, or none has an address.\n";
    }
    if !left_out.is_empty() {
        text += "Endpoints that these connections don't go to:\n";
    }
    left_out.iter().for_each(|one| _ = writeln!(text, "  {}", one.text()));
    text
}
