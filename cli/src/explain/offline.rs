//! Manifests that are compiled here, so that nobody has to run: what a node would have of them.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use slotmesh_admin::{AskedInForce, ListenerInForce, OriginsView, VerdictInForce};
use slotmesh_operator::{
    CompileOptions, Operator, OperatorOptions,
    watch::{LocalNode, ManifestTexts},
};
use slotmesh_xds::{Change, ResourceType, Workload};

use super::{
    args::{Caller, Protocol},
    expected::Expected,
    source::{CompiledResources, InForceSource as _},
};
use crate::origins::origins_view;

/// Resources that a directory of manifests comes to.
pub struct CompiledManifests {
    pub resources: CompiledResources,
    operator: Operator,
}

impl CompiledManifests {
    /// Reads and compiles a directory, or a file.
    ///
    /// # Errors
    /// Where there is none.
    pub fn read(path: &Path, options: CompileOptions) -> anyhow::Result<Self> {
        let mut texts = ManifestTexts::default();
        texts.add(path)?;
        let published: Arc<Mutex<CompiledResources>> = Arc::default();
        let publish = {
            let published = published.clone();
            move |changes: Vec<Change>| {
                published.lock().unwrap_or_else(PoisonError::into_inner).apply(changes);
            }
        };
        let node = Some(LocalNode::default());
        let options = OperatorOptions { compile: options, node, ..OperatorOptions::default() };
        let operator = Operator::from_texts(&texts, options, publish)?;
        runtime()?.block_on(operator.synced())?;
        let resources = std::mem::take(&mut *published.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Self { resources, operator })
    }

    /// The class of a caller, of those that manifests describe.
    fn class(&self, from: &Caller) -> Option<String> {
        let workloads = self.resources.of_type(ResourceType::Workload);
        let mut decoded = workloads.filter_map(Workload::of);
        let is_it = |one: &Workload| one.namespace == from.namespace && one.name == from.name;
        decoded.find(is_it).map(|one| one.class).filter(|class| !class.is_empty())
    }

    /// The answer of a node that had all of this, without what only a kernel can tell.
    ///
    /// # Errors
    /// Where a resource can't be read.
    pub fn ask(&self, from: &Caller, to: &str, protocol: Protocol) -> anyhow::Result<AskedInForce> {
        let at = if protocol == Protocol::Udp { format!("{to}/UDP") } else { to.to_owned() };
        let mut listener = None;
        for value in self.resources.all("listener")? {
            let found: ListenerInForce = serde_json::from_value(value)?;
            if found.addresses.contains(&at) {
                listener = Some(found.name);
            }
        }
        Ok(AskedInForce {
            to: to.to_owned(),
            protocol: protocol.as_str().to_owned(),
            verdict: VerdictInForce::NotOurs,
            listener,
            class: self.class(from),
            asked: 0,
            refused: 0,
            passed: 0,
            routed: Vec::new(),
        })
    }

    /// The objects behind a listener.
    ///
    /// # Errors
    /// Where the compiler has ended.
    pub fn origins(&self, listener: &str) -> anyhow::Result<Option<OriginsView>> {
        let found = runtime()?.block_on(self.operator.inquiry().origins(listener.into()));
        Ok(found.map(|found| origins_view(&found, &self.operator.history())))
    }
}

/// The verdict that follows from resources alone.
pub fn verdict(expected: Option<&Expected>) -> VerdictInForce {
    match expected {
        None => VerdictInForce::NotOurs,
        Some(expected) if expected.clusters.iter().any(|cluster| !cluster.endpoints.is_empty()) => {
            VerdictInForce::Routed
        }
        Some(_) => VerdictInForce::Refused,
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
}
