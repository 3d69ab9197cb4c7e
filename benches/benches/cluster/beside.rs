//! A connect through our VIP beside one through kube-proxy's, on the same node, with the same 1,000 Services.
//!
//! kube-proxy is Kubernetes' own, with nftables. All connect to one listener on loopback: a process outside of the mesh
//! by its address and by the Service's, which kube-proxy translates; one of an enrolled pod by the Service's, which the
//! programs replace before a packet is made.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::Result;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_bench::{row, section, show, verdict};
use slotmesh_cluster::wait;
use slotmesh_e2e::net;

use crate::{
    clients::compare_connects,
    load::{self, TARGET},
    world::World,
};

/// The network of the cluster's Services.
const SERVICES: &str = "10.96.0.0/12";

pub async fn run(world: &mut World) -> Result<()> {
    let services = world.services();
    section(&format!("A connection through a VIP beside kube-proxy (nftables), {services} Services"));
    let endpoint = SocketAddr::new(load::probe_endpoint(1).into(), TARGET);
    // Packets to a Service's address stay here, whether kube-proxy has translated them or not.
    net::ip(&format!("route add {SERVICES} dev lo src {}", endpoint.ip()))?;
    let listener = TcpListener::bind(endpoint)?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    world.start_operator()?;
    world.start_agent().await?;
    let vip = world.probe;
    // Else kube-proxy would answer for us, too.
    let kernel = world.kernel()?;
    wait::until_true("slotmesh to route the address", async || {
        Ok(matches!(kernel.explain(ConnectAttempt::to(vip).choosing((0, u32::MAX)))?, ConnectOutcome::Redirect { to, .. } if to == endpoint))
    })
    .await?;
    world.start_kube_proxy()?;
    wait::until_true("kube-proxy to serve the address", async || {
        Ok(TcpStream::connect_timeout(&vip, Duration::from_millis(100)).is_ok())
    })
    .await?;
    let [direct, theirs, ours] =
        compare_connects(1, [(endpoint, None), (vip, None), (vip, Some(world.pod()))])?;
    row("connect() + close() direct, p50", &show(direct.p50()), "");
    row("the same through kube-proxy's VIP", &show(theirs.p50()), "");
    row("the same through slotmesh's VIP", &show(ours.p50()), "");
    let ratio = ours.ratio(&theirs);
    row("slotmesh's / kube-proxy's", &format!("{ratio:.3}"), &verdict(ratio < 1.0, "less than 1"));
    Ok(())
}
