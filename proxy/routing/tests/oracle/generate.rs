//! Route configurations and requests, made from a seed of words that meet often.

mod filters;
mod routes;

use slotmesh_xds::envoy::{
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
            route::v3::{Route, RouteConfiguration, RouteMatch, VirtualHost, route_match::PathSpecifier},
        },
        extensions::filters::network::http_connection_manager::v3::http_connection_manager::PathWithEscapedSlashesAction as Escaped,
    },
    google::protobuf::UInt32Value,
};

use crate::{Trial, envoy::Options, exchange::Sent};

/// Numbers from a seed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `bound`, by the steps of SplitMix64.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Up to `most` of them.
    pub fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }
}

const SEGMENTS: [&str; 14] =
    ["a", "b", "ab", "shop", "cart", "A", "Shop", "v1", "x.y", "a%20b", "b;p=1", "a-b_c~d", "%41", ""];
/// Values of headers and parameters.
const VALUES: [&str; 11] = ["1", "2", "10", "-3", "ab", "AB", "abc", "b", "a b", "x,y", "%31"];
const HEADERS: [&str; 4] = ["x-a", "x-b", "x-c", "X-D"];
const PARAMETERS: [&str; 3] = ["q", "Q", "p"];

fn path(chance: &mut Chance) -> String {
    chance.some(3, |chance| format!("/{}", chance.one(&SEGMENTS))).concat() + chance.one(&["", "/"])
}

/// A path that a request can have.
fn request_path(chance: &mut Chance, host: Option<&VirtualHost>) -> String {
    let written = host.filter(|_| chance.percent(80)).and_then(|host| {
        if host.routes.is_empty() {
            return None;
        }
        let route = &host.routes[chance.below(host.routes.len())];
        match route.r#match.as_ref()?.path_specifier.as_ref()? {
            PathSpecifier::Prefix(path)
            | PathSpecifier::Path(path)
            | PathSpecifier::PathSeparatedPrefix(path) => Some(path.clone()),
            _ => None,
        }
    });
    let mut path = written.unwrap_or_else(|| path(chance));
    match chance.below(10) {
        0 => path += "/",
        1 | 2 => path += &format!("/{}", chance.one(&SEGMENTS)),
        3 => path += "x",
        4 => path = path.to_ascii_uppercase(),
        5 => {
            path.pop();
        }
        _ => {}
    }
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    if chance.percent(35) {
        let parameter = |chance: &mut Chance| {
            let name = chance.one(&PARAMETERS);
            match chance.below(4) {
                0 => name.to_owned(),
                _ => format!("{name}={}", chance.one(&VALUES).replace([' ', ','], "+")),
            }
        };
        path += &format!("?{}", chance.some(3, parameter).join("&"));
    }
    path
}

fn request(chance: &mut Chance, name: &str, host: Option<&VirtualHost>) -> Sent {
    let mut headers = chance.some(4, |chance| (chance.one(&HEADERS), chance.one(&VALUES).to_owned()));
    headers.push(("x-random", (chance.below(1_000_000)).to_string()));
    if chance.percent(25) {
        headers.push(("origin", chance.one(&filters::ORIGINS).to_owned()));
        if chance.percent(50) {
            headers.push(("access-control-request-method", chance.one(&["GET", "PUT"]).to_owned()));
        }
        if chance.percent(20) {
            headers.push(("access-control-request-private-network", chance.one(&["true", "1"]).to_owned()));
        }
    }
    for name in filters::FAULT_HEADERS {
        if chance.percent(8) {
            // Of shares all or none: nothing is left to chance.
            let values: &[&str] = match name.ends_with("percentage") {
                true => &["0", "1000000", "x"],
                false => &["503", "404", "1", "14", "0", "700", "100", "x"],
            };
            headers.push((name, chance.one(values).to_owned()));
        }
    }
    if chance.percent(8) {
        let types = ["application/grpc", "application/grpc+proto", "application/grpc-web", "text/html"];
        headers.push(("content-type", chance.one(&types).to_owned()));
    }
    if chance.percent(10) {
        headers.push(("x-forwarded-host", chance.one(&["first.test", name, "a, b"]).to_owned()));
    }
    Sent {
        method: chance.one(&["GET", "GET", "GET", "POST", "DELETE", "OPTIONS"]),
        host: name.to_owned(),
        path: request_path(chance, host),
        headers,
    }
}

fn addition(chance: &mut Chance, names: &[&str]) -> HeaderValueOption {
    let actions = [
        HeaderAppendAction::AppendIfExistsOrAdd,
        HeaderAppendAction::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd,
        HeaderAppendAction::OverwriteIfExists,
    ];
    HeaderValueOption {
        header: Some(HeaderValue {
            key: chance.one(names).to_owned(),
            value: chance.one(&["route", "added", "100%%", ""]).to_owned(),
            ..Default::default()
        }),
        append_action: chance.one(&actions).into(),
        keep_empty_value: chance.percent(30),
        ..Default::default()
    }
}

const REQUEST_NAMES: [&str; 4] = ["x-a", "x-b", "x-new", "X-Big"];
const RESPONSE_NAMES: [&str; 4] = ["x-resp", "x-other", "x-new", "X-Big"];

fn additions(chance: &mut Chance, percent: usize, names: &[&str]) -> Vec<HeaderValueOption> {
    if chance.percent(percent) { chance.some(3, |chance| addition(chance, names)) } else { Vec::new() }
}

fn removals(chance: &mut Chance, percent: usize, names: &[&str]) -> Vec<String> {
    if chance.percent(percent) { chance.some(2, |chance| chance.one(names).to_owned()) } else { Vec::new() }
}

/// A virtual host with rules of every sort.
fn host(chance: &mut Chance, name: &str) -> VirtualHost {
    let mut routes = chance.some(7, routes::route);
    routes.push(routes::route(chance));
    VirtualHost {
        name: name.to_owned(),
        domains: vec![name.to_owned()],
        routes,
        request_headers_to_add: additions(chance, 20, &REQUEST_NAMES),
        request_headers_to_remove: removals(chance, 15, &REQUEST_NAMES),
        response_headers_to_add: additions(chance, 20, &RESPONSE_NAMES),
        response_headers_to_remove: removals(chance, 15, &RESPONSE_NAMES),
        typed_per_filter_config: filters::configs(chance),
        ..Default::default()
    }
}

fn trial_of_rules(chance: &mut Chance, name: &'static str, hosts: u64, requests: usize) -> Trial {
    let mut config = RouteConfiguration {
        name: name.into(),
        request_headers_to_add: additions(chance, 60, &REQUEST_NAMES),
        response_headers_to_add: additions(chance, 60, &RESPONSE_NAMES),
        response_headers_to_remove: removals(chance, 30, &RESPONSE_NAMES),
        ..Default::default()
    };
    let mut sent = Vec::new();
    for number in 0..hosts {
        let name = format!("h{number}.test");
        let host = host(chance, &name);
        sent.extend((0..requests).map(|_| request(chance, &name, Some(&host))));
        config.virtual_hosts.push(host);
    }
    Trial { name, config, options: Options::default(), requests: sent }
}

/// Domains that shadow each other.
fn trial_of_domains(chance: &mut Chance, name: &'static str, ignore_port: bool) -> Trial {
    const DOMAINS: [&str; 16] = [
        "*",
        "web.test",
        "WEB.example",
        "web.test:8080",
        "*.test",
        "*.web.test",
        "*-x.test",
        "web.*",
        "web.te*",
        "web.test:*",
        "*:8080",
        "10.0.0.1",
        "[fd00::1]",
        "[fd00::1]:80",
        "a.b.c.d.e",
        "*.d.e",
    ];
    const NAMES: [&str; 20] = [
        "web.test",
        "WEB.test",
        "web.example",
        "web.test:8080",
        "web.test:80",
        "a.web.test",
        "a.b.web.test:80",
        ".test",
        ".web.test",
        "-x.test",
        "a-x.test",
        "web.other",
        "web.",
        "web.tex",
        "other:8080",
        "10.0.0.1:80",
        "[fd00::1]",
        "[fd00::1]:80",
        "a.b.c.d.e",
        "a.d.e:1",
    ];
    let mut config = RouteConfiguration {
        name: name.into(),
        ignore_port_in_host_matching: ignore_port,
        ..Default::default()
    };
    for (number, domain) in DOMAINS.into_iter().enumerate() {
        let matcher =
            RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() };
        config.virtual_hosts.push(VirtualHost {
            name: domain.into(),
            domains: vec![domain.into()],
            routes: vec![Route {
                r#match: Some(matcher),
                action: Some(routes::respond(200, &number.to_string())),
                ..Default::default()
            }],
            ..Default::default()
        });
    }
    let requests = NAMES.into_iter().map(|name| request(chance, name, None)).collect();
    Trial { name, config, options: Options::default(), requests }
}

/// Paths that are written in more than one way, to one rule.
fn trial_of_paths(chance: &mut Chance, name: &'static str, options: Options, requests: usize) -> Trial {
    const PIECES: [&str; 24] = [
        "/", "/", "/", "/", "a", "b", ".", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "\\", "%41", "%7e",
        "%25", "%zz", "%", "|", ";x", "~", "...",
    ];
    let matcher =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".into())), ..Default::default() };
    let config = RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            name: "all".into(),
            domains: vec!["*".into()],
            routes: vec![Route {
                r#match: Some(matcher),
                action: Some(routes::to("c0")),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let sent = (0..requests).map(|_| Sent {
        method: "GET",
        host: "paths.test".into(),
        path: format!(
            "/{}{}",
            chance.some(9, |chance| chance.one(&PIECES)).concat(),
            chance.one(&["", "", "?a/../b", "?%2f"])
        ),
        headers: Vec::new(),
    });
    let requests = sent.collect();
    Trial { name, config, options, requests }
}

/// All trials.
pub fn trials(chance: &mut Chance, hosts: u64, requests: usize) -> Vec<Trial> {
    let mut rules = trial_of_rules(chance, "rules", hosts, requests);
    rules.config.max_direct_response_body_size_bytes = Some(UInt32Value { value: 10_000 });
    let mut specific = trial_of_rules(chance, "specific-wins", hosts / 4, requests);
    specific.config.most_specific_header_mutations_wins = true;
    let mut parameters = trial_of_rules(chance, "parameters-ignored", hosts / 4, requests);
    parameters.config.ignore_path_parameters_in_path_matching = true;
    let mut paths = |name, merge_slashes, escaped_slashes| {
        let options = Options { normalize: true, merge_slashes, escaped_slashes };
        trial_of_paths(chance, name, options, requests * 8)
    };
    let normalized = [
        paths("paths", false, Escaped::KeepUnchanged),
        paths("paths-merged", true, Escaped::KeepUnchanged),
        paths("paths-unescaped", false, Escaped::UnescapeAndForward),
        paths("paths-redirected", true, Escaped::UnescapeAndRedirect),
        paths("paths-refused", false, Escaped::RejectRequest),
    ];
    let mut trials = vec![
        rules,
        specific,
        parameters,
        trial_of_domains(chance, "domains", false),
        trial_of_domains(chance, "domains-without-port", true),
    ];
    trials.extend(normalized);
    trials
}
