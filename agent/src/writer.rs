//! Applies resources to the kernel's maps: the slot engine and the VIP map together.
//!
//! The kernel maps are the only state: which resources are in force, at which version, and which VIPs
//! a listener has, is read from the records themselves.
//!
//! A VIP leads to its listener's handle. It is entered after the listener is current (a program never
//! finds a handle that leads nowhere). A listener that is removed leaves the directory first, so that
//! an agent that is killed in between doesn't bring it back; then its VIPs go; then, after a grace
//! period, its records.

mod failover;
mod listeners;
mod rejected;
mod retries;
mod sources;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use slotmesh_ads::Update;
use slotmesh_kernel::{Arena, BpfError, Map, Outer};
use slotmesh_records::{self as records, SlotPtr, VipKey, name_hash};
use slotmesh_slots::{
    Backing, ClassStats, Config, Contradiction, Engine, HandlePtr, RecoverError, SlotClass, Stats,
};
use slotmesh_xds::{Rejection, Resource, ResourceName, Version};

use crate::{
    RecordType,
    config::{Cluster, Message, Model, NodePlace, Settings, Source},
    flatten::{EndpointsView, flush},
    handles::ProxyHandles,
    held::{Held, is_viewed},
    maglev::Tables,
    prepare::{Hashed, Prepared},
    running::{Keeper, Running, RunningMaps},
    show::Shown,
    view::View,
    vips::Vips,
};
use failover::Failover;
pub use rejected::RejectedRecord;
use retries::{Lack, Retries};

/// How long after a change it is looked whether slabs are to be emptied.
const COMPACT_AFTER: Duration = Duration::from_secs(1);

/// How long a flush took, and of what type.
#[derive(Clone, Copy, Debug)]
pub struct Flush {
    /// The type of the resource.
    pub ty: RecordType,
    /// Validated model to published records.
    pub took: Duration,
}

/// Why a writer can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The slots can't be had.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The VIP map can't be read or written.
    #[error("VIP map: {0}")]
    Vips(#[from] BpfError),
}

/// Records, by type and name.
pub(crate) type RecordNames = BTreeSet<(RecordType, ResourceName)>;

/// The one writer of the kernel's maps.
pub struct Writer {
    engine: Engine,
    vips: Vips,
    /// Removed listeners of which an address could not be taken out of the map yet.
    leaving: Vec<HandlePtr>,
    running: Running,
    /// Load assignments, in force or not, that clusters in force choose from by the source; how many do.
    hashed: HashMap<String, u32>,
    /// Their names, for whoever prepares what the writer is given.
    hashed_names: Hashed,
    /// Tables for the update that is being applied.
    prepared: Prepared,
    /// Tables of many endpoints that weren't among those, and were made here.
    own_tables: u64,
    /// What was refused and may be accepted later.
    retries: Retries,
    /// The [room made](Engine::new_capacity) that they know of.
    new_capacity: u64,
    /// When the first of them is due, and the room there was when that was found out.
    due: Option<(u64, Option<Instant>)>,
    /// Rises with each listener that gives addresses up.
    addresses_freed: u64,
    /// When it is looked whether slabs are to be emptied.
    compact_at: Option<Instant>,
    /// The settings of the slots that the agent was started with.
    flags: Config,
    /// The SlotProfile of those that are in force instead; empty where there is none.
    profile: String,
    /// By which the proxy knows route configurations.
    proxied: ProxyHandles,
    /// Where this node is.
    view: View,
    /// Load assignments in force whose endpoints were chosen by that.
    viewed: HashSet<String>,
    /// Endpoints that are left out, and whom that concerns.
    failover: Failover,
    /// Resources that have to come once more, because the node is elsewhere than it was known to be, or because the
    /// endpoints that it would have are left out.
    stale: RecordNames,
}

impl Writer {
    /// Takes over what is in the maps, or begins anew. Afterwards the VIP map says what the listeners
    /// that are in force say.
    ///
    /// # Errors
    /// Where the maps can't be read.
    pub fn open(
        outer: Outer,
        arena: Arena,
        vips: Map<VipKey, u64>,
        config: Config,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<Self, OpenError> {
        let (vips, entered) = Vips::open(vips)?;
        let roots: HashSet<SlotPtr> =
            entered.iter().map(|&(_, handle)| handle).filter(|handle| !handle.is_null()).collect();
        let roots: Vec<SlotPtr> = roots.into_iter().collect();
        let backing: Arc<dyn Backing> = Arc::new(outer);
        let (mut engine, recovered) = Engine::open(&backing, arena, config, &roots, wake)?;
        // The VIP map leads to them.
        engine.keep_in_place(RecordType::Listener.kind());
        let mut writer = Self {
            engine,
            vips,
            leaving: Vec::new(),
            running: Running::default(),
            hashed: HashMap::new(),
            hashed_names: Hashed::default(),
            prepared: Prepared::default(),
            own_tables: 0,
            retries: Retries::default(),
            new_capacity: 0,
            due: None,
            addresses_freed: 0,
            compact_at: None,
            flags: config,
            profile: String::new(),
            proxied: ProxyHandles::default(),
            view: View::default(),
            viewed: HashSet::new(),
            failover: Failover::default(),
            stale: BTreeSet::new(),
        };
        for cluster in recovered.resources.iter().filter(|one| one.kind == RecordType::Cluster.kind()) {
            if let Some(assignment) = writer.hashed_by(&cluster.name) {
                writer.hashed_names.insert(&assignment);
                *writer.hashed.entry(assignment).or_default() += 1;
            }
            writer.guard_recovered(&cluster.name);
        }
        for route in recovered.resources.iter().filter(|one| one.kind == RecordType::Route.kind()) {
            let handle = writer.proxy_handle(&route.name);
            if handle != 0 {
                writer.proxied.adopt(&route.name, handle);
            }
        }
        let mut listeners: Vec<_> = recovered
            .resources
            .into_iter()
            .filter(|resource| resource.kind == RecordType::Listener.kind())
            .map(|resource| (resource.name, resource.handle, writer.vips_in_record(resource.handle)))
            .collect();
        listeners.sort();
        let valid: HashSet<(VipKey, SlotPtr)> = listeners
            .iter()
            .flat_map(|(_, handle, keys)| keys.iter().map(|&key| (key, handle.ptr())))
            .collect();
        let by_slot: HashMap<SlotPtr, HandlePtr> =
            listeners.iter().map(|(_, handle, _)| (handle.ptr(), *handle)).collect();
        for (key, slot) in entered {
            match by_slot.get(&slot).filter(|_| valid.contains(&(key, slot))) {
                Some(&handle) => writer.vips.adopt(handle, key),
                // The listener was being removed, or was giving this address up.
                None => writer.vips.discard(&key)?,
            }
        }
        for orphan in recovered.orphans {
            writer.engine.retire(orphan);
        }
        for (name, handle, keys) in listeners {
            let free: Vec<VipKey> = keys
                .into_iter()
                .filter(|key| writer.vips.owner(key).is_none_or(|owner| owner == handle))
                .collect();
            if let Err(error) = writer.vips.enter(handle, &free).map_err(RejectedRecord::from) {
                tracing::warn!(listener = %name, %error, "a listener of the earlier agent can't be kept");
                writer.remove_listener(handle);
            }
        }
        writer.poll();
        Ok(writer)
    }

    /// This node's name, by which some endpoints are chosen. To be said before anything is applied.
    pub(crate) fn set_node(&mut self, name: String) {
        self.view.node = name;
        self.hashed_names.see_from(&self.view);
    }

    /// Where this node is.
    fn set_place(&mut self, place: NodePlace) {
        if self.view.place != place {
            self.view.place = place;
            self.hashed_names.see_from(&self.view);
            let viewed = std::mem::take(&mut self.viewed).into_iter();
            self.stale.extend(viewed.map(|name| (RecordType::Endpoints, name.into())));
        }
    }

    /// Names that have to be asked for once more.
    pub(crate) fn take_stale(&mut self) -> RecordNames {
        std::mem::take(&mut self.stale)
    }

    /// Copies of these load assignments, as far as they are in force.
    pub(crate) fn assignments(&self, names: HashSet<String>) -> HashMap<String, Held> {
        let held = |name: &str| {
            let handle = self.engine.find(RecordType::Endpoints.kind(), name)?;
            Held::read(&self.engine, self.engine.current(handle))
        };
        names.into_iter().filter_map(|name| held(&name).map(|held| (name, held))).collect()
    }

    /// How many tables of many endpoints the writer made itself since it was asked last.
    pub(crate) fn take_own_tables(&mut self) -> u64 {
        std::mem::take(&mut self.own_tables)
    }

    /// The load assignments of which tables are to be prepared.
    pub(crate) const fn hashed_names(&self) -> &Hashed {
        &self.hashed_names
    }

    /// Applies one response; `flushed` is told of each resource that became current.
    pub(crate) fn apply(
        &mut self,
        ty: RecordType,
        update: Update,
        prepared: Prepared,
        mut flushed: impl FnMut(Flush),
    ) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        self.prepared = prepared;
        for resource in update.upserts {
            match self.decode_and_upsert(&resource) {
                Ok(took) => {
                    self.no_retry(ty, &resource.name);
                    flushed(Flush { ty, took });
                }
                Err(error) => {
                    self.refused(ty, &resource.name, &error);
                    rejected.push(Rejection { name: resource.name, reason: error.to_string() });
                }
            }
        }
        for name in update.removed {
            self.remove(ty, &name);
        }
        self.engine.want(self.retries.lacking());
        self.poll();
        rejected
    }

    /// Takes note of what may be accepted later. The client says what is refused, once a version.
    fn refused(&mut self, ty: RecordType, name: &ResourceName, error: &RejectedRecord) {
        tracing::debug!(resource = %name, %ty, %error, "refused a resource");
        match error.lack() {
            Some(lack) => {
                self.due = None;
                self.retries.refused((ty, name.clone()), lack, Instant::now(), rand::random());
            }
            None => self.no_retry(ty, name),
        }
    }

    fn no_retry(&mut self, ty: RecordType, name: &ResourceName) {
        if self.retries.forget(ty, name) {
            self.due = None;
        }
    }

    /// How long it took from the validated model on.
    fn decode_and_upsert(&mut self, resource: &Resource) -> Result<Duration, RejectedRecord> {
        let message = Message::decode(resource)?;
        let mut model = Model::new(resource.name.as_str(), &message)?;
        let (name, version) = (resource.name.as_str(), resource.version.get());
        let tables = match &model {
            Model::Endpoints(_) => self.prepared.take(name, version, Some(&self.view)),
            Model::Cluster(Cluster { source: Source::Inline(endpoints), balance, .. }) => {
                let tables = self.prepared.take(name, version, None);
                let view = EndpointsView { hashed: balance.hashes(), tables: tables.as_ref() };
                self.own_tables += u64::from(view.lacks_tables(endpoints));
                tables
            }
            _ => None,
        };
        let started = Instant::now();
        self.upsert(name, resource.version, &mut model, tables.as_ref())?;
        let took = started.elapsed();
        if let Model::Route(route) = &model
            && route.unreachable > 0
        {
            tracing::warn!(
                route = %resource.name,
                unreachable = route.unreachable,
                of = route.hosts.len(),
                "virtual hosts that have only host names as domains: a connection has an address, and can't choose them"
            );
        }
        Ok(took)
    }

    /// Puts settings of the node in force; with `None`, those of the agent's flags.
    ///
    /// # Errors
    /// Where they contradict each other; then those before stay in force.
    pub(crate) fn configure(&mut self, settings: Option<Settings>) -> Result<(), Contradiction> {
        let of_flags = || Settings { profile: String::new(), slots: self.flags, place: NodePlace::default() };
        let Settings { profile, slots, place } = settings.unwrap_or_else(of_flags);
        self.engine.set_config(slots)?;
        tracing::info!(profile, ?slots, ?place, "settings of the node are in force");
        self.set_place(place);
        self.profile = profile;
        self.poll();
        Ok(())
    }

    /// Makes a validated resource current; with these tables of sources, where they have been made.
    ///
    /// # Errors
    /// Then the version before it, if there is one, still is.
    fn upsert(
        &mut self,
        name: &str,
        version: Version,
        model: &mut Model<'_>,
        tables: Option<&Tables>,
    ) -> Result<(), RejectedRecord> {
        let version = version.get();
        let mut view = EndpointsView { hashed: false, tables };
        if let Model::Cluster(cluster) = &*model {
            self.running.unmark(name);
            self.upsert_cluster(name, version, cluster, model, view)?;
            self.guard(name, Some(cluster));
            return Ok(());
        }
        if let Model::Endpoints(endpoints) = model {
            view.hashed = self.hashed.contains_key(name);
            endpoints.see_from(name, &self.view);
            self.own_tables += u64::from(view.lacks_tables(endpoints));
        }
        if let Model::Route(route) = model
            && route.by_request
        {
            route.proxy = self.proxied.assign(name, Instant::now());
        }
        let Model::Listener(listener) = &*model else {
            let flushed = flush(self.engine.draft(), name, version, model, view);
            let has_handle = matches!(model, Model::Route(_)) && self.proxied.address(name).is_some();
            if has_handle && self.proxy_handle(name) == 0 {
                self.proxied.release(name, Instant::now());
            }
            flushed?;
            if let Model::Endpoints(endpoints) = model {
                if endpoints.viewed {
                    self.viewed.insert(name.to_owned());
                } else if !self.viewed.is_empty() {
                    self.viewed.remove(name);
                }
                self.note_farther(name, Some(endpoints));
            }
            return Ok(());
        };
        self.upsert_listener(name, version, listener, model)
    }

    /// The handle in the record of a route configuration; 0 where that has none, or isn't in force.
    fn proxy_handle(&self, name: &str) -> u32 {
        let root = self.engine.find(RecordType::Route.kind(), name).map(|handle| self.engine.current(handle));
        root.and_then(|root| self.engine.record::<records::Route>(root)).map_or(0, |(route, _)| route.proxy)
    }

    /// The addresses at which the proxy takes connections for route configurations: of those of these that are in force
    /// and for requests; of all such where none are named.
    pub(crate) fn proxy_addresses(
        &self,
        names: Option<Vec<ResourceName>>,
    ) -> HashMap<ResourceName, Ipv4Addr> {
        match names {
            Some(names) => {
                let known = |name: ResourceName| self.proxied.address(name.as_str()).map(|at| (name, at));
                names.into_iter().filter_map(known).collect()
            }
            None => self.proxied.addresses().map(|(name, at)| (name.into(), at)).collect(),
        }
    }

    /// A resource is no more.
    pub fn remove(&mut self, ty: RecordType, name: &ResourceName) {
        self.no_retry(ty, name);
        if ty == RecordType::Route {
            self.proxied.release(name.as_str(), Instant::now());
        }
        let Some(handle) = self.engine.find(ty.kind(), name.as_str()) else { return };
        if ty == RecordType::Listener {
            self.remove_listener(handle);
            return;
        }
        let hashed = self.hashed_by(name.as_str()).filter(|_| ty == RecordType::Cluster);
        self.engine.remove(handle);
        match ty {
            RecordType::Endpoints => {
                self.viewed.remove(name.as_str());
                self.note_farther(name.as_str(), None);
            }
            RecordType::Cluster => {
                self.running.mark_removed(name_hash(name.as_str()));
                self.guard(name.as_str(), None);
            }
            _ => {}
        }
        if let Some(assignment) = hashed {
            self.unhash(&assignment);
        }
    }

    /// From now on, who looks after what runs is told of clusters that come and go.
    pub(crate) fn keep_running_state(&mut self, maps: &Arc<RunningMaps>) -> Keeper {
        self.running.open(maps)
    }

    /// The first sync is over: what an earlier agent left that nothing leads to goes.
    pub fn synced(&mut self) {
        self.running.mark_orphans(self.clusters().map(name_hash).collect());
    }

    /// The names of the clusters that are in force.
    fn clusters(&self) -> impl Iterator<Item = &str> {
        let all = self.engine.resources();
        all.filter(|&(resource, ..)| resource == RecordType::Cluster.kind()).map(|(_, name, _)| name)
    }

    /// When there is something to do without being asked: to [retry](Self::retry) or to
    /// [compact](Self::compact).
    pub fn due(&mut self) -> Option<Instant> {
        if self.new_capacity != self.engine.new_capacity() {
            self.new_capacity = self.engine.new_capacity();
            self.retries.capacity_was_made(Instant::now());
        }
        let room = self.capacity_now();
        let retry = match self.due {
            Some((then, due)) if then == room => due,
            _ => {
                let due = self.retries.due(Instant::now(), |lack, given| self.is_met(lack, given));
                self.due = Some((room, due));
                due
            }
        };
        retry.into_iter().chain(self.compact_at).min()
    }

    /// Resources that were refused, are due, and may be accepted now; whether they are to be asked for soon.
    pub fn retry(&mut self, now: Instant) -> (RecordNames, bool) {
        if self.due.and_then(|(_, due)| due).is_none_or(|due| due > now) {
            return (RecordNames::new(), false);
        }
        self.due = None;
        let mut retries = std::mem::take(&mut self.retries);
        let due = retries.take_due(now, rand::random, |lack, given| self.is_met(lack, given));
        self.retries = retries;
        (due.names.into_iter().collect(), due.soon)
    }

    /// Whether what a resource lacks is there, beside so many bytes of slots that are meant for others.
    fn is_met(&self, lack: &Lack, given: u64) -> bool {
        match *lack {
            Lack::Slots(class, bytes) => self.engine.usable(class) >= given + bytes,
            Lack::Address(vip) => self.vips.owner(&vip).is_none(),
            Lack::Places { held, wanted } => self.vips.len() + wanted <= held,
            // Only another try tells.
            Lack::Memory => true,
        }
    }

    /// Does a bounded part of emptying nearly idle slabs, where it is time for that. Whether there is more to do now.
    pub fn compact(&mut self, now: Instant) -> bool {
        if !self.engine.is_compacting() && self.compact_at.is_none_or(|at| at > now) {
            return false;
        }
        self.compact_at = None;
        self.engine.compact()
    }

    fn capacity_now(&self) -> u64 {
        self.engine.capacity() + self.addresses_freed
    }

    /// What is in force: type, name, version. A load assignment that another agent chose from, perhaps by another view
    /// of the node, has a version that no control plane has: so it comes once more, or is removed.
    pub fn held(&self) -> Vec<(RecordType, ResourceName, Version)> {
        let records = self.engine.resources().filter_map(|(kind, name, version)| {
            let ty = RecordType::of_kind(kind)?;
            let is_foreign = ty == RecordType::Endpoints && self.is_foreign_view(name);
            let version = if is_foreign { (!version).max(1) } else { version };
            Some((ty, name.into(), Version::from_u64(version)?))
        });
        records.collect()
    }

    /// Tells a load assignment of which an earlier agent chose the endpoints, by where it took the node to be.
    fn is_foreign_view(&self, name: &str) -> bool {
        let root = || Some(self.engine.current(self.engine.find(RecordType::Endpoints.kind(), name)?));
        !self.viewed.contains(name) && root().is_some_and(|root| is_viewed(&self.engine, root))
    }

    /// A copy of what the records hold of a resource; `None` where it isn't in force.
    pub(crate) fn show(&self, ty: RecordType, name: &str) -> Option<Shown> {
        let snapshot = self.engine.snapshot(self.engine.find(ty.kind(), name)?)?;
        Some(Shown { ty, name: name.to_owned(), snapshot })
    }

    /// The names of those of these clusters that are in force, by the hash of their names.
    pub(crate) fn cluster_names(&self, hashes: &HashSet<u64>) -> HashMap<u64, String> {
        let named = self.clusters().map(|name| (name_hash(name), name));
        named.filter(|(hash, _)| hashes.contains(hash)).map(|(hash, name)| (hash, name.to_owned())).collect()
    }

    /// The slot table, and how many addresses the VIP map holds.
    pub fn stats(&self) -> (Stats, usize) {
        (self.engine.stats(), self.vips.len())
    }

    /// The slabs that serve a class, by index, and their slots by state.
    pub fn slabs_of(&self, class: SlotClass) -> Vec<(u32, ClassStats)> {
        self.engine.slabs_of(class)
    }

    /// The SlotProfile in force, if one is.
    pub fn profile(&self) -> Option<&str> {
        (!self.profile.is_empty()).then_some(self.profile.as_str())
    }

    /// Takes finished background work over.
    pub fn poll(&mut self) {
        self.go_on_leaving();
        self.engine.poll();
        self.compact_at.get_or_insert_with(|| Instant::now() + COMPACT_AFTER);
    }
}
