//! Documents as users write them, well and badly.

use super::*;

fn parsed(text: &str) -> Parsed {
    parse(&"shop.yaml".into(), text)
}

fn names(parsed: &Parsed) -> Vec<String> {
    parsed.objects.iter().map(|o| o.object.key().to_string()).collect()
}

fn said(parsed: &Parsed) -> Vec<String> {
    parsed.reports.iter().map(ToString::to_string).collect()
}

const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  ports:\n  - port: 80\n";

#[test]
fn documents_are_split_and_numbered_by_what_they_say() {
    let text = format!("# a comment\n---\n%YAML 1.2\n---\n{WEB}---\n\n--- # two\n{WEB}...\n# end\n");
    assert_eq!(split(&text).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 12]);
    let parsed = parsed(&text);
    assert_eq!(names(&parsed), ["Service default/web", "Service default/web"]);
    assert_eq!(parsed.objects[1].source.as_ref().unwrap().document, Some(2));
    assert!(parsed.reports.is_empty());
}

#[test]
fn a_broken_document_is_named_and_takes_no_other_along() {
    let parsed = parsed(&format!("{WEB}---\nkind: [\n---\n{WEB}"));
    assert_eq!(names(&parsed).len(), 2);
    let said = said(&parsed);
    assert_eq!(said.len(), 1);
    assert!(said[0].starts_with("Document (shop.yaml, document 2): line "), "{}", said[0]);
    assert_eq!(parsed.lost, Lost::Unknown);
}

#[test]
fn a_wrong_field_is_named_with_line_path_and_reason() {
    let parsed = parsed(&format!("{WEB}---\n{}", WEB.replace("80", "http").replace("web", "api")));
    assert_eq!(names(&parsed), ["Service default/web"]);
    let said = said(&parsed);
    let start = "Service default/api (shop.yaml, document 2): spec.ports[0].port: line 13: ";
    assert!(said[0].starts_with(start), "{}", said[0]);
    assert!(said[0].contains("invalid type: string \"http\""), "{}", said[0]);
    assert_eq!(parsed.lost, Lost::These(BTreeSet::from([key(Kind::Service, "default", "api")])));
}

#[test]
fn a_wrong_field_beside_unsupported_ones_is_named_too() {
    let parsed = parsed(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web}\nspec:\n  hosts: \
         [web]\n  http:\n  - timeout: 3s\n    route:\n    - destination: {host: web}\n      weight: many\n",
    );
    let start = "VirtualService default/web (shop.yaml, document 1): spec.http[0].route[0].weight: line 10: ";
    assert!(said(&parsed)[0].starts_with(start), "{:?}", said(&parsed));
}

#[test]
fn lists_and_versions_of_istio() {
    let parsed = parsed(
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: networking.istio.io/v1beta1\n  kind: \
         VirtualService\n  metadata: {name: a, namespace: x}\n  spec: {hosts: [a]}\n- apiVersion: v1\n  \
         kind: Pod\n  metadata: {name: 7}\n---\napiVersion: v1\nkind: ServiceList\nitems:\n- metadata: \
         {name: b}\n",
    );
    assert_eq!(names(&parsed), ["VirtualService x/a", "Service default/b"]);
    assert!(said(&parsed)[0].contains("items[1].metadata.name is missing"), "{:?}", said(&parsed));
}

const ROUTED: &str = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: \
                      shop}\nspec:\n  hosts: [web]\n  http:\n  - route:\n    - destination: {host: web, subset: \
                      v1}\n      weight: 90\n";

fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, name: ObjectName::new(namespace, name) }
}

#[test]
fn a_misspelt_field_names_what_was_meant_and_the_last_good_version_stays() {
    let parsed = parsed(&ROUTED.replace("weight", "wieght"));
    assert!(parsed.objects.is_empty());
    assert_eq!(
        said(&parsed),
        ["VirtualService shop/web (shop.yaml, document 1): line 9: there is no field \
          spec.http[0].route[0].wieght; did you mean `weight`?; the object's last good version stays in force"]
    );
    assert_eq!(parsed.lost, Lost::These(BTreeSet::from([key(Kind::VirtualService, "shop", "web")])));
    // What is only not supported isn't misspelt.
    assert_eq!(said(&self::parsed(&ROUTED.replace("  - route", "  - timeout: 3s\n    route"))), [""; 0]);
}

#[test]
fn misspelt_fields_of_core_and_own_objects_are_found_too() {
    for (text, wanted) in [
        (WEB.replace("port: 80", "prot: 80, port: 80"), "spec.ports[0].prot; did you mean `port`?"),
        (WEB.replace("ports:", "clusterip: 10.96.0.9\n  ports:"), "spec.clusterip; did you mean `clusterIP`?"),
        (WEB.replace("{name: web}", "{name: web, lables: {a: b}}"), "metadata.lables; did you mean `labels`?"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nstatus: {podIp: 10.1.0.1}\n".to_owned(),
            "status.podIp; did you mean `podIP`?",
        ),
        (
            "apiVersion: slotmesh.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec: {targetRefs: \
             [{group: '', kind: Service, name: web}], maxConnection: 3}\n"
                .to_owned(),
            "spec.maxConnection; did you mean `maxConnections`?",
        ),
    ] {
        let text = text.replace("  - prot: 80, port: 80", "  - {prot: 80, port: 80}");
        let parsed = parsed(&text);
        assert!(parsed.objects.is_empty() && said(&parsed)[0].contains(wanted), "{wanted}: {:?}", said(&parsed));
    }
    // One that is like none has no effect, and the rest of the object has.
    let odd = parsed(&WEB.replace("ports:", "colour: green\n  ports:"));
    assert_eq!(names(&odd), ["Service default/web"]);
    let wanted = "Service default/web (shop.yaml, document 1): line 5: there is no field spec.colour; it has no effect";
    assert_eq!(said(&odd), [wanted]);
    assert_eq!(odd.reports[0].severity, Severity::NotSupported);
    // What is there but says nothing is no field.
    assert!(parsed(&WEB.replace("ports:", "colour: {}\n  ports:")).reports.is_empty());
}

#[test]
fn a_misspelt_kind_and_a_version_that_is_not_read_name_what_is() {
    for (text, wanted) in [
        (
            ROUTED.replace("VirtualService", "VirtualServce"),
            "VirtualServce shop/web (shop.yaml, document 1): kind: there is no VirtualServce in \
             networking.istio.io/v1; did you mean VirtualService?; what it defined before stays in force",
        ),
        (
            ROUTED.replace("io/v1", "io/v9"),
            "VirtualService shop/web (shop.yaml, document 1): apiVersion: VirtualService isn't read of \
             networking.istio.io/v9, but of networking.istio.io/v1, networking.istio.io/v1beta1, \
             networking.istio.io/v1alpha3; what it defined before stays in force",
        ),
        (
            ROUTED.replace("networking.istio.io/v1", "v1"),
            "VirtualService shop/web (shop.yaml, document 1): apiVersion: there is no VirtualService in v1; write \
             networking.istio.io/v1, networking.istio.io/v1beta1, networking.istio.io/v1alpha3; what it defined \
             before stays in force",
        ),
    ] {
        let parsed = parsed(&text);
        assert_eq!((said(&parsed), parsed.objects.len()), (vec![wanted.to_owned()], 0));
        assert_eq!(parsed.reports[0].severity, Severity::Refused);
        assert_eq!(parsed.lost, Lost::These(BTreeSet::from([key(Kind::VirtualService, "shop", "web")])));
    }
    for (api_version, kind) in [("gateway.networking.k8s.io/v1", "GatewayClass"), ("v1", "Endpoints")] {
        let text = format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\n");
        assert_eq!(parsed(&text).reports[0].reason, Reason::Foreign, "{kind}");
    }
}

#[test]
fn security_that_nobody_enforces_and_workloads_that_nobody_runs_are_told() {
    let of = |api_version: &str, kind: &str| {
        parsed(&format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n"))
    };
    let policy = of("security.istio.io/v1", "AuthorizationPolicy");
    assert_eq!(policy.reports[0].severity, Severity::NotSupported);
    assert!(said(&policy)[0].ends_with("nothing enforces it: connections that it denies are made"));
    let deployment = of("apps/v1", "Deployment");
    assert!(said(&deployment)[0].contains("write Pods with status.podIP, or an EndpointSlice"));
}

#[test]
fn an_object_knows_its_line_and_whether_its_namespace_was_given() {
    let parsed = parsed(&format!("# shop\n\n{WEB}---\n{ROUTED}"));
    let of = |i: usize| parsed.objects[i].source.as_ref().map(|s| (s.line, s.in_default)).unwrap();
    assert_eq!((of(0), of(1)), ((Some(3), true), (Some(10), false)));
}

#[test]
fn unknown_kinds_are_skipped_with_a_note() {
    let parsed = parsed(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n---\napiVersion: \
         serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n",
    );
    assert!(parsed.objects.is_empty());
    assert!(parsed.reports.iter().all(|r| r.severity == Severity::Note));
    let expected =
        "ConfigMap default/c (shop.yaml, document 1): slotmesh does not read ConfigMap of v1; it is skipped";
    assert_eq!(said(&parsed)[0], expected);
    assert_eq!(parsed.reports.len(), 2);
    assert_eq!(parsed.lost, Lost::These(BTreeSet::new()));
}

#[test]
fn a_document_without_kind_and_a_key_that_stands_twice_are_refused() {
    assert!(said(&parsed("metadata: {name: web}\n"))[0].contains("kind is missing"));
    let twice = parsed("apiVersion: v1\nkind: Service\nkind: Service\n");
    assert!(said(&twice)[0].contains("duplicate"), "{:?}", said(&twice));
}

#[test]
fn json_is_read_too() {
    let json = "{\n\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\", \"metadata\": {\"name\": \"p\"}\n}";
    assert_eq!(names(&parse(&"p.json".into(), json)), ["Pod default/p"]);
    let broken = parse(&"p.json".into(), "{\n\"a\": }");
    assert!(said(&broken)[0].contains("(p.json, document 1): line 2: "), "{:?}", said(&broken));
}
