//! Listeners of UDP.

use super::*;

fn datagrams_to(cluster: &str) -> OnMatch {
    let url = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route";
    let route = UdpRoute { cluster: cluster.to_owned() };
    let action = matcher_extension(url, &route).map(on_match::OnMatch::Action);
    OnMatch { on_match: action, ..Default::default() }
}

/// As a matcher of filter chains leads to one.
fn go_to_chain() -> OnMatch {
    let action = MatcherExtension { name: "web".to_owned(), typed_config: None };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..Default::default() }
}

/// The matcher of a UDP proxy: to these clusters for these classes of callers.
fn by_caller(callers: Vec<(&[&str], &str)>, others: Option<OnMatch>) -> udp_proxy_config::RouteSpecifier {
    let matchers = callers.into_iter().map(|(classes, cluster)| {
        let classes = OneOfClasses { classes: classes.iter().map(|class| (*class).to_owned()).collect() };
        let single = SinglePredicate {
            input: matcher_extension(CallerClass::TYPE_URL, &CallerClass {}),
            matcher: matcher_extension(OneOfClasses::TYPE_URL, &classes)
                .map(single_predicate::Matcher::CustomMatch),
        };
        let predicate = Predicate { match_type: Some(MatchType::SinglePredicate(single)) };
        FieldMatcher { predicate: Some(predicate), on_match: Some(datagrams_to(cluster)) }
    });
    udp_proxy_config::RouteSpecifier::Matcher(Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: matchers.collect() })),
        on_no_match: others.map(Box::new),
    })
}

fn two_callers() -> udp_proxy_config::RouteSpecifier {
    by_caller(vec![(&["shop"], "a"), (&["x", "y"], "b")], Some(datagrams_to("web")))
}

fn twice_the_same() -> udp_proxy_config::RouteSpecifier {
    by_caller(vec![(&["shop"], "a"), (&["x", "shop"], "b")], Some(datagrams_to("web")))
}

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn listeners_of_udp() {
    use udp_proxy_config::{HashPolicy, hash_policy::PolicySpecifier};
    fn of(change: impl FnOnce(&mut UdpProxyConfig)) -> ListenerProto {
        udp_listener(udp_filter(change))
    }
    fn hash(by: PolicySpecifier) -> Vec<HashPolicy> {
        vec![HashPolicy { policy_specifier: Some(by) }]
    }
    let chain = |filter: Any| listener_of(filter).filter_chains;
    const FILTER: &str = "listener_filters[0]";
    refused!(Listener, of(|_| ()), m;
        m.additional_addresses = vec![additional(address("10.96.0.2"))] => "additional_addresses[0].address";
        m.listener_filters.clear() => "filter_chains";
        m.listener_filters.push(udp_filter(|_| ())) => "listener_filters";
        m.listener_filters[0] = <_>::default() => FILTER;
        m.udp_listener_config.as_mut().unwrap().quic_options = Some(<_>::default())
            => "udp_listener_config.quic_options";
        m.filter_chains = chain(udp_proxy(|_| ())) => FILTER;
        m.filter_chains = chain(typed(TCP_PROXY, &tcp())) => "filter_chains[0].filters[0]";
        m.filter_chains = chain(any_http()) => "filter_chains[0].filters[0]";
        *m = of(|p| p.route_specifier = None) => format!("{FILTER}.matcher");
        *m = of(|p| p.route_specifier = Some(udp_proxy_config::RouteSpecifier::Matcher(<_>::default())))
            => format!("{FILTER}.matcher");
        *m = of(|p| p.route_specifier = Some(by_caller(vec![], None))) => format!("{FILTER}.matcher.on_no_match");
        *m = of(|p| p.route_specifier = Some(by_caller(vec![], Some(go_to_chain()))))
            => format!("{FILTER}.matcher.on_no_match");
        *m = of(|p| p.route_specifier = Some(by_caller(vec![], Some(datagrams_to("")))))
            => format!("{FILTER}.matcher.on_no_match.cluster");
        *m = of(|p| p.route_specifier = Some(twice_the_same()))
            => format!("{FILTER}.matcher.matcher_list.matchers[1].predicate");
        {
            *m = of(|p| p.route_specifier = Some(two_callers()));
            m.filter_chains = chain(udp_proxy(|_| ()));
        } => "filter_chains";
        {
            m.filter_chains = chain(udp_proxy(|p| p.route_specifier = Some(two_callers())));
            m.listener_filters.clear();
        } => "filter_chains[0].filters[0].matcher";
        m.filter_chain_matcher = Some(<_>::default()) => "filter_chain_matcher";
        *m = of(|p| p.route_specifier = Some(udp_proxy_config::RouteSpecifier::Cluster(String::new())))
            => format!("{FILTER}.cluster");
        *m = of(|p| p.use_per_packet_load_balancing = true) => format!("{FILTER}.use_per_packet_load_balancing");
        *m = of(|p| p.session_filters.push(<_>::default())) => format!("{FILTER}.session_filters");
        *m = of(|p| p.tunneling_config = Some(<_>::default())) => format!("{FILTER}.tunneling_config");
        *m = of(|p| p.hash_policies = hash(PolicySpecifier::Key("x".to_owned()))) => format!("{FILTER}.hash_policies");
    );
    let model = |listener: &ListenerProto| match decode(ResourceType::Listener, listener) {
        Ok(Model::Listener(listener)) => listener,
        other => panic!("{other:?}"),
    };
    let plain = model(&of(|_| ()));
    assert_eq!(plain.protocol, Transport::Udp);
    let [only] = &plain.chains[..] else { panic!("{plain:?}") };
    assert_eq!((only.port, &only.action), (None, &Action::Cluster("web".into())));
    let hashed = model(&of(|p| p.hash_policies = hash(PolicySpecifier::SourceIp(true))));
    let Action::Clusters(clusters) = &hashed.chains[0].action else { panic!("{hashed:?}") };
    assert!(clusters[0].by_source && clusters.len() == 1);
    let harmless = of(|p| {
        p.use_original_src_ip = true;
        p.idle_timeout = Some(Duration { seconds: 1, nanos: 0 });
        p.hash_policies = hash(PolicySpecifier::SourceIp(false));
    });
    assert_eq!(model(&harmless), plain);
    // The same in a filter chain.
    let mut chained = of(|_| ());
    chained.filter_chains = chain(udp_proxy(|_| ()));
    chained.listener_filters.clear();
    assert_eq!(model(&chained), plain);
    // Callers are told apart by its own matcher.
    let apart = model(&of(|p| p.route_specifier = Some(two_callers())));
    let said = apart.chains.iter().map(|chain| (chain.callers.join(","), chain.action.clone()));
    let cluster = |name: &'static str| Action::Cluster(name.into());
    assert_eq!(
        said.collect::<Vec<_>>(),
        [
            ("shop".to_owned(), cluster("a")),
            ("x,y".to_owned(), cluster("b")),
            (String::new(), cluster("web"))
        ]
    );
    let mut bare = of(|_| ());
    bare.udp_listener_config = None;
    assert_eq!(model(&bare), plain);
    assert_eq!(model(&tcp_listener()).protocol, Transport::Tcp);
}
