//! Resources that proxies are served of those in force, by an agent and by its successor.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use slotmesh_ads::{Sink, Update};
use slotmesh_agent::{ProxyFeed, handlers::Handlers};
use slotmesh_slots::Config;
use slotmesh_xds::{
    Change, Rejection, Resource, ResourceName,
    ResourceType::{self, Cluster, Endpoints, Listener, Route},
    Version,
};
use tokio::runtime::Runtime;

use crate::{
    Bench,
    config::{cluster, endpoints, http_listener, route},
    proxied::by_request,
};

type Served = BTreeMap<(ResourceType, ResourceName), Version>;

/// A feed before an agent, and what it has published.
struct Fed {
    runtime: Runtime,
    feed: ProxyFeed<Handlers>,
    served: Arc<Mutex<(Served, usize)>>,
}

impl Fed {
    fn new(bench: &Bench) -> Self {
        let served = Arc::<Mutex<(Served, usize)>>::default();
        let published = served.clone();
        let publish = move |changes: Vec<Change>| {
            let (served, batches) = &mut *published.lock().unwrap();
            *batches += 1;
            for change in changes {
                match change {
                    Change::Upsert(one) => drop(served.insert((one.ty, one.name), one.version)),
                    Change::Remove(ty, name) => drop(served.remove(&(ty, name))),
                }
            }
        };
        let agent = bench.agent();
        let feed = ProxyFeed::new(agent.handlers(), agent.handle(), Some(Box::new(publish)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        Self { runtime, feed, served }
    }

    fn upsert(&self, ty: ResourceType, upserts: Vec<Resource>) -> Vec<Rejection> {
        self.runtime.block_on(self.feed.apply(Update { ty, upserts, removed: Vec::new() }))
    }

    fn remove(&self, ty: ResourceType, name: &str) {
        let update = Update { ty, upserts: Vec::new(), removed: vec![name.into()] };
        assert_eq!(self.runtime.block_on(self.feed.apply(update)), []);
    }

    /// The resources that are published, and how many batches there were.
    fn served(&self) -> (Vec<String>, usize) {
        let (served, batches) = &*self.served.lock().unwrap();
        let shown = served.keys().filter(|(ty, _)| *ty != Listener).map(|(ty, name)| format!("{ty} {name}"));
        (shown.collect(), *batches)
    }

    fn listeners(&self) -> Vec<String> {
        let served = &self.served.lock().unwrap().0;
        served.keys().filter(|(ty, _)| *ty == Listener).map(|(_, name)| name.to_string()).collect()
    }

    fn held(&self, ty: ResourceType, name: &str) -> Option<Version> {
        let held = self.runtime.block_on(self.feed.held());
        held.into_iter().find(|(of, at, _)| *of == ty && at.as_str() == name).map(|(.., version)| version)
    }

    /// The names that are to be asked for once more.
    fn lacks(&self) -> Vec<String> {
        let room = async { tokio::time::timeout(Duration::from_secs(60), self.feed.retries()).await };
        let asked = self.runtime.block_on(room).expect("something is lacking");
        assert!(asked.soon);
        asked.names.into_iter().map(|(ty, name)| format!("{ty} {name}")).collect()
    }
}

const WEB: &str = "80|web";

#[test]
fn proxies_are_served_what_is_in_force_for_requests_and_nothing_else() {
    let mut bench = Bench::new(Config { initial: 4, ..Config::default() });
    let to = |port: u16| -> [(SocketAddr, u32); 1] { [(SocketAddr::from(([10, 0, 0, 1], port)), 1)] };
    let vip: SocketAddr = "198.18.43.1:80".parse().unwrap();
    let web = by_request(WEB, &[("web".to_owned(), 1)]);
    let fed = Fed::new(&bench);
    assert_eq!(fed.upsert(Cluster, vec![cluster("web"), cluster("other")]), []);
    assert_eq!(fed.upsert(Endpoints, vec![endpoints("web", &to(1)), endpoints("other", &to(2))]), []);
    assert_eq!(fed.upsert(Route, vec![web.clone(), route("plain", &[("other".to_owned(), 1)])]), []);
    assert_eq!(fed.upsert(Listener, vec![http_listener("l", &[vip], WEB)]), []);
    assert_eq!(fed.served(), (vec![], 0), "not before all is known");
    fed.feed.synced();
    let all = ["cluster web", "endpoints web", "route 80|web"].map(str::to_owned).to_vec();
    assert_eq!(fed.served(), (all.clone(), 1), "in one batch");
    let addresses = bench.proxy_addresses(None);
    let address = addresses[&ResourceName::from(WEB)];
    assert_eq!(fed.listeners(), [address.to_string()]);
    // Of what changes only that; what no proxy needs isn't published.
    assert_eq!(fed.upsert(Endpoints, vec![endpoints("other", &to(3))]), []);
    assert_eq!(fed.served(), (all.clone(), 1));
    assert_eq!(fed.upsert(Endpoints, vec![endpoints("web", &to(4))]), []);
    assert_eq!(fed.served(), (all.clone(), 2));
    // What is refused isn't in force, so it isn't published.
    let mut bad = web.clone();
    bad.content = vec![0xff; 9].into();
    assert_eq!(fed.upsert(Route, vec![bad]).len(), 1);
    assert_eq!(fed.served().1, 2);
    // A pod has a proxy for as long as somebody says so.
    let pod = slotmesh_xds::Workload { uid: "u".into(), node: "n".into(), ..Default::default() };
    fed.feed.pods().serve(&pod);
    assert!(fed.served().0.contains(&"workload n/u".to_owned()));
    fed.feed.pods().leave(&pod.resource_name());
    assert_eq!(fed.served().0, all);

    // The next agent has all of it in force, and the bytes of nothing.
    drop(fed);
    bench.stop();
    bench.start();
    let fed = Fed::new(&bench);
    assert_eq!(fed.held(Cluster, "web"), Some(cluster("web").version));
    let version = fed.held(Route, WEB).expect("it is in force");
    assert_ne!(version, web.version, "a version that nobody has, so it is sent");
    assert_eq!(fed.upsert(Route, vec![web.clone()]), []);
    fed.feed.synced();
    assert_eq!(fed.served(), (vec![], 0), "a proxy keeps what it has");
    assert_eq!(fed.lacks(), ["cluster web"]);
    assert_ne!(fed.held(Cluster, "web"), Some(cluster("web").version), "nor of what is lacking");
    assert_eq!(fed.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(fed.lacks(), ["cluster web", "endpoints web"], "by the stream, too");
    assert_eq!(fed.upsert(Endpoints, vec![endpoints("web", &to(4))]), []);
    assert_eq!(fed.served(), (all, 1));
    assert_eq!(fed.listeners(), [address.to_string()], "the same address");
    assert_eq!(fed.held(Route, WEB), Some(web.version));
    // It is for connections again.
    assert_eq!(fed.upsert(Route, vec![route(WEB, &[("web".to_owned(), 1)])]), []);
    assert_eq!((fed.served().0, fed.listeners()), (vec![], vec![]));
    // And for requests once more, and gone.
    assert_eq!(fed.upsert(Route, vec![web]), []);
    assert_eq!(fed.served().0.len(), 3, "what it names is remembered");
    fed.remove(Listener, "l");
    fed.remove(Route, WEB);
    assert_eq!((fed.served().0, fed.listeners()), (vec![], vec![]));
}
