//! Random stories: what the server thinks that the agent has is what it has.

use std::collections::BTreeMap;

use slotmesh_xds::{Fingerprint, Sketch};

use super::*;
use crate::Visibility;

/// The same numbers each time (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Shows all but the names that it hides; of these it spares the agent the even ones.
#[derive(Debug, Default)]
struct Hides(std::sync::Mutex<String>);

impl crate::Scope for Hides {
    fn visibility(&self, _: &NodeName, _: ResourceType, name: &ResourceName) -> Visibility {
        match self.0.lock().unwrap().contains(name.as_str()) {
            false => Visibility::Seen,
            true if name.as_str().parse::<u64>().is_ok_and(|number| number % 2 == 0) => Visibility::Spared,
            true => Visibility::Foreign,
        }
    }
}

/// An agent of one type, and the responses that it hasn't answered.
#[derive(Default)]
struct Agent {
    has: BTreeMap<String, Version>,
    unanswered: Vec<DeltaDiscoveryResponse>,
}

impl Agent {
    /// Answers the oldest response; refuses what `refuse` says.
    fn answer(&mut self, scene: &mut Scene, mut refuse: impl FnMut() -> bool) {
        if self.unanswered.is_empty() {
            return;
        }
        let response = self.unanswered.remove(0);
        let mut refused = Vec::new();
        for one in &response.resources {
            if refuse() {
                refused.push((one.name.as_str(), "no"));
                // The server forgets what it was told to send again and is refused now.
                if self.has.get(&one.name) == Some(&one.version.parse().unwrap()) {
                    self.has.remove(&one.name);
                }
            } else {
                self.has.insert(one.name.clone(), one.version.parse().unwrap());
            }
        }
        for name in &response.removed_resources {
            self.has.remove(name);
        }
        if refused.is_empty() {
            scene.ack(&response);
        } else {
            scene.nack(&response, &refused);
        }
    }

    fn read(&mut self, scene: &mut Scene) {
        while let Some(response) = scene.next() {
            self.unanswered.push(response);
        }
    }

    fn compare(&self, scene: &Scene) {
        let thought: BTreeMap<String, Version> = scene
            .stream
            .held(Cluster, &scene.resources)
            .into_iter()
            .map(|(name, version)| (name.to_string(), version))
            .collect();
        assert_eq!(thought, self.has);
        let status = scene.stream.status(StreamId(1)).unwrap();
        let mut sketch = Sketch::default();
        let spared = scene.stream.spared(Cluster, &scene.resources);
        let spared = spared.iter().map(|(name, version)| (name.as_str(), version));
        thought
            .iter()
            .map(|(name, version)| (name.as_str(), version))
            .chain(spared)
            .for_each(|(name, version)| sketch.add(Fingerprint::of(Cluster, &name.into(), *version)));
        assert_eq!((status.types[Cluster].held, &status.types[Cluster].sketch), (thought.len(), &sketch));
    }
}

fn story(seed: u64) {
    let mut random = Random(seed + 1);
    let scope = Arc::new(Hides::default());
    let mut scene = Scene::new(vec![upsert(Cluster, "0", "0")]);
    scene.resources.set_scope(scope.clone());
    let mut agent = Agent::default();
    let initial = (0..random.below(6)).map(|n| {
        agent.has.insert(n.to_string(), Version::of(b"0"));
        (n.to_string(), Version::of(b"0").to_string())
    });
    let initial = initial.collect();
    scene.send(DeltaDiscoveryRequest { initial_resource_versions: initial, ..request(Cluster) });
    for _ in 0..300 {
        let name = random.below(12).to_string();
        match random.below(10) {
            0..4 => {
                let content = random.below(3).to_string();
                // Several batches may wait in the inbox, as one.
                scene.apply(vec![upsert(Cluster, &name, &content)]);
            }
            4 | 5 => scene.apply(vec![remove(Cluster, &name)]),
            6 => {
                let before = std::mem::replace(&mut *scope.0.lock().unwrap(), name.clone());
                if random.below(2) == 0 {
                    scene.stream.compare_all(&scene.resources);
                } else {
                    // All of which it may have changed.
                    let all = scene.resources.table(Cluster).iter().map(|(name, _)| name.clone());
                    let touched =
                        |one: &ResourceName| before.contains(one.as_str()) || name.contains(one.as_str());
                    let touched = all.filter(touched).map(|name| (Cluster, name)).collect();
                    scene.look_at(&touched);
                }
            }
            7 => {
                let subscribe = subscribe(Cluster, &[&name]);
                scene.send(subscribe);
            }
            _ => {
                agent.read(&mut scene);
                agent.answer(&mut scene, || random.below(8) == 0);
            }
        }
        agent.compare(&scene);
    }
    // In the end it has all that it may see and didn't refuse.
    loop {
        agent.read(&mut scene);
        if agent.unanswered.is_empty() {
            break;
        }
        agent.answer(&mut scene, || false);
        agent.compare(&scene);
    }
    let hidden = scope.0.lock().unwrap().clone();
    let rejected = scene.stream.status(StreamId(1)).unwrap().types[Cluster].rejected.clone();
    for (name, place) in scene.resources.table(Cluster).iter() {
        let resource = scene.resources.table(Cluster).at(place).unwrap();
        let is_rejected =
            rejected.iter().any(|one| one.name == *name && one.version == Some(resource.version));
        if is_rejected {
            continue;
        }
        let expected = (!hidden.contains(name.as_str())).then_some(&resource.version);
        assert_eq!(agent.has.get(name.as_str()), expected, "{name}, seed {seed}");
    }
    // And is spared what it isn't sent, but for what is nobody's business there.
    let node = NodeName::from("n1");
    let expected =
        scene.resources.table(Cluster).iter().filter(|(name, _)| {
            crate::Scope::visibility(&*scope, &node, Cluster, name) == Visibility::Spared
        });
    let expected: Vec<_> = expected
        .filter_map(|(name, place)| Some((name.clone(), scene.resources.table(Cluster).at(place)?.version)))
        .collect();
    let mut spared = scene.stream.spared(Cluster, &scene.resources);
    spared.sort_by(|one, other| one.0.cmp(&other.0));
    let mut expected = expected;
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    // What the agent refuses to remove, it has.
    expected.retain(|(name, _)| !agent.has.contains_key(name.as_str()));
    assert_eq!(spared, expected, "seed {seed}");
}

#[test]
fn the_server_knows_what_the_agent_has() {
    (0..300).for_each(story);
}

#[test]
fn an_agent_in_sync_costs_no_name() {
    let resources = (0..1_000).map(|n| upsert(Cluster, &n.to_string(), "1"));
    let mut scene = Scene::settled(resources.collect());
    assert_eq!((scene.stream.remembered(), scene.held(Cluster).len()), (0, 1_000));
    scene.apply(vec![upsert(Cluster, "7", "2"), remove(Cluster, "8")]);
    // A name that is held in another version, and one that is compared; one that is held and gone, twice.
    assert_eq!(scene.stream.remembered(), 4);
    scene.settle();
    assert_eq!((scene.stream.remembered(), scene.held(Cluster).len()), (0, 999));

    // It comes back with what it has: that costs nothing either.
    let initial = scene.stream.held(Cluster, &scene.resources).into_iter();
    let initial = initial.map(|(name, version)| (name.to_string(), version.to_string())).collect();
    scene.stream = Stream::new(StreamId(2), LIMIT);
    scene.send(DeltaDiscoveryRequest { initial_resource_versions: initial, ..request(Cluster) });
    let response = scene.next().unwrap();
    assert_eq!((response.resources.len(), scene.stream.remembered()), (0, 0));
}
