//! Route configurations.

use super::*;

#[test]
fn routes_of_requests() {
    let any = |host: &Route<'_>| {
        let entry = &host.routes[host.hosts[0].routes.start as usize];
        let clusters = &host.clusters[entry.clusters.start as usize..entry.clusters.end as usize];
        clusters.iter().map(|cluster| format!("{}={}", cluster.cluster, cluster.weight)).collect::<Vec<_>>()
    };
    let read = |message: &RouteConfiguration| {
        let route = Route::from_proto(&At::ROOT, message).unwrap();
        assert!(route.by_request);
        assert_eq!((route.hosts.len(), route.any), (1, Some(0)));
        any(&route)
    };
    let mut message = route_config();
    let mut by_path = message.virtual_hosts[0].routes[0].clone();
    by_path.r#match.as_mut().unwrap().path_specifier = Some(PathSpecifier::Path("/a".to_owned()));
    by_path.action = Some(RouteAction::DirectResponse(route::DirectResponseAction::default()));
    message.virtual_hosts[0].routes.insert(0, by_path.clone());
    assert!(Route::from_proto(&At::ROOT, &message).is_err(), "it isn't said to be for requests");
    let mark = Any { type_url: RoutedByRequest::TYPE_URL.to_owned(), ..Default::default() };
    message
        .metadata
        .get_or_insert_default()
        .typed_filter_metadata
        .insert(RoutedByRequest::KEY.to_owned(), mark);
    assert_eq!(read(&message), ["v1=5", "v2=5"]);
    // Mirrored requests are no second destination of a connection, and of a connection no header is hashed.
    let Some(RouteAction::Route(action)) = &mut message.virtual_hosts[0].routes[1].action else {
        unreachable!("it has one")
    };
    action.request_mirror_policies.push(route::route_action::RequestMirrorPolicy::default());
    action.hash_policy.push(route::route_action::HashPolicy::default());
    assert_eq!(read(&message), ["v1=5", "v2=5"]);
    // Without a route for every request, and with one that answers by itself, there is nowhere to go.
    let mut answered = message.clone();
    answered.virtual_hosts[0].routes[1].action = by_path.action.clone();
    assert_eq!(read(&answered), ["BlackHoleCluster=1"]);
    message.virtual_hosts[0].routes.truncate(1);
    assert_eq!(read(&message), ["BlackHoleCluster=1"]);
}

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn routes() {
    fn route(m: &mut RouteConfiguration) -> &mut route::Route {
        &mut m.virtual_hosts[0].routes[0]
    }
    fn matching(m: &mut RouteConfiguration) -> &mut RouteMatch {
        route(m).r#match.as_mut().unwrap()
    }
    fn action(m: &mut RouteConfiguration) -> &mut route::RouteAction {
        match &mut route(m).action {
            Some(RouteAction::Route(action)) => action,
            _ => unreachable!("it has one"),
        }
    }
    fn weighted(m: &mut RouteConfiguration) -> &mut route::WeightedCluster {
        match &mut action(m).cluster_specifier {
            Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
            _ => unreachable!("it has one"),
        }
    }
    use route::weighted_cluster::RandomValueSpecifier;
    const HOST: &str = "virtual_hosts[0]";
    const ROUTE: &str = "virtual_hosts[0].routes[0]";
    const CLUSTERS: &str = "virtual_hosts[0].routes[0].route.weighted_clusters";
    refused!(Route, route_config(), m;
        m.name.clear() => "name";
        m.name = "other".to_owned() => "name";
        m.vhds = Some(<_>::default()) => "vhds";
        m.route_specifiers.push(<_>::default()) => "route_specifiers";
        m.request_mirror_policies.push(<_>::default()) => "request_mirror_policies";
        m.virtual_hosts.clear() => "virtual_hosts";
        m.virtual_hosts[0].domains.clear() => format!("{HOST}.domains");
        m.virtual_hosts[0].domains.push("*".to_owned()) => format!("{HOST}.domains[1]");
        m.virtual_hosts[0].domains.extend(["10.0.0.1", "[::ffff:10.0.0.1]"].map(str::to_owned))
            => format!("{HOST}.domains[2]");
        m.virtual_hosts.push(route::VirtualHost { domains: vec!["a.b".to_owned(), "A.b".to_owned()],
            ..m.virtual_hosts[0].clone() }) => "virtual_hosts[1].domains[1]";
        m.virtual_hosts[0].matcher = Some(<_>::default()) => format!("{HOST}.matcher");
        m.virtual_hosts[0].require_tls = 2 => format!("{HOST}.require_tls");
        m.virtual_hosts[0].request_mirror_policies.push(<_>::default())
            => format!("{HOST}.request_mirror_policies");
        m.virtual_hosts[0].route_specifiers.push(<_>::default()) => format!("{HOST}.route_specifiers");
        m.virtual_hosts[0].routes.clear() => format!("{HOST}.routes");
        route(m).route_specifiers.push(<_>::default()) => format!("{ROUTE}.route_specifiers");
        route(m).r#match = None => format!("{ROUTE}.match");
        route(m).action = None => format!("{ROUTE}.action");
        matching(m).path_specifier = Some(PathSpecifier::Path("/".to_owned()))
            => format!("{ROUTE}.match");
        matching(m).headers.push(<_>::default()) => format!("{ROUTE}.match.headers");
        matching(m).query_parameters.push(<_>::default()) => format!("{ROUTE}.match.query_parameters");
        matching(m).cookies.push(<_>::default()) => format!("{ROUTE}.match.cookies");
        matching(m).grpc = Some(<_>::default()) => format!("{ROUTE}.match.grpc");
        matching(m).runtime_fraction = Some(<_>::default()) => format!("{ROUTE}.match.runtime_fraction");
        matching(m).tls_context = Some(<_>::default()) => format!("{ROUTE}.match.tls_context");
        matching(m).dynamic_metadata.push(MetadataMatcher::default())
            => format!("{ROUTE}.match.dynamic_metadata");
        matching(m).filter_state.push(FilterStateMatcher::default())
            => format!("{ROUTE}.match.filter_state");
        action(m).priority = 1 => format!("{ROUTE}.route.priority");
        action(m).hash_policy.extend([hash_policy(true), <_>::default()])
            => format!("{ROUTE}.route.hash_policy[1]");
        action(m).metadata_match = Some(<_>::default()) => format!("{ROUTE}.route.metadata_match");
        action(m).request_mirror_policies.push(<_>::default())
            => format!("{ROUTE}.route.request_mirror_policies");
        action(m).cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".to_owned()))
            => format!("{ROUTE}.route");
        weighted(m).total_weight = Some(UInt32Value { value: 100 }) => format!("{CLUSTERS}.total_weight");
        weighted(m).random_value_specifier = Some(RandomValueSpecifier::HeaderName("x".to_owned()))
            => format!("{CLUSTERS}.random_value_specifier");
        weighted(m).clusters[1].metadata_match = Some(<_>::default())
            => format!("{CLUSTERS}.clusters[1].metadata_match");
        weighted(m).clusters[1].cluster_header = "x".to_owned()
            => format!("{CLUSTERS}.clusters[1].cluster_header");
        weighted(m).clusters[0].name.clear() => format!("{CLUSTERS}.clusters[0].name");
        weighted(m).clusters[0].weight = Some(UInt32Value { value: u32::MAX })
            => format!("{CLUSTERS}.clusters");
        weighted(m).clusters.clear() => format!("{CLUSTERS}.clusters");
    );
    let mut harmless = route_config();
    action(&mut harmless).prefix_rewrite = "/a".to_owned();
    action(&mut harmless).timeout = Some(Duration::default());
    action(&mut harmless).retry_policy = Some(<_>::default());
    weighted(&mut harmless).total_weight = Some(UInt32Value { value: 10 });
    matching(&mut harmless).case_sensitive = Some(BoolValue { value: false });
    assert_eq!(decode(ResourceType::Route, &harmless), decode(ResourceType::Route, &route_config()));
}
