//! The Pods that take part, field by field.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::{Value, json};
use slotmesh_compile::{CompileOptions, Compiler, EnrolmentMode, Object, Report};
use slotmesh_xds::{ResourceType, Version};

use crate::page;

/// A kind, a field as a JSON pointer, a value of it, and the test that shows it to users.
type Trial = (&'static str, &'static str, Value, &'static str);

fn trials() -> Vec<Trial> {
    const CLUSTER: &str = "e2e/tests/run_as_a_cluster/mesh.rs";
    const ENROL: &str = "operator/compile/tests/compile/enrolment.rs";
    const MESH: &str = "/metadata/labels/slotmesh.dev~1mesh";
    const NOT_MESH: &str = "/metadata/annotations/slotmesh.dev~1mesh";
    const HASH: &str = "/metadata/annotations/kubernetes.io~1config.hash";
    let trial = |kind, field, value: Value, file| (kind, field, value, file);
    vec![
        trial("Namespace", MESH, json!("enabled"), CLUSTER),
        trial("Namespace", MESH, json!("disabled"), CLUSTER),
        trial("Namespace", MESH, json!("true"), ENROL),
        trial("Pod", MESH, json!("disabled"), ENROL),
        trial("Pod", MESH, json!("false"), ENROL),
        trial("Pod", NOT_MESH, json!("disabled"), ENROL),
        trial("Pod", "/metadata/annotations/ambient.istio.io~1redirection", json!("enabled"), ENROL),
        trial("Pod", HASH, json!("0123456789abcdef0123456789abcdef"), ENROL),
        trial("Pod", "/metadata/labels/kubevirt.io", json!("virt-launcher"), ENROL),
        trial("Pod", "/metadata/uid", json!("another"), ENROL),
        trial("Pod", "/spec/containers/0/name", json!("istio-proxy"), ENROL),
        trial("Pod", "/spec/containers/0/name", json!("other"), ENROL),
        trial("Pod", "/spec/initContainers/0/name", json!("linkerd-proxy"), ENROL),
        trial("Pod", "/spec/hostNetwork", json!(true), ENROL),
        trial("Pod", "/spec/nodeName", json!("n2"), ENROL),
        trial("Pod", "/spec/runtimeClassName", json!("gvisor"), ENROL),
        trial("Pod", "/spec/runtimeClassName", json!("kata-qemu"), ENROL),
        trial("Pod", "/spec/serviceAccountName", json!("other"), ENROL),
        trial("Pod", "/status/phase", json!("Succeeded"), ENROL),
        trial("Pod", "/status/phase", json!("Failed"), ENROL),
    ]
}

/// The workload of the one Pod, and what is said.
fn enrolled(namespace: &Value, pod: &Value) -> (Option<Version>, Vec<Report>) {
    let namespace: Object = serde_json::from_value::<Namespace>(namespace.clone()).unwrap().into();
    let pod: Object = serde_json::from_value::<Pod>(pod.clone()).unwrap().into();
    let options = CompileOptions { enrolment: EnrolmentMode::ByLabel, ..CompileOptions::default() };
    let mut compiler = Compiler::new(options);
    [namespace, pod].iter().for_each(|object| compiler.apply(object, None));
    let said = compiler.flush().appeared;
    let all = compiler.resources();
    let workload = all.iter().find(|one| one.ty == ResourceType::Workload);
    (workload.map(|workload| workload.version), said)
}

/// Sets a field, and makes what it lies in.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for step in pointer.split('/').skip(1).map(|step| step.replace("~1", "/")) {
        at = match step.parse::<usize>() {
            Ok(_) => {
                if !at.is_array() {
                    *at = json!([null]);
                }
                &mut at[0]
            }
            Err(_) => &mut at[step],
        };
    }
    *at = value;
}

/// As the page writes it: `metadata.labels["slotmesh.dev/mesh"]`.
fn shown(pointer: &str) -> String {
    let mut text = String::new();
    for step in pointer.split('/').skip(1) {
        match step {
            "0" => text.push_str("[]"),
            step if step.contains('.') => write!(text, "[\"{}\"]", step.replace("~1", "/")).unwrap(),
            step if text.is_empty() => text.push_str(step),
            step => write!(text, ".{step}").unwrap(),
        }
    }
    text
}

fn outcome(kind: &str, field: &str, value: &Value) -> String {
    let mut namespace = json!({"metadata": {"name": "shop", "labels": {"slotmesh.dev/mesh": "enabled"}}});
    let mut pod = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [{"name": "web"}]},
        "status": {"phase": "Running"},
    });
    if kind == "Namespace" {
        namespace["metadata"]["labels"] = Value::Null;
    }
    let (before, said_before) = enrolled(&namespace, &pod);
    assert!(said_before.is_empty());
    set(if kind == "Namespace" { &mut namespace } else { &mut pod }, field, value.clone());
    let (now, said) = enrolled(&namespace, &pod);
    let why = said.first().map(|report| {
        let message = report.message.as_str();
        message
            .strip_prefix("the pod doesn't take part, though its namespace does: ")
            .unwrap_or(message)
            .to_owned()
    });
    match (before, now, why) {
        (None, Some(_), None) => "acts: its Pods take part".to_owned(),
        (Some(_), None, None) => "acts: the Pod doesn't take part".to_owned(),
        (Some(_), None, Some(why)) => format!("left alone, and reported: {why}"),
        (Some(before), Some(now), None) if before != now => "acts: the node's agent is told".to_owned(),
        (before, now, Some(why)) if before == now => format!("refused by name: {why}"),
        (before, now, None) if before == now => "no effect".to_owned(),
        other => panic!("{kind} {field}: {other:?}"),
    }
}

/// The table of the page.
pub fn table() -> String {
    let mut table =
        String::from("\n| kind | field | what comes of it | shown in |\n| --- | --- | --- | --- |\n");
    for (kind, field, value, file) in trials() {
        assert!(page::root().join(file).exists(), "there is no {file}");
        let value_text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let comes = outcome(kind, field, &value);
        writeln!(table, "| {kind} | `{}: {value_text}` | {comes} | [{file}](../{file}) |", shown(field))
            .unwrap();
    }
    table
}
