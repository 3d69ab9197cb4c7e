//! Who may depend on whom: the rooms of the design, kept by a check and not by promise.
//!
//! ```text
//! records <- slots <- agent -> xds        crds <- operator -> xds
//! ```
//!
//! operator and agent never meet but in `cli`, `e2e` and the benches, which wire them. Three rules:
//!
//! 1. [`ROOMS`] names, for each workspace crate, every workspace crate that it may use. A crate that
//!    is not in the table fails the check, so a new crate is placed on purpose.
//! 2. [`NEVER`] names outside crates that don't belong in a room: the slot engine knows no xDS, the
//!    compiler no socket, the server no Kubernetes object, the agent no Kubernetes at all.
//! 3. A variant, such as `slotmesh-agent-next` (the agent with another record layout, see
//!    `e2e/next-layout`), has the place of its original, and only variants use variants.
//!
//! All look at direct dependencies: what lies behind an allowed crate is that crate's matter, and
//! has its own line.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::cmd::host_cargo;
use crate::workspace::Workspace;

/// A crate's line in the table.
struct Room {
    name: &'static str,
    /// Crates that it may use.
    uses: &'static [&'static str],
    /// Crates that its tests may use besides.
    tests_use: &'static [&'static str],
}

const fn room(name: &'static str, uses: &'static [&'static str]) -> Room {
    Room { name, uses, tests_use: &[] }
}

/// Suffix of a variant's name, after that of its original.
const VARIANT: &str = "-next";

/// Crates that the command line wires for the standalone mode: both sides, and the types of their public
/// settings and reports; and those that it reads the state of a mesh by. Never what lies below them (kernel, records).
const COMMAND_LINE: &[&str] = &[
    "slotmesh-admin",
    "slotmesh-ads",
    "slotmesh-agent",
    "slotmesh-broker",
    "slotmesh-compile",
    "slotmesh-crds",
    "slotmesh-feed",
    "slotmesh-operator",
    "slotmesh-proxy",
    "slotmesh-routing",
    "slotmesh-serve",
    "slotmesh-slots",
    "slotmesh-xds",
];

const ROOMS: &[Room] = &[
    room("slotmesh-records-derive", &[]),
    room("slotmesh-records", &["slotmesh-records-derive"]),
    room("slotmesh-kernel", &["slotmesh-records"]),
    room("slotmesh-slots", &["slotmesh-kernel", "slotmesh-records"]),
    room("slotmesh-xds", &[]),
    // Types that both ends of an admin interface share.
    room("slotmesh-admin", &[]),
    Room {
        name: "slotmesh-ads",
        uses: &["slotmesh-xds"],
        // Client and server are tested against each other; only here does the agent's side see it.
        tests_use: &["slotmesh-serve"],
    },
    room(
        "slotmesh-agent",
        &[
            "slotmesh-admin",
            "slotmesh-ads",
            "slotmesh-broker",
            "slotmesh-kernel",
            "slotmesh-records",
            "slotmesh-slots",
            "slotmesh-xds",
        ],
    ),
    room("slotmesh-crds", &[]),
    Room {
        name: "slotmesh-compile",
        uses: &["slotmesh-crds", "slotmesh-xds"],
        tests_use: &["slotmesh-builders"],
    },
    // Objects for tests, fuzzing and benches.
    room("slotmesh-builders", &["slotmesh-compile", "slotmesh-crds"]),
    room("slotmesh-serve", &["slotmesh-xds"]),
    Room {
        name: "slotmesh-operator",
        uses: &["slotmesh-compile", "slotmesh-crds", "slotmesh-serve", "slotmesh-xds"],
        // What it watches is tested on a real API server.
        tests_use: &["slotmesh-builders", "slotmesh-cluster"],
    },
    // Decides requests, and knows no socket.
    room("slotmesh-broker", &["slotmesh-kernel"]),
    room("slotmesh-routing", &["slotmesh-xds"]),
    room("slotmesh-proxy", &["slotmesh-routing", "slotmesh-xds"]),
    Room {
        name: "slotmesh-feed",
        uses: &["slotmesh-ads", "slotmesh-broker", "slotmesh-proxy", "slotmesh-xds"],
        // The agent's end is the delta ADS server, which the command line wires to it.
        tests_use: &["slotmesh-serve"],
    },
    room("slotmesh", COMMAND_LINE),
    Room {
        name: "slotmesh-next",
        uses: COMMAND_LINE,
        // In what they differ, it and its original.
        tests_use: &["slotmesh-records"],
    },
    // A Kubernetes cluster for tests: knows nothing of the product.
    room("slotmesh-cluster", &[]),
    room("slotmesh-e2e", &["slotmesh", "slotmesh-agent", "slotmesh-cluster", "slotmesh-operator"]),
    // Measures the parts one by one, so it sees them all.
    room(
        "slotmesh-bench",
        &[
            "slotmesh-ads",
            "slotmesh-agent",
            "slotmesh-builders",
            "slotmesh-cluster",
            "slotmesh-compile",
            "slotmesh-crds",
            "slotmesh-e2e",
            "slotmesh-kernel",
            "slotmesh-operator",
            "slotmesh-proxy",
            "slotmesh-records",
            "slotmesh-routing",
            "slotmesh-serve",
            "slotmesh-slots",
            "slotmesh-xds",
        ],
    ),
    // Feeds both sides what comes from outside, and each what the other makes of it.
    room(
        "slotmesh-fuzz",
        &[
            "slotmesh-ads",
            "slotmesh-agent",
            "slotmesh-kernel",
            "slotmesh-operator",
            "slotmesh-proxy",
            "slotmesh-records",
            "slotmesh-routing",
            "slotmesh-serve",
            "slotmesh-slots",
            "slotmesh-xds",
        ],
    ),
    room("xtask", &[]),
];

/// The agent's crates, and the operator's: none of one reaches one of the other.
#[cfg(test)]
const AGENT: [&str; 4] = ["slotmesh-ads", "slotmesh-agent", "slotmesh-kernel", "slotmesh-slots"];
#[cfg(test)]
const OPERATOR: [&str; 4] = ["slotmesh-compile", "slotmesh-crds", "slotmesh-operator", "slotmesh-serve"];

const KUBERNETES: &[&str] = &["k8s-openapi", "kube", "kube-client", "kube-core", "kube-runtime"];
const XDS: &[&str] = &["envoy-types", "prost", "tonic", "tonic-prost"];
const SOCKETS: &[&str] = &["hyper", "hyper-util", "tokio", "tokio-stream", "tonic"];

/// Outside crates that a room does without, in tests too.
const NEVER: &[(&str, &[&[&str]])] = &[
    ("slotmesh-records", &[KUBERNETES, XDS, SOCKETS]),
    ("slotmesh-kernel", &[KUBERNETES, XDS]),
    ("slotmesh-slots", &[KUBERNETES, XDS]),
    ("slotmesh-xds", &[KUBERNETES, SOCKETS]),
    ("slotmesh-admin", &[KUBERNETES, XDS, SOCKETS]),
    ("slotmesh-ads", &[KUBERNETES]),
    ("slotmesh-agent", &[KUBERNETES]),
    ("slotmesh-compile", &[SOCKETS, &["kube-client", "kube-runtime"]]),
    ("slotmesh-serve", &[KUBERNETES]),
    ("slotmesh-broker", &[KUBERNETES, XDS, SOCKETS]),
    ("slotmesh-routing", &[KUBERNETES, SOCKETS]),
    ("slotmesh-proxy", &[KUBERNETES]),
    ("slotmesh-feed", &[KUBERNETES]),
];

/// One dependency that a manifest declares.
#[derive(Clone, Copy)]
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    /// Set where only tests, examples and benches of `from` use it.
    test_only: bool,
}

/// `cargo xtask layers`
pub fn run(workspace: &Workspace) -> Result<()> {
    let metadata = MetadataCommand::new()
        .cargo_path(host_cargo())
        .manifest_path(workspace.root().join("Cargo.toml"))
        // Manifests alone say what is declared: no registry, no lock file, no network.
        .no_deps()
        .exec()
        .context("cargo metadata failed")?;
    let (members, edges) = graph(&metadata);
    let violations = check(&members, &edges);
    if !violations.is_empty() {
        bail!("dependencies against the design:\n  {}", violations.join("\n  "));
    }
    eprintln!(
        "layers: {} crates, {} dependencies, all in the designed direction",
        members.len(),
        edges.len()
    );
    Ok(())
}

/// The workspace's crates, and every dependency that they declare, for whatever target and feature.
fn graph(metadata: &Metadata) -> (BTreeSet<&str>, Vec<Edge<'_>>) {
    let packages = metadata.workspace_packages();
    let members = packages.iter().map(|package| package.name.as_str()).collect();
    let edges = packages
        .iter()
        .flat_map(|package| {
            package.dependencies.iter().map(|dependency| Edge {
                from: package.name.as_str(),
                to: dependency.name.as_str(),
                test_only: dependency.kind == DependencyKind::Development,
            })
        })
        .collect();
    (members, edges)
}

/// The crate of which this one is a variant; else itself.
fn original(name: &str) -> &str {
    name.strip_suffix(VARIANT).unwrap_or(name)
}

fn is_variant(name: &str) -> bool {
    original(name) != name
}

/// Faults of a graph, one sentence each.
fn check(members: &BTreeSet<&str>, edges: &[Edge<'_>]) -> Vec<String> {
    let exactly = |name: &str| ROOMS.iter().find(|room| room.name == name);
    let find = |name: &str| exactly(name).or_else(|| exactly(original(name)));
    let mut violations: Vec<String> = members
        .iter()
        .filter(|member| find(member).is_none())
        .map(|member| format!("{member} has no place yet: give it a line in xtask/src/layers.rs"))
        .collect();
    for &Edge { from, to, test_only } in edges {
        let Some(room) = find(from) else { continue };
        let place = original(to);
        let allowed = room.uses.contains(&place) || (test_only && room.tests_use.contains(&place));
        if members.contains(to) && !allowed {
            let what =
                if test_only { "must not depend on it, not even in tests" } else { "must not depend on it" };
            violations.push(format!("{from} -> {to}: {from} {what}"));
        }
        if is_variant(to) && !is_variant(from) {
            violations.push(format!("{from} -> {to}: only variants use variants"));
        }
        let never = NEVER.iter().filter(|(name, _)| *name == original(from)).flat_map(|(_, groups)| *groups);
        if never.clone().any(|group| group.contains(&to)) {
            violations.push(format!("{from} -> {to}: this outside crate doesn't belong there"));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> BTreeSet<&'static str> {
        ROOMS.iter().map(|room| room.name).collect()
    }

    fn uses(from: &'static str, to: &'static str) -> Edge<'static> {
        Edge { from, to, test_only: false }
    }

    fn tests_use(from: &'static str, to: &'static str) -> Edge<'static> {
        Edge { from, to, test_only: true }
    }

    #[test]
    fn this_workspace_keeps_the_designed_direction() {
        run(&Workspace::locate().unwrap()).unwrap();
    }

    #[test]
    fn a_forbidden_dependency_is_found() {
        let forbidden = [
            uses("slotmesh-agent", "slotmesh-operator"),
            uses("slotmesh-operator", "slotmesh-agent"),
            uses("slotmesh-slots", "slotmesh-xds"),
            uses("slotmesh-records", "slotmesh-slots"),
            uses("slotmesh-serve", "slotmesh-crds"),
            uses("slotmesh-compile", "slotmesh-serve"),
            uses("slotmesh-e2e", "slotmesh-slots"),
            uses("slotmesh", "slotmesh-kernel"),
            uses("slotmesh-slots", "envoy-types"),
            uses("slotmesh-compile", "tokio"),
            tests_use("slotmesh-agent", "kube"),
        ];
        for edge in forbidden {
            let found = check(&members(), &[edge]);
            assert_eq!(found.len(), 1, "{} -> {}: {found:?}", edge.from, edge.to);
            assert!(found[0].starts_with(&format!("{} -> {}: ", edge.from, edge.to)), "{found:?}");
        }
    }

    #[test]
    fn allowed_and_outside_dependencies_pass() {
        let allowed = [
            uses("slotmesh-slots", "slotmesh-records"),
            uses("slotmesh", "slotmesh-agent"),
            uses("slotmesh", "slotmesh-operator"),
            uses("slotmesh-serve", "tokio"),
            tests_use("slotmesh-agent", "slotmesh-kernel"),
        ];
        assert_eq!(check(&members(), &allowed), Vec::<String>::new());
    }

    #[test]
    fn what_tests_may_use_the_product_may_not() {
        assert!(check(&members(), &[tests_use("slotmesh-ads", "slotmesh-serve")]).is_empty());
        assert_eq!(check(&members(), &[uses("slotmesh-ads", "slotmesh-serve")]).len(), 1);
    }

    #[test]
    fn a_variant_has_the_place_of_its_original() {
        let mut members = members();
        members.extend(["slotmesh-records-next", "slotmesh-slots-next", "slotmesh-agent-next"]);
        for allowed in [
            uses("slotmesh-slots-next", "slotmesh-records-next"),
            uses("slotmesh-agent-next", "slotmesh-ads"),
            uses("slotmesh-next", "slotmesh-agent-next"),
            tests_use("slotmesh-next", "slotmesh-records-next"),
        ] {
            let found = check(&members, &[allowed]);
            assert_eq!(found, Vec::<String>::new());
        }
        for forbidden in [
            uses("slotmesh-records-next", "slotmesh-slots-next"),
            uses("slotmesh-next", "slotmesh-records-next"),
            uses("slotmesh-agent-next", "kube"),
            uses("slotmesh-slots", "slotmesh-records-next"),
            uses("slotmesh", "slotmesh-agent-next"),
        ] {
            let found = check(&members, &[forbidden]);
            assert_eq!(found.len(), 1, "{} -> {}: {found:?}", forbidden.from, forbidden.to);
        }
    }

    #[test]
    fn a_crate_without_a_place_fails() {
        let mut members = members();
        members.insert("slotmesh-new");
        let found = check(&members, &[]);
        assert!(found.len() == 1 && found[0].contains("slotmesh-new"), "{found:?}");
    }

    /// The table itself could be wrong: follow it from every crate of one side.
    #[test]
    fn the_table_lets_neither_side_reach_the_other() {
        for (side, other) in [(AGENT, OPERATOR), (OPERATOR, AGENT)] {
            for start in side {
                let mut reached = BTreeSet::new();
                let mut open = vec![start];
                while let Some(name) = open.pop() {
                    if reached.insert(name) {
                        open.extend(ROOMS.iter().find(|room| room.name == name).unwrap().uses);
                    }
                }
                assert!(other.iter().all(|name| !reached.contains(name)), "{start} reaches {reached:?}");
            }
        }
    }
}
