//! The handles by which the proxy knows route configurations: addresses of 127/8.
//!
//! A handle follows from the name, so that it stays when a configuration goes and comes back; where another one has it,
//! the next free one is taken. It stands in the record, from which a new agent takes it.
//!
//! Invariant: no two configurations in force have the same handle, and one that is given up isn't another one's for a
//! minute: connections that were made for it may still wait for the proxy.

use std::{
    collections::{HashMap, VecDeque},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use slotmesh_records::{name_hash, proxy_address};

/// How long a handle that is given up isn't given to another.
const REST: Duration = Duration::from_secs(60);
/// `127.1.0.0`: what lies below is used by others, as 127.0.0.1 and 127.0.0.53.
const LOWEST: u32 = 0x0001_0000;
/// `127.255.255.254`: the next one is a broadcast address.
const HIGHEST: u32 = 0x00ff_fffe;

/// Who has which handle.
#[derive(Debug, Default)]
pub(crate) struct ProxyHandles {
    by_name: HashMap<String, u32>,
    by_handle: HashMap<u32, Owner>,
    /// Those that were given up, since when; those that are another's again, too.
    resting: VecDeque<(Instant, u32)>,
}

/// The configuration that has a handle, or had it until then.
#[derive(Debug)]
struct Owner {
    name: String,
    left: Option<Instant>,
}

impl ProxyHandles {
    /// Takes over what stands in a record; of a handle that another one has, nothing.
    pub fn adopt(&mut self, name: &str, handle: u32) {
        if self.by_handle.contains_key(&handle) || self.by_name.contains_key(name) {
            return;
        }
        self.by_name.insert(name.to_owned(), handle);
        self.by_handle.insert(handle, Owner { name: name.to_owned(), left: None });
    }

    /// The handle of a configuration that is to be in force.
    pub fn assign(&mut self, name: &str, now: Instant) -> u32 {
        if let Some(handle) = self.by_name.get(name) {
            return *handle;
        }
        self.free(now);
        let span = u64::from(HIGHEST - LOWEST + 1);
        let mut place = name_hash(name) % span;
        // There are far fewer configurations than handles.
        let handle = loop {
            let handle = LOWEST + place as u32;
            if self.by_handle.get(&handle).is_none_or(|owner| owner.left.is_some() && owner.name == name) {
                break handle;
            }
            place = (place + 1) % span;
        };
        self.by_name.insert(name.to_owned(), handle);
        self.by_handle.insert(handle, Owner { name: name.to_owned(), left: None });
        handle
    }

    /// A configuration is in force no longer, or no longer for requests.
    pub fn release(&mut self, name: &str, now: Instant) {
        let Some(handle) = self.by_name.remove(name) else { return };
        if let Some(owner) = self.by_handle.get_mut(&handle) {
            owner.left = Some(now);
            self.resting.push_back((now, handle));
        }
    }

    /// The address at which the proxy takes connections for a configuration.
    pub fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.by_name.get(name).map(|handle| address(*handle))
    }

    /// All of them.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, Ipv4Addr)> {
        self.by_name.iter().map(|(name, handle)| (name.as_str(), address(*handle)))
    }

    /// Those that have rested are free.
    fn free(&mut self, now: Instant) {
        while let Some(&(left, handle)) = self.resting.front()
            && left + REST <= now
        {
            self.resting.pop_front();
            if self.by_handle.get(&handle).is_some_and(|owner| owner.left == Some(left)) {
                self.by_handle.remove(&handle);
            }
        }
    }
}

fn address(handle: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from_be(proxy_address(handle)[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_follows_from_the_name_and_is_nobody_elses() {
        let (mut one, mut other) = (ProxyHandles::default(), ProxyHandles::default());
        let now = Instant::now();
        let names: Vec<String> = (0..1_000).map(|i| format!("80|web-{i}")).collect();
        let handles: Vec<u32> = names.iter().map(|name| one.assign(name, now)).collect();
        let mut distinct = handles.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), names.len());
        assert!(handles.iter().all(|handle| (LOWEST..=HIGHEST).contains(handle)));
        assert_eq!(one.assign(&names[7], now), handles[7]);
        let [_, a, b, c] = handles[7].to_be_bytes();
        assert_eq!(one.address(&names[7]), Some(Ipv4Addr::new(127, a, b, c)));
        assert_eq!(one.addresses().count(), names.len());
        assert_eq!(other.assign(&names[7], now), handles[7], "of the name alone, where it is free");
    }

    #[test]
    fn a_handle_that_is_given_up_rests() {
        let mut handles = ProxyHandles::default();
        let start = Instant::now();
        let first = handles.assign("a", start);
        handles.release("a", start);
        assert_eq!(handles.address("a"), None);
        // Another name that would have the same one.
        handles.by_handle.get_mut(&first).unwrap().name = "b".to_owned();
        let second = handles.assign("a", start + Duration::from_secs(59));
        assert_eq!(second, if first == HIGHEST { LOWEST } else { first + 1 });
        handles.release("a", start + Duration::from_secs(59));
        assert_eq!(handles.assign("a", start + Duration::from_secs(61)), first);
        // Whoever comes back has it at once.
        handles.release("a", start + Duration::from_secs(61));
        assert_eq!(handles.assign("a", start + Duration::from_secs(62)), first);
        // What is forgotten then isn't the handle that is in use again.
        handles.assign("c", start + Duration::from_secs(200));
        assert_eq!(handles.assign("a", start + Duration::from_secs(201)), first);
        assert!(handles.resting.is_empty());
        assert_eq!(handles.by_handle.len(), 2);
    }

    #[test]
    fn what_stands_in_a_record_is_taken_over() {
        let mut handles = ProxyHandles::default();
        handles.adopt("a", 0x0012_3456);
        handles.adopt("b", 0x0012_3456);
        assert_eq!(handles.assign("a", Instant::now()), 0x0012_3456);
        assert_ne!(handles.assign("b", Instant::now()), 0x0012_3456);
    }
}
