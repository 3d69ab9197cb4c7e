//! Tests of the controller.

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, PodSpec, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use proptest::prelude::*;
use slotmesh_builders::{PodBuilder, pod, service, slice};

use super::*;

fn web() -> Object {
    service("web").ip("10.0.0.1").port(80).selector("app", "web").build()
}

fn web_pod(name: &str, ip: &str) -> PodBuilder {
    pod(name).label("app", "web").ip(ip)
}

fn apply(controller: &mut SliceController, objects: impl IntoIterator<Item = Object>) -> Vec<Step> {
    for object in objects {
        controller.observe(&Step::Apply(Sourced { object, source: None }));
    }
    controller.flush().0
}

/// `address:ports ready` of each endpoint.
fn endpoints(steps: &[Step]) -> Vec<String> {
    let mut all = Vec::new();
    for step in steps {
        let Step::Apply(Sourced { object: Object::EndpointSlice(slice), .. }) = step else {
            panic!("{step:?}")
        };
        let ports = slice.ports.iter().flatten().map(|p| p.port.unwrap()).collect::<Vec<_>>();
        for endpoint in &slice.endpoints {
            let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
            all.push(format!("{} {ports:?} {ready}", endpoint.addresses[0]));
        }
    }
    all
}

#[test]
fn pods_make_slices_and_a_pod_that_goes_takes_its_endpoint_along() {
    let mut controller = SliceController::default();
    let [a, b] = [web_pod("a", "10.1.0.1").build(), web_pod("b", "10.1.0.2").ready(false).build()];
    let other = pod("c").label("app", "other").ip("10.1.0.3").build();
    let steps = apply(&mut controller, [web(), a.clone(), b.clone(), other]);
    assert_eq!(endpoints(&steps), ["10.1.0.1 [80] true", "10.1.0.2 [80] false"]);
    controller.observe(&Step::Delete(a.key()));
    let steps = controller.flush().0;
    assert_eq!(endpoints(&steps), ["10.1.0.2 [80] false"]);
    controller.observe(&Step::Delete(b.key()));
    assert!(matches!(&controller.flush().0[..], [Step::Delete(_)]));
}

#[test]
fn a_label_moves_a_pod_from_one_service_to_another() {
    let mut controller = SliceController::default();
    let api = service("api").ip("10.0.0.2").port(80).selector("app", "api").build();
    apply(&mut controller, [web(), api, web_pod("a", "10.1.0.1").build()]);
    let steps = apply(&mut controller, [pod("a").label("app", "api").ip("10.1.0.1").build()]);
    assert_eq!(steps.len(), 2);
    assert_eq!(endpoints(&steps[..1]), ["10.1.0.1 [80] true"]);
    assert!(matches!(&steps[1], Step::Delete(key) if key.name.name.starts_with("web-")));
}

#[test]
fn slices_in_the_manifests_are_left_alone() {
    let mut controller = SliceController::default();
    let given = slice("mine", "web").port(80).endpoint("10.1.0.9").build();
    assert!(apply(&mut controller, [web(), web_pod("a", "10.1.0.1").build(), given.clone()]).is_empty());
    controller.observe(&Step::Delete(given.key()));
    assert_eq!(endpoints(&controller.flush().0), ["10.1.0.1 [80] true"]);
    let steps = apply(&mut controller, [given]);
    assert!(matches!(&steps[..], [Step::Delete(_)]));
}

#[test]
fn named_ports_are_resolved_at_each_pod() {
    let port = ServicePort {
        port: 80,
        target_port: Some(IntOrString::String("main".into())),
        ..ServicePort::default()
    };
    let named = |name: &str, ip: &str, number| {
        let mut built = web_pod(name, ip);
        let ports = vec![ContainerPort {
            name: Some("main".into()),
            container_port: number,
            ..ContainerPort::default()
        }];
        let containers = vec![Container { ports: Some(ports), ..Container::default() }];
        built.0.spec = Some(PodSpec { containers, ..PodSpec::default() });
        built.build()
    };
    let web = service("web").ip("10.0.0.1").full_port(port).selector("app", "web").build();
    let mut controller = SliceController::default();
    let steps = apply(
        &mut controller,
        [web, named("a", "10.1.0.1", 8080), named("b", "10.1.0.2", 9090), named("c", "10.1.0.3", 8080)],
    );
    assert_eq!(steps.len(), 2);
    assert_eq!(
        endpoints(&steps).into_iter().collect::<BTreeSet<_>>(),
        ["10.1.0.1 [8080] true", "10.1.0.2 [9090] true", "10.1.0.3 [8080] true"].map(str::to_owned).into()
    );
}

#[test]
fn families_of_the_service_and_pods_without_address() {
    let mut controller = SliceController::default();
    let dual = service("web").ip("10.0.0.1").ip("fd00::1").port(80).selector("app", "web").build();
    let both = web_pod("a", "10.1.0.1").ip("fd01::1").build();
    assert_eq!(endpoints(&apply(&mut controller, [both.clone(), web()])), ["10.1.0.1 [80] true"]);
    assert_eq!(endpoints(&apply(&mut controller, [dual])), ["fd01::1 [80] true"]);
    controller
        .observe(&Step::Apply(Sourced { object: pod("none").label("app", "web").build(), source: None }));
    let said = controller.flush().1;
    assert_eq!(
        said[0].to_string(),
        "Pod default/none: status.podIP: the Pod has no address, so Service default/web sends no connections \
         to it"
    );
}

#[test]
fn what_two_ports_say_holds_until_neither_does() {
    let asking = |ports: &[(&str, i32)]| {
        let mut built = service("web").ip("10.0.0.1").selector("app", "web");
        for (name, port) in ports {
            built = built.full_port(ServicePort {
                name: Some((*name).to_owned()),
                port: *port,
                target_port: Some(IntOrString::String("main".into())),
                ..ServicePort::default()
            });
        }
        Step::Apply(Sourced { object: built.build(), source: None })
    };
    let mut controller = SliceController::default();
    controller.observe(&Step::Apply(Sourced { object: web_pod("a", "10.1.0.1").build(), source: None }));
    controller.observe(&asking(&[("one", 80), ("two", 81)]));
    let (_, appeared, _) = controller.flush();
    assert_eq!(appeared.len(), 1, "{appeared:?}");
    controller.observe(&asking(&[("one", 80)]));
    let (_, appeared, disappeared) = controller.flush();
    assert_eq!((appeared, disappeared), (Vec::new(), Vec::new()));
    controller.observe(&asking(&[]));
    assert_eq!(controller.flush().2.len(), 1);
}

#[test]
fn a_long_name_leaves_room_for_the_suffix() {
    let long = "n".repeat(253);
    let mut controller = SliceController::default();
    let web = service(&long).ip("10.0.0.1").port(80).selector("app", "web").build();
    let steps = apply(&mut controller, [web, web_pod("a", "10.1.0.1").build()]);
    assert!(matches!(&steps[0], Step::Apply(s) if s.object.key().name.name.len() == 253));
}

fn object() -> impl Strategy<Value = Object> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let app = prop::sample::select(vec!["x", "y"]);
    let services = (name.clone(), app.clone(), any::<bool>()).prop_map(|(name, app, zone)| {
        let built = service(name).ip("10.0.0.1").port(80).selector("app", app);
        if zone { built.selector("zone", "z") } else { built }.build()
    });
    let pods = (name.clone(), app, any::<bool>(), 0..3_u8).prop_map(|(name, app, zone, ip)| {
        let built = pod(name).label("app", app).ip(&format!("10.1.0.{ip}"));
        if zone { built.label("zone", "z") } else { built }.build()
    });
    let slices = (name.clone(), name).prop_map(|(name, of)| slice(name, of).port(80).build());
    prop_oneof![2 => services, 3 => pods, 1 => slices]
}

fn held(controller: &SliceController) -> BTreeMap<ObjectName, Arc<EndpointSlice>> {
    controller.made.values().flat_map(|made| made.slices.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_is_the_same_as_from_scratch(
        events in prop::collection::vec((object(), prop::bool::weighted(0.3)), 0..40),
    ) {
        let mut controller = SliceController::default();
        let (mut objects, mut told) = (BTreeMap::new(), BTreeMap::new());
        for (object, delete) in events {
            let key = object.key();
            controller.observe(&if delete {
                objects.remove(&key);
                Step::Delete(key)
            } else {
                objects.insert(key, object.clone());
                Step::Apply(Sourced { object, source: None })
            });
            for step in controller.flush().0 {
                match step {
                    Step::Apply(Sourced { object: Object::EndpointSlice(slice), .. }) => {
                        let name = Object::EndpointSlice(slice.clone()).key().name;
                        told.insert(name, slice);
                    }
                    Step::Delete(key) => drop(told.remove(&key.name)),
                    Step::Apply(other) => panic!("{other:?}"),
                }
            }
        }
        let mut fresh = SliceController::default();
        apply(&mut fresh, objects.into_values());
        prop_assert_eq!(&told, &held(&fresh));
        prop_assert_eq!(told, held(&controller));
    }
}
