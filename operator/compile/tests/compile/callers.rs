//! One address has as many answers as there are kinds of callers.

use slotmesh_builders::{
    VirtualServiceBuilder, backend, http_route, parent, pod, rule, service, service_entry, sidecar,
    tcp_route, to, virtual_service, workload,
};
use slotmesh_compile::{Object, Severity};
use slotmesh_crds::{Delegate, HttpMatch, HttpRoute, TcpMatch, TcpRoute};
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, NOWHERE, ONWARD, cluster};

const WEB: &str = "10.0.0.1_80";

fn shop() -> Vec<Object> {
    let of = |name: &str, ip: u8| service(name).ip(&format!("10.0.0.{ip}")).port(80).build();
    let other = service("other").namespace("b").ip("10.0.0.9").port(80).build();
    vec![of("web", 1), of("web-v1", 2), of("web-v2", 3), other]
}

fn own() -> String {
    cluster("web", 80, "")
}

fn v1() -> String {
    cluster("web-v1", 80, "")
}

fn v2() -> String {
    cluster("web-v2", 80, "")
}

fn exported(mut built: VirtualServiceBuilder, to: &[&str]) -> Object {
    built.0.spec.export_to = to.iter().map(|to| (*to).to_owned()).collect();
    built.build()
}

#[test]
fn a_virtual_service_is_for_those_who_see_it() {
    let mut cluster_ = Cluster::with(shop());
    let built = || virtual_service("vs", "web").http([to("web-v1", 1)]);
    cluster_.apply([exported(built(), &[".", "ingress"])]);
    for (class, goes) in [("default", v1()), ("default#any", v1()), ("ingress", v1()), ("other", own())] {
        assert_eq!(cluster_.goes_for(WEB, class), goes, "{class}");
    }
    assert_eq!(cluster_.classes(WEB), ["default", "ingress"]);
    assert!(cluster_.names(ResourceType::Route).is_empty(), "what differs stands in the listener");
    // An older one that some don't see is none to them.
    let older = virtual_service("older", "web").created(1).http([to("web-v2", 1)]);
    cluster_.apply([exported(older, &["ingress", "third"])]);
    for (class, goes) in [("default", v1()), ("ingress", v2()), ("third", v2()), ("other", own())] {
        assert_eq!(cluster_.goes_for(WEB, class), goes, "{class}");
    }
    assert_eq!(cluster_.reports(), 0);
    // For everybody there is one chain, and nobody is told apart.
    cluster_.apply([exported(built(), &["*"])]);
    cluster_.delete(&virtual_service("older", "web").build());
    assert_eq!(cluster_.goes(WEB), format!("http:{}", v1()));
    assert!(cluster_.classes(WEB).is_empty());
    // Where two are for the same, the oldest counts, and the other one is told.
    cluster_.apply([virtual_service("younger", "web").created(9).http([to("web-v2", 1)]).build()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{}", v2()), "one that says when it was made is older");
    let refused = cluster_.refused();
    assert!(refused[0].contains("already routed by VirtualService default/younger"), "{refused:?}");
}

#[test]
fn who_sees_the_route_gets_the_subsets_of_its_author() {
    let mut cluster_ = Cluster::with(shop());
    let mut subsets = rule("r", "web").version("v1");
    subsets.0.spec.export_to = vec![".".to_owned()];
    let route = virtual_service("vs", "web").http([to("web/v1", 1)]);
    cluster_.apply([subsets.build(), exported(route, &[".", "ingress"])]);
    for (class, goes) in [("default", "v1"), ("ingress", "v1"), ("other", "")] {
        assert_eq!(cluster_.goes_for(WEB, class), cluster("web", 80, goes), "{class}");
    }
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn a_consumer_route_is_for_callers_of_its_namespace_and_goes_before() {
    let mut cluster_ = Cluster::with(shop());
    let producer = http_route("producer", "web").created(1).to([backend("web-v1:80", 1)]).build();
    let mut consumer =
        http_route("consumer", "web").namespace("b").created(2).to([backend("default/web-v2:80", 1)]);
    consumer.0.spec.parent_refs[0].namespace = Some("default".to_owned());
    let consumer = consumer.build();
    cluster_.apply([producer.clone(), consumer.clone()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{}", v1()));
    assert_eq!(cluster_.goes_for(WEB, "b"), v2());
    assert_eq!(cluster_.goes_for(WEB, "default"), format!("http:{}", v1()));
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.refused());
    // A TCPRoute of a consumer goes before an HTTPRoute of the producer.
    let mut tcp = tcp_route("tcp", "web").namespace("c").to([backend("default/web-v2:80", 1)]);
    tcp.0.spec.parent_refs[0].namespace = Some("default".to_owned());
    cluster_.apply([tcp.build()]);
    assert_eq!(cluster_.goes_for(WEB, "c"), v2());
    cluster_.delete(&producer);
    assert_eq!((cluster_.goes(WEB), cluster_.goes_for(WEB, "b")), (own(), v2()));
    cluster_.delete(&consumer);
    assert_eq!(cluster_.goes_for(WEB, "b"), own());
}

fn http_match(namespace: Option<&str>, label: Option<&str>) -> HttpMatch {
    let source_labels = label.map(|app| ("app".to_owned(), app.to_owned())).into_iter().collect();
    HttpMatch { source_namespace: namespace.map(str::to_owned), source_labels, ..Default::default() }
}

fn rule_for(matches: Vec<HttpMatch>, destination: &str) -> HttpRoute {
    HttpRoute { matches, route: vec![to(destination, 1)], ..Default::default() }
}

#[test]
fn matches_by_namespace_and_labels_of_the_caller() {
    let built = virtual_service("vs", "web")
        .http_route(rule_for(vec![http_match(Some("b"), Some("client"))], "nowhere"))
        .http_route(rule_for(vec![http_match(Some("b"), None)], "web-v1"))
        .http_route(rule_for(vec![http_match(None, Some("admin"))], "web-v2"));
    let mut cluster_ = Cluster::with(shop());
    let client = |namespace: &str, app: &str| pod("client").namespace(namespace).label("app", app).build();
    cluster_.apply([built.build(), client("default", "admin"), client("b", "client"), client("c", "client")]);
    let class = |cluster_: &Cluster, namespace: &str| {
        cluster_.compiler.caller_class(&slotmesh_compile::ObjectName::new(namespace, "client"))
    };
    let goes = |cluster_: &Cluster, namespace: &str| cluster_.goes_for(WEB, &class(cluster_, namespace));
    assert_eq!(goes(&cluster_, "default"), v2());
    assert_eq!(goes(&cluster_, "b"), NOWHERE);
    assert_eq!(class(&cluster_, "c"), "c", "nobody asks for that label there");
    assert_eq!(goes(&cluster_, "c"), own());
    assert_eq!(cluster_.goes_for(WEB, "b"), v1());
    assert_eq!(cluster_.goes(WEB), own());
    // The pod of b becomes an admin: what was for its label is nobody's any more.
    cluster_.apply([client("b", "admin")]);
    assert_eq!(goes(&cluster_, "b"), v1(), "the first that applies");
    cluster_.delete(&client("default", "admin"));
    assert_eq!(cluster_.classes(WEB), ["b"], "a class without callers costs nothing");
    cluster_.delete(&virtual_service("vs", "web").build());
    assert!(cluster_.classes(WEB).is_empty() && class(&cluster_, "b") == "b");
}

#[test]
fn a_match_by_the_address_that_is_connected_to() {
    let both = service("web").ip("10.0.0.1").ip("fd00::1").port(80).build();
    let subnets = |list: &[&str]| TcpRoute {
        matches: vec![TcpMatch {
            destination_subnets: list.iter().map(|subnet| (*subnet).to_owned()).collect(),
            ..Default::default()
        }],
        route: vec![to("web-v1", 1)],
        ..Default::default()
    };
    let mut built = virtual_service("vs", "web");
    built.0.spec.tcp = vec![subnets(&["fd00::/8", "10.9.0.0/16"])];
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([both, built.clone().build()]);
    assert_eq!((cluster_.goes(WEB), cluster_.goes("[fd00::1]_80")), (own(), v1()));
    assert_eq!(cluster_.reports(), 0);
    built.0.spec.tcp = vec![subnets(&["10.0.0.0/8", "x"])];
    cluster_.apply([built.build()]);
    assert_eq!(cluster_.goes(WEB), own(), "a match that can't be read is skipped");
    assert!(cluster_.refused()[0].contains("spec.tcp[0].match[0].destinationSubnets[1]: \"x\" is no range"));
}

#[test]
fn a_wildcard_stands_behind_who_names_the_host() {
    let mut cluster_ = Cluster::with(shop());
    let wide = |name: &str, host: &str, goes: &str| virtual_service(name, host).http([to(goes, 1)]).build();
    cluster_.apply([wide("all", "*", "web-v2"), wide("wide", "*.default.svc.cluster.local", "web-v1")]);
    assert_eq!(cluster_.goes(WEB), format!("http:{}", v1()));
    assert_eq!(cluster_.goes("10.0.0.9_80"), format!("http:{}", v2()));
    cluster_.apply([wide("web", "web", "web-v2")]);
    assert_eq!(cluster_.goes(WEB), format!("http:{}", v2()));
    assert_eq!(cluster_.goes("10.0.0.3_80"), format!("http:{}", v1()));
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.refused());
    // Of hosts of ServiceEntries, too; and what comes is meant.
    cluster_.apply([
        virtual_service("out", "*.example.com").tcp([to("web-v1", 1)]).build(),
        service_entry("e", "api.example.com")
            .ip("240.0.0.1")
            .port("tcp", 80, 80)
            .endpoint(workload("10.9.0.1", "a"))
            .build(),
    ]);
    cluster_.delete(&wide("all", "*", "x"));
    assert_eq!(cluster_.goes("240.0.0.1_80"), v1());
    cluster_.apply([virtual_service("out", "*.example.com").tcp([to("gone", 1)]).build()]);
    assert_eq!(cluster_.goes("240.0.0.1_80"), NOWHERE);
    assert_eq!(cluster_.refused().len(), 1);
    cluster_.delete(&wide("wide", "x", "x"));
    assert_eq!(cluster_.goes("10.0.0.3_80"), v2());
}

#[test]
fn what_is_delegated_is_resolved_or_refused() {
    let delegated = |name: &str| HttpRoute {
        delegate: Some(Delegate {
            name: name.to_owned(),
            namespace: Some("b".to_owned()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let delegate = |goes: &str| {
        let mut built = virtual_service("d", "x").namespace("b").http([to(goes, 1)]);
        built.0.spec.hosts.clear();
        built
    };
    let root = virtual_service("root", "web").http_route(delegated("d"));
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([root.build()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{NOWHERE}"), "never where nobody sent it");
    assert!(
        cluster_.refused()[0].contains("spec.http[0].delegate: there is no VirtualService b/d without hosts")
    );
    cluster_.apply([delegate("web-v1.default").build()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{}", v1()));
    assert_eq!(cluster_.reports(), 0);
    // It is told what of it can't be resolved.
    cluster_.apply([delegate("gone").build()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{NOWHERE}"));
    assert!(cluster_.refused()[0].starts_with("VirtualService b/d: spec.http[0].route[0].destination.host"));
    // What the root doesn't see isn't there.
    let mut hidden = delegate("web-v1.default");
    hidden.0.spec.export_to = vec![".".to_owned()];
    cluster_.apply([hidden.build()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{NOWHERE}"));
    // A delegate that delegates, in a circle or not, is refused by field.
    let mut circle = delegate("web-v1.default");
    circle.0.spec.http = vec![delegated("d")];
    cluster_.apply([circle.build()]);
    assert_eq!(cluster_.goes(WEB), format!("http:{NOWHERE}"));
    let refused = cluster_.refused();
    assert!(
        refused
            .iter()
            .any(|r| r.contains("VirtualService b/d: spec.http[0].delegate: a VirtualService without hosts"))
    );
}

#[test]
fn a_service_entry_takes_the_connections_of_those_who_see_it() {
    let mut cluster_ = Cluster::with(shop());
    let entry = |name: &str, ip: &str, to: &[&str]| {
        let built = service_entry(name, "db.example.com").ip(ip).port("tcp", 80, 80);
        let to: Vec<String> = to.iter().map(|to| (*to).to_owned()).collect();
        built.endpoint(workload("10.9.0.1", "a")).set(|spec| spec.export_to = to).build()
    };
    cluster_.apply([entry("a", "240.0.0.1", &[".", "b"]), entry("b", "240.0.0.2", &[])]);
    let db = "outbound|80||db.example.com";
    for (listener, class, goes) in [
        ("240.0.0.1_80", "default", db),
        ("240.0.0.1_80", "b", db),
        ("240.0.0.1_80", "c", ONWARD),
        ("240.0.0.2_80", "c", db),
    ] {
        assert_eq!(cluster_.goes_for(listener, class), goes, "{listener} {class}");
    }
    assert_eq!(cluster_.reports(), 0);
    cluster_.delete(&entry("a", "240.0.0.1", &[]));
    assert!(!cluster_.names(ResourceType::Cluster).contains(&ONWARD));
}

#[test]
fn a_rule_of_the_callers_namespace_goes_before_those_of_the_service() {
    let mut cluster_ = Cluster::with(shop());
    let of = |namespace: &str, balance: &str| {
        rule("r", "web.default.svc.cluster.local").namespace(namespace).balance(balance).build()
    };
    cluster_.apply([of("default", "ROUND_ROBIN"), of("b", "LEAST_REQUEST")]);
    let of_b = format!("{}||b/r", own());
    assert_eq!((cluster_.goes(WEB), cluster_.goes_for(WEB, "b")), (own(), of_b.clone()));
    assert_eq!(
        (cluster_.traffic(&own()), cluster_.traffic(&of_b)),
        ("ROUND_ROBIN".into(), "LEAST_REQUEST".into())
    );
    assert_eq!(cluster_.assignment(&of_b), own());
    assert!(cluster_.said(Severity::Refused).is_empty());
    cluster_.delete(&of("b", ""));
    assert!(cluster_.classes(WEB).is_empty() && !cluster_.names(ResourceType::Cluster).contains(&&*of_b));
}

#[test]
fn a_sidecar_says_what_callers_see() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        virtual_service("vs", "web").http([to("web-v1", 1)]).build(),
        service_entry("e", "db.example.com")
            .ip("240.0.0.1")
            .port("tcp", 80, 80)
            .endpoint(workload("10.9.0.1", "a"))
            .build(),
        sidecar("s", &["./*", "istio-system/*"]).namespace("b").build(),
    ]);
    let db = "outbound|80||db.example.com";
    let routed = format!("http:{}", v1());
    let check = |cluster_: &Cluster, class: &str, web: &str, entry: &str| {
        assert_eq!(
            (cluster_.goes_for(WEB, class).as_str(), cluster_.goes_for("240.0.0.1_80", class).as_str()),
            (web, entry),
            "{class}"
        );
    };
    check(&cluster_, "b", &own(), ONWARD);
    check(&cluster_, "c", &routed, db);
    // What is refused, and what some of them see.
    let few = sidecar("few", &["default/web.default.svc.cluster.local"]).namespace("b").select("app", "x");
    cluster_.apply([
        sidecar("s", &["~/*"]).namespace("b").registry_only().build(),
        few.build(),
        pod("p").namespace("b").label("app", "x").build(),
    ]);
    check(&cluster_, "b", NOWHERE, NOWHERE);
    let class = cluster_.compiler.caller_class(&slotmesh_compile::ObjectName::new("b", "p"));
    check(&cluster_, &class, &v1(), ONWARD);
    // That of the root namespace is for all who have none.
    cluster_.apply([sidecar("all", &["./*"]).namespace("istio-system").build()]);
    check(&cluster_, "c", &own(), ONWARD);
    check(&cluster_, "default", &v1(), db);
    check(&cluster_, "b", NOWHERE, NOWHERE);
    for (name, namespace) in [("all", "istio-system"), ("few", "b"), ("s", "b")] {
        cluster_.delete(&sidecar(name, &[]).namespace(namespace).build());
    }
    assert!(cluster_.classes(WEB).is_empty());
    check(&cluster_, "b", &routed, db);
    for (bad, field) in
        [("web", "hosts[0]: \"web\" is no NAMESPACE/HOST"), ("./", "hosts[0]"), ("./*web.x", "hosts[0]")]
    {
        cluster_.apply([sidecar("bad", &[bad]).build()]);
        assert!(cluster_.refused()[0].contains(field), "{bad}: {:?}", cluster_.refused());
    }
}

#[test]
fn of_two_parents_of_one_service_only_the_wrong_one_is_refused() {
    let web = service("web").ip("10.0.0.1").named_port("http", 80).named_port("http-b", 81).build();
    for wrong in ["web:99", "web:70000", "nowhere"] {
        let mut route = http_route("h", "web:80").to([backend("web-v1:80", 1)]);
        route.0.spec.parent_refs.push(parent(wrong));
        let route = route.build();
        let mut cluster_ = Cluster::with(shop());
        cluster_.apply([web.clone(), route.clone()]);
        assert_eq!(cluster_.goes(WEB), format!("http:{}", v1()), "{wrong}");
        let ancestors = cluster_.compiler.conditions(&route.key()).unwrap().ancestors;
        let accepted: Vec<_> = ancestors.iter().map(|ancestor| ancestor.conditions[0].holds()).collect();
        assert_eq!(accepted, [true, false], "{wrong}: {:?}", cluster_.refused());
        assert_eq!(cluster_.refused().len(), 1);
    }
}
