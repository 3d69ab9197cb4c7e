//! Hash of a request, by which its endpoint is chosen: of a header, a cookie, a query parameter or the caller's address.
//!
//! The hash is xxh3: with which endpoint a request ends is ours to say, not Envoy's.

use std::time::Duration;

use http::{HeaderName, HeaderValue, header};
use slotmesh_xds::envoy::envoy::config::route::v3::route_action::{
    self,
    hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter},
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    conditions::HeaderKey,
    draws::Draws,
    field::{FieldPath, InvalidField, duration, refuse_set},
    head::{HeaderLookup, RequestHead},
    rewrite::{Substitution, visible},
};

/// One of the things that are hashed.
#[derive(Debug)]
pub(crate) struct HashRule {
    source: HashSource,
    /// Nothing that stands behind this counts, if this has something to hash.
    terminal: bool,
}

#[derive(Debug)]
enum HashSource {
    Header(HeaderKey, Option<Substitution>),
    Cookie { name: Box<str>, missing: Option<NewCookie> },
    Query(Box<str>),
    Address,
}

/// Cookie that a caller gets who has none.
#[derive(Debug)]
struct NewCookie {
    /// Of the header's value, all but name and value.
    attributes: Box<str>,
}

impl HashRule {
    /// All of a list.
    pub(crate) fn list(
        at: &FieldPath<'_>,
        policies: &[route_action::HashPolicy],
    ) -> Result<Box<[Self]>, InvalidField> {
        (0..).zip(policies).map(|(i, policy)| Self::new(&at.element("hash_policy", i), policy)).collect()
    }

    fn new(at: &FieldPath<'_>, policy: &route_action::HashPolicy) -> Result<Self, InvalidField> {
        let route_action::HashPolicy { terminal, policy_specifier } = policy;
        let source = match policy_specifier {
            Some(PolicySpecifier::Header(Header { header_name, regex_rewrite })) => {
                let at = at.field("header");
                let rewrite = match regex_rewrite {
                    Some(rewrite) => Some(Substitution::new(&at.field("regex_rewrite"), rewrite)?),
                    None => None,
                };
                HashSource::Header(HeaderKey::new(&at.field("header_name"), header_name)?, rewrite)
            }
            Some(PolicySpecifier::Cookie(cookie)) => {
                let (name, missing) = NewCookie::new(&at.field("cookie"), cookie)?;
                HashSource::Cookie { name, missing }
            }
            Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })) => {
                HashSource::Address
            }
            Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: false })) => {
                return Err(at.field("connection_properties.source_ip").wrong("there is nothing else"));
            }
            Some(PolicySpecifier::QueryParameter(QueryParameter { name })) => {
                if name.is_empty() {
                    return Err(at.field("query_parameter.name").wrong("it is empty"));
                }
                HashSource::Query(name.as_str().into())
            }
            Some(PolicySpecifier::FilterState(_)) => {
                return Err(at.field("filter_state").wrong("nothing sets it"));
            }
            None => return Err(at.wrong("there is nothing to hash")),
        };
        Ok(Self { source, terminal: *terminal })
    }

    /// Hash of this of a request, and the cookie for whoever has none.
    fn hash<H: HeaderLookup>(
        &self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> (Option<u64>, Option<HeaderValue>) {
        let hash = match &self.source {
            HashSource::Header(key, rewrite) => key.value(head).map(|value| match rewrite {
                None => xxh3_64(&value),
                Some(rewrite) => {
                    let text = String::from_utf8_lossy(&value);
                    xxh3_64(rewrite.apply(&text).as_deref().unwrap_or(&text).as_bytes())
                }
            }),
            HashSource::Query(name) => head.query_parameter(name).map(|value| xxh3_64(value.as_bytes())),
            HashSource::Address => {
                head.source.map(|source| xxh3_64(source.to_canonical().to_string().as_bytes()))
            }
            HashSource::Cookie { name, missing } => {
                let Some(value) = cookie(head, name) else {
                    let Some(missing) = missing else { return (None, None) };
                    let value = format!("{:016x}", draws.draw());
                    let hash = xxh3_64(value.as_bytes());
                    let text = format!("{name}=\"{value}\"{}", missing.attributes);
                    return (Some(hash), HeaderValue::try_from(text).ok());
                };
                Some(xxh3_64(value))
            }
        };
        (hash, None)
    }
}

/// Hash by all of a list, and the cookies for whoever has none.
pub(crate) fn hash<H: HeaderLookup>(
    rules: &[HashRule],
    head: &RequestHead<'_, H>,
    draws: &mut impl Draws,
) -> (Option<u64>, Vec<HeaderValue>) {
    let mut all = None;
    let mut cookies = Vec::new();
    for rule in rules {
        let (hash, cookie) = rule.hash(head, draws);
        cookies.extend(cookie);
        if let Some(hash) = hash {
            all = Some(all.map_or(hash, |all: u64| all.rotate_left(1) ^ hash));
            if rule.terminal {
                break;
            }
        }
    }
    (all, cookies)
}

/// Value of a cookie of the request.
fn cookie<'r, H: HeaderLookup>(head: &RequestHead<'r, H>, name: &str) -> Option<&'r [u8]> {
    static COOKIE: HeaderName = header::COOKIE;
    let pairs = head.headers.values(&COOKIE).flat_map(|value| value.split(|byte| *byte == b';'));
    pairs.map(|pair| pair.trim_ascii()).find_map(|pair| {
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

impl NewCookie {
    fn new(at: &FieldPath<'_>, cookie: &Cookie) -> Result<(Box<str>, Option<Self>), InvalidField> {
        let Cookie { name, ttl, path, attributes } = cookie;
        // The grammar of a cookie's name is that of a header's.
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(at.field("name").wrong(format!("{name:?} is not the name of a cookie")));
        }
        let Some(ttl) = duration(&at.field("ttl"), ttl.as_ref())? else {
            refuse_set!(at, "only where a ttl says that one is made": path, attributes;);
            return Ok((name.as_str().into(), None));
        };
        let mut text = String::new();
        if ttl >= Duration::from_secs(1) {
            text += &format!("; Max-Age={}", ttl.as_secs());
        }
        if !path.is_empty() {
            text += &format!("; Path={}", part(&at.field("path"), path)?);
        }
        for (i, attribute) in attributes.iter().enumerate() {
            let at = at.element("attributes", i);
            text += &format!("; {}", part(&at.field("name"), &attribute.name)?);
            if !attribute.value.is_empty() {
                text += &format!("={}", part(&at.field("value"), &attribute.value)?);
            }
        }
        text += "; HttpOnly";
        Ok((name.as_str().into(), Some(Self { attributes: text.into() })))
    }
}

/// A part of a cookie's text.
fn part<'t>(at: &FieldPath<'_>, text: &'t str) -> Result<&'t str, InvalidField> {
    if text.contains(';') {
        return Err(at.wrong("it has a semicolon"));
    }
    visible(at, text)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::{HeaderMap, Method};
    use slotmesh_xds::envoy::google::protobuf;

    use super::*;

    fn rules(policies: Vec<PolicySpecifier>, terminal: bool) -> Box<[HashRule]> {
        let policies: Vec<_> = policies
            .into_iter()
            .map(|specifier| route_action::HashPolicy { terminal, policy_specifier: Some(specifier) })
            .collect();
        HashRule::list(&FieldPath::ROOT, &policies).unwrap()
    }

    fn hash_of(
        rules: &[HashRule],
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> (Option<u64>, Vec<HeaderValue>) {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        let head = RequestHead {
            method: &Method::GET,
            scheme: "http",
            authority: "web",
            path,
            headers: &headers,
            source: Some(IpAddr::from([10, 0, 0, 1])),
        };
        hash(rules, &head, &mut || 0xabc)
    }

    fn header(name: &str) -> PolicySpecifier {
        PolicySpecifier::Header(Header { header_name: name.into(), regex_rewrite: None })
    }

    fn cookie_with(ttl: Option<i64>) -> PolicySpecifier {
        PolicySpecifier::Cookie(Cookie {
            name: "who".into(),
            ttl: ttl.map(|seconds| protobuf::Duration { seconds, nanos: 0 }),
            path: if ttl.is_some() { "/".into() } else { String::new() },
            attributes: vec![],
        })
    }

    #[test]
    fn each_source_is_hashed() {
        let query = PolicySpecifier::QueryParameter(QueryParameter { name: "q".into() });
        let address = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true });
        let of = |source, path, headers: &[_]| hash_of(&rules(vec![source], false), path, headers).0;
        let expected = Some(xxh3_64(b"1"));
        assert_eq!(of(header("x"), "/", &[("x", "1")]), expected);
        assert_eq!(of(query.clone(), "/?p=2&q=1", &[]), expected);
        assert_eq!(of(cookie_with(None), "/", &[("cookie", "a=2; who=\"1\"; b=3")]), expected);
        assert_eq!(of(address, "/", &[]), Some(xxh3_64(b"10.0.0.1")));
        for source in [header("x"), query, cookie_with(None)] {
            assert_eq!(of(source, "/", &[]), None);
        }
    }

    #[test]
    fn several_are_combined_unless_one_is_the_last() {
        let both = vec![header("x"), header("y")];
        let headers = &[("x", "1"), ("y", "2")];
        let (one, two) = (xxh3_64(b"1"), xxh3_64(b"2"));
        assert_eq!(hash_of(&rules(both.clone(), false), "/", headers).0, Some(one.rotate_left(1) ^ two));
        assert_eq!(hash_of(&rules(both.clone(), true), "/", headers).0, Some(one));
        assert_eq!(hash_of(&rules(both, true), "/", &[("y", "2")]).0, Some(two));
    }

    #[test]
    fn whoever_has_no_cookie_gets_one() {
        let (hash, cookies) = hash_of(&rules(vec![cookie_with(Some(60))], false), "/", &[]);
        assert_eq!(cookies, ["who=\"0000000000000abc\"; Max-Age=60; Path=/; HttpOnly"]);
        assert_eq!(hash, Some(xxh3_64(b"0000000000000abc")));
        let (_, cookies) = hash_of(&rules(vec![cookie_with(Some(0))], false), "/", &[]);
        assert_eq!(cookies, ["who=\"0000000000000abc\"; Path=/; HttpOnly"]);
    }
}
