//! Keeps the stored authority, the published bundle and the certificate in memory in step.
//!
//! Each replica runs one. Whoever has something to change writes the Secret with the resource version
//! that it read; who is too late reads again.

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use kube_runtime::{WatchStreamExt as _, watcher};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Authority, CertError, Certificates, Lifetimes,
    authority::{Issued, Moment},
};
use crate::retry::Retry;

/// Where in the Secret the authority is.
const AUTHORITY: &str = "authority.json";
/// Where in the ConfigMap the bundle is.
const BUNDLE: &str = "ca.crt";
/// How often to try again while the API server refuses.
const RETRY: Duration = Duration::from_secs(2);
/// Timers are checked at least this often: the system's clock may be set.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Who owns the fields that are written.
const MANAGER: &str = "slotmesh-operator";

/// What the objects are called.
#[derive(Clone, Debug)]
pub struct Names {
    /// The namespace of all.
    pub namespace: String,
    /// The Secret with the authority.
    pub secret: String,
    /// The ConfigMap with the bundle.
    pub config_map: String,
    /// The host names under which agents reach the operator.
    pub hosts: Vec<String>,
}

/// What can go wrong while keeping.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("Kubernetes API: {0}")]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Cert(#[from] CertError),
    #[error("somebody else was faster")]
    Conflict,
}

/// See the module's comment.
pub struct Keeper {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    names: Names,
    lifetimes: Lifetimes,
    certificates: Certificates,
    /// What the certificate in use was signed with, and when to renew it.
    used: Option<(Authority, Moment)>,
}

/// A TLS server that shows what the keeper has issued.
///
/// # Errors
/// Where rustls supports no protocol version, which can't be.
pub fn tls_config(certificates: &Certificates) -> Result<rustls::ServerConfig, CertError> {
    certificates.server_config()
}

impl Keeper {
    /// A keeper that shows its certificates through `certificates`.
    pub fn new(client: &Client, names: Names, lifetimes: Lifetimes, certificates: Certificates) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), &names.namespace),
            config_maps: Api::namespaced(client.clone(), &names.namespace),
            names,
            lifetimes,
            certificates,
            used: None,
        }
    }

    /// Waits until there is a certificate to serve with, then keeps everything in step until `shutdown`.
    /// `ready` is cancelled when there is.
    pub async fn run(mut self, ready: CancellationToken, shutdown: CancellationToken) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.names.secret));
        let changes = watcher(self.secrets.clone(), config);
        let mut changes = std::pin::pin!(changes.backoff(Retry::default()));
        loop {
            let wait = match self.keep().await {
                Ok(next) => {
                    ready.cancel();
                    Moment::now().until(next).clamp(Duration::from_secs(1), LONGEST)
                }
                Err(KeepError::Conflict) => continue,
                Err(error) => {
                    warn!(%error, secret = self.names.secret, "certificates can't be kept up to date; trying again");
                    RETRY
                }
            };
            let mut over = std::pin::pin!(tokio::time::sleep(wait));
            loop {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return,
                    () = &mut over => break,
                    change = changes.next() => match change {
                        // Its own list, which says nothing new.
                        Some(Ok(watcher::Event::Init | watcher::Event::InitDone)) => {}
                        Some(Ok(_)) => break,
                        Some(Err(error)) => tracing::debug!(%error, "the Secret can't be watched"),
                        None => return,
                    },
                }
            }
        }
    }

    /// Does what is due; when there is more to do.
    async fn keep(&mut self) -> Result<Moment, KeepError> {
        let now = Moment::now();
        let authority = self.authority(now).await?;
        let renew = match &self.used {
            Some((used, renew)) if used.signs_as(&authority) && now < *renew => *renew,
            _ => {
                let issued: Issued = authority.issue(&self.names.hosts, now, &self.lifetimes)?;
                let renew = issued.renew;
                self.certificates.replace(issued)?;
                info!(hosts = ?self.names.hosts, "a new certificate is in use");
                renew
            }
        };
        self.publish(&authority.bundle()).await?;
        let next = authority.next_step(&self.lifetimes).min(renew);
        self.used = Some((authority, renew));
        Ok(next)
    }

    /// The stored authority as it has to be now.
    async fn authority(&self, now: Moment) -> Result<Authority, KeepError> {
        let Some(secret) = self.secrets.get_opt(&self.names.secret).await? else {
            let authority = Authority::new(now, &self.lifetimes)?;
            let secret = Secret {
                metadata: ObjectMeta { name: Some(self.names.secret.clone()), ..ObjectMeta::default() },
                data: Some(data(&authority)?),
                type_: Some("slotmesh.dev/authority".to_owned()),
                ..Secret::default()
            };
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            conflict(self.secrets.create(&params, &secret).await)?;
            info!(secret = self.names.secret, "made a new certificate authority");
            return Ok(authority);
        };
        let Some(stored) = secret.data.as_ref().and_then(|data| data.get(AUTHORITY)) else {
            // Made empty by whoever installed slotmesh, so that no right to create Secrets is needed.
            let authority = Authority::new(now, &self.lifetimes)?;
            self.replace(secret, &authority).await?;
            info!(secret = self.names.secret, "made a new certificate authority");
            return Ok(authority);
        };
        let authority = Authority::read(&stored.0)?;
        let Some(new) = authority.step(now, &self.lifetimes)? else { return Ok(authority) };
        self.replace(secret, &new).await?;
        info!(secret = self.names.secret, "the certificate authority was rotated by one step");
        Ok(new)
    }

    /// Writes an authority to the Secret, which carries the resource version that was read.
    async fn replace(&self, mut secret: Secret, authority: &Authority) -> Result<(), KeepError> {
        secret.data = Some(data(authority)?);
        secret.metadata.managed_fields = None;
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        conflict(self.secrets.replace(&self.names.secret, &params, &secret).await)?;
        Ok(())
    }

    async fn publish(&self, bundle: &str) -> Result<(), KeepError> {
        let name = &self.names.config_map;
        let published = self.config_maps.get_opt(name).await?;
        let same = |map: &ConfigMap| {
            map.data.as_ref().and_then(|data| data.get(BUNDLE)).is_some_and(|there| there == bundle)
        };
        if published.as_ref().is_some_and(same) {
            return Ok(());
        }
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([(BUNDLE.to_owned(), bundle.to_owned())])),
            ..ConfigMap::default()
        };
        self.config_maps.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&map)).await?;
        info!(config_map = name, "published the certificates that agents have to know");
        Ok(())
    }
}

fn data(authority: &Authority) -> Result<BTreeMap<String, ByteString>, CertError> {
    Ok(BTreeMap::from([(AUTHORITY.to_owned(), ByteString(authority.write()?))]))
}

/// Somebody else was faster: read again.
fn conflict<T>(result: kube::Result<T>) -> Result<T, KeepError> {
    result.map_err(|error| match error {
        kube::Error::Api(status) if status.code == 409 => KeepError::Conflict,
        error => KeepError::Api(error),
    })
}
