//! Where the connections of a workload to an address go, decided by the program in the kernel.
//!
//! The program decides by random numbers. It is asked about many connections, whose numbers lie evenly in the square
//! that the choices of cluster and endpoint span: so the answers are in the shares that many connections have, within
//! a few of a thousand, and they are the same each time.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use slotmesh_admin::{AskedInForce, ShareInForce, VerdictInForce};
use slotmesh_xds::Transport;
use tokio::task::spawn_blocking;

use crate::{
    agent::Handle,
    datapath::{ConnectAttempt, ConnectOutcome, Datapath, DatapathError},
    flatten::asked_key,
};

/// Number of connections that are asked about. One takes about a microsecond.
const ASKED: u32 = 2_048;

/// Steps of the points in the square, as parts of 2^32: the inverses of the plastic number and of its square. No sequence
/// of points is known to lie more evenly, whatever its length.
const STEPS: [u32; 2] = [3_242_174_889, 2_447_445_414];

/// Answers of the program.
#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    refused: u32,
    /// Numbers of connections by the hash of the cluster and the endpoint.
    routed: BTreeMap<(SocketAddr, u64), u32>,
}

/// The decisions about connections of a workload to an address.
///
/// # Errors
/// Where the kernel refuses to be asked.
pub(crate) async fn decided(
    agent: &Handle,
    [namespace, name]: [&str; 2],
    (to, protocol): (SocketAddr, Transport),
) -> Result<AskedInForce, DatapathError> {
    let datapath = agent.datapath().cloned();
    let caller = match &datapath {
        Some(datapath) => datapath.identity_in_force(namespace, name)?,
        None => None,
    };
    let tally = match (datapath.clone(), caller) {
        (Some(datapath), Some(caller)) => {
            let attempt = ConnectAttempt::to(to).in_protocol(protocol).of_identity(&caller);
            let asked = spawn_blocking(move || ask(&datapath, attempt)).await;
            Some(asked.unwrap_or_else(|_panicked| Ok(Tally::default()))?)
        }
        _ => None,
    };
    let class = datapath.iter().flat_map(|datapath| datapath.workloads());
    let class = class.filter(|workload| workload.namespace == namespace && workload.name == name);
    let class = class.filter_map(|workload| workload.class).next();
    let listener = agent.listener_at(asked_key(to, protocol)).await;
    let verdict = match &tally {
        None => VerdictInForce::NotAttached,
        Some(tally) if !tally.routed.is_empty() => VerdictInForce::Routed,
        Some(tally) if tally.refused > 0 => VerdictInForce::Refused,
        Some(_) => VerdictInForce::NotOurs,
    };
    let asked = if tally.is_some() { ASKED } else { 0 };
    let Tally { passed, refused, routed } = tally.unwrap_or_default();
    let hashes: HashSet<u64> = routed.keys().map(|(_, cluster)| *cluster).collect();
    let names = if hashes.is_empty() { Default::default() } else { agent.cluster_names(hashes).await };
    let share = |((address, cluster), count): ((SocketAddr, u64), u32)| ShareInForce {
        cluster: names.get(&cluster).cloned(),
        address: address.to_string(),
        count,
    };
    Ok(AskedInForce {
        to: to.to_string(),
        protocol: protocol.as_str().to_lowercase(),
        verdict,
        listener,
        class,
        asked,
        refused,
        passed,
        routed: routed.into_iter().map(share).collect(),
    })
}

fn ask(datapath: &Arc<Datapath>, attempt: ConnectAttempt) -> Result<Tally, DatapathError> {
    let mut tally = Tally::default();
    for number in 1..=ASKED {
        let [cluster, endpoint] = STEPS.map(|step| step.wrapping_mul(number));
        // Of two endpoints the less busy is taken: with the same number twice, each in its turn.
        match datapath.explain(attempt.choosing((cluster, endpoint)))? {
            ConnectOutcome::Pass => tally.passed += 1,
            ConnectOutcome::Refuse => tally.refused += 1,
            ConnectOutcome::Redirect { to, cluster } => *tally.routed.entry((to, cluster)).or_default() += 1,
        }
    }
    Ok(tally)
}

/// The protocol of this name.
pub(crate) fn protocol(name: &str) -> Option<Transport> {
    Transport::ALL.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(name))
}
