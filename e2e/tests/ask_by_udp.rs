//! A user's workload asks services by UDP: name servers above all.

use std::{
    fs,
    net::SocketAddr,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use serde_json::json;
use slotmesh_e2e::{
    Ask, Backends, Cgroup, ClientSpec, Log, Mesh, isolated,
    manifests::{istio, service, slice},
    mesh::at,
    net, stats, wait,
};

const V4: &str = "10.96.0.53";
const V6: &str = "fd00:96::53";
const TARGET: u16 = 5353;
const PODS: [u16; 3] = [1, 2, 3];

fn addresses() -> [SocketAddr; 3] {
    [at(V4, 53), at(V6, 53), at(&format!("::ffff:{V4}"), 53)]
}

fn pods(id: u16) -> [String; 2] {
    [format!("127.1.0.{id}"), format!("fd00:1::{id}")]
}

/// A Service with one port in both protocols, as name servers have it, and these pods.
fn objects(ids: &[u16]) -> Vec<serde_json::Value> {
    let slice_of = |name| slice(name, "dns").udp_port("dns", TARGET).named_port("dns-tcp", TARGET);
    let [mut four, mut six] = [slice_of("dns-v4"), slice_of("dns-v6")];
    for id in ids {
        let [v4, v6] = pods(*id);
        (four, six) = (four.endpoint(&v4), six.endpoint(&v6));
    }
    if ids.is_empty() {
        six = six.endpoint_with("fd00:1::9", json!({"ready": false}));
    }
    let dns = service("dns").ip(V4).ip(V6).udp_port("dns", 53).named_port("dns-tcp", 53, "dns-tcp");
    vec![dns.build(), four.build(), six.build()]
}

fn open(backends: &mut Backends) -> Result<()> {
    for id in PODS {
        let [v4, v6] = pods(id);
        net::add_loopback_v6(&v6)?;
        for ip in [&v4, &v6] {
            backends.open_udp(&at(ip, TARGET).to_string(), id)?;
            // Those of TCP say who they are, too.
            backends.open(&at(ip, TARGET).to_string(), 100 + id)?;
        }
    }
    Ok(())
}

/// Other pods from now on: returns when sockets that ask anew find no others.
fn replace_pods(mesh: &Mesh, to: SocketAddr, ids: &[u16]) -> Result<()> {
    mesh.manifests.write("mesh.yaml", &objects(ids))?;
    wait::until_true("the pods that are gone to be asked no more", || {
        let found = ask(mesh, to, Ask::Each, 60)?.by_backend();
        Ok(found.into_keys().all(|id| ids.contains(&id)))
    })
}

fn ask(mesh: &Mesh, to: SocketAddr, how: Ask, count: u64) -> Result<Log> {
    ClientSpec::to(to).count(count).udp(how).run(Some(&mesh.cgroup))
}

#[test]
fn and_the_answer_comes_from_the_cluster_address() {
    isolated(|| {
        let mut mesh = Mesh::with(&objects(&PODS))?;
        open(&mut mesh.backends)?;
        for to in addresses() {
            for how in [Ask::Each, Ask::Connected] {
                let log = ask(&mesh, to, how, 600)?;
                log.expect_all(600)?;
                let other = log.connects.iter().find(|c| c.peer != Some(to));
                ensure!(other.is_none(), "the answer isn't of {to}: {other:?}");
                let counts: Vec<_> = log.by_backend().into_values().collect();
                stats::expect_fit(&counts, &[1; 3])?;
            }
            // The same port in TCP is another one.
            let log = mesh.connect(to, 100)?;
            log.expect_all(100)?;
            ensure!(log.by_backend().into_keys().all(|id| id > 100), "{:?}", log.by_backend());
        }
        let metrics = mesh.agent()?.metrics()?;
        ensure!(metrics.get("slotmesh_agent_udp_flows_total") == 3.0 * 1_200.0, "each socket is a flow");
        ensure!(metrics.get("slotmesh_agent_udp_refused_total") == 0.0);
        mesh.stop()
    });
}

#[test]
fn one_socket_asks_several_and_keeps_the_endpoint_of_each() {
    isolated(|| {
        let mut objects = objects(&PODS);
        let other = slice("log", "log").udp_port("log", 514).endpoint("127.2.0.1").endpoint("127.2.0.2");
        objects.extend([service("log").ip("10.96.0.54").udp_port("log", 514).build(), other.build()]);
        let mut mesh = Mesh::with(&objects)?;
        open(&mut mesh.backends)?;
        for (ip, id) in [("127.2.0.1:514", 501), ("127.2.0.2:514", 502)] {
            mesh.backends.open_udp(ip, id)?;
        }
        let [dns, ..] = addresses();
        let log = at("10.96.0.54", 514);
        // The last is no service's.
        let direct = at("127.3.0.1", TARGET);
        mesh.backends.open_udp(&direct.to_string(), 901)?;
        let spec = ClientSpec::to(dns).and(log).and(direct).count(300).udp(Ask::All);
        let asked = spec.run(Some(&mesh.cgroup))?;
        asked.expect_all(300)?;
        for to in [dns, log, direct] {
            let of = asked.to(to);
            ensure!(of.connects.iter().all(|c| c.peer == Some(to)), "an answer isn't of {to}");
            ensure!(of.by_backend().len() == 1, "{to} kept to {:?}", of.by_backend());
        }
        mesh.stop()
    });
}

#[test]
fn and_moves_on_when_an_endpoint_goes() {
    isolated(|| {
        let mut mesh = Mesh::with(&objects(&PODS))?;
        open(&mut mesh.backends)?;
        let [to, ..] = addresses();
        let spec = ClientSpec::to(to).count(u64::MAX).gap(500).udp(Ask::All).least(1);
        let clients = (0..8).map(|_| spec.start(Some(&mesh.cgroup))).collect::<Result<Vec<_>>>()?;
        // The old endpoint answers on while it isn't known to be gone.
        replace_pods(&mesh, to, &[2, 3])?;
        for ip in pods(1) {
            mesh.backends.close_udp(&at(&ip, TARGET).to_string())?;
        }
        replace_pods(&mesh, to, &[3])?;
        for client in clients {
            let log = client.stop()?;
            let lost = log.connects.iter().filter(|c| c.errno != 0).count();
            ensure!(lost <= 1, "only what was on its way is lost, not {lost} of {}", log.len());
        }
        let log = ask(&mesh, to, Ask::Each, 50)?;
        ensure!(log.by_backend().into_keys().eq([3]), "{:?}", log.by_backend());
        mesh.stop()
    });
}

#[test]
fn and_one_without_endpoints_refuses_at_once_however_often() {
    isolated(|| {
        let mut mesh = Mesh::with(&objects(&[]))?;
        for to in addresses() {
            for how in [Ask::Each, Ask::Connected] {
                ask(&mesh, to, how, 200)?.expect_errno(Errno::ECONNREFUSED)?;
            }
        }
        ClientSpec::to(addresses()[0])
            .count(50_000)
            .udp(Ask::Each)
            .run(Some(&mesh.cgroup))?
            .expect_errno(Errno::ECONNREFUSED)?;
        let metrics = mesh.agent()?.metrics()?;
        ensure!(metrics.get("slotmesh_agent_udp_refused_total") == 51_200.0);
        ensure!(metrics.get("slotmesh_agent_sockets_recorded") == 0.0, "nothing is kept of them");
        // A port that the service doesn't have is none of ours, and leads nowhere.
        ask(&mesh, at(V4, 54), Ask::Each, 3)?.expect_errno(Errno::ENETUNREACH)?;
        mesh.stop()
    });
}

/// A ServiceEntry is for callers of its namespace, and a Sidecar lets others see no name server.
#[test]
fn and_callers_are_told_apart() {
    const V4: &str = "240.0.0.53";
    const V6: &str = "2001:db8::53";
    isolated(|| {
        let mut mesh = Mesh::new()?;
        let endpoint = |ip: &str| json!({"address": ip});
        let mut entry = istio(
            "ServiceEntry",
            "private",
            &json!({
                "hosts": ["dns.example.com"], "exportTo": ["."], "resolution": "STATIC", "addresses": [V4, V6],
                "ports": [{"number": 53, "name": "dns", "protocol": "UDP", "targetPort": TARGET}],
                "endpoints": pods(1).iter().map(|ip| endpoint(ip)).collect::<Vec<_>>(),
            }),
        );
        entry["metadata"]["namespace"] = json!("private");
        mesh.manifests.write("mesh.yaml", &objects(&PODS))?;
        mesh.manifests.write("entry.yaml", &[entry])?;
        open(&mut mesh.backends)?;
        let private = Cgroup::new()?;
        mesh.spec().workloads.push(("private/client".to_owned(), private.path().to_owned()));
        mesh.start()?;
        let ask_as = |cgroup: &Cgroup, to, how| ClientSpec::to(to).count(20).udp(how).run(Some(cgroup));
        for to in [at(V4, 53), at(V6, 53)] {
            for how in [Ask::Each, Ask::Connected] {
                let log = ask_as(&private, to, how)?;
                log.expect_all(20)?;
                ensure!(log.by_backend().into_keys().eq([1]), "{to}: {:?}", log.by_backend());
                ask_as(&mesh.cgroup, to, how)?.expect_errno(Errno::ENETUNREACH)?;
            }
        }
        let sidecar = json!({
            "egress": [{"hosts": ["./none"]}], "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
        });
        mesh.agent()?.published("listener", || {
            mesh.manifests.write("sidecar.yaml", &[istio("Sidecar", "default", &sidecar)])
        })?;
        for to in addresses() {
            for how in [Ask::Each, Ask::Connected] {
                wait::until_true("what isn't seen to be refused", || {
                    Ok(ask_as(&mesh.cgroup, to, how)?.expect_errno(Errno::ECONNREFUSED).is_ok())
                })?;
                ask_as(&private, to, how)?.expect_all(20)?;
            }
        }
        mesh.stop()
    });
}

#[test]
fn until_slotmesh_is_stopped() {
    isolated(|| {
        let mut mesh = Mesh::with(&objects(&PODS))?;
        open(&mut mesh.backends)?;
        let [to, ..] = addresses();
        ask(&mesh, to, Ask::Each, 10)?.expect_all(10)?;
        // Killed, it is routed on.
        mesh.kill()?;
        ask(&mesh, to, Ask::Each, 10)?.expect_all(10)?;
        mesh.start()?;
        ask(&mesh, to, Ask::Connected, 10)?.expect_all(10)?;
        mesh.stop()?;
        ask(&mesh, to, Ask::Each, 3)?.expect_errno(Errno::ENETUNREACH)
    });
}

/// The answer of a name server that knows one address for every name, and no IPv6 address.
fn resolve(question: &[u8]) -> Vec<u8> {
    const ADDRESS: [u8; 4] = [192, 0, 2, 7];
    const HEADER: usize = 12;
    let mut answer = question.to_vec();
    if question.len() < HEADER {
        return answer;
    }
    // The name ends with an empty label; then come type and class.
    let mut end = HEADER;
    while question.get(end).is_some_and(|&length| length != 0) {
        end += 1 + usize::from(question[end]);
    }
    let is_v4 = question.get(end + 1..end + 3) == Some(&[0, 1]);
    answer.truncate(end + 5);
    // A response, recursion available, no error; no further records than the answer.
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..HEADER].copy_from_slice(&[0, u8::from(is_v4), 0, 0, 0, 0]);
    if is_v4 {
        // The name of the question, A, IN, a minute, four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(ADDRESS);
    }
    answer
}

/// By the C library of this machine, whose resolver connects its sockets and refuses answers that come from elsewhere.
/// (`hosts`, because `ahosts` asks nobody where there is no device but loopback.)
#[test]
fn names_are_resolved_by_a_cluster_address() {
    isolated(|| {
        let mut mesh = Mesh::with(&objects(&[1]))?;
        for ip in pods(1) {
            if ip.contains(':') {
                net::add_loopback_v6(&ip)?;
            }
            mesh.backends.answer_udp(&at(&ip, TARGET).to_string(), resolve)?;
        }
        let dir = tempfile::tempdir()?;
        for server in [V4, V6] {
            let file = dir.path().join("resolv.conf");
            fs::write(&file, format!("nameserver {server}\noptions timeout:5 attempts:1\n"))?;
            // In a mount namespace of its own, in which that file is the machine's.
            let script = format!(
                "echo $$ > {}/cgroup.procs && mount --bind {} /etc/resolv.conf && exec getent hosts x.example",
                mesh.cgroup.path().display(),
                file.display()
            );
            let mut run = Command::new("unshare");
            run.args(["--mount", "sh", "-c", &script]).stdin(Stdio::null());
            let output = run.output().context("run unshare (Debian package util-linux)")?;
            let said = String::from_utf8_lossy(&output.stdout);
            ensure!(
                output.status.success() && said.contains("192.0.2.7"),
                "by {server}: {said} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        mesh.stop()
    });
}
