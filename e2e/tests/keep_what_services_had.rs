//! A pod joins the mesh and keeps what kube-proxy gave its Services: session affinity, local endpoints, hints for zones
//! and nodes, endpoints that end, external addresses, NodePorts. IPv4 and IPv6.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use serde_json::{Value, json};
use slotmesh_e2e::{
    Ask, ClientSpec, Log, Mesh, isolated,
    manifests::{service, slice},
    mesh::at,
    net, wait,
};

const V4: &str = "10.96.0.60";
const V6: &str = "fd00:96::60";
const TARGET: u16 = 8080;
/// How many pods there are, of both families; a server's id is the pod's number.
const PODS: u16 = 6;

fn v4(pod: u16) -> String {
    format!("127.3.0.{pod}")
}

fn v6(pod: u16) -> String {
    format!("fd00:3::{pod}")
}

/// Both cluster IPs, and the first as an IPv6 socket may name it.
fn vips() -> [SocketAddr; 3] {
    [at(V4, 80), at(V6, 80), at(&format!("::ffff:{V4}"), 80)]
}

/// A mesh whose pods' servers run, and that has been started with these arguments and objects.
fn mesh(args: &[&str], objects: &[Value]) -> Result<Mesh> {
    let mut mesh = Mesh::new()?;
    for pod in 1..=PODS {
        net::add_loopback_v6(&v6(pod))?;
        for ip in [v4(pod), v6(pod)] {
            mesh.backends.open(&at(&ip, TARGET).to_string(), pod)?;
        }
    }
    mesh.manifests.write("web.yaml", objects)?;
    mesh.spec().args.extend(args.iter().map(ToString::to_string));
    mesh.start()?;
    Ok(mesh)
}

/// The Service `web` with a spec that has these fields besides.
fn web(spec: &Value) -> Value {
    let mut web = service("web").ip(V4).ip(V6).port(80).build();
    for (field, value) in spec.as_object().into_iter().flatten() {
        web["spec"][field] = value.clone();
    }
    web
}

/// Its EndpointSlices: pods, each with what an endpoint says besides.
fn slices(pods: &[(u16, Value)]) -> [Value; 2] {
    [("web-v4", "IPv4"), ("web-v6", "IPv6")].map(|(name, family)| {
        let address = if family == "IPv4" { v4 } else { v6 };
        let mut slice = slice(name, "web").port(TARGET).build();
        let endpoint = |(pod, fields): &(u16, Value)| {
            let mut endpoint = json!({"addresses": [address(*pod)], "conditions": {"ready": true}});
            for (field, value) in fields.as_object().into_iter().flatten() {
                endpoint[field] = value.clone();
            }
            endpoint
        };
        slice["addressType"] = json!(family);
        slice["endpoints"] = pods.iter().map(endpoint).collect();
        slice
    })
}

fn objects(spec: &Value, pods: &[(u16, Value)]) -> Vec<Value> {
    [web(spec)].into_iter().chain(slices(pods)).collect()
}

fn plain(pods: impl IntoIterator<Item = u16>) -> Vec<(u16, Value)> {
    pods.into_iter().map(|pod| (pod, json!({}))).collect()
}

/// Who got connections to an address, all of which were made.
fn reached(mesh: &Mesh, vip: SocketAddr) -> Result<BTreeSet<u16>> {
    const CONNECTS: u64 = 120;
    let log = mesh.connect(vip, CONNECTS)?;
    log.expect_all(CONNECTS as usize)?;
    Ok(log.by_backend().into_keys().collect())
}

/// Connections to all addresses of the Service get these pods, all of them.
fn expect(mesh: &Mesh, pods: &[u16]) -> Result<()> {
    for vip in vips() {
        let reached = reached(mesh, vip)?;
        ensure!(reached == pods.iter().copied().collect(), "{vip}: {reached:?} instead of {pods:?}");
    }
    Ok(())
}

fn is_refused(log: &Log) -> bool {
    log.connects.iter().all(|connect| connect.errno == Errno::ECONNREFUSED as i32)
}

/// Writes the manifests anew, and waits until that is in force.
fn change(mesh: &Mesh, ty: &str, objects: &[Value]) -> Result<()> {
    mesh.agent()?.published(ty, || mesh.manifests.write("web.yaml", objects))?;
    Ok(())
}

#[test]
fn a_workload_keeps_to_its_endpoint() {
    isolated(|| {
        let sticky = json!({"sessionAffinity": "ClientIP"});
        let mut mesh = mesh(&[], &objects(&sticky, &plain(1..=4)))?;
        let kept = |mesh: &Mesh| -> Result<[u16; 2]> {
            let [of_v4, of_v6, of_mapped] = vips().map(|vip| reached(mesh, vip));
            let (of_v4, of_v6) = (of_v4?, of_v6?);
            ensure!(of_v4 == of_mapped?, "an IPv4 address in its IPv6 form is the same address");
            ensure!((of_v4.len(), of_v6.len()) == (1, 1), "{of_v4:?} {of_v6:?}");
            Ok([of_v4.into_iter().sum(), of_v6.into_iter().sum()])
        };
        let first = kept(&mesh)?;
        // Others come and go.
        change(&mesh, "endpoints", &objects(&sticky, &plain(1..=6)))?;
        ensure!(kept(&mesh)? == first);
        let others = (1..=6).filter(|pod| first.contains(pod) || pod % 2 == 0);
        change(&mesh, "endpoints", &objects(&sticky, &plain(others)))?;
        ensure!(kept(&mesh)? == first);
        // Another agent.
        mesh.spec().keep = true;
        mesh.kill()?;
        ensure!(kept(&mesh)? == first, "nobody is needed for it");
        mesh.start()?;
        ensure!(kept(&mesh)? == first);
        // Its endpoint goes.
        let others = || (1..=6).filter(|pod| !first.contains(pod));
        change(&mesh, "endpoints", &objects(&sticky, &plain(others())))?;
        let next = kept(&mesh)?;
        ensure!(next.iter().all(|pod| !first.contains(pod)), "{next:?} {first:?}");
        change(&mesh, "endpoints", &objects(&sticky, &plain(1..=6)))?;
        ensure!(kept(&mesh)? == next, "who comes back has no claim");
        let metrics = mesh.agent()?.metrics()?;
        ensure!(metrics.get("slotmesh_agent_affinities") == 2.0);
        ensure!(metrics.get("slotmesh_agent_affinities_evicted_total") == 0.0);
        // And without it, by chance.
        change(&mesh, "cluster", &objects(&json!({"sessionAffinity": "None"}), &plain(1..=6)))?;
        expect(&mesh, &[1, 2, 3, 4, 5, 6])?;
        mesh.spec().keep = false;
        mesh.stop()?;
        mesh.start()?;
        mesh.stop()
    });
}

#[test]
fn who_was_quiet_for_the_time_chooses_anew() {
    isolated(|| {
        let sticky = json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}},
        });
        let mut mesh = mesh(&[], &objects(&sticky, &plain(1..=6)))?;
        for vip in [at(V4, 80), at(V6, 80)] {
            let mut seen = BTreeSet::new();
            // Two of them by chance: 1 of 10^9 that it isn't so.
            for _ in 0..12 {
                let log = mesh.connect(vip, 1)?;
                log.expect_all(1)?;
                seen.extend(log.by_backend().into_keys());
                if seen.len() > 1 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1_100));
            }
            ensure!(seen.len() > 1, "{vip}: {seen:?}");
        }
        mesh.stop()
    });
}

#[test]
fn a_local_service_has_the_endpoints_of_its_node_also_those_that_end() {
    isolated(|| {
        let local = json!({"internalTrafficPolicy": "Local"});
        let on = |node: &str| json!({"nodeName": node});
        let ending = |node: &str| json!({"nodeName": node, "conditions": {"ready": false, "serving": true, "terminating": true}});
        let gone = json!({"nodeName": "here", "conditions": {"ready": false, "serving": false, "terminating": true}});
        let mut mesh = mesh(
            &["--node-name", "here"],
            &objects(
                &local,
                &[
                    (1, on("here")),
                    (2, on("there")),
                    (3, ending("here")),
                    (4, on("here")),
                    (5, gone.clone()),
                    (6, json!({})),
                ],
            ),
        )?;
        expect(&mesh, &[1, 4])?;
        let of = [(2, on("there")), (3, ending("here")), (5, gone.clone()), (6, ending("there"))];
        change(&mesh, "endpoints", &objects(&local, &of))?;
        expect(&mesh, &[3])?;
        // Those of other nodes are no way out.
        change(&mesh, "endpoints", &objects(&local, &[(2, on("there")), (5, gone.clone())]))?;
        for vip in vips() {
            ensure!(is_refused(&mesh.connect(vip, 20)?), "{vip}");
        }
        // Of the whole cluster, they are.
        change(&mesh, "endpoints", &objects(&json!({}), &[(2, on("there")), (5, gone)]))?;
        expect(&mesh, &[2])?;
        mesh.stop()
    });
}

#[test]
fn hints_for_nodes_go_before_those_for_zones_and_one_that_is_missing_takes_all_away() {
    isolated(|| {
        let spec = json!({"trafficDistribution": "PreferSameNode"});
        let hinted = |zone: &str, node: &str| json!({"hints": {"forZones": [{"name": zone}], "forNodes": [{"name": node}]}});
        let zoned = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
        let args = ["--node-name", "here", "--node-labels", "topology.kubernetes.io/zone=a"];
        let all = [(1, hinted("a", "here")), (2, hinted("a", "there")), (3, hinted("b", "far"))];
        let mut mesh = mesh(&args, &objects(&spec, &all))?;
        expect(&mesh, &[1])?;
        // None on this node, some in this zone.
        change(&mesh, "endpoints", &objects(&spec, &all[1..]))?;
        expect(&mesh, &[2])?;
        change(
            &mesh,
            "endpoints",
            &objects(&spec, &[(1, hinted("a", "here")), (2, zoned("a")), (3, zoned("b"))]),
        )?;
        expect(&mesh, &[1, 2])?;
        // None in this zone.
        change(&mesh, "endpoints", &objects(&spec, &[(3, zoned("b")), (4, zoned("c"))]))?;
        expect(&mesh, &[3, 4])?;
        // One says nothing.
        change(&mesh, "endpoints", &objects(&spec, &[(1, zoned("a")), (3, zoned("b")), (5, json!({}))]))?;
        expect(&mesh, &[1, 3, 5])?;
        // One that isn't ready doesn't count.
        let unready = json!({"conditions": {"ready": false}});
        change(&mesh, "endpoints", &objects(&spec, &[(1, zoned("a")), (3, zoned("b")), (5, unready)]))?;
        expect(&mesh, &[1])?;
        mesh.stop()
    });
}

#[test]
fn affinity_is_among_the_endpoints_of_the_zone() {
    isolated(|| {
        let sticky = json!({"sessionAffinity": "ClientIP"});
        let zoned = |zone: &str| json!({"hints": {"forZones": [{"name": zone}]}});
        let args = ["--node-labels", "topology.kubernetes.io/zone=a"];
        let all = [(1, zoned("b")), (2, zoned("a")), (3, zoned("a")), (4, zoned("b"))];
        let mut mesh = mesh(&args, &objects(&sticky, &all))?;
        for vip in vips() {
            let reached = reached(&mesh, vip)?;
            ensure!(reached == [2].into() || reached == [3].into(), "{vip}: {reached:?}");
        }
        mesh.stop()
    });
}

#[test]
fn external_addresses_lead_to_the_service_but_never_from_another_one() {
    isolated(|| {
        const EXTERNAL: [&str; 2] = ["192.0.2.60", "2001:db8::60"];
        const BALANCER: [&str; 2] = ["192.0.2.61", "2001:db8::61"];
        let ingress = |ip: &&str| json!({"ip": ip, "ipMode": "VIP"});
        let mut web = web(&json!({
            "type": "LoadBalancer",
            "externalTrafficPolicy": "Local",
            // The last one is another Service's.
            "externalIPs": [EXTERNAL[0], EXTERNAL[1], "10.96.0.61"],
        }));
        web["status"] =
            json!({"loadBalancer": {"ingress": BALANCER.iter().map(ingress).collect::<Vec<_>>()}});
        let other = service("other").ip("10.96.0.61").port(80).build();
        let of_other = slice("other", "other").port(TARGET).endpoint(&v4(5)).build();
        let elsewhere = json!({"nodeName": "elsewhere"});
        let mut all = vec![web, other, of_other];
        all.extend(slices(&[(1, elsewhere.clone()), (2, elsewhere)]));
        let mut mesh = mesh(&["--node-name", "here"], &all)?;
        expect(&mesh, &[1, 2])?;
        for ip in EXTERNAL.into_iter().chain(BALANCER) {
            ensure!(reached(&mesh, at(ip, 80))? == [1, 2].into(), "{ip}");
        }
        ensure!(reached(&mesh, at("10.96.0.61", 80))? == [5].into());
        mesh.agent()?.expect_report(&["Service default/web", "spec.externalIPs", "10.96.0.61"])?;
        mesh.stop()
    });
}

#[test]
fn pods_that_are_not_ready_are_used_where_the_service_says_so_and_those_that_end_where_no_other_is() {
    isolated(|| {
        let ready = json!({});
        let ending = json!({"conditions": {"ready": false, "serving": true, "terminating": true}});
        let gone = json!({"conditions": {"ready": false, "serving": false, "terminating": true}});
        let of = [(1, ready), (2, ending.clone()), (3, gone.clone())];
        let mut mesh = mesh(&[], &objects(&json!({}), &of))?;
        expect(&mesh, &[1])?;
        change(&mesh, "endpoints", &objects(&json!({}), &[(2, ending), (3, gone)]))?;
        expect(&mesh, &[2])?;
        change(&mesh, "endpoints", &objects(&json!({}), &[]))?;
        for vip in vips() {
            ensure!(is_refused(&mesh.connect(vip, 20)?), "{vip}");
        }
        // Without slices of its own they are made of its pods, of which none is ready.
        let unready = |pod: u16| {
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": format!("web-{pod}"), "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "app", "ports": [{"name": "http", "containerPort": TARGET}]}]},
                "status": {
                    "phase": "Running",
                    "podIP": v4(pod),
                    "podIPs": [{"ip": v4(pod)}, {"ip": v6(pod)}],
                    "conditions": [{"type": "Ready", "status": "False"}],
                },
            })
        };
        let by_name = |spec: Value| {
            let mut web = web(&spec);
            web["spec"]["selector"] = json!({"app": "web"});
            web["spec"]["ports"] = json!([{"port": 80, "targetPort": "http"}]);
            vec![web, unready(4), unready(5)]
        };
        mesh.manifests.write("web.yaml", &by_name(json!({})))?;
        for vip in vips() {
            ensure!(is_refused(&mesh.connect(vip, 20)?), "{vip}");
        }
        let all = by_name(json!({"publishNotReadyAddresses": true}));
        change(&mesh, "endpoints", &all)?;
        expect(&mesh, &[4, 5])?;
        mesh.stop()
    });
}

/// A node's addresses answer at a NodePort as the Service does, in both protocols; other addresses don't.
#[test]
fn node_ports_are_addresses_of_the_service() {
    const NODE: [&str; 2] = ["127.30.0.5", "fd00:30::5"];
    const NODE_PORT: u16 = 30_080;
    isolated(|| {
        let node = |ips: &[&str]| {
            let addresses: Vec<Value> =
                ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "edge-1"}, "status": {"addresses": addresses}})
        };
        let ports = json!([
            {"name": "http", "port": 80, "nodePort": NODE_PORT},
            {"name": "ask", "port": 53, "protocol": "UDP", "nodePort": NODE_PORT},
        ]);
        let objects = |ips: &[&str], policy: &str| -> Vec<Value> {
            let spec = json!({"type": "NodePort", "ports": ports, "externalTrafficPolicy": policy});
            let mut slices = slices(&plain([1, 2]));
            for slice in &mut slices {
                slice["ports"] = json!([
                    {"name": "http", "port": TARGET},
                    {"name": "ask", "port": TARGET, "protocol": "UDP"},
                ]);
            }
            [web(&spec), node(ips)].into_iter().chain(slices).collect()
        };
        let mut mesh = mesh(&[], &objects(&NODE, "Cluster"))?;
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        for ip in NODE.into_iter().filter(|ip| ip.contains(':')) {
            net::add_loopback_v6(ip)?;
        }
        for pod in [1, 2] {
            for ip in [v4(pod), v6(pod)] {
                mesh.backends.open_udp(&at(&ip, TARGET).to_string(), pod)?;
            }
        }
        expect(&mesh, &[1, 2])?;
        let everywhere = NODE.map(|ip| at(ip, NODE_PORT));
        for to in everywhere {
            ensure!(reached(&mesh, to)? == BTreeSet::from([1, 2]), "{to} leads elsewhere");
            let log = ClientSpec::to(to).count(60).udp(Ask::Each).run(Some(&mesh.cgroup))?;
            log.expect_all(60)?;
            ensure!(log.connects.iter().all(|c| c.peer == Some(to)), "the answer is of another than {to}");
        }
        // At another address, and another port, nobody listens.
        for to in [at("127.30.0.6", NODE_PORT), at(NODE[0], NODE_PORT + 1), at("127.0.0.1", NODE_PORT)] {
            ensure!(is_refused(&mesh.connect(to, 3)?), "{to} is no NodePort");
        }
        // The node has another address.
        change(&mesh, "listener", &objects(&["127.30.0.6"], "Cluster"))?;
        wait::until_true("the new address to be served, and the old one not", || {
            let [new, old] = ["127.30.0.6", NODE[0]].map(|ip| mesh.connect(at(ip, NODE_PORT), 1));
            Ok(new?.connects[0].errno == 0 && is_refused(&old?))
        })?;
        // What asks for the endpoints of one node is kube-proxy's, and told.
        mesh.manifests.write("web.yaml", &objects(&["127.30.0.6"], "Local"))?;
        mesh.agent()?.expect_report(&[
            "Service default/web",
            "spec.externalTrafficPolicy",
            "left to kube-proxy",
        ])?;
        wait::until_true("the NodePort to be left alone", || {
            Ok(is_refused(&mesh.connect(at("127.30.0.6", NODE_PORT), 1)?))
        })?;
        expect(&mesh, &[1, 2])?;
        mesh.stop()
    });
}
