//! What was refused and may be accepted later: what it lacks, and when it is worth asking for it again.
//!
//! The control plane doesn't send a version again that was refused. So the agent asks for it anew, by its name: not
//! before what it lacks is there, not more often than a delay allows that doubles with each refusal, and not for more
//! resources at a time than there is room for. No clock and no maps in here.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use slotmesh_records::VipKey;
use slotmesh_slots::SlotClass;
use slotmesh_xds::ResourceName;

use crate::RecordType;

/// The delay after the first refusal.
const FIRST: Duration = Duration::from_secs(1);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(300);

/// What a resource was refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// Slots of this size or larger, of so many bytes at least.
    Slots(SlotClass, u64),
    /// An address that another listener has.
    Address(VipKey),
    /// Places in the VIP map, which held so many addresses.
    Places { held: usize, wanted: usize },
    /// The kernel gave no memory for slabs.
    Memory,
}

/// A resource, by type and name.
pub(super) type Key = (RecordType, ResourceName);

#[derive(Debug)]
struct Refused {
    lack: Lack,
    refusals: u32,
    not_before: Instant,
    /// It was asked for since: until then the slots that it needs are meant for it.
    is_asked_for: bool,
}

impl Refused {
    /// The bytes of slots that it lacks.
    fn bytes(&self) -> u64 {
        match self.lack {
            Lack::Slots(_, bytes) => bytes,
            _ => 0,
        }
    }

    /// The bytes of slots that are meant for it.
    fn reserved(&self, now: Instant) -> u64 {
        if self.is_asked_for && self.not_before > now { self.bytes() } else { 0 }
    }
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Retries {
    refused: BTreeMap<Key, Refused>,
    /// The bytes of slots that all of them lack.
    lacking: u64,
}

/// Resources that are to be asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub names: Vec<Key>,
    /// One of them was refused only once since there is the room that there is.
    pub soon: bool,
}

impl Retries {
    /// A resource was refused; `jitter` is a random number below 1.
    pub fn refused(&mut self, key: Key, lack: Lack, now: Instant, jitter: f64) {
        let refusals = self.refused.get(&key).map_or(0, |before| before.refusals) + 1;
        let not_before = now + delay(refusals, jitter);
        let refused = Refused { lack, refusals, not_before, is_asked_for: false };
        self.lacking += refused.bytes();
        if let Some(before) = self.refused.insert(key, refused) {
            self.lacking -= before.bytes();
        }
    }

    /// A resource is in force, or is no more. Whether it had been refused.
    pub fn forget(&mut self, ty: RecordType, name: &ResourceName) -> bool {
        if self.refused.is_empty() {
            return false;
        }
        let before = self.refused.remove(&(ty, name.clone()));
        self.lacking -= before.as_ref().map_or(0, Refused::bytes);
        before.is_some()
    }

    /// The bytes of slots that are lacking, at least.
    pub const fn lacking(&self) -> u64 {
        self.lacking
    }

    /// There is room of which no refusal knew: all that lacks some may be asked for now, as if it had never been refused.
    pub fn capacity_was_made(&mut self, now: Instant) {
        for refused in self.refused.values_mut() {
            if matches!(refused.lack, Lack::Slots(..) | Lack::Memory) {
                refused.refusals = 0;
                // What is on its way isn't asked for twice, unless it doesn't come.
                let wait = if refused.is_asked_for { FIRST } else { Duration::ZERO };
                refused.not_before = refused.not_before.min(now + wait);
            }
        }
    }

    /// When there is something to [take](Self::take_due): `is_met` says whether a lack is met, when so many bytes of
    /// slots are meant for others.
    pub fn due(&self, now: Instant, is_met: impl Fn(&Lack, u64) -> bool) -> Option<Instant> {
        let reserved = self.reserved(now);
        let due = self.refused.values().filter(|refused| {
            let others = reserved - refused.reserved(now);
            is_met(&refused.lack, if refused.reserved(now) > 0 { 0 } else { others })
        });
        due.map(|refused| refused.not_before).min()
    }

    /// Those that are due and whose lack is met, and no more than there is room for. They are due again when their
    /// delay has passed once more.
    pub fn take_due(
        &mut self,
        now: Instant,
        mut jitter: impl FnMut() -> f64,
        is_met: impl Fn(&Lack, u64) -> bool,
    ) -> Due {
        let mut reserved = self.reserved(now);
        let mut due = Due::default();
        for (key, refused) in self.refused.iter_mut().filter(|(_, refused)| refused.not_before <= now) {
            if is_met(&refused.lack, reserved) {
                refused.not_before = now + delay(refused.refusals + 1, jitter());
                refused.is_asked_for = true;
                reserved += refused.reserved(now);
                due.soon |= refused.refusals <= 1;
                due.names.push(key.clone());
            }
        }
        due
    }

    /// The bytes of slots that are meant for those that have been asked for.
    fn reserved(&self, now: Instant) -> u64 {
        self.refused.values().map(|refused| refused.reserved(now)).sum()
    }
}

/// Between half of a bound and the bound, which doubles with each refusal.
fn delay(refusals: u32, jitter: f64) -> Duration {
    let doublings = refusals.saturating_sub(1).min(16);
    let bound = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    bound.mul_f64(0.5 + jitter / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        (RecordType::Endpoints, name.into())
    }

    fn slots(bytes: u64) -> Lack {
        Lack::Slots(SlotClass::for_bytes(4096).unwrap(), bytes)
    }

    fn names(due: &Due) -> Vec<&str> {
        due.names.iter().map(|(_, name)| name.as_str()).collect()
    }

    /// A clock of the test's own: seconds from its start.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: f64) -> Instant {
            self.0 + Duration::from_secs_f64(seconds)
        }
    }

    /// 24 small changes in 12 seconds, each of which frees a slot that is too small: nothing is asked for.
    #[test]
    fn what_has_no_room_is_not_asked_for() {
        let clock = Clock(Instant::now());
        let mut retries = Retries::default();
        retries.refused(key("large"), slots(8192), clock.at(0.0), 0.5);
        let has = |usable: u64| move |lack: &Lack, given: u64| matches!(*lack, Lack::Slots(_, bytes) if given + bytes <= usable);
        for change in 0..24 {
            let now = clock.at(f64::from(change) / 2.0);
            assert_eq!(retries.due(now, has(4096)), None, "{change}");
            assert_eq!(retries.take_due(now, || 0.5, has(4096)), Due::default());
        }
        assert!(retries.due(clock.at(12.0), has(8192)).is_some_and(|due| due < clock.at(1.0)));
    }

    #[test]
    fn no_more_are_asked_for_than_there_is_room_for() {
        let clock = Clock(Instant::now());
        let mut retries = Retries::default();
        for name in ["a", "b", "c"] {
            retries.refused(key(name), slots(4096), clock.at(0.0), 1.0);
        }
        let room =
            |lack: &Lack, given: u64| matches!(*lack, Lack::Slots(_, bytes) if given + bytes <= 10_000);
        let none = Due::default();
        assert_eq!(retries.take_due(clock.at(0.9), || 1.0, room), none, "not before its delay has passed");
        let due = retries.take_due(clock.at(1.0), || 1.0, room);
        assert_eq!(names(&due), ["a", "b"]);
        assert_eq!(
            retries.take_due(clock.at(1.0), || 1.0, room),
            none,
            "what there is room for is meant for these"
        );
        assert!(retries.forget(RecordType::Endpoints, &"a".into()));
        assert_eq!(retries.due(clock.at(1.1), room), Some(clock.at(1.0)));
        assert_eq!(names(&retries.take_due(clock.at(1.1), || 1.0, room)), ["c"]);
        assert_eq!(names(&retries.take_due(clock.at(60.0), || 1.0, room)), ["b", "c"]);
    }

    #[test]
    fn the_delay_doubles_with_each_refusal() {
        let clock = Clock(Instant::now());
        let mut retries = Retries::default();
        let mut at = 0.0;
        let mut delays = Vec::new();
        for _ in 0..12 {
            retries.refused(key("a"), slots(64), clock.at(at), 1.0);
            let due = retries.due(clock.at(at), |_, _| true).unwrap();
            delays.push((due - clock.at(at)).as_secs());
            at += 1_000.0;
        }
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        retries.refused(key("a"), slots(64), clock.at(at), 0.0);
        assert_eq!(
            retries.due(clock.at(at), |_, _| true).unwrap() - clock.at(at),
            Duration::from_secs(150),
            "jitter halves it"
        );
    }

    #[test]
    fn room_that_was_made_is_used_at_once_and_for_no_more_than_fits() {
        let clock = Clock(Instant::now());
        let mut retries = Retries::default();
        let vip = VipKey::new([10, 96, 0, 1].into(), 80, VipKey::TCP);
        for _ in 0..8 {
            for name in ["a", "b", "c"] {
                retries.refused(key(name), slots(4096), clock.at(0.0), 1.0);
            }
            retries.refused(key("elsewhere"), Lack::Address(vip), clock.at(0.0), 1.0);
        }
        assert_eq!(retries.lacking(), 3 * 4096);
        let room = |lack: &Lack, given: u64| match *lack {
            Lack::Slots(_, bytes) => given + bytes <= 10_000,
            _ => true,
        };
        assert_eq!(retries.due(clock.at(2.0), room), Some(clock.at(128.0)), "refused often");
        retries.capacity_was_made(clock.at(2.0));
        assert_eq!(retries.due(clock.at(2.0), room), Some(clock.at(2.0)));
        let due = retries.take_due(clock.at(2.0), || 1.0, room);
        assert_eq!((names(&due), due.soon), (vec!["a", "b"], true), "no more than there is room for");
        // PendingRetries once more, while they are on their way: they aren't asked for twice.
        retries.capacity_was_made(clock.at(2.1));
        assert_eq!(retries.take_due(clock.at(2.2), || 1.0, room), Due::default());
        assert!(retries.forget(RecordType::Endpoints, &"a".into()));
        // One is refused all the same: the delays begin anew, and double.
        for (at, delay) in [(2.3, 1.0), (3.3, 2.0)] {
            retries.refused(key("b"), slots(5_000), clock.at(at), 1.0);
            assert_eq!(
                retries.due(clock.at(at), |lack, _| *lack == slots(5_000)),
                Some(clock.at(at + delay))
            );
        }
        assert_eq!(retries.lacking(), 4096 + 5_000);
        let due = retries.take_due(clock.at(6.0), || 1.0, |lack, _| *lack == slots(5_000));
        assert_eq!((names(&due), due.soon), (vec!["b"], false));
        assert!(retries.forget(RecordType::Endpoints, &"b".into()));
        assert!(retries.forget(RecordType::Endpoints, &"c".into()));
        assert_eq!(retries.lacking(), 0);
    }

    #[test]
    fn an_address_is_asked_for_when_its_holder_has_gone() {
        let clock = Clock(Instant::now());
        let mut retries = Retries::default();
        let vip = VipKey::new([10, 96, 0, 1].into(), 80, VipKey::TCP);
        retries.refused(key("b"), Lack::Address(vip), clock.at(0.0), 1.0);
        let is_free =
            |free: bool| move |lack: &Lack, _| matches!(*lack, Lack::Address(key) if key == vip && free);
        let now = clock.at(3_600.0);
        assert_eq!(retries.due(now, is_free(false)), None, "not at all while another listener has it");
        assert_eq!(retries.due(now, is_free(true)), Some(clock.at(1.0)));
    }
}
