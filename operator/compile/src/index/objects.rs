//! The objects that the index holds: of each kind, what was read of them, by name.
//!
//! Invariant: after `apply` and `delete` the relations are those of the models that are held, and `dirty` has gained
//! all that depends on a model that came, changed or went.

use std::collections::{BTreeSet, HashMap};

use crate::{
    CompileOptions, Kind, Object, ObjectKey, ObjectName, Source, Unit,
    kinds::kinds,
    links::{Model, Relations, touch_leads},
    model::{self, Read as _},
    report::Findings,
};

/// An object.
#[derive(Debug)]
struct Entry<M> {
    /// `None` where the object is refused: then it is as if it weren't there.
    good: Option<M>,
    origin: Origin,
}

/// Where and as what an object was read last, good or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub(super) source: Option<Source>,
    /// The `metadata.generation`.
    pub(super) generation: Option<i64>,
}

/// The objects of a kind.
#[derive(Debug)]
pub(super) struct Entries<M>(HashMap<ObjectName, Entry<M>>);

impl<M> Default for Entries<M> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<M> Entries<M> {
    /// The model of an object that isn't refused.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&M> {
        self.0.get(name)?.good.as_ref()
    }
}

/// The parts of the index that follow from its objects.
pub(super) struct Effects<'a> {
    pub(super) relations: &'a mut Relations,
    pub(super) dirty: &'a mut BTreeSet<Unit>,
}

impl<M: Model + PartialEq> Entries<M> {
    /// Exchanges what is held of an object; tells whether it is refused.
    fn put(&mut self, key: &ObjectName, read: Option<M>, origin: Origin, effects: &mut Effects<'_>) -> bool {
        let Effects { relations, dirty } = effects;
        let vacant = || Entry { good: None, origin: Origin::default() };
        let entry = self.0.entry(key.clone()).or_insert_with(vacant);
        let moved = entry.origin.source != origin.source;
        entry.origin = origin;
        if entry.good == read {
            // Reports name the source.
            if let (true, Some(good)) = (moved, &entry.good) {
                good.touch(key, relations, dirty);
            }
            return entry.good.is_none();
        }
        let old = std::mem::replace(&mut entry.good, read);
        touch_leads(old.as_ref(), entry.good.as_ref(), dirty);
        if let Some(old) = &old {
            old.touch(key, relations, dirty);
        }
        match (&old, &entry.good) {
            (Some(old), Some(new)) => old.relink(new, key, relations),
            (Some(old), None) => old.unlink(key, relations),
            (None, Some(new)) => new.link(key, relations),
            (None, None) => {}
        }
        if let Some(new) = &entry.good {
            new.touch(key, relations, dirty);
        }
        entry.good.is_none()
    }

    fn take(&mut self, key: &ObjectName, effects: &mut Effects<'_>) {
        let Effects { relations, dirty } = effects;
        if let Some(old) = self.0.remove(key).and_then(|entry| entry.good) {
            touch_leads(Some(&old), None, dirty);
            old.touch(key, relations, dirty);
            old.unlink(key, relations);
        }
    }
}

macro_rules! make_objects {
    ($($kind:ident $name:literal $plural:literal: $object:ty => $model:ty, $field:ident; $spec:expr;)*) => {
        /// The objects of all kinds.
        #[derive(Debug, Default)]
        pub(super) struct Objects {
            $(pub(super) $field: Entries<$model>,)*
        }

        impl Objects {
            /// Reads an object and exchanges what is held of it; tells whether it is refused. With a name that can't be
            /// one it isn't read at all.
            pub(super) fn apply(
                &mut self,
                (object, name, is_named): (&Object, &ObjectName, bool),
                origin: Origin,
                options: &CompileOptions,
                found: &mut Findings,
                effects: &mut Effects<'_>,
            ) -> bool {
                match object {
                    $(Object::$kind(object) => {
                        let read = if is_named { <$model>::read(&**object, name, options, found) } else { None };
                        self.$field.put(name, read, origin, effects)
                    })*
                }
            }

            /// Forgets an object.
            pub(super) fn delete(&mut self, key: &ObjectKey, effects: &mut Effects<'_>) {
                match key.kind {
                    $(Kind::$kind => self.$field.take(&key.name, effects),)*
                }
            }

            /// The model of an object that isn't refused, whatever its kind.
            pub(super) fn model(&self, key: &ObjectKey) -> Option<&dyn Model> {
                match key.kind {
                    $(Kind::$kind => self.$field.get(&key.name).map(|model| model as &dyn Model),)*
                }
            }

            /// Where an object was read; `None` where it isn't held.
            pub(super) fn origin(&self, kind: Kind, name: &ObjectName) -> Option<&Origin> {
                match kind {
                    $(Kind::$kind => self.$field.0.get(name).map(|entry| &entry.origin),)*
                }
            }
        }
    };
}
kinds!(make_objects);
