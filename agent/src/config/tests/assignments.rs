//! Load assignments.

use super::*;

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn load_assignments() {
    fn lb(m: &mut ClusterLoadAssignment) -> &mut endpoint::LbEndpoint {
        &mut m.endpoints[0].lb_endpoints[0]
    }
    fn host(m: &mut ClusterLoadAssignment) -> &mut endpoint::Endpoint {
        match &mut lb(m).host_identifier {
            Some(HostIdentifier::Endpoint(host)) => host,
            _ => unreachable!("it has one"),
        }
    }
    const LB: &str = "endpoints[0].lb_endpoints[0]";
    refused!(Endpoints, assignment(), m;
        m.cluster_name.clear() => "cluster_name";
        m.cluster_name = "other".to_owned() => "cluster_name";
        drop(m.named_endpoints.insert("a".to_owned(), <_>::default())) => "named_endpoints";
        m.policy.as_mut().unwrap().drop_overloads.push(<_>::default()) => "policy.drop_overloads";
        m.policy.as_mut().unwrap().endpoint_stale_after = Some(Duration::default())
            => "policy.endpoint_stale_after";
        m.endpoints[0].priority = 1 => "endpoints[0].priority";
        m.endpoints[0].lb_config = Some(endpoint::locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(
            <_>::default())) => "endpoints[0].lb_config";
        lb(m).health_status = 77 => format!("{LB}.health_status");
        lb(m).load_balancing_weight = Some(UInt32Value { value: 0 })
            => format!("{LB}.load_balancing_weight");
        lb(m).host_identifier = Some(HostIdentifier::EndpointName("a".to_owned())) => LB;
        host(m).additional_addresses.push(<_>::default())
            => format!("{LB}.endpoint.additional_addresses");
        host(m).address = None => format!("{LB}.endpoint.address");
        socket(&mut host(m).address).protocol = 7 => format!("{LB}.endpoint.address.protocol");
        socket(&mut host(m).address).address = "web".to_owned()
            => format!("{LB}.endpoint.address.address");
        socket(&mut host(m).address).resolver_name = "dns".to_owned()
            => format!("{LB}.endpoint.address.resolver_name");
        socket(&mut host(m).address).network_namespace_filepath = "/run/netns/a".to_owned()
            => format!("{LB}.endpoint.address.network_namespace_filepath");
        socket(&mut host(m).address).port_specifier = Some(PortSpecifier::PortValue(65_536))
            => format!("{LB}.endpoint.address.port_value");
    );
    let mut draining = assignment();
    lb(&mut draining).health_status = 3;
    let empty =
        Model::Endpoints(crate::config::Endpoints { localities: vec![<_>::default()], ..Default::default() });
    assert_eq!(decode(ResourceType::Endpoints, &draining), Ok(empty));
}
