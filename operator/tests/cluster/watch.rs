//! What happens in the cluster happens in what is published, whatever happens to the API server.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slotmesh_cluster::{ControlPlane, wait};
use slotmesh_compile::{Kind, Severity};
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener, Route, Workload};

use crate::support::{Watched, apply, delete, get, namespace, pod, service};

/// Istio's own, with as little schema as the API server takes.
fn definition(plural: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.networking.istio.io")},
        "spec": {
            "group": "networking.istio.io", "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

fn virtual_services() -> Value {
    definition("virtualservices", "VirtualService")
}

fn entry(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1beta1", "kind": kind,
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    })
}

fn virtual_service(hosts: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"hosts": hosts, "http": [{"route": [{"destination": {"host": "api"}}]}]},
    })
}

/// One story, on one control plane.
#[tokio::test(flavor = "multi_thread")]
async fn what_happens_in_the_cluster_is_published() -> Result<()> {
    let mut cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    for object in [
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
        namespace("shop", json!({})),
        service("web"),
    ] {
        apply(&client, object).await?;
    }
    wait::until_true("the account of pods", async || {
        Ok(apply(&client, pod("web-0", "web", "n1", "10.1.0.7")).await.is_ok())
    })
    .await?;
    let watched = Watched::start(&cluster).await?;
    let services = "web.shop.svc.cluster.local";
    watched.has(Cluster, services, true).await?;
    watched.has(Listener, "_80", true).await?;
    watched.says(Endpoints, services, "10.1.0.7").await?;

    // A namespace joins, and its pods with it; a pod that says no stays out.
    ensure!(watched.names(Workload).is_empty());
    apply(&client, namespace("shop", json!({"slotmesh.dev/mesh": "enabled"}))).await?;
    watched.has(Workload, "n1/", true).await?;
    let mut out = pod("out", "out", "n1", "10.1.0.9");
    out["metadata"]["labels"]["slotmesh.dev/mesh"] = "disabled".into();
    apply(&client, out).await?;
    apply(&client, pod("web-1", "web", "n1", "10.1.0.8")).await?;
    watched.says(Endpoints, services, "10.1.0.8").await?;
    wait::until_true("two workloads", async || Ok(watched.names(Workload).len() == 2)).await?;

    // Custom resources that come, can't be read, can be again, and go with their definition.
    apply(&client, service("api")).await?;
    watched.has(Cluster, "api.shop", true).await?;
    apply(&client, virtual_services()).await?;
    wait::until_true("the definition to be served", async || {
        Ok(apply(&client, virtual_service(json!(["web"]))).await.is_ok())
    })
    .await?;
    watched.says(Route, "web.shop", "api.shop").await?;
    apply(&client, virtual_service(json!(7))).await?;
    wait::until_true("the report", async || {
        let status = watched.status();
        let report = status.reports.iter().find(|report| report.field.as_deref() == Some("spec.hosts"));
        Ok(report.is_some_and(|report| report.severity == Severity::Refused && &*report.object.name == "web"))
    })
    .await?;
    // What was in force followed from what it said before.
    watched.has(Route, "web.shop", false).await?;
    apply(&client, virtual_service(json!(["web"]))).await?;
    watched.says(Route, "web.shop", "api.shop").await?;
    wait::until_true("no report", async || {
        Ok(!watched.status().reports.iter().any(|report| report.severity == Severity::Refused))
    })
    .await?;
    // A service of machines and of Pods, as far as these are ready.
    apply(&client, definition("serviceentries", "ServiceEntry")).await?;
    apply(&client, definition("workloadentries", "WorkloadEntry")).await?;
    let machines = entry(
        "ServiceEntry",
        "db",
        json!({"hosts": ["db.example.com"], "addresses": ["240.0.0.1"], "resolution": "STATIC",
               "ports": [{"number": 80, "name": "tcp", "protocol": "TCP"}],
               "workloadSelector": {"labels": {"app": "web"}}}),
    );
    let machine = entry("WorkloadEntry", "m", json!({"address": "10.9.0.1", "labels": {"app": "web"}}));
    for object in [&machines, &machine] {
        wait::until_true("the definitions to be served", async || {
            Ok(apply(&client, object.clone()).await.is_ok())
        })
        .await?;
    }
    watched.has(Listener, "240.0.0.1_80", true).await?;
    for ip in ["10.9.0.1", "10.1.0.7", "10.1.0.8"] {
        watched.says(Endpoints, "db.example.com", ip).await?;
    }
    watched.says(Endpoints, services, "10.9.0.1").await?;
    let mut unready = pod("web-1", "web", "n1", "10.1.0.8");
    unready["status"]["conditions"][0]["status"] = "False".into();
    apply(&client, unready).await?;
    watched.says_not(Endpoints, "db.example.com", "10.1.0.8").await?;
    delete(&client, &machine).await?;
    watched.says_not(Endpoints, services, "10.9.0.1").await?;
    delete(&client, &machines).await?;
    watched.has(Listener, "240.0.0.1_80", false).await?;

    delete(&client, &virtual_services()).await?;
    let leads_to_api = async || {
        wait::until_true("the route to go", async || {
            Ok(!watched.names(Route).iter().any(|name| name.contains("web.shop")))
        })
        .await
    };
    leads_to_api().await?;
    // One that is still going can't be made anew.
    wait::until_true("the definition to go", async || Ok(get(&client, &virtual_services()).await?.is_none()))
        .await?;
    // And again, into the same operator.
    apply(&client, virtual_services()).await?;
    wait::until_true("the definition to be served again", async || {
        Ok(apply(&client, virtual_service(json!(["web"]))).await.is_ok())
    })
    .await?;
    watched.says(Route, "web.shop", "api.shop").await?;

    // The API server goes and comes back without its history; what was deleted meanwhile is noticed, and
    // nothing else is lost.
    let before = watched.names(Cluster);
    cluster.stop_api_server()?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ensure!(watched.names(Cluster) == before, "an API server that is away takes nothing away");
    cluster.start_api_server().await?;
    let client = cluster.client().await?;
    delete(&client, &service("api")).await?;
    delete(&client, &pod("web-1", "web", "n1", "")).await?;
    cluster.compact()?;
    cluster.stop_api_server()?;
    cluster.start_api_server().await?;
    watched.has(Cluster, "api.shop", false).await?;
    wait::until_true("one workload", async || Ok(watched.names(Workload).len() == 1)).await?;
    watched.has(Cluster, services, true).await?;
    Ok(())
}

/// A definition whose objects are stored in one version and can't be had in the other.
/// The API server tells its ranges of cluster IPs, so no flag has to, and a range that is added counts at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_entry_captures_no_address_of_a_range_of_services() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    apply(&client, namespace("shop", json!({}))).await?;
    apply(&client, service("web")).await?;
    let made = get(&client, &service("web")).await?.unwrap_or_default();
    let ip = made["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    // One that no Service has yet: the next but one.
    let mut free: std::net::Ipv4Addr = ip.parse()?;
    free = std::net::Ipv4Addr::from_bits(free.to_bits() ^ 2);
    apply(&client, definition("serviceentries", "ServiceEntry")).await?;
    let of = |name: &str, addresses: Value| {
        let spec = json!({
            "hosts": [format!("{name}.example.com")], "addresses": addresses, "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{"address": "10.9.0.1"}],
        });
        entry("ServiceEntry", name, spec)
    };
    wait::until_true("ServiceEntries to be taken", async || {
        let captures = of("captures", json!([free.to_string(), "240.0.0.1"]));
        Ok(apply(&client, captures).await.is_ok())
    })
    .await?;
    apply(&client, of("later", json!(["10.200.0.9", "240.0.0.2"]))).await?;
    let watched = Watched::start(&cluster).await?;
    watched.has(Listener, "240.0.0.1_80", true).await?;
    watched.has(Listener, "10.200.0.9_80", true).await?;
    let free = format!("{free}_80");
    ensure!(!watched.names(Listener).contains(&free), "{free} is captured: {:?}", watched.names(Listener));
    let more = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.200.0.0/24"]},
    });
    apply(&client, more).await?;
    watched.has(Listener, "10.200.0.9_80", false).await?;
    watched.has(Listener, "240.0.0.2_80", true).await?;
    Ok(())
}

fn without_conversion() -> Value {
    let mut definition = virtual_services();
    let mut better = definition["spec"]["versions"][0].clone();
    (better["name"], better["storage"]) = ("v1".into(), false.into());
    definition["spec"]["versions"].as_array_mut().unwrap().push(better);
    definition["spec"]["conversion"] = json!({
        "strategy": "Webhook",
        "webhook": {
            "conversionReviewVersions": ["v1"],
            // Nobody listens there.
            "clientConfig": {"url": "https://127.0.0.1:1/convert"},
        },
    });
    definition
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_can_not_be_listed_does_not_keep_services_from_being_served() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    for object in [namespace("shop", json!({})), service("web"), service("api"), without_conversion()] {
        apply(&client, object).await?;
    }
    wait::until_true("the definition to be served", async || {
        Ok(apply(&client, virtual_service(json!(["web"]))).await.is_ok())
    })
    .await?;
    // It waits for the kind, and then no longer.
    let watched = Watched::start(&cluster).await?;
    let left_out = watched.status().left_out;
    ensure!(left_out == [Kind::VirtualService], "{left_out:?}");
    watched.has(Cluster, "web.shop", true).await?;

    // When it can be listed, it is.
    let mut mended = without_conversion();
    mended["spec"]["conversion"] = json!({"strategy": "None"});
    apply(&client, mended).await?;
    watched.says(Route, "web.shop", "api.shop").await?;
    ensure!(watched.status().left_out.is_empty());
    Ok(())
}
