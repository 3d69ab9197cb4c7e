//! Connections that are passed through as TCP: by their listener, or because they don't speak HTTP.

use crate::support::{Client, Endpoint, File, Proxy};

/// A listener that serves HTTP, and passes through what isn't.
fn sniffing(timeout: &str, port: u16, http_port: u16) -> String {
    let listener = format!(
        r#"listener_filters:
- name: envoy.filters.listener.http_inspector
  typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
listener_filters_timeout: {timeout}
continue_on_listener_filters_timeout: true
default_filter_chain:
  filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: tcp}}"#
    );
    let text = File { listener, ..File::default() }.text(&[http_port]);
    let text = text.replace(
        "    - filters:\n      - name: envoy.filters.network.http",
        "    - filter_chain_match: {application_protocols: [http/1.1, h2c]}\n      filters:\n      - name: envoy.filters.network.http",
    );
    text + &format!(
        "  - name: tcp\n    load_assignment: {{cluster_name: tcp, endpoints: [{{lb_endpoints: [{{endpoint: {{address: \
         {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}\n"
    )
}

/// A server that speaks first, and says what it hears.
async fn speaks_first() -> Endpoint {
    Endpoint::raw(|mut client: Client, _| async move {
        client.send("220 ready\r\n").await;
        let line = client.until("\r\n").await;
        client.send(format!("250 {line}")).await;
    })
    .await
}

#[tokio::test]
async fn a_client_that_says_nothing_is_passed_through_after_a_time() {
    let (server, http) = (speaks_first().await, Endpoint::echo().await);
    let proxy = Proxy::start(&sniffing("0.2s", server.port(), http.port())).await;
    let mut client = proxy.connect().await;
    assert_eq!(client.until("\r\n").await, "220 ready\r\n");
    client.send("HELO a\r\n").await;
    assert_eq!(client.rest().await, "250 HELO a\r\n");
}

#[tokio::test]
async fn bytes_that_are_not_http_are_passed_through_at_once() {
    let (server, http) = (speaks_first().await, Endpoint::echo().await);
    let proxy = Proxy::start(&sniffing("600s", server.port(), http.port())).await;
    let mut client = proxy.connect().await;
    client.send("\x16\x03\x01 and more\r\n").await;
    assert_eq!(client.rest().await, "220 ready\r\n250 \x16\x03\x01 and more\r\n");
    assert_eq!(proxy.metric("slotmesh_proxy_tcp_connections_total"), 1);
    // HTTP is served as such.
    let answer = proxy.ask("GET /a HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("GET /a HTTP/1.1"), "{answer}");
}
