//! Configurations of the proxies: the same routes for all, and the settings that their makers advise for speed.
//!
//! Ours reads Envoy's file.

use std::fmt::Write as _;

/// Number of routes of each site that is a listener of HTTP/1.
pub const ROUTES: [usize; 3] = [1, 20, 1_000];

/// A listener of each proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// HTTP/1 with so many routes of [`ROUTES`].
    Http1(usize),
    /// HTTP/2 to endpoints of HTTP/1, 20 routes.
    Http2,
    /// gRPC: HTTP/2 on both sides, 20 routes.
    Grpc,
}

impl Site {
    /// All of them, in the order of their ports.
    pub const ALL: [Self; 5] =
        [Self::Http1(ROUTES[0]), Self::Http1(ROUTES[1]), Self::Http1(ROUTES[2]), Self::Http2, Self::Grpc];

    /// Number of its routes.
    pub const fn routes(self) -> usize {
        match self {
            Self::Http1(routes) => routes,
            Self::Http2 | Self::Grpc => ROUTES[1],
        }
    }

    /// The path of its last route.
    pub fn path(self, body: usize) -> String {
        format!("/api/v1/service-{:04}/items/{body}", self.routes() - 1)
    }

    pub fn index(self) -> usize {
        Self::ALL.iter().position(|site| *site == self).expect("it is one of all")
    }
}

/// Ports of a proxy's sites, and of the endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub sites: [u16; Site::ALL.len()],
    pub http1: [u16; 2],
    pub http2: [u16; 2],
}

/// The file for Envoy and for ours.
pub fn envoy(ports: &Ports) -> String {
    let mut text = String::from("static_resources:\n  listeners:\n");
    for (site, port) in Site::ALL.into_iter().zip(ports.sites) {
        let clusters = if site == Site::Grpc { ["c", "d"] } else { ["a", "b"] };
        let index = site.index();
        let _ = write!(
            text,
            r#"  - name: site-{index}
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: site
          generate_request_id: false
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router, dynamic_stats: false}}
          route_config:
            name: site-{index}
            virtual_hosts:
            - name: web
              domains: ["*"]
              routes:
              - {{match: {{path: /flood}}, direct_response: {{status: 200, body: {{inline_string: ok}}}}}}
"#
        );
        for route in 0..site.routes() {
            let _ = writeln!(
                text,
                "              - {{name: \"HTTPRoute/shop/web/rules[{route}]\", match: {{path_separated_prefix: \
                 /api/v1/service-{route:04}}}, route: {{weighted_clusters: {{clusters: [{{name: {}, weight: 50}}, \
                 {{name: {}, weight: 50}}]}}}}}}",
                clusters[0], clusters[1]
            );
        }
    }
    text.push_str("  clusters:\n");
    for (name, port, http2) in [
        ("a", ports.http1[0], false),
        ("b", ports.http1[1], false),
        ("c", ports.http2[0], true),
        ("d", ports.http2[1], true),
    ] {
        let _ = write!(
            text,
            r#"  - name: {name}
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{thresholds: [{{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}}]}}
    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
"#
        );
        if http2 {
            text.push_str(
                r#"    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
"#,
            );
        }
    }
    text
}

/// The file for nginx.
pub fn nginx(ports: &Ports, folder: &str) -> String {
    let mut text = format!(
        "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 19000;\nerror_log stderr crit;\n\
         pid {folder}/nginx.pid;\nuser root;\n\
         events {{ worker_connections 19000; multi_accept on; use epoll; }}\n\
         http {{\naccess_log off;\nsendfile on;\ntcp_nodelay on;\nkeepalive_timeout 3600s;\nkeepalive_requests 100000000;\n\
         client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; \
         fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n\
         proxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_set_header Host $host;\n\
         proxy_buffer_size 16k;\nproxy_buffers 16 16k;\nproxy_busy_buffers_size 64k;\nproxy_max_temp_file_size 0;\n"
    );
    for (name, [one, other]) in [("plain", ports.http1), ("grpc", ports.http2)] {
        let _ = writeln!(
            text,
            "upstream {name} {{ server 127.0.0.1:{one}; server 127.0.0.1:{other}; keepalive 512; \
             keepalive_requests 100000000; }}"
        );
    }
    for (site, port) in Site::ALL.into_iter().zip(ports.sites) {
        let http2 = if matches!(site, Site::Http1(_)) { "" } else { " http2" };
        let pass = if site == Site::Grpc { "grpc_pass grpc://grpc" } else { "proxy_pass http://plain" };
        let _ = writeln!(text, "server {{\nlisten 127.0.0.1:{port} backlog=4096{http2};");
        let _ = writeln!(text, "location = /flood {{ return 200 ok; }}");
        for route in 0..site.routes() {
            let _ = writeln!(text, "location ^~ /api/v1/service-{route:04}/ {{ {pass}; }}");
        }
        text.push_str("}\n");
    }
    text.push_str("}\n");
    text
}
