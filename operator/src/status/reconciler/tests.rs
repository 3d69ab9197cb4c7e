//! Two replicas and a record, without a clock.

use slotmesh_serve::TypeStatus;
use slotmesh_xds::{Fingerprint, SlotCounts};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn node() -> NodeName {
    NodeName::from("n1")
}

fn status(stream: u64, requests: u64) -> AgentStatus {
    AgentStatus {
        stream: StreamId::from(stream),
        node: node(),
        up_to_date: true,
        requests,
        report: Some(AgentReport {
            version: "0.1.0".into(),
            slots: SlotCounts { used: 5, ..SlotCounts::default() },
            flush_p99: Some(std::time::Duration::from_micros(41)),
            ..AgentReport::default()
        }),
        types: PerType::default(),
    }
}

fn live(stream: u64, requests: u64) -> StreamEvent {
    StreamEvent { status: status(stream, requests), ended: None }
}

fn ended(stream: u64, requests: u64, ending: Ending) -> StreamEvent {
    StreamEvent { status: status(stream, requests), ended: Some(ending) }
}

/// Lets a replica write what it wants to; says whether it did.
fn write(reconciler: &mut NodeStatusReconciler, record: &mut Option<MeshNodeStatus>, now: i64) -> bool {
    match reconciler.decide(&node(), record.as_ref(), 0, at(now)) {
        StatusAction::Write(status) => {
            reconciler.wrote(&node(), &status);
            *record = Some(*status);
            true
        }
        StatusAction::None | StatusAction::Drop => false,
    }
}

fn holder(record: &Option<MeshNodeStatus>) -> (&str, u64, bool) {
    let holder = record.as_ref().unwrap().holder.as_ref().unwrap();
    (&holder.replica, holder.session, holder.connected)
}

/// The sessions in which the replica tells of its nodes.
fn told(reconciler: &NodeStatusReconciler) -> Vec<u64> {
    reconciler.acknowledged().map(|(_, told)| told.session).collect()
}

fn ready(record: &Option<MeshNodeStatus>) -> (&str, &str, i64) {
    let [ready] = &record.as_ref().unwrap().conditions[..] else { panic!("one condition") };
    (&ready.status, &ready.reason, ready.last_transition_time.0.as_second())
}

#[test]
fn what_an_agent_tells_is_written_once() {
    let (mut reconciler, mut record) = (NodeStatusReconciler::new("a"), None);
    assert_eq!(reconciler.observe(live(1, 1), at(10)), Urgency::Soon);
    assert!(write(&mut reconciler, &mut record, 10));
    assert_eq!((holder(&record), ready(&record)), (("a", 1, true), ("True", "Synced", 10)));
    let status = record.as_ref().unwrap();
    assert_eq!((status.flush_p99.as_deref(), status.slots.as_ref().unwrap().used), (Some("41us"), 5));
    assert_eq!(reconciler.observe(live(1, 2), at(20)), Urgency::Lazy, "nothing new");
    assert!(!write(&mut reconciler, &mut record, 20));
}

#[test]
fn a_change_that_somebody_may_wait_for_is_urgent() {
    let mut reconciler = NodeStatusReconciler::new("a");
    reconciler.observe(live(1, 1), at(10));
    let mut with = |ty: ResourceType, rejected: &[&str]| {
        let mut news = live(1, 2);
        let types = &mut news.status.types[ty];
        types.sketch.add(Fingerprint::of(ty, &"x".into(), slotmesh_xds::Version::of(b"1")));
        let one = |name: &&str| slotmesh_serve::Rejected {
            name: (*name).into(),
            version: None,
            reason: "no".into(),
        };
        *types = TypeStatus { rejected: rejected.iter().map(one).collect(), ..types.clone() };
        reconciler.observe(news, at(10))
    };
    assert_eq!(with(ResourceType::Endpoints, &[]), Urgency::Lazy);
    assert_eq!(with(ResourceType::Cluster, &[]), Urgency::Lazy, "that is told for all nodes together");
    assert_eq!(with(ResourceType::Endpoints, &["x"]), Urgency::Soon);
}

#[test]
fn an_end_is_written_by_the_one_that_saw_it_and_since_when() {
    let (mut reconciler, mut record) = (NodeStatusReconciler::new("a"), None);
    reconciler.observe(live(1, 1), at(10));
    write(&mut reconciler, &mut record, 10);
    assert_eq!(reconciler.observe(ended(1, 1, Ending::Lost), at(20)), Urgency::AfterGrace);
    assert!(write(&mut reconciler, &mut record, 25));
    assert_eq!((holder(&record), ready(&record)), (("a", 1, false), ("False", "ConnectionLost", 20)));
    assert_eq!(told(&reconciler), [1], "what it has is still known");
    assert!(!write(&mut reconciler, &mut record, 30));
    // It comes back here.
    reconciler.observe(live(2, 1), at(40));
    assert!(write(&mut reconciler, &mut record, 40));
    assert_eq!((holder(&record), ready(&record)), (("a", 1, true), ("True", "Synced", 40)));
    // The late end of the first stream is of no interest.
    assert_eq!(reconciler.observe(ended(1, 1, Ending::Lost), at(50)), Urgency::None);
    assert!(!write(&mut reconciler, &mut record, 50));
}

#[test]
fn an_agent_that_moves_is_not_said_to_be_gone() {
    let (mut a, mut b, mut record) = (NodeStatusReconciler::new("a"), NodeStatusReconciler::new("b"), None);
    a.observe(live(1, 9), at(10));
    write(&mut a, &mut record, 10);
    b.observe(live(1, 1), at(20));
    assert!(write(&mut b, &mut record, 20));
    assert_eq!(holder(&record), ("b", 2, true));
    // The old one notices late, whether it looks before or after.
    assert!(!write(&mut a, &mut record, 21));
    a.observe(ended(1, 9, Ending::Lost), at(50));
    assert_eq!((told(&a), told(&b)), (vec![], vec![2]), "it tells nothing of it any more");
    assert!(a.take_moved());
    assert_eq!(a.decide(&node(), record.as_ref(), 2, at(55)), StatusAction::Drop);
    assert!(!a.knows(&node()) && told(&a).is_empty());
    assert_eq!(holder(&record), ("b", 2, true));
}

#[test]
fn a_dead_stream_never_wins_against_one_that_lives() {
    let (mut a, mut b, mut record) = (NodeStatusReconciler::new("a"), NodeStatusReconciler::new("b"), None);
    // The first replica's claim comes late: its stream is dead already, and nobody has noticed.
    a.observe(live(1, 3), at(10));
    b.observe(live(1, 1), at(20));
    assert!(write(&mut b, &mut record, 20));
    assert!(write(&mut a, &mut record, 21));
    assert!(!write(&mut b, &mut record, 22), "it may be that the agent has moved");
    assert_eq!(holder(&record), ("a", 2, true));
    // Either the agent says something on the stream that lives …
    b.observe(live(1, 2), at(30));
    assert!(write(&mut b, &mut record, 30));
    assert_eq!(holder(&record), ("b", 3, true));
    for now in 31..40 {
        assert!(!write(&mut a, &mut record, now) && !write(&mut b, &mut record, now), "they don't fight");
    }
    // … or the end of the other is noticed, here after it took the node once more.
    a.observe(live(1, 4), at(40));
    assert!(write(&mut a, &mut record, 40) && !write(&mut b, &mut record, 40));
    a.observe(ended(1, 4, Ending::Lost), at(41));
    assert!(write(&mut a, &mut record, 46));
    assert_eq!(holder(&record), ("a", 4, false));
    assert!(write(&mut b, &mut record, 47));
    assert_eq!((holder(&record), ready(&record).0), (("b", 5, true), "True"));
}

#[test]
fn a_replica_that_stops_says_nothing_and_one_that_starts_again_takes_over() {
    let (mut a, mut record) = (NodeStatusReconciler::new("a"), None);
    a.observe(live(1, 1), at(10));
    write(&mut a, &mut record, 10);
    assert_eq!(a.observe(ended(1, 1, Ending::Shutdown), at(20)), Urgency::None);
    assert!(!write(&mut a, &mut record, 20));
    assert_eq!(told(&a), [1], "until another has it");
    let mut again = NodeStatusReconciler::new("a");
    again.observe(live(1, 1), at(30));
    assert!(write(&mut again, &mut record, 30));
    assert_eq!((holder(&record), ready(&record)), (("a", 2, true), ("True", "Synced", 10)));
}

#[test]
fn a_record_that_is_deleted_is_written_again_only_for_a_stream_that_lives() {
    let (mut a, mut record) = (NodeStatusReconciler::new("a"), None);
    a.observe(live(1, 1), at(10));
    write(&mut a, &mut record, 10);
    record = None;
    a.gone(&node());
    assert!(write(&mut a, &mut record, 20));
    a.observe(ended(1, 1, Ending::Closed), at(30));
    write(&mut a, &mut record, 35);
    record = None;
    a.gone(&node());
    assert!(!write(&mut a, &mut record, 40));
}

#[test]
fn refusals_keep_their_time_and_are_bounded() {
    let (mut a, mut record) = (NodeStatusReconciler::new("a"), None);
    let refusing = |names: std::ops::Range<u32>| {
        let mut news = live(1, 1);
        let one = |n: u32| slotmesh_serve::Rejected {
            name: format!("c{n:02}").into(),
            version: None,
            reason: "no".into(),
        };
        news.status.types[ResourceType::Cluster].rejected = names.map(one).collect();
        news
    };
    a.observe(refusing(0..1), at(10));
    write(&mut a, &mut record, 10);
    a.observe(refusing(0..30), at(20));
    write(&mut a, &mut record, 20);
    let status = record.as_ref().unwrap();
    assert_eq!((status.refused.len(), status.refused_resources), (LISTED, Some(30)));
    assert_eq!(status.refused[0].at, Some(Time(at(10))));
    let last = status.last_refusal.as_ref().unwrap();
    assert_eq!((last.resource.as_str(), last.at.clone()), ("cluster/c07", Some(Time(at(20)))));
}

#[test]
fn pods_that_are_not_attached_make_a_node_not_ready() {
    let (mut reconciler, mut record) = (NodeStatusReconciler::new("a"), None);
    let with = |requests, unattached: Option<&str>| {
        let mut news = live(1, requests);
        news.status.report.as_mut().unwrap().unattached = unattached.map(str::to_owned);
        news
    };
    reconciler.observe(with(1, None), at(10));
    write(&mut reconciler, &mut record, 10);
    let pods = "1 of 3 pods, such as shop/a: its cgroup isn't found";
    assert_eq!(reconciler.observe(with(2, Some(pods)), at(20)), Urgency::Soon);
    assert!(write(&mut reconciler, &mut record, 20));
    assert_eq!(ready(&record), ("False", "PodsNotAttached", 20));
    assert!(record.as_ref().unwrap().conditions[0].message.contains("shop/a"));
    reconciler.observe(with(3, None), at(30));
    assert!(write(&mut reconciler, &mut record, 30));
    assert_eq!(ready(&record), ("True", "Synced", 30));
}

#[test]
fn what_an_agent_acknowledges_is_told_of_once_and_without_its_endpoints() {
    let (mut reconciler, mut record) = (NodeStatusReconciler::new("a"), None);
    reconciler.observe(live(1, 1), at(10));
    assert!(!reconciler.take_moved() && told(&reconciler).is_empty(), "it isn't this replica's yet");
    write(&mut reconciler, &mut record, 10);
    assert!(reconciler.take_moved());
    let with = |requests, ty: ResourceType| {
        let mut news = live(1, requests);
        news.status.types[ty].sketch.add(Fingerprint::of(ty, &"n1".into(), slotmesh_xds::Version::of(b"1")));
        news
    };
    reconciler.observe(with(2, ResourceType::Endpoints), at(20));
    assert!(!reconciler.take_moved(), "pods come and go");
    let mut records = Sketch::default();
    reconciler.observe(with(3, ResourceType::Route), at(20));
    records.add(Fingerprint::of(ResourceType::Route, &"n1".into(), slotmesh_xds::Version::of(b"1")));
    let has = |reconciler: &NodeStatusReconciler| {
        let all: Vec<_> =
            reconciler.acknowledged().map(|(_, told)| (told.records.unwrap(), told.settings)).collect();
        all
    };
    assert!(reconciler.take_moved());
    assert_eq!(has(&reconciler), [(Arc::new(records), None)]);
    reconciler.observe(with(4, ResourceType::Settings), at(20));
    let settings = Fingerprint::of(ResourceType::Settings, &"n1".into(), slotmesh_xds::Version::of(b"1"));
    assert!(reconciler.take_moved());
    assert_eq!(has(&reconciler), [(Arc::default(), Some(settings))]);
    assert!(!write(&mut reconciler, &mut record, 20), "the MeshNode says nothing of that");
}

#[test]
fn a_node_that_was_made_anew_is_taken_in_a_session_that_nobody_had() {
    let (mut b, now) = (NodeStatusReconciler::new("b"), at(20));
    b.observe(live(1, 1), now);
    let StatusAction::Write(status) = b.decide(&node(), None, 7, now) else { panic!("nothing to write") };
    assert_eq!(status.holder.unwrap().session, 8);
}
