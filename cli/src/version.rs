//! `slotmesh version`: which builds there are at both ends of the command line.

use std::net::SocketAddr;

use axum::{Router, routing::get};
use clap::Args;
use serde::Serialize;
use slotmesh_admin::{VersionView, paths};
use slotmesh_agent::admin::json;

use crate::{
    ask::{AdminSite, AskedOperator},
    render::{Columns, OutputForm, or_dash, print},
};

/// The operator's page, and its content.
pub const PAGE: (&str, &str) = (paths::VERSION, "the version, JSON");

/// The route `/version` of an operator.
pub fn router() -> Router {
    Router::new().route(PAGE.0, get(|| async { json(&this_build("operator")) }))
}

/// The version of this build, without what only agents have.
fn this_build(component: &str) -> VersionView {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let (layout, kernel, hooks, features) = (None, None, Vec::new(), Vec::new());
    VersionView { component: component.to_owned(), version, layout, kernel, hooks, features }
}

/// The release of the kernel on which this runs.
pub fn kernel() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

/// The flags of `slotmesh version`.
#[derive(Debug, Args)]
pub struct VersionCommand {
    /// Tell of this program only
    #[arg(long, env = "SLOTMESH_CLIENT_ONLY")]
    client: bool,

    #[command(flatten)]
    asked: AskedOperator,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

/// A process and its version.
#[derive(Debug, Serialize)]
struct Found {
    /// Where it answers; not there for this program.
    address: Option<SocketAddr>,
    #[serde(flatten)]
    version: VersionView,
}

impl VersionCommand {
    /// Prints what it finds. Nobody has to answer.
    ///
    /// # Errors
    /// When it can't be printed.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { client, asked, output } = self;
        let mut found = vec![Found { address: None, version: this_build("client") }];
        let sites = if client { Ok(Vec::new()) } else { asked.sites() };
        let sites = sites.unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Vec::new()
        });
        let answer = |site: AdminSite| {
            let version = site.find(paths::VERSION).ok().flatten()?;
            Some(Found { address: Some(site.address()), version })
        };
        found.extend(sites.into_iter().filter_map(answer));
        let table = |wide| {
            let mut header = vec!["COMPONENT", "VERSION", "LAYOUT", "KERNEL", "ADDRESS"];
            if wide {
                header.extend(["HOOKS", "THE KERNEL LACKS"]);
            }
            let mut table = Columns::new(header);
            for Found { address, version } in &found {
                let VersionView { component, version, layout, kernel, hooks, features } = version;
                let mut cells = vec![
                    component.clone(),
                    version.clone(),
                    or_dash(layout.as_ref()),
                    or_dash(kernel.as_ref()),
                    or_dash(*address),
                ];
                if wide {
                    let lacks = features.iter().filter(|feature| !feature.available);
                    let lacks: Vec<&str> = lacks.map(|feature| feature.name.as_str()).collect();
                    let joined =
                        |all: &[&str], by: &str| or_dash(Some(all.join(by)).filter(|all| !all.is_empty()));
                    let hooks: Vec<&str> = hooks.iter().map(String::as_str).collect();
                    cells.extend([joined(&hooks, ","), joined(&lacks, "; ")]);
                }
                table.row(cells);
            }
            table
        };
        print(&output.of(&found, table)?)
    }
}
