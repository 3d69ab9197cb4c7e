//! How much one agent routes: 200,000 virtual addresses of a million possible, and a listener with 1,000 filter chains and
//! 1,000 addresses.

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use slotmesh_agent::{Agent, ConnectAttempt, ConnectOutcome, MapSizes, Options, Pins, metrics::Metrics};
use slotmesh_bench::{Samples, effort, row, section, show, verdict};
use slotmesh_kernel::Map;
use slotmesh_records::VipKey;
use slotmesh_slots::Config;
use slotmesh_xds::{
    Resource, ResourceType, Transport, envoy::envoy::config::listener::v3 as listener,
    envoy::google::protobuf::UInt32Value,
};

use crate::{
    connect::{assignment, chain_to, publish, resources, socket_address},
    pin_root,
};

const POSSIBLE: u32 = 1_000_000;
/// Listeners, and addresses of each.
const LISTENERS: u32 = 2_000;
const EACH: u32 = 100;
/// Filter chains of one listener, and its addresses.
const MANY: u16 = 1_000;
/// Bytes of the kernel's memory for an address: an element of a hash map that isn't allocated ahead.
const MOST_BYTES: f64 = 128.0;

/// The `n`th of all addresses.
fn address(n: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0a60_0000 + n), 80).into()
}

/// A listener with these addresses, and a chain for each of so many ports, or one for all.
fn listener(name: &str, addresses: &[SocketAddr], ports: u16) -> Resource {
    let (first, more) = addresses.split_first().expect("an address");
    let additional = more.iter().map(|at| listener::AdditionalAddress {
        address: Some(socket_address(Transport::Tcp, *at)),
        ..Default::default()
    });
    let of_port = |port: u16| listener::FilterChain {
        filter_chain_match: Some(listener::FilterChainMatch {
            destination_port: Some(UInt32Value { value: port.into() }),
            ..Default::default()
        }),
        ..chain_to(&format!("port-{port}"), "web")
    };
    let chains = if ports == 0 { vec![chain_to("", "web")] } else { (80..80 + ports).map(of_port).collect() };
    let message = listener::Listener {
        address: Some(socket_address(Transport::Tcp, *first)),
        additional_addresses: additional.collect(),
        filter_chains: chains,
        ..Default::default()
    };
    Resource::encode(ResourceType::Listener, name, &message)
}

pub fn run() -> anyhow::Result<()> {
    section("How much one agent routes");
    let options = Options {
        pin_root: pin_root("sizes"),
        slots: Config::default(),
        sockets: slotmesh_agent::memory::SOCKETS,
        maps: MapSizes { addresses: POSSIBLE, ..MapSizes::default() },
        workloads: Vec::new(),
        node: String::new(),
    };
    let pins = Pins::new(&options.pin_root);
    let agent = Agent::start(options, Arc::new(Metrics::new()))?;
    let result = measure(&agent, &pins);
    agent.remove()?;
    result
}

fn measure(agent: &Agent, pins: &Pins) -> anyhow::Result<()> {
    let to = "10.0.0.1:8080".parse()?;
    let [cluster, ..] = resources(address(0), to);
    publish(agent, [cluster, assignment("web", to, 1, 1)])?;
    let vips = Map::<VipKey, u64>::open(&pins.records().join("vips"))?.context("the addresses are pinned")?;
    let before = charged(&vips)?;
    let listeners = (0..LISTENERS).map(|n| {
        let addresses: Vec<SocketAddr> = (n * EACH..(n + 1) * EACH).map(address).collect();
        listener(&format!("l{n}"), &addresses, 0)
    });
    let listeners: Vec<Resource> = listeners.collect();
    let started = Instant::now();
    publish(agent, listeners)?;
    let took = started.elapsed();
    let all = LISTENERS * EACH;
    for n in [0, all / 2, all - 1] {
        ensure!(leads_on(agent, address(n))?, "{}", address(n));
    }
    row(
        &format!("{all} virtual addresses on one agent, {POSSIBLE} possible: entered within"),
        &show(took),
        "",
    );
    let each = (charged(&vips)? - before) / f64::from(all);
    row(
        "  kernel memory of each, of the map that leads to listeners",
        &format!("{each:.0} B"),
        &verdict(each <= MOST_BYTES, &format!("at most {MOST_BYTES:.0} B")),
    );
    row(
        &format!("  kernel memory of that map before, {POSSIBLE} possible"),
        &format!("{:.1} MiB", before / f64::from(1 << 20)),
        "",
    );

    let addresses: Vec<SocketAddr> = (all..all + u32::from(MANY)).map(address).collect();
    let mut times = Vec::new();
    for round in 0..effort(50).max(2) {
        // The order of its addresses is another one each time.
        let mut addresses = addresses.clone();
        addresses.rotate_left(round % usize::from(MANY));
        let resource = listener("wide", &addresses, MANY);
        let started = Instant::now();
        publish(agent, [resource])?;
        times.push(started.elapsed());
    }
    for at in [addresses[0], addresses[addresses.len() - 1]] {
        ensure!(leads_on(agent, at)?, "{at}");
    }
    let what =
        format!("a listener with {MANY} filter chains and {MANY} addresses: from its bytes to current, p50");
    row(&what, &show(Samples::new(times).p50()), "");
    Ok(())
}

/// Tells whether connections to an address go to an endpoint.
fn leads_on(agent: &Agent, to: SocketAddr) -> anyhow::Result<bool> {
    Ok(matches!(agent.datapath().explain(ConnectAttempt::to(to))?, ConnectOutcome::Redirect { .. }))
}

/// The bytes that the kernel charges for a map as it is now.
fn charged(map: &Map<VipKey, u64>) -> anyhow::Result<f64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?;
    let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("memlock")?;
    Ok(memlock.trim().parse()?)
}
