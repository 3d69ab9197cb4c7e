//! The head of a request, as rules see it.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Headers of a request, however they are kept: parsed into a map, or still where they were received.
pub trait HeaderLookup {
    /// Values of the header of that name, in the order in which they were received.
    fn values<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]>;

    /// All values, with a comma between two. Nothing where there is no such header.
    fn joined<'h>(&'h self, name: &'h HeaderName) -> Option<Cow<'h, [u8]>> {
        let mut values = self.values(name);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
        let mut all = first.to_vec();
        for value in [second].into_iter().chain(values) {
            all.push(b',');
            all.extend_from_slice(value);
        }
        Some(Cow::Owned(all))
    }
}

/// Headers of a message that can be changed, however they are kept.
pub trait HeaderChanges: HeaderLookup {
    /// True where there is a header of that name.
    fn has(&self, name: &HeaderName) -> bool {
        self.values(name).next().is_some()
    }

    /// Removes all headers of that name.
    fn take_away(&mut self, name: &HeaderName);

    /// Adds a header to those of its name.
    fn add(&mut self, name: HeaderName, value: HeaderValue);

    /// Sets a header in the place of all of its name.
    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.take_away(&name);
        self.add(name, value);
    }
}

impl HeaderLookup for HeaderMap {
    fn values<'h>(&'h self, name: &'h HeaderName) -> impl Iterator<Item = &'h [u8]> {
        self.get_all(name).iter().map(|value| value.as_bytes())
    }
}

impl HeaderChanges for HeaderMap {
    fn has(&self, name: &HeaderName) -> bool {
        self.contains_key(name)
    }

    fn take_away(&mut self, name: &HeaderName) {
        self.remove(name);
    }

    fn add(&mut self, name: HeaderName, value: HeaderValue) {
        self.append(name, value);
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.insert(name, value);
    }
}

/// The head of a request: all that a decision depends on, beside chance.
#[derive(Debug)]
pub struct RequestHead<'r, H> {
    /// The method.
    pub method: &'r Method,
    /// `http` or `https`.
    pub scheme: &'r str,
    /// Host and port that the request is for: the `Host` header, or `:authority`.
    pub authority: &'r str,
    /// Path and query as they are matched, so already normalised; it begins with `/`, unless the method is `OPTIONS`
    /// (`*`) or `CONNECT`.
    pub path: &'r str,
    /// The headers, without the host's.
    pub headers: &'r H,
    /// Address of whoever asks, where it is known.
    pub source: Option<IpAddr>,
}

impl<H> Clone for RequestHead<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for RequestHead<'_, H> {}

impl<'r, H: HeaderLookup> RequestHead<'r, H> {
    /// The path without query and fragment.
    pub(crate) fn bare_path(&self) -> &'r str {
        bare(self.path)
    }

    /// The query, from its `?` on; empty where there is none.
    pub(crate) fn query_from_mark(&self) -> &'r str {
        &self.path[self.bare_path().len()..]
    }

    /// Value of the first query parameter of that name, as it was sent.
    pub(crate) fn query_parameter(&self, name: &str) -> Option<&'r str> {
        let (_, query) = self.path.split_once('?')?;
        query.split('&').find_map(|parameter| {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            (key == name).then_some(value)
        })
    }

    /// True for a request of gRPC; requests of gRPC-Web aren't.
    pub fn is_grpc(&self) -> bool {
        const GRPC: &[u8] = b"application/grpc";
        let content_type = self.headers.joined(&http::header::CONTENT_TYPE);
        content_type.is_some_and(|value| {
            value.strip_prefix(GRPC).is_some_and(|rest| matches!(rest.first(), None | Some(b'+')))
        })
    }
}

/// A path without query and fragment.
pub(crate) fn bare(path: &str) -> &str {
    path.find(['?', '#']).map_or(path, |end| &path[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head<'r>(path: &'r str, headers: &'r HeaderMap) -> RequestHead<'r, HeaderMap> {
        RequestHead { method: &Method::GET, scheme: "http", authority: "web", path, headers, source: None }
    }

    #[test]
    fn the_first_parameter_of_a_name_counts_as_it_was_sent() {
        let headers = HeaderMap::new();
        let head = head("/a?x=1&y&x=2&z=a%20b=c", &headers);
        assert_eq!(head.query_parameter("x"), Some("1"));
        assert_eq!(head.query_parameter("y"), Some(""));
        assert_eq!(head.query_parameter("z"), Some("a%20b=c"));
        assert_eq!(head.query_parameter("a"), None);
        assert_eq!((head.bare_path(), head.query_from_mark()), ("/a", "?x=1&y&x=2&z=a%20b=c"));
    }

    #[test]
    fn values_are_joined() {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("x-a");
        assert_eq!(headers.joined(&name), None);
        headers.append("x-a", HeaderValue::from_static("1"));
        assert_eq!(headers.joined(&name).as_deref(), Some(&b"1"[..]));
        headers.append("x-a", HeaderValue::from_static("2"));
        assert_eq!(headers.joined(&name).as_deref(), Some(&b"1,2"[..]));
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, grpc) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text/html", false),
        ] {
            let headers =
                HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(head("/", &headers).is_grpc(), grpc, "{value}");
        }
    }
}
