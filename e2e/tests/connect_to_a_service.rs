//! A user's workload connects to services by their cluster addresses.

use anyhow::{Result, ensure};
use nix::errno::Errno;
use slotmesh_e2e::{
    Cgroup, ClientSpec, Mesh, isolated,
    manifests::{service, slice},
    mesh::{at, reviews},
    net, stats,
};

/// getpeername of an IPv4-mapped connect answers the mapped address, as without slotmesh.
#[test]
fn by_ipv4_by_ipv6_and_by_ipv4_in_ipv6_and_getpeername_shows_the_cluster_address() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        for to in reviews::addresses() {
            let log = mesh.connect(to, 2_000)?;
            log.expect_all(2_000)?;
            let other = log.connects.iter().find(|c| c.peer != Some(to));
            ensure!(other.is_none(), "getpeername doesn't show {to}: {other:?}");
            let counts: Vec<_> = log.by_backend().into_values().collect();
            stats::expect_fit(&counts, &[1; 5])?;
        }
        Ok(())
    });
}

#[test]
fn with_several_ports_and_named_target_ports() {
    isolated(|| {
        net::add_loopback_v6("fd00:1::1")?;
        let mut mesh = Mesh::with(&[
            service("web")
                .ip("10.96.0.20")
                .ip("fd00:96::20")
                .named_port("http", 80, "www")
                .named_port("tcp-admin", 9000, "admin")
                .build(),
            slice("web-v4", "web")
                .named_port("http", 8080)
                .named_port("tcp-admin", 8081)
                .endpoint("127.1.0.1")
                .build(),
            slice("web-v6", "web")
                .named_port("http", 8080)
                .named_port("tcp-admin", 8081)
                .endpoint("fd00:1::1")
                .build(),
        ])?;
        for ip in ["127.1.0.1", "[fd00:1::1]"] {
            mesh.backends.open(&format!("{ip}:8080"), 80)?;
            mesh.backends.open(&format!("{ip}:8081"), 90)?;
        }
        for ip in ["10.96.0.20", "fd00:96::20", "::ffff:10.96.0.20"] {
            for (port, id) in [(80, 80), (9000, 90)] {
                let log = mesh.connect(at(ip, port), 100)?;
                log.expect_all(100)?;
                ensure!(log.by_backend().into_keys().eq([id]), "{ip} port {port}: {:?}", log.by_backend());
            }
            // A port that the service doesn't have is none of ours, and leads nowhere.
            mesh.connect(at(ip, 81), 3)?.expect_errno(Errno::ENETUNREACH)?;
        }
        Ok(())
    });
}

#[test]
fn and_what_is_no_service_is_left_alone() {
    isolated(|| {
        net::add_loopback_v6("fd00:1::9")?;
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        mesh.backends.open("127.9.0.1:80", 900)?;
        mesh.backends.open("[fd00:1::9]:80", 900)?;
        for ip in ["127.9.0.1", "fd00:1::9", "::ffff:127.9.0.1"] {
            let log = mesh.connect(at(ip, 80), 100)?;
            log.expect_all(100)?;
            ensure!(log.by_backend().into_keys().eq([900]), "{ip}: {:?}", log.by_backend());
            ensure!(log.connects.iter().all(|c| c.peer == Some(at(ip, 80))), "getpeername of {ip}");
        }
        // An endpoint's own address, too.
        let log = mesh.connect(at("127.1.2.1", 8080), 100)?;
        ensure!(log.by_backend().into_keys().eq([21]), "{:?}", log.by_backend());
        mesh.connect(at("10.96.0.99", 80), 3)?.expect_errno(Errno::ENETUNREACH)
    });
}

#[test]
fn and_one_without_endpoints_refuses_at_once() {
    isolated(|| {
        let mesh = Mesh::with(&[
            service("idle").ip("10.96.0.30").ip("fd00:96::30").port(80).build(),
            slice("idle-v4", "idle").port(8080).build(),
            service("sliceless").ip("10.96.0.31").port(80).build(),
        ])?;
        for to in ["10.96.0.30", "fd00:96::30", "::ffff:10.96.0.30", "10.96.0.31"] {
            mesh.connect(at(to, 80), 100)?.expect_errno(Errno::ECONNREFUSED)?;
        }
        Ok(())
    });
}

#[test]
fn from_two_workloads_and_nobody_else_is_affected() {
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let second = Cgroup::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        *mesh.spec() = mesh.spec().clone().workload("other/worker", second.path());
        mesh.start()?;
        reviews::open(&mut mesh.backends)?;
        let outside = Cgroup::new()?;
        for to in reviews::addresses() {
            let spec = ClientSpec::to(to).count(200);
            spec.run(Some(&mesh.cgroup))?.expect_all(200)?;
            spec.run(Some(&second))?.expect_all(200)?;
            spec.run(Some(&outside))?.expect_errno(Errno::ENETUNREACH)?;
            spec.run(None)?.expect_errno(Errno::ENETUNREACH)?;
        }
        mesh.stop()
    });
}

/// What the workload does after the agent has ended is as if there had never been one.
#[test]
fn until_slotmesh_is_stopped() {
    isolated(|| -> Result<()> {
        let mut mesh = Mesh::with(&reviews::objects())?;
        reviews::open(&mut mesh.backends)?;
        let [to, ..] = reviews::addresses();
        mesh.connect(to, 100)?.expect_all(100)?;
        mesh.stop()?;
        mesh.connect(to, 3)?.expect_errno(Errno::ENETUNREACH)
    });
}
