//! A replica of the operator, and agents that answer as they are told: real streams, real statuses.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::Result;
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use futures::stream;
use kube::Client;
use slotmesh_cluster::ControlPlane;
use slotmesh_operator::{
    Operator, OperatorOptions, Scoped,
    status::{self, Counters, Sources, StatusSettings, StatusUpdates},
};
use slotmesh_serve::{AdsServerConfig, HeldBack};
use slotmesh_xds::{
    AgentReport, Rejection, ResourceType, SlotCounts, give_source_back, source_of, status_from_rejections,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::support::NAMESPACE;

/// An operator as in a pod, but for certificates and tokens.
pub struct Replica {
    address: String,
    pub counters: Counters,
    pub held_back: Arc<HeldBack>,
    stop: CancellationToken,
    statuses: JoinHandle<()>,
    serving: JoinHandle<()>,
    _operator: Operator,
}

impl Replica {
    pub async fn start(cluster: &ControlPlane, name: &str) -> Result<Self> {
        Self::start_on(cluster.client().await?, name).await
    }

    /// By this way to the API server.
    pub async fn start_on(client: Client, name: &str) -> Result<Self> {
        let scoped = Scoped::default();
        let (store, updates) = (scoped.store(), StatusUpdates::new(scoped.due()));
        let options = OperatorOptions { updates: Some(updates.clone()), ..OperatorOptions::default() };
        let operator = Operator::from_cluster(client.clone(), options, scoped)?;
        let settings = StatusSettings {
            namespace: NAMESPACE.to_owned(),
            lease: "slotmesh-operator".to_owned(),
            replica: name.to_owned(),
        };
        let sources = Sources { events: store.follow(), updates };
        let (counters, stop) = (Counters::default(), CancellationToken::new());
        let statuses = tokio::spawn(status::write(client, settings, sources, counters.clone(), stop.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let incoming = Box::pin(stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        }));
        let config = AdsServerConfig::default();
        let held_back = Arc::clone(&config.held_back);
        let serving = slotmesh_serve::serve(store, config, incoming, stop.clone());
        let serving = tokio::spawn(async { serving.await.expect("the server ends in order") });
        operator.synced().await?;
        Ok(Self { address, counters, held_back, stop, statuses, serving, _operator: operator })
    }

    /// As after SIGKILL.
    pub fn kill(self) {
        self.statuses.abort();
        self.serving.abort();
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
/// Whether it answers.
type Answers = watch::Sender<bool>;

/// What an agent was told.
#[derive(Default)]
struct Told {
    responses: usize,
    /// When it answered last.
    answered: Option<Instant>,
    /// What it has, and what it ever had, by type URL and name.
    has: BTreeSet<(String, String)>,
    had: BTreeSet<(String, String)>,
    source: Option<String>,
}

/// An agent without a kernel: it acknowledges what it is sent, or refuses it.
pub struct Agent {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    refuses: Refuses,
    answers: Answers,
    told: Arc<Mutex<Told>>,
    task: JoinHandle<()>,
}

impl Agent {
    /// Connects as the agent of this node.
    pub async fn connect(node: &str, replica: &Replica) -> Result<Self> {
        Self::connect_from(node, replica, None).await
    }

    /// As the agent that was last told this of the source.
    pub async fn connect_from(node: &str, replica: &Replica, source: Option<&str>) -> Result<Self> {
        let mut first = Node { id: node.to_owned(), ..Node::default() };
        if let Some(source) = source {
            give_source_back(first.metadata.get_or_insert_default(), source);
        }
        let (requests, outgoing) = mpsc::channel(64);
        for ty in ResourceType::ALL {
            let name = if ty == ResourceType::Settings { node } else { "*" };
            requests
                .send(DeltaDiscoveryRequest {
                    node: Some(first.clone()),
                    type_url: ty.type_url().to_owned(),
                    resource_names_subscribe: vec![name.to_owned()],
                    ..DeltaDiscoveryRequest::default()
                })
                .await?;
        }
        let mut service = AggregatedDiscoveryServiceClient::connect(replica.address.clone()).await?;
        let mut responses =
            service.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        let (refuses, told) = (Refuses::default(), Arc::<Mutex<Told>>::default());
        let (answering, mut answer_now) = watch::channel(true);
        let task = {
            let (answers, refuses, told) = (requests.clone(), Arc::clone(&refuses), Arc::clone(&told));
            tokio::spawn(async move {
                let _service = service;
                while let Ok(Some(response)) = responses.message().await {
                    told.lock().unwrap().take(&response);
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
                    if answer_now.wait_for(|now| *now).await.is_err() || answers.send(answer).await.is_err() {
                        return;
                    }
                    told.lock().unwrap().answered = Some(Instant::now());
                }
            })
        };
        Ok(Self { requests, refuses, answers: answering, told, task })
    }

    /// Whether it has something of this type whose name contains `part`.
    pub fn has(&self, ty: ResourceType, part: &str) -> bool {
        self.told.lock().unwrap().has.iter().any(|(of, name)| of == ty.type_url() && name.contains(part))
    }

    /// Whether it ever had.
    pub fn ever_had(&self, ty: ResourceType, part: &str) -> bool {
        self.told.lock().unwrap().had.iter().any(|(of, name)| of == ty.type_url() && name.contains(part))
    }

    /// What it was told last of the source.
    pub fn source(&self) -> Option<String> {
        self.told.lock().unwrap().source.clone()
    }

    /// How often it was told anything.
    pub fn responses(&self) -> usize {
        self.told.lock().unwrap().responses
    }

    /// When it answered last.
    pub fn answered(&self) -> Option<Instant> {
        self.told.lock().unwrap().answered
    }

    /// From now on, it answers, or doesn't.
    pub fn answer(&self, does: bool) {
        self.answers.send_replace(does);
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
            ..AgentReport::default()
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

impl Told {
    fn take(&mut self, response: &DeltaDiscoveryResponse) {
        self.responses += 1;
        self.source = source_of(&response.system_version_info).map(str::to_owned).or(self.source.take());
        let key = |name: &String| (response.type_url.clone(), name.clone());
        let new: Vec<_> = response.resources.iter().map(|resource| key(&resource.name)).collect();
        self.had.extend(new.iter().cloned());
        self.has.extend(new);
        response.removed_resources.iter().for_each(|name| _ = self.has.remove(&key(name)));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
