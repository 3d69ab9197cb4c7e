//! The older form of metrics, for readers that accept plain text and not OpenMetrics.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

const OPEN_METRICS: &str = "application/openmetrics-text";
const PLAIN: &str = "text/plain";

/// Answers with the form that is asked for.
pub async fn negotiate(request: Request, next: Next) -> Response {
    let is_plain = is_plain(request.headers());
    let response = next.run(request).await;
    let content = response.headers().get(header::CONTENT_TYPE).and_then(|content| content.to_str().ok());
    if !is_plain || !content.is_some_and(|content| content.starts_with(OPEN_METRICS)) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let content = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    parts.headers.insert(header::CONTENT_TYPE, content);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(plain_text(&String::from_utf8_lossy(&bytes))))
}

/// Tells who accepts plain text only.
fn is_plain(headers: &HeaderMap) -> bool {
    let accepted =
        headers.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    accepted.contains(PLAIN) && !accepted.contains(OPEN_METRICS)
}

/// An exposition of OpenMetrics in the text format 0.0.4: there a counter has the name of its samples.
fn plain_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The help of a family comes before its type.
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let ending = if kind == "counter" && !name.ends_with("_total") { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            if let Some((_, said)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{ending} {said}\n"));
            }
            text.push_str(&format!("# TYPE {name}{ending} {kind}\n"));
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_the_name_of_its_samples() {
        let open_metrics = "# HELP up Is there.\n# TYPE up gauge\nup 1\n# HELP flush_seconds Time.\n\
            # TYPE flush_seconds histogram\n# UNIT flush_seconds seconds\nflush_seconds_sum 2.0\n\
            # HELP made Made ones.\n# TYPE made counter\nmade_total{a=\"# TYPE x counter\"} 3\n# EOF\n";
        let expected = "# HELP up Is there.\n# TYPE up gauge\nup 1\n# HELP flush_seconds Time.\n\
            # TYPE flush_seconds histogram\nflush_seconds_sum 2.0\n\
            # HELP made_total Made ones.\n# TYPE made_total counter\nmade_total{a=\"# TYPE x counter\"} 3\n";
        assert_eq!(plain_text(open_metrics), expected);
    }

    #[test]
    fn open_metrics_is_what_most_get() {
        let is_plain = |accepted: &'static str| {
            is_plain(&[(header::ACCEPT, HeaderValue::from_static(accepted))].into_iter().collect())
        };
        assert!(is_plain("text/plain;version=0.0.4"));
        for accepted in
            ["", "*/*", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"]
        {
            assert!(!is_plain(accepted), "{accepted}");
        }
    }
}
