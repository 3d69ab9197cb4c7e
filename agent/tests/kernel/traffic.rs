//! Numbers of traffic are what sockets did, whoever else attached programs. With real sockets.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use slotmesh_agent::{
    Agent, MapSizes, Options, Pins,
    traffic::access_log::{self, AccessLog, LogForm},
};
use slotmesh_kernel::tcp;
use socket2::{Domain, SockRef, Socket, Type};
use tokio_util::sync::CancellationToken;

use crate::{
    Bench,
    cgroup::Cgroup,
    counts::{accepting, nobody, server, socket},
    foreign::Foreign,
    running::{is_refused, publish, until},
    start::bench,
};

/// The value of the one series of a metric with these labels; 0 where there is none.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let is = |line: &&str| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    };
    let mut found = text.lines().filter(is);
    let value = found.next().map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap());
    assert_eq!(found.next(), None, "{name} {labels:?} is one series");
    value
}

/// The lines of traffic as they are now.
fn lines(bench: &Bench) -> String {
    bench.traffic()
}

const POD: &str = "source_workload=\"pod\"";
const OTHER: &str = "source_workload=\"other\"";
const OPENED: &str = "istio_tcp_connections_opened_total";
const CLOSED: &str = "istio_tcp_connections_closed_total";
const SENT: &str = "istio_tcp_sent_bytes_total";
const RECEIVED: &str = "istio_tcp_received_bytes_total";
const OPEN: &str = "slotmesh_tcp_connections_open";
const FAILED: &str = "slotmesh_tcp_connections_failed_total";
const REFUSED: &str = "slotmesh_tcp_connections_refused_total";
const UNMEASURED: &str = "slotmesh_tcp_connections_unmeasured_total";

/// A bench whose agent counts the traffic of a pod.
fn counting(pod: &Cgroup) -> Bench {
    let bench = bench(&[pod.workload("pod")]);
    bench.agent().handle().show_traffic(10).unwrap();
    bench
}

fn of_pod(bench: &Bench, name: &str) -> f64 {
    value(&lines(bench), name, &[POD])
}

/// Sends and receives, so that either end has all.
fn talk(server: &TcpListener, client: &mut TcpStream, sent: usize, received: usize) -> TcpStream {
    let (mut other, _) = server.accept().unwrap();
    client.write_all(&vec![1; sent]).unwrap();
    other.read_exact(&mut vec![0; sent]).unwrap();
    other.write_all(&vec![2; received]).unwrap();
    client.read_exact(&mut vec![0; received]).unwrap();
    other
}

#[test]
fn bytes_and_times_of_open_and_closed_connections_are_counted_once() {
    for (listen, vip) in [("127.0.0.1:0", "198.18.40.1:80"), ("[::1]:0", "[fd00:40::1]:80")] {
        let pod = Cgroup::new();
        let bench = counting(&pod);
        // Whoever else sets callback flags of the socket.
        let _foreign = Foreign::attach(&Pins::new(&bench.options().pin_root), &pod);
        let server = TcpListener::bind(listen).unwrap();
        let vip: SocketAddr = vip.parse().unwrap();
        publish(&bench, vip, &[(server.local_addr().unwrap(), 1)], None);
        let mut first = pod.connect(vip).unwrap();
        let _first = talk(&server, &mut first, 70_000, 300);
        let text = lines(&bench);
        let numbers = |text: &str| {
            [OPENED, OPEN, SENT, RECEIVED, CLOSED]
                .map(|name| value(text, name, &[POD, "destination_service=\"web\""]))
        };
        assert_eq!(numbers(&text), [1.0, 1.0, 70_000.0, 300.0, 0.0], "it is open");
        let mut second = pod.connect(vip).unwrap();
        let other = talk(&server, &mut second, 10, 20);
        drop(second);
        drop(other);
        assert_eq!(numbers(&lines(&bench)), [2.0, 1.0, 70_010.0, 320.0, 1.0], "the second one is closed");
        drop(first);
        let text = lines(&bench);
        assert_eq!(numbers(&text), [2.0, 0.0, 70_010.0, 320.0, 2.0]);
        assert_eq!(value(&text, "slotmesh_tcp_round_trip_seconds_count", &[POD]), 2.0);
        assert_eq!(value(&text, "slotmesh_tcp_connection_duration_seconds_count", &[POD]), 2.0);
        assert_eq!(value(&text, UNMEASURED, &[POD]), 0.0);
    }
}

#[test]
fn the_end_of_a_direction_is_no_byte() {
    let pod = Cgroup::new();
    let bench = counting(&pod);
    let (server, to) = server();
    let vip = "198.18.40.2:80".parse().unwrap();
    publish(&bench, vip, &[(to, 1)], None);
    // The other end closes first, then this one does.
    let mut client = pod.connect(vip).unwrap();
    drop(talk(&server, &mut client, 5, 7));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    assert_eq!([SENT, RECEIVED].map(|name| of_pod(&bench, name)), [5.0, 7.0]);
    drop(client);
    assert_eq!([SENT, RECEIVED, CLOSED].map(|name| of_pod(&bench, name)), [5.0, 7.0, 1.0]);
    // This end sends no more first.
    let mut client = pod.connect(vip).unwrap();
    let mut other = talk(&server, &mut client, 5, 7);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 0);
    other.write_all(&[0; 3]).unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
    drop(client);
    assert_eq!([SENT, RECEIVED, CLOSED].map(|name| of_pod(&bench, name)), [10.0, 17.0, 2.0]);
}

#[test]
fn what_the_other_end_resets_or_refuses_is_told_apart() {
    let pod = Cgroup::new();
    let bench = counting(&pod);
    let (server, to) = server();
    let vip = "198.18.40.3:80".parse().unwrap();
    publish(&bench, vip, &[(to, 1)], None);
    let mut client = pod.connect(vip).unwrap();
    let other = talk(&server, &mut client, 5, 7);
    SockRef::from(&other).set_linger(Some(Duration::ZERO)).unwrap();
    drop(other);
    assert!(client.read(&mut [0]).is_err(), "it is reset");
    drop(client);
    let text = lines(&bench);
    assert_eq!(value(&text, CLOSED, &[POD, "response_flags=\"UC\""]), 1.0);
    assert_eq!(value(&text, CLOSED, &[POD, "response_flags=\"-\""]), 0.0);
    assert_eq!([OPENED, SENT, RECEIVED].map(|name| value(&text, name, &[POD])), [1.0, 5.0, 7.0]);

    // Nobody listens there: by a connect that waits, and by one that doesn't.
    publish(&bench, vip, &[(nobody(), 1)], None);
    assert!(is_refused(pod.within(socket).connect(&vip.into())));
    assert!(is_refused(pod.connect(vip)));
    let text = lines(&bench);
    assert_eq!(value(&text, FAILED, &[POD, "reason=\"refused\""]), 2.0);
    assert_eq!(value(&text, OPENED, &[POD]), 1.0, "it was no connection");

    // The socket is kept, and found by who goes over all.
    let kept = pod.within(socket);
    assert!(is_refused(kept.connect(&vip.into())));
    until("it to be found", || value(&lines(&bench), FAILED, &[POD, "reason=\"refused\""]) == 3.0);
    drop(kept);
    assert_eq!(value(&lines(&bench), FAILED, &[POD, "reason=\"refused\""]), 3.0, "once");
}

/// A server whose backlog is full answers no connect.
#[test]
fn a_connect_that_nobody_answers_is_given_up_or_timed_out() {
    let pod = Cgroup::new();
    let bench = counting(&pod);
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    silent.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    silent.listen(0).unwrap();
    let to = silent.local_addr().unwrap().as_socket().unwrap();
    let _backlog: Vec<Socket> = (0..4)
        .map(|_| {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            let _under_way = client.connect(&to.into());
            client
        })
        .collect();
    let vip = "198.18.40.4:80".parse::<SocketAddr>().unwrap();
    publish(&bench, vip, &[(to, 1)], None);
    let begun = || {
        let socket = pod.within(socket);
        socket.set_nonblocking(true).unwrap();
        let _under_way = socket.connect(&vip.into());
        socket
    };
    let patient = begun();
    std::thread::sleep(Duration::from_millis(1_200));
    drop(patient);
    let text = lines(&bench);
    assert_eq!(value(&text, FAILED, &[POD, "reason=\"timeout\""]), 1.0, "{text}");
}

#[test]
fn what_the_kernel_refuses_is_counted_by_reason() {
    let pod = Cgroup::new();
    let bench = counting(&pod);
    let (_server, to) = server();
    let vip = "198.18.40.5:80".parse().unwrap();
    publish(&bench, vip, &[(to, 1)], Some(1));
    let open = pod.connect(vip).unwrap();
    for _ in 0..3 {
        assert!(is_refused(pod.connect(vip)));
    }
    publish(&bench, vip, &[], Some(1));
    for _ in 0..2 {
        assert!(is_refused(pod.connect(vip)));
    }
    let text = lines(&bench);
    let refused = |reason: &str| value(&text, REFUSED, &[POD, "destination_service=\"web\"", reason]);
    assert_eq!(refused("reason=\"limit\""), 3.0);
    assert_eq!(refused("reason=\"no_endpoint\""), 2.0);
    assert_eq!(value(&text, OPENED, &[POD]), 1.0);
    drop(open);
}

#[test]
fn a_socket_that_connects_anew_ends_what_it_had() {
    let pod = Cgroup::new();
    let bench = counting(&pod);
    let (_server, to) = server();
    let vip: SocketAddr = "198.18.40.6:80".parse().unwrap();
    publish(&bench, vip, &[(to, 1)], None);
    let again = pod.within(socket);
    again.connect(&vip.into()).unwrap();
    tcp::disconnect(again.as_fd()).unwrap();
    again.connect(&vip.into()).unwrap();
    let text = lines(&bench);
    assert_eq!(
        [OPENED, CLOSED, OPEN, UNMEASURED].map(|name| value(&text, name, &[POD])),
        [2.0, 1.0, 1.0, 1.0]
    );
    drop(again);
    assert_eq!([OPENED, CLOSED, OPEN].map(|name| of_pod(&bench, name)), [2.0, 2.0, 0.0]);
}

#[test]
fn a_connection_of_mptcp_counts_without_figures() {
    const MPTCP: i32 = 262;
    let pod = Cgroup::new();
    let bench = counting(&pod);
    let (_server, to) = server();
    let vip: SocketAddr = "198.18.40.7:80".parse().unwrap();
    publish(&bench, vip, &[(to, 1)], None);
    let socket = pod.within(|| Socket::new(Domain::IPV4, Type::STREAM, Some(MPTCP.into()))).unwrap();
    socket.connect(&vip.into()).unwrap();
    drop(socket);
    until("it to end", || of_pod(&bench, CLOSED) == 1.0);
    assert_eq!([OPENED, UNMEASURED, SENT].map(|name| of_pod(&bench, name)), [1.0, 1.0, 0.0]);
}

#[test]
fn beyond_what_there_is_room_for_all_is_summed() {
    const PODS: usize = 6;
    let pods: Vec<Cgroup> = (0..PODS).map(|_| Cgroup::new()).collect();
    let workloads: Vec<_> = pods.iter().enumerate().map(|(i, pod)| pod.workload(&format!("p{i}"))).collect();
    let mut bench = bench(&[]);
    bench.agent.take().unwrap().remove().unwrap();
    // Eight elements are there from the start, for all that have none of their own.
    let maps = MapSizes { traffic: 10, ..MapSizes::default() };
    let options = Options { workloads, maps, ..bench.options() };
    bench.agent = Some(Agent::start(options, bench.metrics.clone()).unwrap());
    bench.agent().handle().show_traffic(100).unwrap();
    let vip = "198.18.40.8:80".parse().unwrap();
    publish(&bench, vip, &[(accepting(), 1)], None);
    for pod in &pods {
        for _ in 0..2 {
            drop(pod.connect(vip).unwrap());
        }
    }
    let text = lines(&bench);
    let all = |of: &str| {
        let is = |line: &&str| line.starts_with(&format!("{CLOSED}{{")) && line.contains(of);
        text.lines()
            .filter(is)
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum::<f64>()
    };
    assert_eq!(all(""), 2.0 * PODS as f64, "none is lost: {text}");
    assert!(all(OTHER) > 0.0 && all(OTHER) < 2.0 * PODS as f64, "some have a name: {text}");
}

#[test]
fn who_is_not_shown_by_name_is_in_the_sums_and_nothing_is_counted_when_off() {
    let pods = [Cgroup::new(), Cgroup::new()];
    let bench = bench(&[pods[0].workload("busy"), pods[1].workload("quiet")]);
    let handle = bench.agent().handle();
    let vip = "198.18.40.9:80".parse().unwrap();
    publish(&bench, vip, &[(accepting(), 1)], None);
    drop(pods[0].connect(vip).unwrap());
    assert_eq!(lines(&bench), "", "nobody asked for it");
    handle.show_traffic(1).unwrap();
    assert_eq!(value(&lines(&bench), OPENED, &[OTHER]), 0.0, "what was before isn't counted");
    for _ in 0..5 {
        drop(pods[0].connect(vip).unwrap());
    }
    drop(pods[1].connect(vip).unwrap());
    let text = lines(&bench);
    assert_eq!(value(&text, OPENED, &["source_workload=\"busy\""]), 5.0);
    assert_eq!((value(&text, OPENED, &[OTHER]), text.matches("quiet").count()), (1.0, 0));
    handle.show_traffic(0).unwrap();
    drop(pods[0].connect(vip).unwrap());
    handle.show_traffic(1).unwrap();
    assert_eq!(value(&lines(&bench), OPENED, &["source_workload=\"busy\""]), 5.0);
}

#[test]
fn numbers_outlive_the_agent_and_leave_with_the_workload() {
    let pod = Cgroup::new();
    let workload = pod.workload("pod");
    let mut bench = counting(&pod);
    let vip = "198.18.40.10:80".parse().unwrap();
    publish(&bench, vip, &[(accepting(), 1)], None);
    drop(pod.connect(vip).unwrap());
    bench.stop();
    drop(pod.connect(vip).unwrap());
    bench.agent = Some(crate::start::start(&bench, std::slice::from_ref(&workload)).unwrap());
    bench.agent().handle().show_traffic(10).unwrap();
    assert_eq!(of_pod(&bench, CLOSED), 2.0, "while nobody was there, too");
    // Once it is known what is in force.
    let handle = bench.agent().handle();
    slotmesh_ads::Sink::synced(&bench.agent().handlers());
    until("the first sync", || handle.is_synced());
    bench.agent().datapath().release(&workload).unwrap();
    let pairs = || {
        let text = lines(&bench);
        let line = text.lines().find(|line| line.starts_with("slotmesh_agent_traffic_pairs ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    until("only the sums of all others to be left", || pairs() == 1);
    assert_eq!(of_pod(&bench, CLOSED), 2.0, "what was counted stays for a while");
}

/// Lines that an access log wrote.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Written {
    fn lines(&self) -> Vec<serde_json::Value> {
        let bytes = self.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn each_end_is_logged_once_with_its_figures_and_as_the_filter_says() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (server, to) = server();
    let vip: SocketAddr = "198.18.40.11:80".parse().unwrap();
    publish(&bench, vip, &[(to, 1)], Some(1));
    let (written, stop) = (Written::default(), CancellationToken::new());
    let log = |filter: &str| AccessLog { form: LogForm::Json, share: 1.0, filter: filter.parse().unwrap() };
    let handle = bench.agent().handle();
    let thread =
        access_log::start(&handle, log("source_namespace=test"), written.clone(), stop.clone()).unwrap();
    let second = access_log::start(&handle, log(""), Written::default(), stop.clone());
    assert!(second.is_err(), "there is one already");
    let mut client = pod.connect(vip).unwrap();
    let other = talk(&server, &mut client, 11, 22);
    assert!(is_refused(pod.connect(vip)));
    drop(client);
    drop(other);
    until("both to be logged", || written.lines().len() == 2);
    let found = written.lines();
    assert_eq!((&found[0]["ending"], &found[0]["address"]), (&"limit".into(), &vip.to_string().into()));
    assert_eq!(found[0].get("endpoint"), None);
    let closed = &found[1];
    assert_eq!(closed["ending"], "closed");
    assert_eq!((&closed["sent_bytes"], &closed["received_bytes"]), (&11.into(), &22.into()));
    assert_eq!((&closed["address"], &closed["endpoint"]), (&vip.to_string().into(), &to.to_string().into()));
    assert_eq!((&closed["source_pod"], &closed["destination_service"]), (&"pod".into(), &"web".into()));
    // What is told at the end is written before it ends.
    drop(pod.connect(vip).unwrap());
    stop.cancel();
    thread.join().unwrap();
    assert_eq!(written.lines().len(), 3);
    drop(pod.connect(vip).unwrap());
    assert_eq!(written.lines().len(), 3);
}

#[test]
fn what_is_filtered_out_is_not_logged() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let vip: SocketAddr = "198.18.40.12:80".parse().unwrap();
    publish(&bench, vip, &[(accepting(), 1)], None);
    let (written, stop) = (Written::default(), CancellationToken::new());
    let filter = "ending!=closed,destination_service=web".parse().unwrap();
    let log = AccessLog { form: LogForm::Json, share: 1.0, filter };
    let thread = access_log::start(&bench.agent().handle(), log, written.clone(), stop.clone()).unwrap();
    drop(pod.connect(vip).unwrap());
    publish(&bench, vip, &[(nobody(), 1)], None);
    assert!(is_refused(pod.connect(vip)));
    stop.cancel();
    thread.join().unwrap();
    let found = written.lines();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["ending"], "refused");
}

/// Whoever doesn't read in time loses ends, and is told how many.
#[test]
fn what_has_no_room_is_counted_as_lost() {
    /// Accepts nothing until it is let.
    struct Stuck(Arc<Mutex<()>>, Written);
    impl std::io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _free = self.0.lock().unwrap();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let vip: SocketAddr = "198.18.40.13:80".parse().unwrap();
    publish(&bench, vip, &[], None);
    let (gate, written, stop) = (Arc::new(Mutex::new(())), Written::default(), CancellationToken::new());
    let log = AccessLog { form: LogForm::Json, share: 1.0, filter: "".parse().unwrap() };
    let held = gate.lock().unwrap();
    let out = Stuck(gate.clone(), written.clone());
    let thread = access_log::start(&bench.agent().handle(), log, out, stop.clone()).unwrap();
    // A page has room for some forty.
    const CONNECTS: usize = 300;
    pod.within(|| {
        for _ in 0..CONNECTS {
            assert!(is_refused(TcpStream::connect(vip)));
        }
    });
    drop(held);
    stop.cancel();
    thread.join().unwrap();
    let lost = CONNECTS - written.lines().len();
    assert!(lost > 0, "a page has no room for all");
    let told = bench.agent().handle().told().unwrap();
    assert_eq!((told.lost, told.told), (lost as u64, written.lines().len() as u64));
}
