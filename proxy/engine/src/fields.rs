//! Header fields on the way through: those of a connection stay with it, those about the client are made as Envoy's
//! defaults make them.

use std::net::IpAddr;

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{CONNECTION, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};
use slotmesh_routing::{Draws, HeaderChanges, HeaderLookup};

use crate::downstream::HttpConfig;

pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The protocol that an HTTP/1.1 request asks to go on with, in small letters; `None` for an ordinary request. HTTP/2
/// is none that is changed to: a server need not follow, and requests that ask for it are ordinary ones.
pub(crate) fn upgrade(version: Version, headers: &HeaderMap) -> Option<String> {
    if version != Version::HTTP_11 || !has_token(headers, &CONNECTION, "upgrade") {
        return None;
    }
    let name = headers.get(UPGRADE)?.to_str().ok()?.trim().to_ascii_lowercase();
    (!name.is_empty() && name != "h2c").then_some(name)
}

fn tokens<'h>(headers: &'h impl HeaderLookup, name: &'h HeaderName) -> impl Iterator<Item = &'h str> {
    let values = headers.values(name).filter_map(|value| std::str::from_utf8(value).ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn has_token(headers: &impl HeaderLookup, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// Removes the fields that are about a connection, and those that it names. Those of an upgrade stay, if it is one.
pub(crate) fn remove_hop_by_hop(headers: &mut impl HeaderChanges, is_upgrade: bool) {
    if headers.has(&CONNECTION) {
        let named: Vec<HeaderName> =
            tokens(headers, &CONNECTION).filter_map(|name| name.parse().ok()).collect();
        for name in named {
            // Who removes these would change the message, or where it goes.
            if name != UPGRADE && name != HOST && name != http::header::CONTENT_LENGTH && name != TE {
                headers.take_away(&name);
            }
        }
        headers.take_away(&CONNECTION);
    }
    headers.take_away(&KEEP_ALIVE);
    headers.take_away(&PROXY_CONNECTION);
    headers.take_away(&TRANSFER_ENCODING);
    if headers.has(&TE) {
        // All that an endpoint may be told: that trailers are understood.
        let trailers = has_token(headers, &TE, "trailers");
        headers.take_away(&TE);
        if trailers {
            headers.set(TE, HeaderValue::from_static("trailers"));
        }
    }
    if is_upgrade {
        headers.set(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.take_away(&UPGRADE);
        headers.take_away(&HTTP2_SETTINGS);
    }
}

/// Prepares a request's fields for routing and for the endpoint.
pub(crate) fn prepare(
    headers: &mut impl HeaderChanges,
    http: &HttpConfig,
    client: IpAddr,
    is_upgrade: bool,
    draws: &mut impl Draws,
) {
    remove_hop_by_hop(headers, is_upgrade);
    // It is answered here, when the endpoint reads the body.
    headers.take_away(&EXPECT);
    if http.use_remote_address {
        if !http.skip_forwarded_for {
            append_forwarded_for(headers, client);
        }
        headers.set(X_FORWARDED_PROTO.clone(), HeaderValue::from_static("http"));
    } else if !headers.has(&X_FORWARDED_PROTO) {
        headers.add(X_FORWARDED_PROTO.clone(), HeaderValue::from_static("http"));
    }
    if http.generate_request_id
        && !headers.has(&X_REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&request_id(draws.draw(), draws.draw()))
    {
        headers.add(X_REQUEST_ID.clone(), id);
    }
}

fn append_forwarded_for(headers: &mut impl HeaderChanges, client: IpAddr) {
    let client = client.to_canonical().to_string();
    let mut all: Vec<u8> = Vec::new();
    for value in headers.values(&X_FORWARDED_FOR) {
        all.extend_from_slice(value);
        all.push(b',');
    }
    all.extend_from_slice(client.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.set(X_FORWARDED_FOR.clone(), value);
    }
}

/// A UUID of version 4.
fn request_id(high: u64, low: u64) -> String {
    let high = high & !0xf000 | 0x4000;
    let low = low & !(0b11 << 62) | 0b10 << 62;
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

/// Joins what HTTP/2 may send as several `cookie` fields: HTTP/1 has one.
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let mut values = headers.get_all(COOKIE).iter();
    if values.next().is_none() || values.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn fields_of_the_connection_stay_behind() {
        let mut fields = headers(&[
            ("connection", "close, X-Hop, content-length, host"),
            ("connection", "te"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("content-length", "3"),
            ("host", "web"),
            ("x-end", "2"),
        ]);
        remove_hop_by_hop(&mut fields, false);
        let expected =
            headers(&[("te", "trailers"), ("content-length", "3"), ("host", "web"), ("x-end", "2")]);
        assert_eq!(fields, expected);
    }

    #[test]
    fn upgrades_are_told_from_ordinary_requests() {
        let asks = |connection, to: &'static str| {
            let fields = headers(&[("connection", connection), ("upgrade", to)]);
            upgrade(Version::HTTP_11, &fields)
        };
        assert_eq!(asks("keep-alive, Upgrade", "WebSocket").as_deref(), Some("websocket"));
        assert_eq!(asks("keep-alive", "websocket"), None);
        assert_eq!(asks("upgrade", "h2c"), None);
        let mut fields = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        remove_hop_by_hop(&mut fields, true);
        assert_eq!(fields, headers(&[("upgrade", "websocket"), ("connection", "upgrade")]));
        assert_eq!(upgrade(Version::HTTP_10, &fields), None);
    }

    #[test]
    fn a_request_id_is_a_uuid() {
        assert_eq!(request_id(u64::MAX, u64::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(request_id(0, 1), "00000000-0000-4000-8000-000000000001");
    }

    #[test]
    fn cookies_become_one() {
        let mut fields = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut fields);
        assert_eq!(fields, headers(&[("cookie", "a=1; b=2")]));
    }

    #[test]
    fn the_client_is_appended() {
        let mut fields = headers(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")]);
        append_forwarded_for(&mut fields, "::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(fields, headers(&[("x-forwarded-for", "1.1.1.1,2.2.2.2,10.0.0.1")]));
    }
}
