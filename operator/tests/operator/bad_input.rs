//! Bad files are reported by name and disturb nothing that is in force.

use std::fs;

use slotmesh_builders::{service, to, virtual_service};

use crate::{
    directory::web,
    support::{Site, yaml},
};

#[test]
fn a_broken_file_leaves_what_it_defined_and_heals() {
    let good = yaml(&[web("10.0.0.1")]);
    let site = Site::with(&[("web.yaml", good.clone())]);
    let before = site.all();
    site.write("web.yaml", "apiVersion: v1\nkind: [\n");
    site.until_said("Document (web.yaml, document 1): line ");
    assert_eq!(site.all(), before);
    site.write("web.yaml", good.replace("port: 80", "port: many"));
    site.until_said("Service default/web (web.yaml, document 1): spec.ports[0].port: line ");
    site.until("one report", |s| s.reports().len() == 1);
    assert_eq!(site.all(), before);
    fs::write(site.path("web.yaml"), b"\xff\xfe").unwrap();
    site.until_said("File (web.yaml): the file can't be read: it is not UTF-8 text");
    assert_eq!(site.all(), before);
    site.write("web.yaml", good);
    site.until("the report to go", |s| s.reports().is_empty());
    assert_eq!(site.all(), before);
}

#[test]
fn a_broken_document_leaves_the_others_working() {
    let site = Site::with(&[("all.yaml", yaml(&[web("10.0.0.1")]))]);
    let api = yaml(&[service("api").ip("10.0.0.2").port(80).build()]);
    site.write("all.yaml", format!("kind: [\n{api}"));
    site.until("the other document", |s| s.has_listener("10.0.0.2_80"));
    assert!(site.has_listener("10.0.0.1_80"));
    assert!(site.reports()[0].starts_with("Document (all.yaml, document 1): line "), "{:?}", site.reports());
}

#[test]
fn unknown_kinds_are_skipped_with_a_note() {
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n";
    let site = Site::with(&[("all.yaml", format!("{map}{}", yaml(&[web("10.0.0.1")])))]);
    assert!(site.has_listener("10.0.0.1_80"));
    assert_eq!(
        site.reports(),
        ["ConfigMap default/c (all.yaml, document 1): slotmesh does not read ConfigMap of v1; it is skipped"]
    );
}

#[test]
fn of_two_manifests_for_one_object_the_first_path_wins() {
    let site = Site::with(&[("a.yaml", yaml(&[web("10.0.0.1")])), ("b.yaml", yaml(&[web("10.0.0.2")]))]);
    assert!(site.has_listener("10.0.0.1_80") && !site.has_listener("10.0.0.2_80"));
    let reports = site.reports();
    assert_eq!(reports.len(), 1);
    assert!(
        reports[0]
            .starts_with("Service default/web (b.yaml, document 1): already defined in a.yaml, document 1")
    );
    fs::remove_file(site.path("a.yaml")).unwrap();
    site.until("the second", |s| s.has_listener("10.0.0.2_80") && !s.has_listener("10.0.0.1_80"));
    assert!(site.reports().is_empty());
}

#[test]
fn what_the_compiler_refuses_names_file_and_document() {
    let site = Site::with(&[(
        "all.yaml",
        yaml(&[
            web("10.0.0.1"),
            virtual_service("web", "web").http([to("web", 1), to("web/v1", -1)]).build(),
        ]),
    )]);
    assert!(site.has_listener("10.0.0.1_80"));
    let start =
        "VirtualService default/web (all.yaml, document 2): spec.http[0].route[1].weight: -1 is below 0";
    assert!(site.reports()[0].starts_with(start), "{:?}", site.reports());
}

#[test]
fn names_and_numbers_at_their_limits() {
    let mut many = String::new();
    let long = "n".repeat(253);
    let mut slice = slotmesh_builders::slice("many", &long).port(80);
    for i in 0..300 {
        slice = slice.endpoint(&format!("10.1.{}.{}", i / 250, i % 250 + 1));
    }
    many.push_str(&yaml(&[service(&long).ip("10.0.0.1").port(80).build(), slice.build()]));
    let site = Site::with(&[("many.yaml", many)]);
    assert!(site.has_endpoint("10.1.1.50") && site.has_listener("10.0.0.1_80"));
    assert!(site.reports().is_empty(), "{:?}", site.reports());
}
