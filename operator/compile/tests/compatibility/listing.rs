//! Fields of an API: their paths, and which of them are set together.
//!
//! A path is written as in `kubectl explain`, with `[]` for a list and `["key"]` for an entry of a map. Kubernetes' own
//! come from the types that are read, slotmesh's from its schemas, and those of Istio and Gateway API from lists beside
//! this file (`fields/`), which hold the leaves of the schemas that these projects publish (`schemas.rs` compares them).

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IntoDeserializer as _, MapAccess, SeqAccess, Visitor, value},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value, json};

/// A leaf, and a value that it may have.
pub type Leaf = (String, Value);

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    First,
}

fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut left = path;
    while !left.is_empty() {
        if let Some(rest) = left.strip_prefix("[]") {
            steps.push(Step::First);
            left = rest;
        } else if let Some(rest) = left.strip_prefix("[\"") {
            let (key, rest) = rest.split_once("\"]").expect("a key ends");
            steps.push(Step::Key(key.to_owned()));
            left = rest;
        } else {
            let rest = left.strip_prefix('.').unwrap_or(left);
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(Step::Key(rest[..end].to_owned()));
            left = &rest[end..];
        }
    }
    steps
}

/// Sets a field, and makes what it lies in; `null` takes it away.
pub fn set(object: &mut Value, path: &str, value: Value) {
    let mut at = object;
    let steps = steps(path);
    let (last, before) = steps.split_last().expect("a path has a step");
    for step in before {
        at = enter(at, step);
    }
    match (last, value) {
        (Step::Key(key), Value::Null) => {
            if let Value::Object(map) = at {
                map.remove(key);
            }
        }
        (step, value) => *enter(at, step) = value,
    }
}

fn enter<'v>(at: &'v mut Value, step: &Step) -> &'v mut Value {
    match step {
        Step::Key(key) => {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at.as_object_mut().expect("it is one").entry(key.as_str()).or_insert(Value::Null)
        }
        Step::First => {
            if !at.is_array() {
                *at = json!([Value::Null]);
            }
            &mut at.as_array_mut().expect("it is one")[0]
        }
    }
}

/// The leaves of a kind in one of the lists. A value that isn't the first of its type stands behind a colon.
pub fn listed(list: &str, kind: &str) -> Vec<Leaf> {
    let of_kind = list.lines().skip_while(|line| *line != kind).skip(1);
    let lines = of_kind.take_while(|line| line.starts_with(' '));
    let leaf = |line: &str| {
        let (path, shape) = line.trim().split_once(' ').expect("a path and a type");
        let value = match shape {
            "string" => json!("x"),
            "boolean" => json!(true),
            "integer" | "number" | "intorstring" => json!(1),
            "map" => json!({"x": "x"}),
            other => json!(other.strip_prefix("string:").expect("a type that is known")),
        };
        (path.to_owned(), value)
    };
    let leaves: Vec<_> = lines.map(leaf).collect();
    assert!(!leaves.is_empty(), "{kind} isn't listed");
    leaves
}

/// The leaves of the spec of a kind of slotmesh's own.
pub fn of_schema(crd: &CustomResourceDefinition) -> Vec<Leaf> {
    let [version] = &crd.spec.versions[..] else { panic!("one version") };
    // Each has a trial of its own.
    leaves_of(version).map(|path| (path, Value::Null)).collect()
}

/// The paths of the leaves of the spec of a version of a kind; none where it has no spec.
pub fn leaves_of(version: &CustomResourceDefinitionVersion) -> impl Iterator<Item = String> {
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let schema = schema.and_then(|schema| schema.properties.as_ref()).expect("it has a schema");
    let mut leaves = Vec::new();
    if let Some(spec) = schema.get("spec") {
        walk("spec", spec, &mut leaves);
    }
    leaves.into_iter()
}

fn walk(at: &str, schema: &JSONSchemaProps, leaves: &mut Vec<String>) {
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        return walk(&format!("{at}[]"), items, leaves);
    }
    match &schema.properties {
        Some(properties) => {
            properties.iter().for_each(|(name, of)| walk(&format!("{at}.{name}"), of, leaves))
        }
        None => leaves.push(at.to_owned()),
    }
}

/// The leaves of a type of Kubernetes' own, but for its metadata.
pub fn of_type<T: for<'de> Deserialize<'de>>() -> Vec<Leaf> {
    let mut leaves = Vec::new();
    T::deserialize(Probe { at: String::new(), leaves: &mut leaves }).expect("it is made of what it asks for");
    leaves
}

/// Gives a type whatever it asks for, and notes what that is.
struct Probe<'l> {
    at: String,
    leaves: &'l mut Vec<Leaf>,
}

impl Probe<'_> {
    fn leaf(self, value: Value) {
        self.leaves.push((self.at, value));
    }
}

macro_rules! numbers {
    ($($ask:ident),*) => {$(
        fn $ask<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            self.leaf(json!(1));
            visitor.visit_i32(1)
        }
    )*};
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = value::Error;

    // A number or a name.
    numbers!(deserialize_any, deserialize_i32, deserialize_i64);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.leaf(json!(true));
        visitor.visit_bool(true)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.leaf(json!("x"));
        visitor.visit_str("x")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        assert_eq!(name, "Time");
        let time = "2026-01-01T00:00:00Z";
        self.leaf(json!(time));
        visitor.visit_newtype_struct(time.into_deserializer())
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.leaf(json!({"x": "x"}));
        visitor.visit_map(Fields { at: "", leaves: &mut Vec::new(), left: &[] })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_seq(One(Some(Probe { at: format!("{}[]", self.at), leaves: self.leaves })))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_map(Fields { at: &self.at, leaves: self.leaves, left: fields })
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char str bytes byte_buf unit unit_struct tuple tuple_struct
        enum identifier ignored_any
    }
}

struct One<'l>(Option<Probe<'l>>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = value::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Self::Error> {
        self.0.take().map(|probe| seed.deserialize(probe)).transpose()
    }
}

struct Fields<'l> {
    at: &'l str,
    leaves: &'l mut Vec<Leaf>,
    left: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = value::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Self::Error> {
        while let [first, left @ ..] = self.left
            && self.at.is_empty()
            && matches!(*first, "apiVersion" | "kind" | "metadata")
        {
            self.left = left;
        }
        let [first, ..] = self.left else { return Ok(None) };
        seed.deserialize((*first).into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Self::Error> {
        let (first, left) = self.left.split_first().expect("a key was asked for");
        self.left = left;
        let at = if self.at.is_empty() { (*first).to_owned() } else { format!("{}.{first}", self.at) };
        seed.deserialize(Probe { at, leaves: self.leaves })
    }
}

/// The fields in which a field lies, the outermost first, and the field itself.
pub fn ancestry(path: &str) -> Vec<&str> {
    let ends = path.char_indices().filter(|(_, c)| *c == '.').map(|(at, _)| at);
    let mut keyed = BTreeSet::new();
    // A dot within a key divides nothing.
    for (open, _) in path.match_indices("[\"") {
        let end = path[open..].find("\"]").map_or(path.len(), |end| open + end);
        keyed.extend(open..end);
    }
    let whole = std::iter::once(path);
    ends.filter(|at| !keyed.contains(at)).map(|at| &path[..at]).chain(whole).collect()
}
