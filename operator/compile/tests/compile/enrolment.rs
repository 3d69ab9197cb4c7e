//! Pods that take part, and the workloads that agents are told of.

use std::mem;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};
use slotmesh_builders::{self as builder, rule};
use slotmesh_compile::{CompileOptions, Compiler, EnrolmentMode, LeftAlone, MESH, Object, Report};
use slotmesh_crds::CallerSelector;
use slotmesh_xds::{Change, ResourceType, Workload};

/// A cluster with pods that take part, and what was said of it last.
struct Mesh {
    compiler: Compiler,
    said: (Vec<Report>, Vec<Report>),
}

impl Default for Mesh {
    fn default() -> Self {
        Self::new(EnrolmentMode::ByLabel)
    }
}

impl Mesh {
    fn new(enrolment: EnrolmentMode) -> Self {
        let options = CompileOptions { enrolment, ..CompileOptions::default() };
        Self { compiler: Compiler::new(options), said: Default::default() }
    }

    /// Compiles an object; returns the workloads that come and go.
    fn step(&mut self, object: Object) -> Vec<String> {
        self.compiler.apply(&object, None);
        self.flush()
    }

    fn flush(&mut self) -> Vec<String> {
        let output = self.compiler.flush();
        self.said = (output.appeared, output.disappeared);
        let one = |change: Change| match change {
            Change::Upsert(resource) if resource.ty == ResourceType::Workload => {
                Some(format!("+{}", resource.name))
            }
            Change::Remove(ResourceType::Workload, name) => Some(format!("-{name}")),
            Change::Upsert(_) | Change::Remove(..) => None,
        };
        output.changes.into_iter().filter_map(one).collect()
    }

    /// The reports that came and went with the last step.
    fn reports(&mut self) -> (Vec<Report>, Vec<Report>) {
        mem::take(&mut self.said)
    }

    /// The class of the workload of this name.
    fn class(&self, name: &str) -> String {
        let all = self.compiler.resources();
        let workload = all.iter().find(|one| one.ty == ResourceType::Workload && one.name.as_str() == name);
        Workload::class_of(workload.expect("there is one")).expect("it has a class")
    }
}

fn object<T: Into<Object> + serde::de::DeserializeOwned>(value: Value) -> Object {
    serde_json::from_value::<T>(value).unwrap().into()
}

fn namespace(name: &str, label: &str) -> Object {
    object::<Namespace>(json!({"metadata": {"name": name, "labels": {MESH: label}}}))
}

fn pod(name: &str, node: &str, more: Value) -> Object {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "serviceAccountName": "web", "containers": []},
    });
    for (at, more) in more.as_object().into_iter().flatten() {
        *value.pointer_mut(at.rsplit_once('/').unwrap().0).unwrap() = {
            let (parent, key) = at.rsplit_once('/').unwrap();
            let mut object = value.pointer(parent).unwrap().clone();
            object[key] = more.clone();
            object
        };
    }
    object::<Pod>(value)
}

#[test]
fn pods_join_with_their_namespace_and_leave_with_it() {
    let mut mesh = Mesh::default();
    assert!(mesh.step(pod("a", "n1", json!({}))).is_empty());
    assert_eq!(mesh.step(namespace("shop", "enabled")), ["+n1/uid-a"]);
    assert_eq!(mesh.step(pod("b", "n2", json!({}))), ["+n2/uid-b"]);
    assert!(mesh.step(pod("b", "n2", json!({}))).is_empty(), "nothing new");
    assert!(mesh.step(namespace("other", "enabled")).is_empty());
    assert_eq!(mesh.step(namespace("shop", "no")), ["-n1/uid-a", "-n2/uid-b"]);
}

#[test]
fn some_pods_do_not_take_part() {
    let mut mesh = Mesh::default();
    mesh.step(namespace("shop", "enabled"));
    for out in [
        json!({"/metadata/labels": {MESH: "disabled"}}),
        json!({"/metadata/annotations": {MESH: "disabled"}}),
        json!({"/spec/hostNetwork": true}),
        json!({"/status": {"phase": "Succeeded"}}),
        json!({"/spec/nodeName": ""}),
    ] {
        assert_eq!(mesh.step(pod("a", "n1", json!({}))), ["+n1/uid-a"]);
        assert_eq!(mesh.step(pod("a", "n1", out.clone())), ["-n1/uid-a"], "{out}");
    }
}

const HASH: &str = "0123456789abcdef0123456789abcdef";

fn mirror(node: &str, hash: &str) -> Value {
    json!({
        "/metadata/annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
        "/metadata/ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "u"}],
    })
}

#[test]
fn only_a_mirror_pod_is_known_by_its_hash() {
    let mut mesh = Mesh::default();
    mesh.step(namespace("shop", "enabled"));
    assert_eq!(mesh.step(pod("s", "n1", mirror("n1", HASH))), [format!("+n1/{HASH}")]);
    let alone = json!({"/metadata/annotations": {"kubernetes.io/config.hash": HASH}});
    let mut unowned = mirror("n1", HASH);
    unowned.as_object_mut().unwrap().remove("/metadata/ownerReferences");
    // Of another pod; and what another pod's uid looks like.
    let uid = "2f1d6c1e-8a4f-4a9e-9d0e-0f5f2f8f7a11";
    for (i, forged) in [alone, unowned, mirror("n2", HASH), mirror("n1", uid)].into_iter().enumerate() {
        assert!(mesh.step(pod(&format!("z{i}"), "n1", forged)).is_empty(), "{i}");
    }
    assert_eq!(mesh.compiler.left_alone()[&LeftAlone::NotItself], 4);
}

#[test]
fn two_pods_never_have_one_resource() {
    let mut mesh = Mesh::default();
    mesh.step(namespace("shop", "enabled"));
    mesh.step(pod("b", "n1", mirror("n1", HASH)));
    let (resource, gone) = (format!("+n1/{HASH}"), json!({"/status": {"phase": "Failed"}}));
    assert!(mesh.step(pod("c", "n1", mirror("n1", HASH))).is_empty());
    let mut older = mirror("n1", HASH);
    older["/metadata/creationTimestamp"] = "2026-01-02T00:00:00Z".into();
    assert!(mesh.step(pod("a", "n1", older)).is_empty(), "b has no time: it was first");
    // On another node it is another resource.
    assert_eq!(mesh.step(pod("d", "n2", mirror("n2", HASH))), [format!("+n2/{HASH}")]);
    assert_eq!(mesh.step(pod("b", "n1", gone.clone())), [resource], "the other one has it now");
    assert!(mesh.step(pod("a", "n1", gone.clone())).is_empty());
    assert_eq!(mesh.step(pod("c", "n1", gone)), [format!("-n1/{HASH}")]);
}

#[test]
fn pods_of_other_meshes_and_kernels_are_left_alone_and_that_is_told() {
    let mut mesh = Mesh::default();
    mesh.step(namespace("shop", "enabled"));
    mesh.step(pod("a", "n1", json!({})));
    for (more, why) in [
        (json!({"/spec/containers": [{"name": "app"}, {"name": "istio-proxy"}]}), LeftAlone::Sidecar),
        (json!({"/spec/initContainers": [{"name": "linkerd-proxy"}]}), LeftAlone::Sidecar),
        (json!({"/metadata/annotations": {"ambient.istio.io/redirection": "enabled"}}), LeftAlone::Ambient),
        (json!({"/spec/runtimeClassName": "gvisor"}), LeftAlone::Gvisor),
        (json!({"/spec/runtimeClassName": "kata-qemu"}), LeftAlone::Kata),
        (json!({"/metadata/labels": {"kubevirt.io": "virt-launcher"}}), LeftAlone::Kubevirt),
    ] {
        assert_eq!(mesh.step(pod("a", "n1", more)), ["-n1/uid-a"]);
        assert_eq!(mesh.compiler.left_alone()[&why], 1);
        let (appeared, _) = mesh.reports();
        let [report] = &appeared[..] else { panic!("{appeared:?}") };
        assert!(report.message.contains(&why.to_string()), "{report}");
        assert_eq!(mesh.step(pod("a", "n1", json!({}))), ["+n1/uid-a"]);
        assert_eq!((mesh.compiler.left_alone()[&why], mesh.reports()), (0, (vec![], appeared)));
    }
    // Where the namespace doesn't take part there is nothing to say.
    mesh.step(namespace("shop", "disabled"));
    mesh.step(pod("a", "n1", json!({"/spec/runtimeClassName": "kata"})));
    assert_eq!(mesh.reports(), (vec![], vec![]));
}

#[test]
fn a_label_that_says_neither_yes_nor_no_is_told() {
    let mut mesh = Mesh::default();
    mesh.step(pod("a", "n1", json!({})));
    for value in ["true", "Enabled"] {
        assert!(mesh.step(namespace("shop", value)).is_empty());
        let (appeared, _) = mesh.reports();
        assert!(appeared[0].to_string().contains(&format!("{value:?}")), "{appeared:?}");
    }
    mesh.step(namespace("shop", "enabled"));
    assert_eq!(mesh.reports().1.len(), 1);
    mesh.step(pod("a", "n1", json!({"/metadata/labels": {MESH: "false"}})));
    assert!(mesh.reports().0[0].to_string().contains("metadata.labels"));
    mesh.step(pod("a", "n1", json!({"/metadata/labels": {MESH: "disabled"}})));
    assert_eq!(mesh.reports().1.len(), 1);
}

#[test]
fn a_pod_that_is_made_again_under_its_name_is_another_workload() {
    let mut mesh = Mesh::default();
    mesh.step(namespace("shop", "enabled"));
    mesh.step(pod("web-0", "n1", json!({})));
    let again = pod("web-0", "n2", json!({"/metadata/uid": "new"}));
    assert_eq!(mesh.step(again), ["+n2/new", "-n1/uid-web-0"]);
}

/// A rule that asks which callers of a namespace have this `app`.
fn asks(namespace: &str, app: &str) -> Object {
    let mut asks = rule("asks", "web").namespace(namespace).version("v1");
    let match_labels = [("app".to_owned(), app.to_owned())].into();
    asks.0.spec.workload_selector = Some(CallerSelector { match_labels, ..CallerSelector::default() });
    asks.build()
}

#[test]
fn a_pod_whose_class_changes_stays_the_workload_that_it_is() {
    let mut mesh = Mesh::default();
    mesh.step(namespace("shop", "enabled"));
    mesh.step(pod("a", "n1", json!({"/metadata/labels": {"app": "client"}})));
    assert_eq!(mesh.class("n1/uid-a"), "shop");
    mesh.step(pod("out", "n1", json!({"/metadata/labels": {"app": "client", MESH: "disabled"}})));
    assert_eq!(mesh.step(asks("shop", "client")), ["+n1/uid-a"], "the other doesn't take part");
    assert!(mesh.class("n1/uid-a").starts_with("shop#"));
    assert!(mesh.step(asks("shop", "client")).is_empty());
    assert_eq!(mesh.step(asks("shop", "another")), ["+n1/uid-a"]);
    assert_eq!(mesh.class("n1/uid-a"), "shop");
}

#[test]
fn of_callers_on_a_node_only_classes_that_differ_from_the_namespaces_are_told() {
    let mut mesh = Mesh::new(EnrolmentMode::Callers { node: "here".into() });
    let client = |app: &str| builder::pod("web").namespace("shop").label("app", app).build();
    assert!(mesh.step(client("one")).is_empty());
    assert_eq!(mesh.step(asks("shop", "one")), ["+here/shop/web"]);
    assert!(mesh.class("here/shop/web").starts_with("shop#"));
    assert_eq!(mesh.step(client("two")), ["-here/shop/web"]);
    assert!(mesh.step(asks("shop", "three")).is_empty());
    assert_eq!(mesh.step(asks("shop", "two")), ["+here/shop/web"]);
    mesh.compiler.delete(&client("two").key());
    assert_eq!(mesh.flush(), ["-here/shop/web"]);
    // Where nobody asks for workloads, there are none.
    let mut mesh = Mesh::new(EnrolmentMode::Nobody);
    mesh.step(namespace("shop", "yes"));
    assert!(mesh.step(client("one")).is_empty() && mesh.step(asks("shop", "one")).is_empty());
    assert!(mesh.compiler.reports().all(|report| report.object.kind != "Namespace"));
}
