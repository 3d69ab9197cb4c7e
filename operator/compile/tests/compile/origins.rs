//! Who asks where connections go is told of the objects that say so.

use slotmesh_builders::{rule, service, slice, to, virtual_service};
use slotmesh_compile::{Compiler, Readiness};

#[test]
fn the_objects_behind_a_listener_are_told_with_what_they_make() {
    let mut compiler = Compiler::default();
    let slice = slice("web-1", "web").port(8080).endpoint("10.1.0.1");
    for object in [
        service("web").ip("10.96.0.10").port(80).build(),
        service("api").ip("10.96.0.11").port(80).build(),
        slice
            .endpoint_when("10.1.0.2", false, false, false)
            .endpoint_when("10.1.0.3", false, true, true)
            .build(),
        virtual_service("web", "web").http([to("web", 1), to("nowhere", 1)]).build(),
        rule("web", "web").balance("ROUND_ROBIN").build(),
        virtual_service("api", "api").http([to("api", 1)]).build(),
    ] {
        compiler.apply(&object, None);
    }
    compiler.flush();
    let origins = compiler.origins(&"10.96.0.10_80".into()).expect("the listener of web");
    assert_eq!(origins.service.to_string(), "default/web");
    let objects: Vec<String> = origins.objects.iter().map(|origin| origin.object.to_string()).collect();
    let expected = [
        "Service default/web",
        "EndpointSlice default/web-1",
        "VirtualService default/web",
        "DestinationRule default/web",
    ];
    for object in expected {
        assert!(objects.iter().any(|one| one == object), "{object}: {objects:?}");
    }
    assert_eq!(objects.len(), expected.len(), "{objects:?}");
    let route =
        origins.objects.iter().find(|origin| origin.object.kind == "VirtualService").expect("the route");
    assert!(!route.makes.is_empty(), "{route:?}");
    assert!(route.reports.iter().any(|report| report.message.contains("nowhere")), "{route:?}");
    let endpoints: Vec<_> =
        origins.endpoints.iter().map(|one| (one.address.to_string(), one.readiness)).collect();
    let of = |address: &str, readiness| (address.to_owned(), readiness);
    let expected = [
        of("10.1.0.1", Readiness::Ready),
        of("10.1.0.2", Readiness::NotReady),
        of("10.1.0.3", Readiness::Terminating),
    ];
    assert_eq!(endpoints, expected);
    assert!(compiler.origins(&"10.96.0.99_80".into()).is_none());
}
