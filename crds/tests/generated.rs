//! What is generated from the types: the CRDs in the chart, and their reference in `docs/`.
//!
//! Compared with what is checked in; `UPDATE_GOLDEN=1 cargo test -p slotmesh-crds` writes it anew.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::PathBuf};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use slotmesh_crds::own;

const HEAD: &str = "# Generated from crds/src/own: UPDATE_GOLDEN=1 cargo test -p slotmesh-crds\n";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Compares a file with what it has to be, or writes it.
fn compare(path: &str, expected: &str) {
    let file = root().join(path);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, expected).unwrap();
    }
    let held = fs::read_to_string(&file).unwrap_or_default();
    let line = held.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        held == expected,
        "{path} isn't what the types say (first difference in line {:?}); run UPDATE_GOLDEN=1 cargo test -p \
         slotmesh-crds and look at the difference",
        line.map(|line| line + 1)
    );
}

/// As the chart installs it: an upgrade of the release changes it, and its removal leaves it (and with
/// it all that users wrote).
fn template(mut crd: CustomResourceDefinition) -> String {
    let annotations = crd.metadata.annotations.get_or_insert_default();
    annotations.insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    let text = serde_yaml::to_string(&crd).unwrap();
    assert!(!text.contains("{{"), "helm would read this as a template");
    format!("{HEAD}{text}")
}

#[test]
fn the_chart_has_the_crds_of_these_types() {
    for crd in own::definitions() {
        let path = format!("charts/slotmesh/templates/crds/{}.yaml", crd.spec.names.plural);
        compare(&path, &template(crd));
    }
}

#[test]
fn the_reference_describes_these_types() {
    let mut text = String::from(
        "# Custom resources\n\n<!-- Generated from crds/src/own: UPDATE_GOLDEN=1 cargo test -p slotmesh-crds -->\n\n\
         slotmesh's own kinds, group `slotmesh.dev`, version `v1alpha1`. `kubectl explain` shows the same. The rules \
         are checked by the API server: an object that breaks one is refused with its message.\n",
    );
    for crd in own::definitions() {
        kind(&mut text, &crd);
    }
    compare("docs/reference.md", &text);
}

#[test]
fn every_field_is_described() {
    fn look(at: &str, schema: &JSONSchemaProps, missing: &mut Vec<String>) {
        for (name, property) in schema.properties.iter().flatten() {
            let at = format!("{at}.{name}");
            if property.description.is_none() && !matches!(name.as_str(), "status" | "spec") {
                missing.push(at.clone());
            }
            look(&at, property, missing);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
            look(&format!("{at}[]"), items, missing);
        }
    }
    let mut missing = Vec::new();
    for crd in own::definitions() {
        look(&crd.spec.names.kind, schema(&crd), &mut missing);
    }
    assert_eq!(missing, Vec::<String>::new());
}

fn schema(crd: &CustomResourceDefinition) -> &JSONSchemaProps {
    let [version] = &crd.spec.versions[..] else { panic!("one version") };
    version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref()).unwrap()
}

fn kind(out: &mut String, crd: &CustomResourceDefinition) {
    let names = &crd.spec.names;
    let schema = schema(crd);
    writeln!(out, "\n## {}\n", names.kind).unwrap();
    let scope = if crd.spec.scope == "Namespaced" { "in a namespace" } else { "cluster-wide" };
    let short = names.short_names.iter().flatten().map(|s| format!("`{s}`")).collect::<Vec<_>>().join(", ");
    writeln!(out, "`{}`, short {short}, {scope}.", names.plural).unwrap();
    let empty = BTreeMap::new();
    for part in ["spec", "status"] {
        let Some(schema) = schema.properties.as_ref().unwrap_or(&empty).get(part) else { continue };
        if let Some(description) = &schema.description {
            writeln!(out, "\n{}", one_line(description)).unwrap();
        }
        writeln!(out, "\n| field | type | what it says |\n| --- | --- | --- |").unwrap();
        fields(out, part, schema);
        let mut rules = Vec::new();
        collect_rules(part, schema, &mut rules);
        if !rules.is_empty() {
            writeln!(out, "\nRules:\n").unwrap();
        }
        for (at, rule) in rules {
            writeln!(out, "- `{at}`: {rule}").unwrap();
        }
    }
}

fn fields(out: &mut String, at: &str, schema: &JSONSchemaProps) {
    let empty = BTreeMap::new();
    for (name, property) in schema.properties.as_ref().unwrap_or(&empty) {
        let path = format!("{at}.{name}");
        let required = schema.required.iter().flatten().any(|r| r == name);
        let described = property.description.as_deref().map(one_line).unwrap_or_default();
        let must = if required { ", required" } else { "" };
        writeln!(out, "| `{path}` | {}{must} | {described} |", type_of(property)).unwrap();
        match &property.items {
            Some(JSONSchemaPropsOrArray::Schema(items)) => fields(out, &format!("{path}[]"), items),
            _ => fields(out, &path, property),
        }
    }
}

fn type_of(schema: &JSONSchemaProps) -> String {
    if let Some(values) = &schema.enum_ {
        return values.iter().map(|v| format!("`{}`", v.0)).collect::<Vec<_>>().join(", ");
    }
    let ty = schema.type_.as_deref().unwrap_or("any");
    let item = match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => items.type_.as_deref().unwrap_or("any"),
        _ => "",
    };
    let range = match (schema.minimum, schema.maximum) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) if least > 0.0 => format!(", at least {least}"),
        _ => String::new(),
    };
    if item.is_empty() { format!("{ty}{range}") } else { format!("list of {item}") }
}

fn collect_rules(at: &str, schema: &JSONSchemaProps, rules: &mut Vec<(String, String)>) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        rules.push((at.to_owned(), rule.message.clone().unwrap_or_else(|| rule.rule.clone())));
    }
    for (name, property) in schema.properties.iter().flatten() {
        collect_rules(&format!("{at}.{name}"), property, rules);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        collect_rules(&format!("{at}[]"), items, rules);
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
