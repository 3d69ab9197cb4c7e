//! A proxy of a node with its agent's end of the stream, a socket broker of its own process and pods in real network
//! namespaces.

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use slotmesh_xds::{Change, Resource, ResourceType, Workload};
use support::{Backend, Node, Pod, cluster, endpoints, get, ip, listens, route, until};

const WEB: Ipv4Addr = Ipv4Addr::new(127, 20, 30, 40);

/// The broker of the other tests, which start this as a process: they kill it.
#[test]
#[ignore = "a process that other tests start"]
fn broker_process() {
    support::run_broker();
}

/// A node with one pod that asks `web`, which goes to a backend in the pod's own namespace.
fn node_with_pod(name: &str) -> (Node, Pod, Backend, u16) {
    let mut node = Node::new();
    let pod = Pod::new(node.folder(), name);
    let backend = Backend::start(&pod, "one");
    let port = node.enrol(&pod);
    node.apply(vec![
        Change::Upsert(cluster("a")),
        Change::Upsert(endpoints("a", &[backend.address])),
        Change::Upsert(route("web", "a")),
        Change::Upsert(slotmesh_xds::proxy_listener(WEB, "web")),
        Change::Upsert(pod.workload(port)),
    ]);
    node.start_proxy();
    node.until_acknowledged(&pod.workload(port));
    (node, pod, backend, port)
}

#[test]
fn requests_of_a_pod_follow_what_the_agent_says() {
    let (mut node, pod, backend, port) = node_with_pod("pod-1");
    assert!(node.sink().is_synced());
    assert_eq!(get(&pod, WEB, port), "one");
    assert_eq!(*backend.peers.lock().unwrap(), [Pod::ADDRESS], "the backend sees the pod's own address");
    // From IPv6 sockets, which see the address mapped.
    let mapped = pod.run(move || support::ask(TcpStream::connect((WEB.to_ipv6_mapped(), port)).unwrap()));
    assert_eq!(mapped, "one");
    // What is refused is named, and the one before stays.
    let (bad, before) = (Resource::encoded(ResourceType::Route, "web", vec![0xff; 7]), route("web", "a"));
    let refused = |node: &Node, bad: &Resource| {
        let said = node.rejected(ResourceType::Route);
        said.iter().any(|rejected| rejected.name == bad.name && rejected.version == Some(bad.version))
    };
    node.apply(vec![Change::Upsert(bad.clone())]);
    until("the route is refused", || refused(&node, &bad));
    assert_eq!(get(&pod, WEB, port), "one");
    assert_eq!(node.held(ResourceType::Route), [(before.name.clone(), before.version)]);
    // A route changes while requests flow.
    let other = Backend::start(&pod, "two");
    node.apply(vec![Change::Upsert(cluster("b")), Change::Upsert(endpoints("b", &[other.address]))]);
    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let clients = pod.run({
        let (over, served) = (over.clone(), served.clone());
        move || {
            let client = || {
                let (over, served) = (over.clone(), served.clone());
                thread::spawn(move || {
                    while !over.load(SeqCst) {
                        let answer = support::ask(TcpStream::connect((WEB, port)).unwrap());
                        assert!(answer == "one" || answer == "two", "{answer:?}");
                        served.fetch_add(1, SeqCst);
                    }
                })
            };
            [client(), client()]
        }
    });
    for (cluster, answer) in [("b", "two"), ("a", "one"), ("b", "two")] {
        let changed = route("web", cluster);
        node.apply(vec![Change::Upsert(changed.clone())]);
        node.until_acknowledged(&changed);
        assert_eq!(get(&pod, WEB, port), answer);
        let so_far = served.load(SeqCst);
        until("requests between changes", || served.load(SeqCst) > so_far + 2);
    }
    // The agent goes, and requests go on.
    node.stop_agent();
    until("the proxy has noticed", || !node.is_connected());
    let so_far = served.load(SeqCst);
    until("requests without an agent", || served.load(SeqCst) > so_far + 5);
    assert_eq!(get(&pod, WEB, port), "two");
    // What changed meanwhile is in force when it is back; what has gone has gone.
    let back = route("web", "a");
    let gone = cluster("b").name;
    node.apply(vec![
        Change::Upsert(back.clone()),
        Change::Remove(ResourceType::Cluster, gone.clone()),
        Change::Remove(ResourceType::Endpoints, gone),
    ]);
    node.start_agent();
    node.until_acknowledged(&back);
    assert_eq!(get(&pod, WEB, port), "one");
    until("the cluster has gone", || node.sink().list().lines().all(|line| !line.starts_with("cluster b ")));
    over.store(true, SeqCst);
    for client in clients {
        client.join().expect("no request failed");
    }
    node.end();
    backend.end(&pod);
    other.end(&pod);
    pod.end();
}

#[test]
fn a_broker_may_go_and_come_back() {
    let (mut node, pod, backend, port) = node_with_pod("pod-2");
    assert_eq!(get(&pod, WEB, port), "one");
    node.kill_broker();
    // Its sockets are here: connections are accepted, and there are sockets to dial with.
    assert_eq!(get(&pod, WEB, port), "one");
    // A new pod has to wait, and is named.
    let second = Pod::new(node.folder(), "pod-3");
    let backend_of_second = Backend::start(&second, "second");
    let unknown = second.workload(0);
    node.apply(vec![Change::Upsert(unknown.clone())]);
    until("it is refused", || {
        let rejected = node.rejected(ResourceType::Workload);
        rejected.iter().any(|one| one.name == unknown.name && one.reason.contains("broker"))
    });
    node.start_broker();
    // It knows nobody: the steward says again who is there.
    let (new_port, second_port) = (node.enrol(&pod), node.enrol(&second));
    let (again, other) = (pod.workload(new_port), second.workload(second_port));
    node.apply(vec![Change::Upsert(again.clone()), Change::Upsert(other.clone())]);
    node.until_acknowledged(&again);
    node.until_acknowledged(&other);
    assert_eq!(get(&pod, WEB, new_port), "one");
    // Each dials in its own namespace: there is nobody at this address in the second one.
    assert_eq!(
        second.run(move || support::status(TcpStream::connect((WEB, second_port)).unwrap())),
        "HTTP/1.1 503 Service Unavailable"
    );
    let there = endpoints("a", &[backend_of_second.address]);
    node.apply(vec![Change::Upsert(there.clone())]);
    node.until_acknowledged(&there);
    assert_eq!(get(&second, WEB, second_port), "second");
    node.end();
    backend.end(&pod);
    backend_of_second.end(&second);
    pod.end();
    second.end();
}

#[test]
fn a_namespace_dies_when_its_pod_is_taken_back() {
    let (mut node, pod, backend, port) = node_with_pod("pod-4");
    let outside = Pod::new(node.folder(), "outside");
    let tid = outside.tid;
    pod.run(move || ip(&format!("link add to-outside type veth peer name to-pod netns {tid}")));
    let is_there = |outside: &Pod| {
        outside.run(|| {
            let shown = std::process::Command::new("ip").args(["link", "show", "dev", "to-pod"]).output();
            shown.unwrap().status.success()
        })
    };
    assert!(is_there(&outside));
    // An idle connection to the backend stays in the pool, and a request waits for one that never answers.
    assert_eq!(get(&pod, WEB, port), "one");
    let (silent, address) = pod.run(|| {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = silent.local_addr().unwrap();
        (silent, address)
    });
    let nobody = endpoints("a", &[address]);
    node.apply(vec![Change::Upsert(nobody.clone())]);
    node.until_acknowledged(&nobody);
    let (mut client, asked) = pod.run(move || {
        let mut client = TcpStream::connect((WEB, port)).unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").unwrap();
        let (mut asked, _) = silent.accept().unwrap();
        assert!(asked.read(&mut [0; 64]).unwrap() > 0, "the request has come");
        (client, asked)
    });
    node.apply(vec![Change::Remove(ResourceType::Workload, pod.workload(port).name)]);
    node.release(&pod);
    // Nobody answers the client any more, and nobody takes its connections.
    let mut rest = Vec::new();
    drop(client.read_to_end(&mut rest));
    assert_eq!(rest, b"");
    until("nobody listens", || !pod.run(move || listens(port)));
    drop((client, asked));
    backend.end(&pod);
    pod.end();
    until("the namespace is dead", || !is_there(&outside));
    node.end();
    outside.end();
}

#[test]
fn a_pod_may_come_before_the_agent_knows_anything() {
    let mut node = Node::new();
    let pod = Pod::new(node.folder(), "pod-5");
    let backend = Backend::start(&pod, "one");
    let port = node.enrol(&pod);
    node.start_proxy();
    until("the proxy is connected", || node.is_connected());
    assert!(!node.sink().is_synced(), "the agent has said nothing");
    let workload = pod.workload(port);
    node.apply(vec![Change::Upsert(workload.clone())]);
    node.until_acknowledged(&workload);
    until("the proxy is ready", || node.sink().is_synced());
    // It connects before its routes are there, and waits for them.
    let answer =
        pod.run(move || thread::spawn(move || support::ask(TcpStream::connect((WEB, port)).unwrap())));
    node.apply(vec![
        Change::Upsert(cluster("a")),
        Change::Upsert(endpoints("a", &[backend.address])),
        Change::Upsert(route("web", "a")),
        Change::Upsert(slotmesh_xds::proxy_listener(WEB, "web")),
    ]);
    assert_eq!(answer.join().unwrap(), "one");
    // What isn't a pod's is refused.
    let odd = Workload { uid: "no key".into(), node: "n".into(), ..Workload::default() };
    let odd = Resource::encode(ResourceType::Workload, odd.resource_name(), &odd);
    node.apply(vec![Change::Upsert(odd.clone())]);
    until("it is refused", || {
        node.rejected(ResourceType::Workload)
            .iter()
            .any(|one| one.name == odd.name && one.reason.contains("uid"))
    });
    node.end();
    backend.end(&pod);
    pod.end();
}
