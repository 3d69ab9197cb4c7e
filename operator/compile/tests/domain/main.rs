//! A cluster with a DNS domain of its own. In a process of its own: the domain is one for all of it.

use slotmesh_builders::{service, service_entry, to, virtual_service};
use slotmesh_compile::{ClusterDomain, Compiler};
use slotmesh_xds::ResourceType;

#[test]
fn hosts_end_with_the_domain_of_the_cluster() {
    "k8s.example.org".parse::<ClusterDomain>().unwrap().set();
    // The first one counts.
    ClusterDomain::default().set();
    let mut compiler = Compiler::default();
    compiler.apply(&service("web").ip("10.0.0.1").port(80).build(), None);
    compiler.apply(&service("api").ip("10.0.0.2").port(80).build(), None);
    let host = "web.default.svc.k8s.example.org";
    let full = virtual_service("web", host).http([to("api.default.svc.k8s.example.org", 1)]).build();
    compiler.apply(&full, None);
    compiler.flush();
    let names: Vec<String> = compiler.resources().iter().map(|r| r.name.to_string()).collect();
    assert!(names.contains(&format!("outbound|80||{host}")), "{names:?}");
    let routed = compiler
        .resources()
        .iter()
        .any(|r| r.ty == ResourceType::Route && r.name.as_str() == format!("80|{host}"));
    assert!(routed, "the VirtualService is for the Service: {names:?}");
    // A host below another domain is somebody else's, one below this is a Service's.
    compiler.apply(&service_entry("own", "x.default.svc.k8s.example.org").build(), None);
    compiler.flush();
    let said: Vec<String> = compiler.reports().map(ToString::to_string).collect();
    assert!(said.iter().any(|said| said.contains("it is the host of a Service of this cluster")), "{said:?}");
}
