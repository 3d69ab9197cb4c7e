//! Services whose endpoints change all the time, and which answers were right when.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::Value;
use slotmesh_e2e::{
    Backends, Log, ManifestDir,
    connect::{Connect, now},
    manifests::{destination_rule, pod, service, slice, virtual_service},
    mesh::at,
};

/// The port of the services that have few pods.
const TARGET: u16 = 8080;
/// The port of the one that has many.
const MANY_TARGET: u16 = 9999;
/// Pods of a service that has few.
const PODS: u8 = 4;

/// What a service is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Two versions of two pods each, chosen by the weights of a VirtualService.
    Versions,
    /// Pods that come and go.
    Plain,
    /// The Service itself comes and goes.
    Fleeting,
    /// Up to 250 pods, all replaced by others with each change: records of several slots.
    Many,
}

const KINDS: [Kind; 5] = [Kind::Versions, Kind::Plain, Kind::Plain, Kind::Fleeting, Kind::Many];

/// The pods that a service has, by the ids with which they answer; `None` without the Service.
type Pods = Option<BTreeSet<u16>>;

/// What was in the manifests since when, by [`now`].
struct Since {
    when: u64,
    pods: Pods,
}

struct Service {
    number: u8,
    kind: Kind,
    /// Oldest first.
    history: Vec<Since>,
    /// From this time on, by [`now`], what was before this place in the history is wrong.
    settled: Vec<(u64, usize)>,
    changes: u16,
}

/// See the module's comment.
pub struct Shop {
    manifests: ManifestDir,
    services: Vec<Service>,
}

impl Shop {
    /// All of them in the manifests, as at every [`Shop::reset`].
    pub fn open(manifests: ManifestDir, backends: &mut Backends) -> Result<Self> {
        let new = |(number, &kind)| Service {
            number: number as u8,
            kind,
            history: Vec::new(),
            settled: Vec::new(),
            changes: 0,
        };
        let mut shop = Self { manifests, services: KINDS.iter().enumerate().map(new).collect() };
        for service in shop.services.iter().filter(|service| service.kind != Kind::Many) {
            for pod in 1..=PODS {
                backends.open(&at(&service.ip_of(pod), TARGET).to_string(), service.id_of(pod))?;
            }
        }
        backends.open_all_v4(MANY_TARGET)?;
        shop.reset()?;
        Ok(shop)
    }

    /// Their addresses.
    pub fn addresses(&self) -> Vec<std::net::SocketAddr> {
        self.services.iter().map(Service::vip).collect()
    }

    /// Changes one service.
    pub fn change(&mut self, random: &mut StdRng) -> Result<()> {
        let n = random.random_range(0..self.services.len());
        let service = &mut self.services[n];
        service.changes += 1;
        let pods = service.choose(random);
        service.write(&self.manifests, pods, random.random_range(1..100))
    }

    /// Brings all services back to what they were at first.
    pub fn reset(&mut self) -> Result<()> {
        for service in &mut self.services {
            service.changes = 0;
            let pods = service.at_first();
            service.write(&self.manifests, Some(pods), 50)?;
        }
        Ok(())
    }

    /// An agent that was started after the last change is in force from `ready` on.
    pub fn settled(&mut self, started: &[usize], ready: u64) {
        for (service, &place) in self.services.iter_mut().zip(started) {
            service.settled.push((ready, place));
        }
    }

    /// Where in their histories the services are now.
    pub fn places(&self) -> Vec<usize> {
        self.services.iter().map(|service| service.history.len() - 1).collect()
    }

    /// Fails where a connect went to a pod that its service hadn't then, or failed while its service was
    /// there.
    pub fn check(&self, log: &Log) -> Result<()> {
        for connect in &log.connects {
            let service = self.services.iter().find(|service| service.vip() == connect.to);
            service.context("an address of the shop")?.check(connect, log.start)?;
        }
        Ok(())
    }
}

impl Service {
    fn vip(&self) -> std::net::SocketAddr {
        at(&format!("10.96.7.{}", self.number + 1), 80)
    }

    fn name(&self) -> String {
        format!("shop-{}", self.number)
    }

    fn ip_of(&self, pod: u8) -> String {
        format!("127.2.{}.{pod}", self.number)
    }

    fn id_of(&self, pod: u8) -> u16 {
        u16::from(self.number) * 10 + u16::from(pod)
    }

    fn ids(&self, pods: impl IntoIterator<Item = u8>) -> BTreeSet<u16> {
        pods.into_iter().map(|pod| self.id_of(pod)).collect()
    }

    /// The ids of the pods `127.3.net.1` to `127.3.net.count`.
    fn many(net: u8, count: u8) -> BTreeSet<u16> {
        (1..=count).map(|pod| u16::from_be_bytes([net, pod])).collect()
    }

    fn at_first(&self) -> BTreeSet<u16> {
        match self.kind {
            Kind::Many => Self::many(1, 200),
            _ => self.ids(1..=PODS),
        }
    }

    /// Other pods than before, perhaps; at least one, of each version where it has versions.
    fn choose(&self, random: &mut StdRng) -> Pods {
        let some = |of: [u8; 2], random: &mut StdRng| match random.random_range(0..3) {
            0 => vec![of[0]],
            1 => vec![of[1]],
            _ => of.to_vec(),
        };
        match self.kind {
            Kind::Fleeting if random.random_bool(0.5) => None,
            Kind::Many => {
                let net = 2 + (self.changes % 200) as u8;
                let count = *[3, 40, 126, 127, 250].choose(random).unwrap_or(&1);
                Some(Self::many(net, count))
            }
            _ => {
                let mut pods = some([1, 2], random);
                pods.extend(some([3, 4], random));
                Some(self.ids(pods))
            }
        }
    }

    /// The objects of this service with these pods.
    fn objects(&self, pods: &BTreeSet<u16>, weight: i64) -> Vec<Value> {
        let name = self.name();
        let mut objects = vec![service(&name).ip(&self.vip().ip().to_string()).port(80).build()];
        let mut endpoints = slice(&name, &name);
        if self.kind == Kind::Many {
            endpoints = endpoints.port(MANY_TARGET);
            for id in pods {
                endpoints = endpoints.endpoint(&format!("127.3.{}.{}", id >> 8, id & 0xff));
            }
        } else {
            endpoints = endpoints.port(TARGET);
            for number in (1..=PODS).filter(|&number| pods.contains(&self.id_of(number))) {
                let (pod_name, ip) = (format!("{name}-{number}"), self.ip_of(number));
                let version = if number <= 2 { "v1" } else { "v2" };
                objects.push(pod(&pod_name, &ip).label("version", version).build());
                endpoints = endpoints.pod_endpoint(&ip, &pod_name);
            }
        }
        objects.push(endpoints.build());
        if self.kind == Kind::Versions {
            objects.push(destination_rule(&name).version("v1").version("v2").build());
            let weights = [("v1", weight), ("v2", 100 - weight)];
            objects.push(virtual_service(&name).http(&name, &weights).build());
        }
        objects
    }

    fn write(&mut self, manifests: &ManifestDir, pods: Pods, weight: i64) -> Result<()> {
        let file = format!("{}.yaml", self.name());
        let was_there = self.history.last().is_some_and(|since| since.pods.is_some());
        self.history.push(Since { when: now(), pods: pods.clone() });
        match pods {
            Some(pods) => manifests.write(&file, &self.objects(&pods, weight)),
            None if was_there => manifests.remove(&file),
            None => Ok(()),
        }
    }

    /// The places in the history at which this was one of the pods.
    fn versions_with(&self, id: u16) -> Vec<usize> {
        let has = |since: &Since| since.pods.as_ref().is_some_and(|pods| pods.contains(&id));
        (0..self.history.len()).filter(|&place| has(&self.history[place])).collect()
    }

    fn check(&self, connect: &Connect, start: u64) -> Result<()> {
        let (began, ended) = (start + connect.at, start + connect.at + connect.took);
        let settled = self.settled.iter().rev().find(|(ready, _)| *ready <= began);
        let oldest = settled.map_or(0, |&(_, place)| place);
        let newest = self.history.partition_point(|since| since.when <= ended);
        let possible = &self.history[oldest..newest];
        let gone = possible.iter().any(|since| since.pods.is_none());
        match connect.backend {
            Some(id) => {
                let right = possible.iter().any(|since| since.pods.as_ref().is_some_and(|p| p.contains(&id)));
                ensure!(
                    right,
                    "{}: pod {id} isn't one of its pods then: {connect}; it was one in the versions {:?}, and from {} to {} \
                     were possible: an agent that knew the first was ready {:?} us before the connect, the last came {} us \
                     before its end",
                    self.name(),
                    self.versions_with(id),
                    oldest,
                    newest - 1,
                    settled.map(|(ready, _)| began - ready),
                    ended - self.history[newest - 1].when,
                );
            }
            // Without the Service its address isn't ours, and leads nowhere; while it goes, or comes, there
            // may be nothing to connect to.
            None => {
                let expected = [Errno::ENETUNREACH, Errno::ECONNREFUSED].map(|errno| errno as i32);
                ensure!(gone && expected.contains(&connect.errno), "{}: {connect}", self.name());
            }
        }
        Ok(())
    }
}
