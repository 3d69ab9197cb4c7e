//! A replica of the operator, and agents that answer as they are told: real streams, real statuses.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Result;
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use futures::stream;
use slotmesh_cluster::ControlPlane;
use slotmesh_operator::{
    Operator, Scoped,
    status::{self, Counters, Notices, Settings, Sources},
};
use slotmesh_serve::Config;
use slotmesh_xds::{AgentReport, Rejection, ResourceType, SlotCounts, status_from_rejections};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::support::NAMESPACE;

/// An operator as in a pod, but for certificates and tokens.
pub struct Replica {
    address: String,
    pub counters: Counters,
    stop: CancellationToken,
    statuses: JoinHandle<()>,
    serving: JoinHandle<()>,
    _operator: Operator,
}

impl Replica {
    pub async fn start(cluster: &ControlPlane, name: &str) -> Result<Self> {
        let client = cluster.client().await?;
        let scoped = Scoped::default();
        let (store, notices) = (scoped.store(), Notices::new(scoped.due()));
        let operator = Operator::from_cluster_telling(client.clone(), scoped, notices.clone())?;
        let settings = Settings {
            namespace: NAMESPACE.to_owned(),
            lease: "slotmesh-operator".to_owned(),
            replica: name.to_owned(),
        };
        let sources = Sources { feed: store.follow(), notices };
        let (counters, stop) = (Counters::default(), CancellationToken::new());
        let statuses = tokio::spawn(status::write(client, settings, sources, counters.clone(), stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let incoming = Box::pin(stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        }));
        let serving = slotmesh_serve::serve(store, Config::default(), incoming, stop.clone());
        let serving = tokio::spawn(async { serving.await.expect("the server ends in order") });
        operator.synced().await?;
        Ok(Self { address, counters, stop, statuses, serving, _operator: operator })
    }

    /// As after SIGTERM.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        self.statuses.await?;
        self.serving.await?;
        Ok(())
    }
}

type Refuses = Arc<Mutex<Option<String>>>;

/// An agent without a kernel: it acknowledges what it is sent, or refuses it.
pub struct Agent {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    refuses: Refuses,
    task: JoinHandle<()>,
}

impl Agent {
    /// Connects as the agent of this node.
    pub async fn connect(node: &str, replica: &Replica) -> Result<Self> {
        let (requests, outgoing) = mpsc::channel(64);
        for ty in ResourceType::ALL {
            let name = if ty == ResourceType::Settings { node } else { "*" };
            requests
                .send(DeltaDiscoveryRequest {
                    node: Some(Node { id: node.to_owned(), ..Node::default() }),
                    type_url: ty.type_url().to_owned(),
                    resource_names_subscribe: vec![name.to_owned()],
                    ..DeltaDiscoveryRequest::default()
                })
                .await?;
        }
        let mut service = AggregatedDiscoveryServiceClient::connect(replica.address.clone()).await?;
        let mut responses =
            service.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        let refuses = Refuses::default();
        let task = {
            let (answers, refuses) = (requests.clone(), Arc::clone(&refuses));
            tokio::spawn(async move {
                let _service = service;
                while let Ok(Some(response)) = responses.message().await {
                    let refused = refuses.lock().unwrap().clone();
                    let bad = |name: &str| refused.as_ref().is_some_and(|part| name.contains(part.as_str()));
                    let rejections: Vec<Rejection> = response
                        .resources
                        .iter()
                        .filter(|resource| bad(&resource.name))
                        .map(|resource| Rejection {
                            name: resource.name.as_str().into(),
                            reason: "there is no room".to_owned(),
                        })
                        .collect();
                    let answer = DeltaDiscoveryRequest {
                        type_url: response.type_url,
                        response_nonce: response.nonce,
                        error_detail: (!rejections.is_empty()).then(|| status_from_rejections(&rejections)),
                        ..DeltaDiscoveryRequest::default()
                    };
                    if answers.send(answer).await.is_err() {
                        return;
                    }
                }
            })
        };
        Ok(Self { requests, refuses, task })
    }

    /// From now on, what has this in its name is refused.
    pub fn refuse(&self, part: Option<&str>) {
        *self.refuses.lock().unwrap() = part.map(str::to_owned);
    }

    /// Tells of itself, as `slotmesh agent` does.
    pub async fn report(&self, node: &str, used: u64) -> Result<()> {
        let report = AgentReport {
            version: "0.1.0".to_owned(),
            slots: SlotCounts { used, idle: 7, remaining: 30, cap: 32, ..SlotCounts::default() },
            flush_p99: Some(Duration::from_micros(41)),
            profile: None,
        };
        let metadata = Some(report.metadata());
        self.requests
            .send(DeltaDiscoveryRequest {
                node: Some(Node { id: node.to_owned(), metadata, ..Node::default() }),
                type_url: ResourceType::Settings.type_url().to_owned(),
                ..DeltaDiscoveryRequest::default()
            })
            .await?;
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
