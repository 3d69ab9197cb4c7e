//! The lists of fields of Istio and Gateway API are those of the schemas that these projects publish, in the versions that the
//! tests of Gateway API's conformance are pinned to (`e2e/gateway-conformance`): no field that a user can write is
//! missing from the page.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    listing::{leaves_of, listed},
    page,
};

/// The folder of a Go module, which is fetched where it isn't there.
fn module(name: &str) -> PathBuf {
    let folder = page::root().join("e2e/gateway-conformance");
    let mut go = Command::new("go");
    let output = go.args(["mod", "download", "-json", name]).current_dir(folder).output();
    let output =
        output.unwrap_or_else(|error| panic!("this test needs Go (see docs/development.md): {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} can't be fetched: {said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let told: Value = serde_json::from_slice(&output.stdout).expect("Go tells of it in JSON");
    PathBuf::from(told["Dir"].as_str().expect("it has a folder"))
}

/// The leaves of the specs of each kind, in any version, that files of resource definitions have.
fn published(files: impl IntoIterator<Item = PathBuf>) -> BTreeMap<String, BTreeSet<String>> {
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value =
                Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            if value["kind"] != "CustomResourceDefinition" {
                continue;
            }
            let crd: CustomResourceDefinition =
                serde_json::from_value(value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let leaves = kinds.entry(crd.spec.names.kind.clone()).or_default();
            crd.spec.versions.iter().for_each(|version| leaves.extend(leaves_of(version)));
        }
    }
    kinds
}

fn files_of(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("it can be listed").path()).collect()
}

fn compare(list: &str, published: &BTreeMap<String, BTreeSet<String>>) {
    let kinds: Vec<&str> = list.lines().filter(|line| !line.starts_with(' ') && !line.is_empty()).collect();
    assert!(kinds.len() > 4, "{kinds:?}");
    for kind in kinds {
        let listed: BTreeSet<String> = listed(list, kind).into_iter().map(|(path, _)| path).collect();
        let published = published.get(kind).unwrap_or_else(|| panic!("nobody publishes {kind}"));
        let missing: Vec<_> = published.difference(&listed).collect();
        assert!(missing.is_empty(), "the list of {kind} lacks {missing:?}");
        let gone: Vec<_> = listed.difference(published).collect();
        assert!(gone.is_empty(), "the list of {kind} has {gone:?}, which isn't published");
    }
}

#[test]
fn the_lists_of_istio_have_every_field_that_it_publishes() {
    let file = module("istio.io/api").join("kubernetes/customresourcedefinitions.gen.yaml");
    compare(include_str!("fields/istio.txt"), &published([file]));
}

#[test]
fn the_lists_of_gateway_api_have_every_field_that_it_publishes() {
    let folder = module("sigs.k8s.io/gateway-api").join("config/crd");
    let list = include_str!("fields/gateway-api.txt");
    compare(list, &published(files_of(&folder.join("experimental"))));
    // The standard channel has no field that the other one hasn't.
    let standard = published(files_of(&folder.join("standard")));
    let experimental = published(files_of(&folder.join("experimental")));
    for (kind, leaves) in standard {
        let more = experimental.get(&kind).is_none_or(|all| leaves.is_subset(all));
        assert!(more, "{kind} of the standard channel has fields that the experimental one hasn't");
    }
}
