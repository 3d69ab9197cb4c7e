//! The line on which a field of a manifest stands.
//!
//! The values of a document don't know their lines, but errors of deserializers do. So the document is read once more
//! by a visitor that follows the field's path and fails on purpose where it ends. It reads nothing behind that.

use std::{fmt, iter};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::parse::split;

/// The line of a field (`spec.http[0].route[1].weight`) in a document of a file, counted from 1, as the documents are.
/// Where the field isn't there, that of the nearest one above it which is; `None` where none is.
pub(super) fn line_of(file: &str, text: &str, document: usize, field: &str) -> Option<usize> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = if file.ends_with(".json") { vec![(0, text)] } else { split(text) };
    let (before, document) = *documents.get(document.checked_sub(1)?)?;
    let line = |path: &str| {
        if file.ends_with(".json") {
            let mut reader = serde_json::Deserializer::from_str(document);
            Some(Follow(path).deserialize(&mut reader).err()?.line())
        } else {
            let reader = serde_yaml::Deserializer::from_str(document);
            Some(Follow(path).deserialize(reader).err()?.location()?.line())
        }
    };
    parents(field).find_map(line).map(|line| line + before)
}

/// A field and those above it, the nearest first.
fn parents(field: &str) -> impl Iterator<Item = &str> {
    let above = |at: usize| &field[..at];
    iter::successors(Some(field), move |field| field.rfind(['.', '[']).map(above))
        .filter(|field| !field.is_empty())
}

/// The rest of a path after a key, or an index in brackets, at its beginning; `None` where it begins otherwise.
fn after<'p>(path: &'p str, step: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(step)?;
    match rest.strip_prefix('.') {
        Some(below) => Some(below),
        None => (rest.is_empty() || rest.starts_with('[')).then_some(rest),
    }
}

/// The line at the end of a path.
const HERE: &str = "the field is here";

/// Follows a path in a value, and fails at its end. Where the path leads to nothing, it succeeds.
struct Follow<'p>(&'p str);

impl<'de> DeserializeSeed<'de> for Follow<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A scalar ends no path: its key, or its place in a list, has.
macro_rules! scalars {
    ($($visit:ident: $ty:ty),*) => {
        $(fn $visit<E: Error>(self, _: $ty) -> Result<(), E> {
            self.scalar()
        })*
    };
}

impl Follow<'_> {
    fn scalar<E: Error>(&self) -> Result<(), E> {
        if self.0.is_empty() { Err(E::custom(HERE)) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for Follow<'_> {
    type Value = ();

    scalars!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar()
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.scalar()?;
        while let Some(rest) = map.next_key_seed(Key(self.0))? {
            match rest {
                Some(rest) => map.next_value_seed(Follow(rest))?,
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.scalar()?;
        for i in 0_usize.. {
            let found = match after(self.0, &format!("[{i}]")) {
                Some(rest) => list.next_element_seed(Follow(rest))?,
                None => list.next_element::<IgnoredAny>()?.map(drop),
            };
            if found.is_none() {
                break;
            }
        }
        Ok(())
    }
}

/// A key of a mapping. What is left of the path behind it, if it is the path's next one; it fails if nothing is left.
struct Key<'p>(&'p str);

impl<'p, 'de> DeserializeSeed<'de> for Key<'p> {
    type Value = Option<&'p str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Key<'p> {
    type Value = Option<&'p str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        match after(self.0, key) {
            Some("") => Err(E::custom(HERE)),
            rest => Ok(rest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "\
# two documents
kind: Service
---
metadata:
  labels: {app: web,
    slotmesh.dev/mesh: enabled}
spec:
  http:
  - name: first
  - route:
    - weight: 9
    -
      weight: 1
    match: [a, b,
      c]
";

    fn line(field: &str) -> Option<usize> {
        line_of("a.yaml", YAML, 2, field)
    }

    #[test]
    fn fields_are_found_in_blocks_and_in_flows_and_with_dots_in_their_names() {
        assert_eq!(line("metadata"), Some(4));
        assert_eq!(line("metadata.labels.slotmesh.dev/mesh"), Some(6));
        assert_eq!(line("spec.http[0]"), Some(9));
        assert_eq!(line("spec.http[1].route[0].weight"), Some(11));
        assert_eq!(line("spec.http[1].route[1].weight"), Some(13));
        assert_eq!(line("spec.http[1].match[2]"), Some(15));
        assert_eq!(line_of("a.yaml", YAML, 1, "kind"), Some(2));
    }

    #[test]
    fn a_field_that_is_missing_is_at_the_nearest_above_it() {
        assert_eq!(line("spec.http[1].route[0].destination.host"), Some(11));
        assert_eq!(line("spec.http[7].route"), Some(8));
        assert_eq!(line("spec.hosts"), Some(7));
        assert_eq!(line("status.conditions"), None);
        assert_eq!(line(""), None);
        assert_eq!(line_of("a.yaml", YAML, 3, "kind"), None);
        assert_eq!(line_of("a.yaml", "kind: [", 1, "spec"), Some(2), "that of the mistake");
    }

    #[test]
    fn json_has_lines_too() {
        let json = "{\n  \"kind\": \"Service\",\n  \"spec\": {\n    \"ports\": [{\"port\": 1},\n      {\"port\": 2}]\n  }\n}\n";
        assert_eq!(line_of("a.json", json, 1, "spec.ports[1].port"), Some(5));
        assert_eq!(line_of("a.json", json, 1, "spec.selector"), Some(3));
    }
}
