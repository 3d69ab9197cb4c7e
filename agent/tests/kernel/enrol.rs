//! Pods are attached as the operator names them and as their cgroups come and go.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use slotmesh_ads::{Sink as _, Update};
use slotmesh_agent::{Agent, Enrolled, Enrolment, Pins, Workload as Attached, handlers::Handler as _};
use slotmesh_kernel::{Hook, Host, Link};
use slotmesh_slots::Config;
use slotmesh_xds::{Rejection, Resource, ResourceType, Workload};
use tokio::runtime::Runtime;

use crate::{Bench, cgroup::Cgroup, running::publish};

const TY: ResourceType = ResourceType::Workload;

/// A node: its agent, and a cgroup tree of its own.
pub(crate) struct Node {
    // Dropped in this order: cgroups from the innermost, after what is attached to them.
    enrolment: Option<Enrolment>,
    pub(crate) bench: Bench,
    cgroups: Vec<Cgroup>,
    runtime: Runtime,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.enrolment = None;
        while self.cgroups.pop().is_some() {}
    }
}

impl Node {
    pub(crate) fn new() -> Self {
        let mut bench = Bench::new(Config { initial: 4, ..Config::default() });
        bench.agent.take().expect("the agent runs").remove().expect("the pins can be removed");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut node = Self { enrolment: None, bench, cgroups: vec![Cgroup::new()], runtime };
        node.start();
        node
    }

    fn start(&mut self) {
        let agent = Agent::start_enrolling(self.bench.options(), self.bench.metrics.clone()).unwrap();
        let root = self.cgroups[0].0.clone();
        self.enrolment = Some(Enrolment::new(&agent, root).unwrap());
        self.bench.agent = Some(agent);
    }

    fn stop(&mut self) {
        self.enrolment = None;
        self.bench.stop();
    }

    /// Creates a cgroup, with those above it.
    pub(crate) fn cgroup(&mut self, path: &str) -> PathBuf {
        let mut at = self.cgroups[0].0.clone();
        for part in path.split('/') {
            at.push(part);
            if !at.exists() {
                self.cgroups.push(Cgroup::at(at.clone()));
            }
        }
        at
    }

    fn remove_last_cgroup(&mut self) {
        drop(self.cgroups.pop());
    }

    pub(crate) fn apply(&self, named: &[(&str, &str)], taken_back: &[&str]) -> Vec<Rejection> {
        let workload = |(uid, name): &(&str, &str)| {
            let workload = Workload {
                uid: (*uid).to_owned(),
                namespace: "shop".to_owned(),
                name: (*name).to_owned(),
                service_account: "default".to_owned(),
                node: "n".to_owned(),
                class: String::new(),
                proxy_port: 0,
            };
            Resource::encode(TY, workload.resource_name(), &workload)
        };
        let upserts = named.iter().map(workload).collect();
        let removed = taken_back.iter().map(|uid| format!("n/{uid}").into()).collect();
        let enrolment = self.enrolment.as_ref().unwrap();
        self.runtime.block_on(enrolment.apply(Update { ty: TY, upserts, removed }))
    }

    pub(crate) fn enrolment(&self) -> &Enrolment {
        self.enrolment.as_ref().unwrap()
    }

    fn enrolled(&self) -> Enrolled {
        let enrolment = self.enrolment.as_ref().unwrap();
        // Whatever it was at is done when it answers.
        self.runtime.block_on(enrolment.held());
        enrolment.enrolled()
    }

    /// The cgroups to which the programs of a pod are attached: 0 for one that is gone, `None` for a
    /// program that isn't attached. While the agent attaches them they differ.
    fn attached(&self, name: &str) -> Vec<Option<u64>> {
        let links = self.links(name);
        let target = |hook: Hook| {
            let link = Link::open(&links.join(hook.as_str())).unwrap()?;
            Some(link.target(hook).unwrap().0)
        };
        Hook::ALL.into_iter().map(target).collect()
    }

    /// Where the links of a pod are pinned.
    fn links(&self, name: &str) -> PathBuf {
        let id = Attached { namespace: "shop".into(), name: name.into(), cgroup: PathBuf::new() }.id();
        Pins::new(&self.bench.options().pin_root).links_of(id)
    }

    fn is_detached(&self, name: &str) -> bool {
        self.attached(name).iter().all(Option::is_none)
    }

    pub(crate) fn until_attached(&self, name: &str, to: &Path) {
        let host = Host::probe().unwrap();
        let cgroup = slotmesh_kernel::cgroup_id(&host.cgroup(to).unwrap()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.attached(name).iter().any(|at| *at != Some(cgroup)) {
            assert!(Instant::now() < deadline, "{name} is attached to {:?}", self.attached(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_pod_is_attached_when_its_cgroup_comes_and_detached_when_it_is_taken_back() {
    let mut node = Node::new();
    let there = node.cgroup("kubepods/burstable/podaaaa-1");
    assert_eq!(node.apply(&[("aaaa-1", "a"), ("bbbb-2", "b")], &[]), []);
    node.until_attached("a", &there);
    assert!(node.is_detached("b"));
    assert_eq!(node.enrolled(), Enrolled { named: 2, attached: 1, ..Enrolled::default() });
    // In the other layout, in cgroups that come one by one.
    let later = node.cgroup("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podbbbb_2.slice");
    node.until_attached("b", &later);
    // A cgroup that is made again.
    node.remove_last_cgroup();
    let again = node.cgroup("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podbbbb_2.slice");
    node.until_attached("b", &again);
    assert_eq!(node.apply(&[], &["aaaa-1"]), []);
    assert!(node.is_detached("a"));
    assert_eq!(node.enrolled(), Enrolled { named: 1, attached: 1, ..Enrolled::default() });
}

#[test]
fn a_pod_that_is_made_again_under_its_name_stays_attached_when_the_old_one_is_taken_back() {
    let mut node = Node::new();
    let old = node.cgroup("kubepods/podaaaa-1");
    node.apply(&[("aaaa-1", "a")], &[]);
    node.until_attached("a", &old);
    let new = node.cgroup("kubepods/podaaaa-2");
    node.apply(&[("aaaa-2", "a")], &[]);
    node.until_attached("a", &new);
    node.apply(&[], &["aaaa-1"]);
    node.until_attached("a", &new);
}

#[test]
fn a_pod_whose_name_another_has_taken_over_does_not_take_it_back() {
    let mut node = Node::new();
    let new = node.cgroup("kubepods/podaaaa-2");
    let old = node.cgroup("kubepods/podaaaa-1");
    node.apply(&[("aaaa-1", "a")], &[]);
    node.until_attached("a", &old);
    node.apply(&[("aaaa-2", "a")], &[]);
    node.until_attached("a", &new);
    node.remove_last_cgroup();
    let old = node.cgroup("kubepods/podaaaa-1");
    // When what was made later has been noticed, this has been, too.
    node.apply(&[("bbbb-1", "b")], &[]);
    let later = node.cgroup("kubepods/podbbbb-1");
    node.until_attached("b", &later);
    node.until_attached("a", &new);
    // Should the later one go first, it is the earlier one's again.
    node.apply(&[], &["aaaa-2"]);
    node.until_attached("a", &old);
}

#[test]
fn what_an_earlier_agent_attached_stays_until_all_pods_are_named() {
    let mut node = Node::new();
    let (stays, goes) = (node.cgroup("kubepods/podaaaa-1"), node.cgroup("kubepods/podbbbb-2"));
    node.apply(&[("aaaa-1", "a"), ("bbbb-2", "b")], &[]);
    node.until_attached("a", &stays);
    node.stop();
    node.start();
    node.until_attached("a", &stays);
    node.until_attached("b", &goes);
    node.apply(&[("aaaa-1", "a")], &[]);
    node.until_attached("b", &goes);
    node.enrolment.as_ref().unwrap().synced();
    node.until_attached("a", &stays);
    assert!(node.is_detached("b"));
}

#[test]
fn a_pod_that_can_not_be_attached_is_tried_again_and_the_operator_hears_of_it() {
    let mut node = Node::new();
    let other = node.cgroup("kubepods/podbbbb-2");
    node.apply(&[("bbbb-2", "b")], &[]);
    // From now on it is known where pods are.
    node.until_attached("b", &other);
    let cgroup = node.cgroup("kubepods/podaaaa-1");
    // In the place of its links lies something else.
    let links = node.links("a");
    std::os::unix::fs::symlink("/nowhere", &links).unwrap();
    let refused = node.apply(&[("aaaa-1", "a")], &[]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    let enrolled = node.enrolled();
    assert_eq!((enrolled.named, enrolled.attached, enrolled.overdue), (2, 1, 1));
    assert!(enrolled.example.is_some_and(|example| example.starts_with("shop/a: ")));
    std::fs::remove_file(&links).unwrap();
    node.until_attached("a", &cgroup);
    let handlers = node.bench.agent().handlers();
    assert_eq!(node.runtime.block_on(handlers.retries()).names, [(TY, "n/aaaa-1".into())]);
    assert_eq!(node.apply(&[("aaaa-1", "a")], &[]), []);
    assert_eq!(node.enrolled(), Enrolled { named: 2, attached: 2, ..Enrolled::default() });
}

#[test]
fn what_is_attached_stays_so_when_it_can_not_be_attached_anew() {
    let mut node = Node::new();
    let cgroup = node.cgroup("kubepods/podaaaa-1");
    node.apply(&[("aaaa-1", "a")], &[]);
    node.until_attached("a", &cgroup);
    let before = node.attached("a");
    // A pin that leads nowhere counts as none, and is in the way of a new one.
    let pin = node.links("a").join(Hook::ALL[0].as_str());
    let aside = pin.with_file_name("aside");
    std::fs::rename(&pin, &aside).unwrap();
    std::os::unix::fs::symlink("/nowhere", &pin).unwrap();
    assert_eq!(node.apply(&[("aaaa-1", "a")], &[]).len(), 1);
    assert_eq!(node.attached("a")[1..], before[1..], "the others are as they were");
    std::fs::remove_file(&pin).unwrap();
    std::fs::rename(&aside, &pin).unwrap();
    assert_eq!(node.apply(&[("aaaa-1", "a")], &[]), []);
    assert_eq!(node.attached("a"), before);
}

#[test]
fn pods_of_a_kubelet_with_a_cgroup_root_of_its_own_are_found() {
    let mut node = Node::new();
    let cgroup = node.cgroup("custom/kubepods/burstable/podaaaa-1");
    assert_eq!(node.apply(&[("aaaa-1", "a")], &[]), []);
    node.until_attached("a", &cgroup);
    // From then on as anywhere else.
    node.apply(&[("bbbb-2", "b")], &[]);
    let later = node.cgroup("custom/kubepods/burstable/podbbbb-2");
    node.until_attached("b", &later);
}

/// Its pins may be elsewhere, also on another BPF file system.
#[test]
fn two_agents_never_enrol_the_same_pods() {
    let mut node = Node::new();
    let other = Node::new();
    let root = node.cgroups[0].0.clone();
    let enrol = || Enrolment::new(other.bench.agent(), root.clone());
    let error = enrol().map(drop).unwrap_err().to_string();
    assert!(error.contains("another slotmesh agent enrols the pods below"), "{error}");
    node.stop();
    drop(enrol().unwrap());
    node.start();
}

/// docker or kind in a pod: its addresses are its own, whatever the node has at the same ones.
#[test]
fn what_connects_in_a_network_namespace_within_a_pod_is_left_alone() {
    // The connect of a pod finds nobody at the endpoint; in a namespace within it the address leads nowhere.
    const SCRIPT: &str = r#"
        echo $$ > "$CGROUP/cgroup.procs"
        connect() {
            ip link set lo up
            (exec 3<>"/dev/tcp/$VIP/80") 2>&1 | grep -o 'refused\|unreachable' | head -n 1
        }
        export -f connect
        exec unshare --net bash -c '
            unshare --net bash -c connect
            connect
            unshare --net bash -c "unshare --net bash -c connect"
            connect
        '"#;
    let mut node = Node::new();
    let pod = node.cgroup("kubepods/podaaaa-1");
    node.apply(&[("aaaa-1", "a")], &[]);
    node.until_attached("a", &pod);
    let vip: SocketAddr = "198.18.13.1:80".parse().unwrap();
    publish(&node.bench, vip, &[("127.0.0.1:9".parse().unwrap(), 1)], None);
    let container = node.cgroup("kubepods/podaaaa-1/container");
    for _ in 0..2 {
        let output = Command::new("bash")
            .args(["-c", SCRIPT])
            .env("CGROUP", &container)
            .env("VIP", vip.ip().to_string())
            .output()
            .expect("bash can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines, ["unreachable", "refused", "unreachable", "refused"], "{output:?}");
        // A pod that is attached anew, in another namespace.
        node.apply(&[("aaaa-1", "a")], &[]);
    }
}

#[test]
fn a_pod_that_can_not_be_is_refused_with_the_reason() {
    let node = Node::new();
    let refused = node.apply(&[("../x", "a"), ("ok", "")], &[]);
    assert_eq!(refused.len(), 2);
    assert!(refused[0].reason.contains("uid"), "{refused:?}");
    assert!(refused[1].reason.contains("name"), "{refused:?}");
    assert_eq!(node.enrolled(), Enrolled::default());
}
