//! Sockets in real network namespaces, by a real broker.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use slotmesh_broker::{AskError, Broker, Counterpart, Key, NamespaceAt, PeerRole, SocketFamily, SocketStock};
use slotmesh_kernel::netns_cookie;

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

type Work = Box<dyn FnOnce() + Send>;

/// A pod: a thread in a network namespace of its own, whose file is in a folder.
struct Pod {
    work: mpsc::Sender<Work>,
    thread: JoinHandle<()>,
    file: std::path::PathBuf,
    /// The thread, which stands for the namespace.
    tid: i32,
}

impl Pod {
    fn new(folder: &Path, name: &str) -> Self {
        let file = folder.join(name);
        File::create(&file).unwrap();
        let (work, jobs) = mpsc::channel::<Work>();
        let (ready, is_ready) = mpsc::channel();
        let at = file.clone();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("this needs root: it makes network namespaces");
            ip("link set lo up");
            mount(Some("/proc/thread-self/ns/net"), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .unwrap();
            ready.send(gettid().as_raw()).unwrap();
            jobs.into_iter().for_each(|job| job());
        });
        let tid = is_ready.recv().expect("the pod is there");
        Self { work, thread, file, tid }
    }

    /// Runs something in the pod's namespace.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.work.send(Box::new(move || done.send(work()).unwrap())).unwrap();
        result.recv().expect("it runs to its end")
    }

    fn end(self) {
        drop(self.work);
        self.thread.join().unwrap();
        umount2(&self.file, MntFlags::MNT_DETACH).unwrap();
    }
}

/// A broker, by its steward's and its proxy's connection.
struct Brokerage {
    steward: Counterpart,
    proxy: Counterpart,
    thread: JoinHandle<()>,
}

impl Brokerage {
    fn new(folder: &Path) -> Self {
        let mut broker = Broker::new(folder);
        let mut peer = |role| {
            let (ours, theirs) = Counterpart::pair().unwrap();
            broker.serve(theirs, role);
            ours
        };
        let (steward, proxy) = (peer(PeerRole::Steward), peer(PeerRole::Proxy));
        Self { steward, proxy, thread: thread::spawn(move || broker.run().unwrap()) }
    }

    fn end(self) {
        drop((self.steward, self.proxy));
        self.thread.join().unwrap();
    }
}

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn named(name: &str) -> NamespaceAt {
    NamespaceAt::Name(name.to_owned())
}

/// A byte from one end of a connection to the other.
fn passes(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b"x").unwrap();
    let mut got = [0];
    to.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"x");
}

/// Tells whether somebody listens at a port of the loopback interface, in this thread's namespace.
fn listens(port: u16) -> bool {
    let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    // Where nobody does, a socket may find itself.
    connected.is_ok_and(|stream| stream.local_addr().unwrap() != stream.peer_addr().unwrap())
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(false).unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

#[test]
fn a_listener_in_a_pod_is_reached_from_there_and_tells_which_address_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Pod::new(folder.path(), "one"), Pod::new(folder.path(), "other"));
    let of = Brokerage::new(folder.path());
    let (_, port) = of.steward.enrol(&key("uid-1"), &named("one"), None).unwrap();
    let (listener, again) = of.proxy.listener(&key("uid-1")).unwrap();
    assert_eq!(port, again);
    for handle in [Ipv4Addr::new(127, 1, 2, 3), Ipv4Addr::new(127, 250, 0, 9)] {
        let client = one.run(move || TcpStream::connect((handle, port)).unwrap());
        let served = accept(&listener);
        assert_eq!(served.local_addr().unwrap(), SocketAddr::from((handle, port)));
        passes(&client, &served);
        passes(&served, &client);
    }
    // Elsewhere nobody listens.
    assert!(!other.run(move || listens(port)));
    // Nor does anybody for those who come from outside of the pod.
    let tid = other.tid;
    one.run(move || {
        ip(&format!("link add to-other type veth peer name to-one netns {tid}"));
        ip("addr add 192.0.2.1/24 dev to-other");
        ip("link set to-other up");
    });
    let (open, _kept) = one.run(|| {
        let open = TcpListener::bind("192.0.2.1:0").unwrap();
        (open.local_addr().unwrap(), open)
    });
    let refused = other.run(move || {
        ip("addr add 192.0.2.2/24 dev to-one");
        ip("link set to-one up");
        TcpStream::connect(open).expect("the way is there");
        TcpStream::connect((Ipv4Addr::new(192, 0, 2, 1), port)).unwrap_err().kind()
    });
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    of.end();
    one.end();
    other.end();
}

#[test]
fn connections_wait_for_the_next_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::new(folder.path(), "pod");
    let of = Brokerage::new(folder.path());
    let (_, port) = of.steward.enrol(&key("a"), &named("pod"), None).unwrap();
    let (first, _) = of.proxy.listener(&key("a")).unwrap();
    drop(first);
    // No proxy is there now.
    let client = pod.run(move || TcpStream::connect((Ipv4Addr::new(127, 9, 9, 9), port)).unwrap());
    // A steward that comes back finds what there was.
    assert_eq!(of.steward.enrol(&key("a"), &named("pod"), None).unwrap().1, port);
    let (second, _) = of.proxy.listener(&key("a")).unwrap();
    passes(&client, &accept(&second));
    of.end();
    pod.end();
}

#[test]
fn connections_wait_for_the_next_broker() {
    let folder = tempfile::tempdir().unwrap();
    let (pod, other) = (Pod::new(folder.path(), "pod"), Pod::new(folder.path(), "other"));
    let of = Brokerage::new(folder.path());
    let (kept, port) = of.steward.enrol(&key("a"), &named("pod"), None).unwrap();
    of.end();
    // No broker and no proxy is there now.
    let client = pod.run(move || TcpStream::connect((Ipv4Addr::new(127, 9, 9, 9), port)).unwrap());
    let of = Brokerage::new(folder.path());
    // Whoever has another namespace has no use for it.
    let (strangers, _) = of.steward.enrol(&key("b"), &named("other"), Some(kept.as_fd())).unwrap();
    assert_ne!(netns_cookie(strangers.as_fd()).unwrap(), netns_cookie(kept.as_fd()).unwrap());
    // Nor is a socket taken for a listener that is none.
    let idle = pod.run(|| OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()));
    let (made, _) = of.steward.enrol(&key("c"), &named("pod"), Some(idle.as_fd())).unwrap();
    assert!(socket2::Socket::from(made).is_listener().unwrap());
    let (again, same) = of.steward.enrol(&key("a"), &named("pod"), Some(kept.as_fd())).unwrap();
    assert_eq!(same, port);
    drop((kept, again));
    let (listener, _) = of.proxy.listener(&key("a")).unwrap();
    passes(&client, &accept(&listener));
    drop((listener, strangers));
    of.end();
    pod.end();
    other.end();
}

#[test]
fn sockets_are_of_the_pods_namespace_and_a_stock_has_them_at_hand() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Pod::new(folder.path(), "one"), Pod::new(folder.path(), "other"));
    let of = Brokerage::new(folder.path());
    let backend = |pod: &Pod| pod.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let pods = [(&one, "one"), (&other, "other")].map(|(pod, name)| {
        of.steward.enrol(&key(name), &named(name), None).unwrap();
        (key(name), backend(pod))
    });
    let Brokerage { steward, proxy, thread } = of;
    let mut stock = SocketStock::default();
    let fill = |stock: &mut SocketStock, key: &Key, family| {
        stock.put(key, family, proxy.sockets(key, family, SocketStock::BATCH).unwrap());
    };
    for (key, backend) in &pods {
        assert!(stock.take(key, SocketFamily::V4).is_none() && stock.is_low(key, SocketFamily::V4));
        fill(&mut stock, key, SocketFamily::V4);
        assert!(!stock.is_low(key, SocketFamily::V4));
        let socket = socket2::Socket::from(stock.take(key, SocketFamily::V4).unwrap());
        socket.set_nonblocking(false).unwrap();
        let address = backend.local_addr().unwrap();
        socket.connect(&address.into()).expect("it is in the backend's namespace");
        let client = TcpStream::from(socket);
        passes(&client, &backend.accept().unwrap().0);
    }
    let six: Vec<OwnedFd> = {
        fill(&mut stock, &key("one"), SocketFamily::V6);
        stock.take(&key("one"), SocketFamily::V6).into_iter().collect()
    };
    assert_eq!(
        socket2::Socket::from(six.into_iter().next().unwrap()).domain().unwrap(),
        socket2::Domain::IPV6
    );
    stock.forget(&key("one"));
    assert!(stock.take(&key("one"), SocketFamily::V4).is_none());
    drop((stock, steward, proxy));
    thread.join().unwrap();
    one.end();
    other.end();
}

#[test]
fn nothing_is_made_where_nobody_is_enrolled_and_what_is_released_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::new(folder.path(), "pod");
    fs::write(folder.path().join("file"), "no namespace").unwrap();
    std::os::unix::fs::symlink(folder.path().join("pod"), folder.path().join("link")).unwrap();
    let of = Brokerage::new(folder.path());
    let failed = |result: Result<_, AskError>| matches!(result, Err(AskError::Failed(_)));
    assert!(failed(of.proxy.listener(&key("a")).map(drop)));
    assert!(failed(of.proxy.sockets(&key("a"), SocketFamily::V4, 1).map(drop)));
    for place in ["gone", "file", "link"] {
        assert!(failed(of.steward.enrol(&key("a"), &named(place), None).map(drop)), "{place}");
    }
    assert!(failed(of.steward.enrol(&key("a"), &NamespaceAt::Process(u32::MAX), None).map(drop)));
    let (_, port) = of.steward.enrol(&key("a"), &named("pod"), None).unwrap();
    assert!(pod.run(move || listens(port)));
    of.steward.release(&key("a")).unwrap();
    // A process that another test has just started has all descriptors until it runs its program.
    let deadline = Instant::now() + Duration::from_secs(60);
    while pod.run(move || listens(port)) {
        assert!(Instant::now() < deadline, "the listener is gone");
        thread::yield_now();
    }
    assert!(failed(of.proxy.listener(&key("a")).map(drop)));
    // By the id of a process.
    let own = NamespaceAt::Process(std::process::id());
    let (socket, _) = of.steward.enrol(&key("b"), &own, None).unwrap();
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(netns_cookie(socket.as_fd()).unwrap(), netns_cookie(here.as_fd()).unwrap());
    of.end();
    pod.end();
}

#[test]
fn a_peer_that_may_not_ask_or_talks_nonsense_is_left_and_others_are_served() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::new(folder.path(), "pod");
    let socket = folder.path().join("proxy.sock");
    let mut broker = Broker::new(folder.path());
    broker.listen(&socket, PeerRole::Proxy).unwrap();
    let (steward, theirs) = Counterpart::pair().unwrap();
    broker.serve(theirs, PeerRole::Steward);
    // It listens, so it never ends by itself: it goes with the test's process.
    thread::spawn(move || broker.run());
    steward.enrol(&key("a"), &named("pod"), None).unwrap();
    let proxy = Counterpart::connect(&socket).unwrap();
    // A proxy can't name namespaces.
    let intruder = Counterpart::connect(&socket).unwrap();
    assert!(matches!(intruder.enrol(&key("b"), &named("pod"), None), Err(AskError::Broker(_))));
    assert!(matches!(steward.listener(&key("a")), Err(AskError::Broker(_))), "nor has a steward sockets");
    for nonsense in [b"".as_slice(), b"hello", &[1; 600]] {
        let raw = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).unwrap();
        raw.connect(&socket2::SockAddr::unix(&socket).unwrap()).unwrap();
        raw.send(nonsense).unwrap();
        let mut answer = [0; 8];
        let got = (&raw).read(&mut answer);
        assert!(matches!(got, Ok(0)) || got.is_err(), "{nonsense:?}: {got:?}");
    }
    let (_, port) = proxy.listener(&key("a")).unwrap();
    assert!(pod.run(move || listens(port)));
    pod.end();
}

/// The broker can't do it.
fn can_not<T>(outcome: Result<T, AskError>) -> bool {
    matches!(outcome, Err(AskError::Failed(_)))
}

#[test]
fn a_namespace_is_found_by_the_cookie_of_its_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let pods: Vec<Pod> = (0..3).map(|i| Pod::new(folder.path(), &format!("cni-{i}"))).collect();
    // Something that is no namespace.
    File::create(folder.path().join("none")).unwrap();
    let cookie =
        |pod: &Pod| pod.run(|| netns_cookie(TcpListener::bind("0.0.0.0:0").unwrap().as_fd()).unwrap());
    let of = Brokerage::new(folder.path());
    let enrol = |name: &str, cookie: u64| of.steward.enrol(&key(name), &NamespaceAt::Cookie(cookie), None);
    for (i, pod) in pods.iter().enumerate() {
        let (socket, port) = enrol(&format!("uid-{i}"), cookie(pod)).unwrap();
        assert_eq!(netns_cookie(socket.as_fd()).unwrap(), cookie(pod));
        assert!(pod.run(move || listens(port)));
    }
    let nobodys = pods.iter().map(cookie).max().unwrap() + 1_000_000;
    assert!(can_not(enrol("uid-9", nobodys)));
    // Its name is another namespace's then.
    let mut pods = pods;
    let gone = cookie(&pods[0]);
    pods.swap_remove(0).end();
    fs::remove_file(folder.path().join("cni-0")).unwrap();
    let new = Pod::new(folder.path(), "cni-0");
    assert!(can_not(enrol("uid-8", gone)));
    assert!(enrol("uid-7", cookie(&new)).is_ok());
    pods.push(new);
    of.end();
    pods.into_iter().for_each(Pod::end);
}

#[test]
fn a_steward_that_begins_leaves_nothing_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let pods = ["one", "two", "three"].map(|name| Pod::new(folder.path(), name));
    let of = Brokerage::new(folder.path());
    let enrol = |name: &str| of.steward.enrol(&key(name), &named(name), None).unwrap().1;
    let ports = ["one", "two", "three"].map(enrol);
    of.steward.review().unwrap();
    assert_eq!(enrol("two"), ports[1], "its listener is the same");
    of.steward.sweep().unwrap();
    let listening = ["one", "two", "three"].map(|name| of.proxy.listener(&key(name)).is_ok());
    assert_eq!(listening, [false, true, false]);
    of.steward.sweep().unwrap();
    assert!(of.proxy.listener(&key("two")).is_ok());
    of.end();
    pods.into_iter().for_each(Pod::end);
}
