//! Peers of the operator that are not whom they say, or don't keep to the protocol. Each is refused by itself, said
//! and counted; the agents' own streams and the connections go on.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail, ensure};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use k8s_openapi::api::core::v1::Pod;
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    faults::{kill_all, meanwhile},
    world::{LOAD, SYSTEM, address, agents, all_ready, on_node, operators, scrape, volume_file},
};

/// Where the operator serves, and as whom.
const PORT: u16 = 15010;
const HOST: &str = "slotmesh-operator.slotmesh-system.svc";
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Of an agent's volumes, its token.
const TOKEN: &str = "token/token";
/// Types of resources.
const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const LISTENERS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// More than the operator reads of one message.
const HUGE: usize = 65 << 20;
/// Nothing comes for so long: then nothing will.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a token lasts that is soon to end: longer than an agent takes to start.
const LIFE: Duration = Duration::from_secs(10);
/// What the operator logs of it.
const EXPIRED: &str = "the agent's token has expired";
/// Longer than anything takes that comes.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn peers(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            let operator = operators(cluster).await?.into_iter().next().context("an operator is ready")?;
            let channel = channel(cluster, &operator).await?;
            let before = refusals(&operator)?;
            strangers(cluster, &channel).await?;
            let token = token_on(cluster, "c").await?;
            rude(&operator, &channel, &token).await?;
            silent(cluster, &channel, &token).await?;
            let after = refusals(&operator)?;
            for (reason, least) in
                [("no_token", 1.0), ("bad_token", 2.0), ("other_node", 1.0), ("protocol", 2.0)]
            {
                let more = after[reason] - before[reason];
                ensure!(more >= least, "{reason} was counted {more} times");
            }
            let log = cluster.container_log(&operator, "operator")?;
            let said = "the token is that of node c's agent, but the stream is for node b";
            ensure!(log.contains(said), "the operator's log doesn't say {said:?}");
            Ok(())
        })
        .await
    })
}

/// No token, no token of ours, one for somebody else, and another node's name.
async fn strangers(cluster: &Cluster, channel: &Channel) -> Result<()> {
    let foreign = cluster.kubectl(&["create", "token", "slotmesh-agent", "-n", SYSTEM])?;
    for (what, token) in [
        ("no token", None),
        ("no real token", Some("a.b.c")),
        ("another audience's token", Some(foreign.trim())),
    ] {
        expect(Code::Unauthenticated, open(channel, token, "c").await.err()).context(what)?;
    }
    let token = token_on(cluster, "c").await?;
    let mut peer = open(channel, Some(&token), "b").await?;
    let end = timeout(PATIENCE, peer.responses.message()).await?.err();
    expect(Code::PermissionDenied, end).context("another node's name")
}

/// Bytes that are no TLS, no HTTP/2 and no protobuf, a message that is too large, and acknowledgements of what was
/// never sent.
async fn rude(operator: &Pod, channel: &Channel, token: &str) -> Result<()> {
    let garbage: Vec<u8> = (0..4_096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut socket = TcpStream::connect((address(operator)?, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(&garbage)?;
    let mut said = Vec::new();
    // An end or a reset; a time-out is neither.
    if let Err(error) = socket.read_to_end(&mut said) {
        ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "after garbage: {error}");
    }

    // As protobuf: a field that holds no message where a node is expected.
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await?;
    let codec = ProstCodec::<Vec<u8>, DeltaDiscoveryResponse>::default();
    let wrong = with_token(tokio_stream::once(garbage), Some(token))?;
    let answered = grpc.streaming(wrong, METHOD.parse()?, codec).await?;
    let end = timeout(PATIENCE, answered.into_inner().message()).await?;
    ensure!(end.is_err(), "garbage is answered with {end:?}");

    let mut peer = open(channel, Some(token), "c").await?;
    let huge = DeltaDiscoveryRequest { response_nonce: "x".repeat(HUGE), ..DeltaDiscoveryRequest::default() };
    peer.requests.send(huge).await?;
    let end = timeout(PATIENCE, async {
        while peer.responses.message().await?.is_some() {}
        Ok::<_, Status>(())
    });
    ensure!(end.await?.is_err(), "a request of {HUGE} bytes is taken");

    let mut peer = open(channel, Some(token), "c").await?;
    let response = peer.next().await?;
    for nonce in [response.nonce.as_str(), &response.nonce, "never-sent"] {
        let ack = DeltaDiscoveryRequest { response_nonce: nonce.into(), ..request(CLUSTERS) };
        peer.requests.send(ack).await?;
    }
    peer.requests.send(subscribe(LISTENERS)).await?;
    ensure!(peer.next().await?.type_url == LISTENERS, "a stream goes on after an acknowledgement too many");
    Ok(())
}

/// Who never acknowledges is sent nothing more, whatever happens.
async fn silent(cluster: &Cluster, channel: &Channel, token: &str) -> Result<()> {
    let mut peer = open(channel, Some(token), "c").await?;
    peer.next().await?;
    for i in 0..20 {
        let label = format!("e2e.test/turn={i}");
        cluster.kubectl(&["label", "service", "web", "-n", LOAD, "--overwrite", &label])?;
    }
    match timeout(SILENCE, peer.responses.message()).await {
        Err(_nothing) => Ok(()),
        Ok(more) => bail!("who doesn't acknowledge is sent {more:?}"),
    }
}

/// An agent's token ends: its stream does, too, and as long as there is no other the agent is refused. When there is
/// one it is served again.
pub fn token_expired(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            let agent = on_node(&agents(cluster).await?, "a")?.clone();
            let file = volume_file(cluster, &agent, TOKEN)?;
            let (plane, token) = (cluster.control_plane(), fs::read_to_string(&file)?);
            let before = expired(cluster).await?;
            // The kubelet puts the good one back, again and again.
            let ending = Keep::new(&file, plane.token_like(&token, SystemTime::now() + LIFE)?);
            kill_all(cluster, std::slice::from_ref(&agent)).await?;
            wait::until_true("the agent's stream to end with its token", async || {
                Ok(expired(cluster).await? > before)
            })
            .await?;
            drop(ending);
            // The API server takes a token for a minute more (the clocks of a cluster differ).
            let ended = Keep::new(&file, plane.token_like(&token, SystemTime::now() - 10 * LIFE)?);
            let before = refused(cluster).await?;
            wait::until_true("the agent to be refused for its token", async || {
                Ok(refused(cluster).await? > before)
            })
            .await?;
            drop(ended);
            // All are served again before the route changes, which all must follow.
            all_ready(cluster).await
        })
        .await
    })
}

/// Keeps a file as it is wanted, whoever else writes it, until this is dropped.
struct Keep(JoinHandle<()>);

impl Keep {
    fn new(file: &Path, content: String) -> Self {
        let file = file.to_owned();
        Self(tokio::spawn(async move {
            let new = file.with_extension("new");
            loop {
                if fs::read_to_string(&file).is_ok_and(|is| is != content) {
                    // In the folder that holds it, which the kubelet replaces as a whole.
                    let write =
                        || fs::write(&new, &content).and_then(|()| fs::rename(&new, file.canonicalize()?));
                    drop(write());
                }
                sleep(Duration::from_millis(20)).await;
            }
        }))
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How many streams ended with their tokens, at all operators.
async fn expired(cluster: &Cluster) -> Result<usize> {
    let said = |operator: &Pod| Ok(cluster.container_log(operator, "operator")?.matches(EXPIRED).count());
    operators(cluster).await?.iter().map(said).sum()
}

/// How many streams were refused for their tokens, by all operators.
async fn refused(cluster: &Cluster) -> Result<f64> {
    operators(cluster).await?.iter().map(|operator| Ok(refusals(operator)?["bad_token"])).sum()
}

/// A stream to the operator.
struct Peer {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Peer {
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse> {
        timeout(PATIENCE, self.responses.message()).await??.context("the stream ended")
    }
}

/// Opens a stream that asks for clusters.
async fn open(channel: &Channel, token: Option<&str>, node: &str) -> Result<Peer, Status> {
    let (requests, receiver) = mpsc::channel(8);
    let node = Node { id: node.to_owned(), ..Node::default() };
    let first = DeltaDiscoveryRequest { node: Some(node), ..subscribe(CLUSTERS) };
    requests.try_send(first).expect("there is room");
    let request = with_token(ReceiverStream::new(receiver), token)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel.clone());
    let responses = client.delta_aggregated_resources(request).await?.into_inner();
    Ok(Peer { requests, responses })
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }
}

fn subscribe(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { resource_names_subscribe: vec!["*".to_owned()], ..request(type_url) }
}

fn with_token<T>(stream: T, token: Option<&str>) -> Result<Request<T>> {
    let mut request = Request::new(stream);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    Ok(request)
}

fn expect(code: Code, end: Option<Status>) -> Result<()> {
    let end = end.context("the stream is let in")?;
    ensure!(end.code() == code, "refused with {end}");
    Ok(())
}

/// A connection to this replica.
async fn channel(cluster: &Cluster, operator: &Pod) -> Result<Channel> {
    let bundle = cluster.kubectl(&[
        "get",
        "configmap",
        "slotmesh-ca",
        "-n",
        SYSTEM,
        "-o",
        r"jsonpath={.data.ca\.crt}",
    ])?;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(bundle)).domain_name(HOST);
    let endpoint = Endpoint::from_shared(format!("https://{}:{PORT}", address(operator)?))?;
    Ok(endpoint.tls_config(tls)?.connect().await?)
}

/// How often streams were refused, by reason.
fn refusals(operator: &Pod) -> Result<BTreeMap<&'static str, f64>> {
    let metrics = scrape(operator, 15021)?;
    let count =
        |reason| metrics.get(&format!("slotmesh_operator_refused_streams_total{{reason=\"{reason}\"}}"));
    Ok(["no_token", "bad_token", "other_node", "protocol"].map(|reason| (reason, count(reason))).into())
}

async fn token_on(cluster: &Cluster, node: &str) -> Result<String> {
    let agent = on_node(&agents(cluster).await?, node)?.clone();
    Ok(fs::read_to_string(volume_file(cluster, &agent, TOKEN)?)?)
}
