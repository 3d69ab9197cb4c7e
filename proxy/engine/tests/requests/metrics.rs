//! Rate, errors and duration of requests, as a scrape tells them.

use crate::support::{Client, Endpoint, File, Proxy, until};
use slotmesh_proxy::{DialOrigin, ProxyLimits};

const ROUTES: &str = r#"- {name: "HTTPRoute/shop/web/rules[0]", match: {prefix: /a}, route: {cluster: web}}
- {name: "HTTPRoute/shop/web/rules[1]", match: {prefix: /b}, direct_response: {status: 403}}
- {name: "HTTPRoute/shop/web/rules[2]", match: {prefix: /slow}, route: {cluster: web}}"#;

fn line(labels: [&str; 4]) -> String {
    let [source, service, route, class] = labels;
    format!(
        "slotmesh_proxy_requests_total{{source_workload=\"{source}\",destination_service=\"{service}\",\
         route=\"{route}\",code_class=\"{class}\"}}"
    )
}

#[tokio::test]
async fn requests_are_counted_by_who_asks_for_what_by_which_rule() {
    let endpoint = Endpoint::raw(|mut client: Client, _| async move {
        loop {
            let head = client.until("\r\n\r\n").await;
            if head.starts_with("GET /slow") {
                client.rest().await;
                return;
            }
            client.send("HTTP/1.1 500 Sorry\r\ncontent-length: 2\r\n\r\nno").await;
        }
    })
    .await;
    let text = File { routes: ROUTES.into(), ..File::default() }.text(&[endpoint.port()]);
    let proxy = Proxy::start(&text).await;
    let origin = DialOrigin(7);
    proxy.engine().set_workload(origin, "shop/Deployment/front");
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("it is bound");
    proxy.engine().listen("web", origin, &socket).expect("a socket");
    proxy.engine().settled().await;
    let mut known = Client::connect(address).await;
    let mut unknown = proxy.connect().await;
    for (path, status) in [("/a", "500"), ("/a/b", "500"), ("/b", "403"), ("/c", "404")] {
        for client in [&mut known, &mut unknown] {
            client.send(format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n")).await;
            let (head, _) = client.answer().await;
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        }
    }
    // One that doesn't wait for its answer.
    known.send("GET /slow HTTP/1.1\r\nhost: web\r\n\r\n").await;
    until("a request in flight", || proxy.metric("slotmesh_proxy_requests_active{cluster=\"web\"}") == 1)
        .await;
    drop(known);
    let rule = |number: usize| format!("HTTPRoute/shop/web/rules[{number}]");
    let of_slow = line(["shop/Deployment/front", "web", &rule(2), "none"]);
    until("its end", || proxy.metric(&of_slow) == 1).await;
    for source in ["shop/Deployment/front", "unknown"] {
        for (route, class, count) in
            [(rule(0), "5xx", 2), (rule(1), "4xx", 1), ("-".into(), "4xx", 1), (rule(0), "2xx", 0)]
        {
            let line = line([source, "web", &route, class]);
            assert_eq!(proxy.metric(&line), count, "{line}");
            let duration = line.replace("requests_total", "request_duration_seconds_count");
            assert_eq!(proxy.metric(&duration), count, "{duration}");
        }
    }
}

#[tokio::test]
async fn series_are_bounded_and_sums_lose_nothing() {
    let routes: Vec<String> = (0..10)
        .map(|n| format!("- {{name: \"r{n}\", match: {{path: /{n}}}, direct_response: {{status: 200}}}}"))
        .collect();
    let limits = ProxyLimits { request_series: 4, ..ProxyLimits::default() };
    let text = File { routes: routes.join("\n"), ..File::default() }.text(&[]);
    let proxy = Proxy::with_limits(&text, limits).await;
    let mut client = proxy.connect().await;
    for n in 0..10 {
        client.send(format!("GET /{n} HTTP/1.1\r\nhost: web\r\n\r\n")).await;
        client.answer().await;
    }
    for n in 0..10 {
        let expected = u64::from(n < 4);
        assert_eq!(proxy.metric(&line(["unknown", "web", &format!("r{n}"), "2xx"])), expected, "{n}");
    }
    assert_eq!(proxy.metric(&line(["other", "other", "other", "2xx"])), 6);
}
