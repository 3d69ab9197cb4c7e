//! Which DestinationRules are in force, and what they say together.

use slotmesh_builders::{
    RuleBuilder, pod, rule, service, service_entry, slice, to, virtual_service, workload,
};
use slotmesh_compile::{CompileOptions, Object, Severity};
use slotmesh_crds as crds;

use crate::support::{Cluster, NOWHERE, cluster};

/// `web` with three versions, split in two by a route.
fn shop() -> Vec<Object> {
    let pods = ["a", "b", "c"];
    let slice = pods.iter().zip(1..).fold(slice("web", "web").port(8080), |slice, (pod, n)| {
        slice.pod_endpoint(&format!("10.1.0.{n}"), pod)
    });
    let labelled = pods.iter().zip(1..).map(|(name, n)| pod(name).label("version", &format!("v{n}")).build());
    let mut objects = vec![service("web").ip("10.0.0.1").port(80).build(), slice.build()];
    objects.extend(labelled);
    objects.push(virtual_service("web", "web").http([to("web/v1", 1), to("web/v2", 1)]).build());
    objects
}

fn half_and_half() -> String {
    format!("http:{}=1 {}=1", cluster("web", 80, "v1"), cluster("web", 80, "v2"))
}

fn full(name: &str) -> RuleBuilder {
    rule(name, "web.default.svc.cluster.local")
}

#[test]
fn rules_of_one_namespace_for_one_host_are_merged() {
    let mut cluster_ = Cluster::with(shop());
    let platform = full("platform").created(1).version("v1").balance("ROUND_ROBIN");
    let team = rule("team", "web").created(2).version("v2");
    cluster_.apply([team.clone().build(), platform.clone().build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), half_and_half());
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.1 8080"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v2")), ["10.1.0.2 8080"]);
    for subset in ["", "v1", "v2"] {
        assert_eq!(cluster_.traffic(&cluster("web", 80, subset)), "ROUND_ROBIN");
    }
    assert_eq!(cluster_.reports(), 0);

    // What the older one says counts, and the younger one is told what of it doesn't.
    let mut more = team.version("v1").balance("LEAST_REQUEST");
    more.0.spec.subsets[1].labels = [("version".to_owned(), "v3".to_owned())].into();
    cluster_.apply([more.build()]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.1 8080"]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v2")), "ROUND_ROBIN");
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        [
            "DestinationRule default/team: not supported: field spec.subsets; subset v1 of DestinationRule \
             default/platform, which is older or first by name, counts",
            "DestinationRule default/team: not supported: field spec.trafficPolicy; that of DestinationRule \
             default/platform, which is older or first by name, counts",
        ]
    );
    cluster_.delete(&platform.build());
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.3 8080"]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v2")), "LEAST_REQUEST");
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn the_namespace_of_the_service_goes_before_the_root_namespace_and_no_other_counts() {
    let options = CompileOptions { root_namespace: "mesh".into(), ..CompileOptions::default() };
    let mut cluster_ = Cluster::new(options);
    cluster_.apply(shop());
    // Each has its own idea of which pods are v1, and all define v2.
    let of = |namespace: &str, created: i64, v1: &str| {
        let mut built = full("web").namespace(namespace).created(created).version("v1").version("v2");
        built.0.spec.subsets[0].labels = [("version".to_owned(), v1.to_owned())].into();
        built.build()
    };
    let [stranger, of_root, own] = [of("sandbox", 1, "v3"), of("mesh", 2, "v2"), of("default", 3, "v1")];
    let v1 = cluster("web", 80, "v1");
    let (listener, nowhere) = ("10.0.0.1_80", format!("http:{NOWHERE}"));

    // It is for callers of its own namespace.
    cluster_.apply([stranger]);
    assert_eq!(cluster_.goes(listener), nowhere);
    let of_sandbox = cluster_.goes_for(listener, "sandbox");
    assert_eq!(of_sandbox, format!("{v1}|sandbox/web|=1 {}|sandbox/web|=1", cluster("web", 80, "v2")));
    assert_eq!(cluster_.endpoints(&cluster_.assignment(&format!("{v1}|sandbox/web|"))), ["10.1.0.3 8080"]);
    let said = |cluster_: &Cluster, start: &str, words: &str| {
        let refused = cluster_.refused();
        refused.iter().any(|r| r.starts_with(start) && r.contains(words))
    };
    cluster_.apply([of_root.clone()]);
    assert_eq!(cluster_.goes(listener), half_and_half());
    assert_eq!(cluster_.endpoints(&v1), ["10.1.0.2 8080"]);
    cluster_.apply([own.clone()]);
    assert_eq!(cluster_.endpoints(&v1), ["10.1.0.1 8080"]);
    // Where both say the same, it is one cluster.
    assert_eq!(
        cluster_.goes_for(listener, "sandbox"),
        format!("{v1}|sandbox/web|=1 {}=1", cluster("web", 80, "v2"))
    );
    assert!(said(
        &cluster_,
        "DestinationRule mesh/web: metadata.namespace",
        "DestinationRule default/web goes before"
    ));
    cluster_.delete(&own);
    assert_eq!(cluster_.endpoints(&v1), ["10.1.0.2 8080"]);
    cluster_.delete(&of_root);
    assert_eq!(cluster_.goes(listener), nowhere);
}

#[test]
fn of_a_host_of_a_service_entry_the_entrys_namespace_counts() {
    let host = "db.example.com";
    let entry = service_entry("db", host).namespace("data").ip("240.0.0.1").port("tcp", 80, 80);
    let mut cluster_ = Cluster::with([
        entry.endpoint(workload("10.9.0.1", "v1")).build(),
        rule("stranger", host).balance("ROUND_ROBIN").created(1).build(),
    ]);
    let name = format!("outbound|80||{host}");
    assert_eq!(cluster_.traffic(&name), "RANDOM");
    cluster_.apply([rule("own", host).namespace("data").balance("LEAST_REQUEST").created(2).build()]);
    assert_eq!(cluster_.traffic(&name), "LEAST_REQUEST");
}

#[test]
fn for_whom_a_rule_is() {
    let exported = |to: &[&str]| {
        let mut built = rule("web", "web").version("v1").version("v2");
        built.0.spec.export_to = to.iter().map(|to| (*to).to_owned()).collect();
        built.build()
    };
    // In force for callers of default, of istio-ingress, of others; and how many reports there are of the field. Who sees
    // the route gets the subsets of the route's namespace.
    for (export, in_force, reports) in [
        (&["*"][..], true, 0),
        (&["*", "other"], true, 0),
        (&["."], true, 0),
        (&["default", "istio-ingress"], true, 0),
        (&["other"], false, 0),
        (&["~"], false, 1),
    ] {
        let mut cluster_ = Cluster::with(shop());
        cluster_.apply([exported(export)]);
        let goes = if in_force { half_and_half() } else { format!("http:{NOWHERE}") };
        assert_eq!(cluster_.goes("10.0.0.1_80"), goes, "{export:?}");
        let said =
            cluster_.compiler.reports().filter(|r| r.field.as_deref() == Some("spec.exportTo")).count();
        assert_eq!(said, reports, "{export:?}");
    }
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([exported(&["other"])]);
    assert_ne!(cluster_.goes_for("10.0.0.1_80", "other"), cluster_.goes("10.0.0.1_80"));
}

#[test]
fn a_rule_may_choose_callers_of_its_namespace() {
    let mut some = rule("some", "web").version("v1").version("v2").balance("ROUND_ROBIN");
    let selector =
        crds::CallerSelector { match_labels: [("app".into(), "client".into())].into(), ..Default::default() };
    some.0.spec.workload_selector = Some(selector);
    let all = rule("all", "web").version("v1").version("v2");
    let client = || pod("client").label("app", "client");
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        some.clone().build(),
        all.build(),
        client().build(),
        pod("other").label("app", "x").build(),
    ]);
    let class = cluster_.class("client");
    assert!(class.starts_with("default#") && cluster_.class("other") == "default", "{class}");
    assert_eq!(cluster_.goes("10.0.0.1_80"), half_and_half());
    let [v1, v2] = ["v1", "v2"].map(|v| format!("{}|default/some|default/some", cluster("web", 80, v)));
    assert_eq!(cluster_.goes_for("10.0.0.1_80", &class), format!("{v1}=1 {v2}=1"));
    assert_eq!(cluster_.traffic(&v1), "ROUND_ROBIN");
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v1")), "RANDOM");
    // The endpoints are the same.
    assert_eq!(cluster_.assignment(&v1), cluster("web", 80, "v1"));
    // When the pod's labels change, its class does, and nobody has that class any more.
    cluster_.apply([pod("client").label("app", "y").build()]);
    assert_eq!(cluster_.class("client"), "default");
    assert!(cluster_.classes("10.0.0.1_80").is_empty());
    some.0.spec.workload_selector = Some(crds::CallerSelector::default());
    cluster_.apply([some.build()]);
    assert!(cluster_.refused()[0].contains("spec.workloadSelector.matchLabels: no label is given"));
}

#[test]
fn a_rule_for_many_hosts_counts_where_none_names_the_host() {
    let mut cluster_ = Cluster::with(shop());
    let wide = rule("wide", "*.default.svc.cluster.local").version("v1").version("v2").balance("ROUND_ROBIN");
    cluster_.apply([rule("all", "*.local").balance("LEAST_REQUEST").build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "LEAST_REQUEST");
    cluster_.apply([wide.clone().build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), half_and_half());
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v1")), "ROUND_ROBIN");
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.1 8080"]);
    // Who names it alone counts.
    cluster_.apply([rule("web", "web").version("v1").build()]);
    assert_eq!(cluster_.traffic(&cluster("web", 80, "v1")), "RANDOM");
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}=1 {NOWHERE}=1", cluster("web", 80, "v1")));
    cluster_.delete(&rule("web", "web").build());
    // A Service that comes is meant, too.
    cluster_.apply([service("new").ip("10.0.0.2").port(80).build()]);
    assert_eq!(cluster_.traffic(&cluster("new", 80, "")), "ROUND_ROBIN");
    cluster_.delete(&wide.build());
    assert_eq!(cluster_.traffic(&cluster("new", 80, "")), "LEAST_REQUEST");
}

#[test]
fn a_virtual_service_that_nobody_sees_has_no_effect() {
    let mut cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build()]);
    let mut hidden = virtual_service("web", "web").http([to("nowhere", 1)]);
    hidden.0.spec = crds::VirtualServiceSpec { export_to: vec!["~".into()], ..hidden.0.spec };
    cluster_.apply([hidden.build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(cluster_.refused().is_empty());
    assert_eq!(cluster_.said(Severity::Note).len(), 1);
}
