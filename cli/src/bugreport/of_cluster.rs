//! Objects, events and logs of a cluster.

use std::{fmt::Debug, io::Write};

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{Event, Namespace, Node, Pod},
};
use kube::{
    Api, Client, Error, ResourceExt as _,
    api::{DynamicObject, ListParams, LogParams},
};
use serde::{Serialize, de::DeserializeOwned};
use slotmesh_crds::own::{MeshNode, MeshReplica};

use super::Archive;
use crate::{cluster::reach, mesh::ProgrammedKind};

/// Lines of a log, the last ones.
const LINES: i64 = 5_000;

/// Adds all of them. What can't be read is said in the list.
///
/// # Errors
/// When the archive can't be written.
pub fn collect<W: Write>(archive: &mut Archive<W>, namespace: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = match reach().await {
            Ok(client) => client,
            Err(error) => return archive.add("objects", Err(error)),
        };
        let all = ListParams::default();
        archive.add("objects/meshnodes.json", list::<MeshNode>(Api::all(client.clone()), &all).await)?;
        archive
            .add("objects/meshreplicas.json", list::<MeshReplica>(Api::all(client.clone()), &all).await)?;
        archive.add("objects/nodes.json", list::<Node>(Api::all(client.clone()), &all).await)?;
        archive.add("objects/namespaces.json", list::<Namespace>(Api::all(client.clone()), &all).await)?;
        let of = |name: &str| format!("objects/{namespace}-{name}.json");
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        archive.add(&of("pods"), list(pods.clone(), &all).await)?;
        archive.add(&of("events"), list::<Event>(Api::namespaced(client.clone(), namespace), &all).await)?;
        archive.add(
            &of("deployments"),
            list::<Deployment>(Api::namespaced(client.clone(), namespace), &all).await,
        )?;
        archive.add(
            &of("daemonsets"),
            list::<DaemonSet>(Api::namespaced(client.clone(), namespace), &all).await,
        )?;
        for kind in ProgrammedKind::ALL {
            let name = format!("objects/{}.json", kind.kind.to_lowercase());
            archive.add(&name, of_kind(&client, kind).await)?;
        }
        logs(archive, &pods).await
    })
}

async fn list<K>(api: Api<K>, params: &ListParams) -> anyhow::Result<String>
where
    K: Clone + Debug + DeserializeOwned + Serialize,
{
    Ok(serde_json::to_string(&api.list(params).await?.items)?)
}

/// Objects of a kind, in the version that the cluster has of it.
async fn of_kind(client: &Client, kind: ProgrammedKind) -> anyhow::Result<String> {
    for resource in kind.resources() {
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        match api.list(&ListParams::default()).await {
            Ok(found) => return Ok(serde_json::to_string(&found.items)?),
            Err(Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("the cluster has no such kind")
}

async fn logs<W: Write>(archive: &mut Archive<W>, pods: &Api<Pod>) -> anyhow::Result<()> {
    let labels = ListParams::default().labels("app.kubernetes.io/name=slotmesh");
    let found = match pods.list(&labels).await {
        Ok(found) => found.items,
        Err(error) => return archive.add("logs", Err(error.into())),
    };
    for pod in found {
        let name = pod.name_any();
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        for container in containers.map(|container| &container.name) {
            for previous in [false, true] {
                let params = LogParams {
                    container: Some(container.clone()),
                    previous,
                    tail_lines: Some(LINES),
                    timestamps: true,
                    ..LogParams::default()
                };
                let log = pods.logs(&name, &params).await;
                // Most have never been started again.
                if previous && log.is_err() {
                    continue;
                }
                let before = if previous { "-before" } else { "" };
                let file = format!("logs/{name}-{container}{before}.txt");
                archive.add(&file, log.map_err(Into::into))?;
            }
        }
    }
    Ok(())
}
