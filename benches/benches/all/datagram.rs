//! Datagrams through a VIP beside direct, on loopback, in a network namespace of its own: sendto of an unconnected
//! socket, 64 bytes, and recvfrom of what is there already.
//!
//! Direct is measured by a process outside the mesh's cgroup, where no program runs at all.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::ensure;
use slotmesh_agent::Agent;
use slotmesh_bench::{Samples, row, section, show, time, verdict};
use slotmesh_xds::{
    Resource, ResourceType, Transport,
    envoy::envoy::config::listener::v3::{self as listener, listener_filter::ConfigType},
    envoy::envoy::extensions::filters::udp::udp_proxy::v3::{
        UdpProxyConfig, udp_proxy_config::RouteSpecifier,
    },
    envoy::google::protobuf::Any,
};

use crate::{
    clients::compare,
    connect::{Cgroup, publish, resources, socket_address, with_agent},
};

const BATCH: usize = 500;
const VIP: &str = "10.96.0.10:53";
const BYTES: usize = 64;
/// What the server answers; it takes all else in silence.
const QUESTION: u8 = b'?';

/// The listener of one service.
#[expect(deprecated, reason = "the form that is supported")]
fn udp_listener(vip: SocketAddr) -> Resource {
    let proxy = UdpProxyConfig {
        route_specifier: Some(RouteSpecifier::Cluster("web".to_owned())),
        ..Default::default()
    };
    let config = Any {
        type_url: "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig".to_owned(),
        value: Resource::encode(ResourceType::Listener, "proxy", &proxy).content.to_vec(),
    };
    let filter =
        listener::ListenerFilter { config_type: Some(ConfigType::TypedConfig(config)), ..Default::default() };
    let message = listener::Listener {
        address: Some(socket_address(Transport::Udp, vip)),
        udp_listener_config: Some(listener::UdpListenerConfig::default()),
        listener_filters: vec![filter],
        ..Default::default()
    };
    Resource::encode(ResourceType::Listener, "web", &message)
}

pub fn run() -> anyhow::Result<()> {
    section("UDP: datagrams through a VIP beside direct, loopback");
    with_agent("datagram", measure)
}

fn measure(agent: &Agent, cgroup: &Cgroup) -> anyhow::Result<()> {
    let server = UdpSocket::bind("127.0.0.1:0")?;
    let to = server.local_addr()?;
    let vip: SocketAddr = VIP.parse()?;
    let [cluster, endpoints, _] = resources(vip, to);
    publish(agent, [cluster, endpoints, udp_listener(vip)])?;
    std::thread::spawn(move || {
        let mut datagram = [0; BYTES];
        while let Ok((_, from)) = server.recv_from(&mut datagram) {
            if datagram[0] == QUESTION {
                drop(server.send_to(&datagram, from));
            }
        }
    });
    for (what, name, most) in
        [("send", "sendto(), 64 bytes, unconnected", 1.25), ("receive", "recvfrom()", 1.15)]
    {
        let child = ["child-datagram", what, &BATCH.to_string()];
        let [direct, mesh] = compare(&child, 1, [(to, None), (vip, Some(&cgroup.0))])?;
        let ratio = mesh.ratio(&direct);
        row(&format!("{name} direct, p50"), &show(direct.p50()), "");
        row(&format!("{name} through a VIP, p50"), &show(mesh.p50()), "");
        row("through a VIP / direct", &format!("{ratio:.3}"), &verdict(ratio <= most, &most.to_string()));
    }
    Ok(())
}

/// Sends, or receives, so often when told to.
pub fn child(what: &str, batch: usize, rounds: usize, target: SocketAddr) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    let mut socket = None;
    for _ in 0..rounds {
        let mut order = String::new();
        if stdin.read_line(&mut order)? == 0 {
            return Ok(());
        }
        // Made once it has been moved to its cgroup.
        let socket = match &socket {
            Some(socket) => socket,
            None => {
                let made = UdpSocket::bind("0.0.0.0:0")?;
                made.set_read_timeout(Some(Duration::from_secs(10)))?;
                socket.insert(made)
            }
        };
        let mut times = Vec::with_capacity(batch);
        for _ in 0..batch {
            times.push(if what == "send" { send(socket, target)? } else { receive(socket, target)? });
        }
        println!("{}", Samples::new(times).p50().as_nanos());
    }
    Ok(())
}

fn send(socket: &UdpSocket, target: SocketAddr) -> anyhow::Result<Duration> {
    let (sent, took) = time(|| socket.send_to(&[0; BYTES], target));
    ensure!(sent? == BYTES, "a datagram is sent whole");
    Ok(took)
}

/// Only the taking of an answer that is there is measured.
fn receive(socket: &UdpSocket, target: SocketAddr) -> anyhow::Result<Duration> {
    socket.send_to(&[QUESTION; BYTES], target)?;
    let mut answer = [0; BYTES];
    socket.peek(&mut answer)?;
    let (received, took) = time(|| socket.recv_from(&mut answer));
    ensure!(received?.1 == target, "the answer comes from what was asked");
    Ok(took)
}
