//! The control plane is a real one: what a cluster does by itself, it does.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use slotmesh_cluster::{ControlPlane, control_plane::client_of, wait};
use tokio_stream::StreamExt as _;

fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

async fn create<T>(api: &Api<T>, value: Value) -> Result<T>
where
    T: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    Ok(api.create(&PostParams::default(), &read(value)?).await?)
}

async fn create_service(client: &Client) -> Result<Service> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    create(
        &services,
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    )
    .await
}

async fn create_pod(client: &Client, name: &str, ip: &str) -> Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    create(
        &pods,
        json!({"metadata": {"name": name, "labels": {"app": "web"}},
               "spec": {"nodeName": "a", "terminationGracePeriodSeconds": 0,
                        "containers": [{"name": "web", "image": "web"}]}}),
    )
    .await?;
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                                   "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Also tells what a stopped API server and a compacted history do to a watch.
#[tokio::test]
async fn a_service_gets_an_address_and_its_pods_become_endpoints() -> Result<()> {
    let mut cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    let nodes: Api<Node> = Api::all(client.clone());
    create(&nodes, json!({"metadata": {"name": "a"}})).await?;
    let service = create_service(&client).await?;
    let ip = service.spec.and_then(|spec| spec.cluster_ip).context("no cluster address")?;
    ensure!(ip.starts_with("10.96."), "{ip}");
    create_pod(&client, "web-0", "10.1.0.7").await?;

    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    let has = async |address: &str| {
        wait::until_true("an endpoint", async || {
            let slices = slices.list(&of_web).await?;
            let addresses = slices.items.iter().flat_map(|slice| &slice.endpoints);
            let found = addresses.flat_map(|endpoint| &endpoint.addresses).any(|found| found == address);
            Ok(found)
        })
        .await
    };
    has("10.1.0.7").await?;

    let old = slices.list(&of_web).await?.metadata.resource_version.context("no version")?;
    cluster.stop_api_server()?;
    ensure!(slices.list(&of_web).await.is_err(), "a stopped API server answers");
    cluster.start_api_server().await?;
    create_pod(&client, "web-1", "10.1.0.8").await?;
    has("10.1.0.8").await?;

    // Twice: the API server keeps a part of the history itself.
    cluster.compact()?;
    cluster.stop_api_server()?;
    cluster.stop_etcd()?;
    cluster.start_etcd()?;
    cluster.start_api_server().await?;
    has("10.1.0.8").await?;
    let mut watch = Box::pin(slices.watch(&WatchParams::default(), &old).await?);
    let first = watch.next().await.context("the watch ended")??;
    ensure!(matches!(&first, WatchEvent::Error(status) if status.code == 410), "{first:?}");
    Ok(())
}

#[tokio::test]
async fn a_user_may_do_what_its_roles_allow() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let admin = cluster.client().await?;
    create_service(&admin).await?;
    let services = |client: Client| Api::<Service>::default_namespaced(client);

    let someone = client_of(&cluster.write_kubeconfig("someone", "someone", None)?).await?;
    let refused = services(someone.clone()).get("web").await.expect_err("nobody gave someone a right");
    ensure!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused:?}");

    let bind = ["create", "rolebinding", "read", "--clusterrole=view", "--user=someone"];
    let status = cluster.kubectl()?.args(bind).status()?;
    ensure!(status.success(), "kubectl: {status}");
    wait::until_true("the role to act", async || Ok(services(someone.clone()).get("web").await.is_ok()))
        .await?;
    let web = services(someone.clone()).delete("web", &Default::default()).await;
    ensure!(web.is_err(), "someone who may read deleted {}", services(admin).get("web").await?.name_any());
    Ok(())
}

#[tokio::test]
async fn helm_finds_the_cluster() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let out = cluster.helm()?.args(["list", "--all-namespaces", "--output", "json"]).output()?;
    ensure!(out.status.success(), "helm: {}", String::from_utf8_lossy(&out.stderr));
    ensure!(read::<Vec<Value>>(serde_json::from_slice(&out.stdout)?)?.is_empty(), "something is installed");
    Ok(())
}
