//! Rewrites of path and host, and where redirects lead.

use std::borrow::Cow;

use http::{HeaderName, StatusCode};
use slotmesh_xds::envoy::envoy::{
    config::route::v3::{
        RedirectAction,
        redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
        route_action::HostRewriteSpecifier,
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

use crate::{
    domains::without_port,
    edits::{HeaderEdits, plain},
    field::{FieldPath, InvalidField},
    head::{HeaderLookup, RequestHead},
    paths::PathCondition,
    text::Pattern,
};

/// All matches of an expression, and what is put in their place.
#[derive(Clone, Debug)]
pub(crate) struct Substitution {
    pattern: Pattern,
    pieces: Box<[Piece]>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(Box<[u8]>),
    Group(usize),
}

impl Substitution {
    pub(crate) fn new(at: &FieldPath<'_>, regex: &RegexMatchAndSubstitute) -> Result<Self, InvalidField> {
        let RegexMatchAndSubstitute { pattern, substitution } = regex;
        let at_pattern = at.field("pattern");
        let Some(pattern) = pattern else { return Err(at_pattern.wrong("there is none")) };
        let pattern = Pattern::new(&at_pattern, pattern)?;
        let at = at.field("substitution");
        let mut pieces = Vec::new();
        let mut text = Vec::new();
        let mut bytes = substitution.bytes();
        while let Some(byte) = bytes.next() {
            match byte {
                b'\\' => match bytes.next() {
                    Some(b'\\') => text.push(b'\\'),
                    Some(digit @ b'0'..=b'9') => {
                        let group = usize::from(digit - b'0');
                        if group >= pattern.finder().captures_len() {
                            return Err(at.wrong(format!("the expression has no group {group}")));
                        }
                        if !text.is_empty() {
                            pieces.push(Piece::Text(std::mem::take(&mut text).into()));
                        }
                        pieces.push(Piece::Group(group));
                    }
                    _ => return Err(at.wrong(r"after \ stands a digit, or \")),
                },
                0..32 | 127 => return Err(at.wrong("it has a control character")),
                byte => text.push(byte),
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        Ok(Self { pattern, pieces: pieces.into() })
    }

    /// The text with all matches replaced. Nothing where that is no text.
    pub(crate) fn apply(&self, text: &str) -> Option<String> {
        let mut result = Vec::with_capacity(text.len());
        let mut done = 0;
        for found in self.pattern.finder().captures_iter(text.as_bytes()) {
            let whole = found.get_match();
            result.extend_from_slice(&text.as_bytes()[done..whole.start()]);
            for piece in &self.pieces {
                match piece {
                    Piece::Text(text) => result.extend_from_slice(text),
                    Piece::Group(group) => {
                        result.extend_from_slice(found.get(*group).map_or(&[], |group| group.as_bytes()));
                    }
                }
            }
            done = whole.end();
        }
        result.extend_from_slice(&text.as_bytes()[done..]);
        String::from_utf8(result).ok()
    }
}

/// A rewrite of the path; the query stays.
#[derive(Clone, Debug)]
pub(crate) enum PathRewrite {
    /// The part that the rule's path matched.
    Prefix(Box<str>),
    /// The whole path.
    Whole(Box<str>),
    Regex(Box<Substitution>),
}

impl PathRewrite {
    /// The path with the query after it.
    pub(crate) fn apply<H: HeaderLookup>(
        &self,
        condition: &PathCondition,
        head: &RequestHead<'_, H>,
    ) -> Option<String> {
        let path = head.bare_path();
        let query = head.query_from_mark();
        Some(match self {
            Self::Prefix(prefix) => [prefix, &path[condition.matched(path)?..], query].concat(),
            Self::Whole(whole) => [whole, query].concat(),
            Self::Regex(substitution) => substitution.apply(path)? + query,
        })
    }
}

/// A text that becomes part of a head: it has nothing in it that could end a line or a word.
pub(crate) fn visible<'t>(at: &FieldPath<'_>, text: &'t str) -> Result<&'t str, InvalidField> {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(at.wrong("only visible ASCII characters, without spaces"))
    }
}

/// A rewrite of the host.
#[derive(Clone, Debug)]
pub(crate) enum HostRewriteRule {
    To(Box<str>),
    /// To the name of the endpoint that is chosen.
    Endpoint,
    /// To the value of a header of the request.
    Header(HeaderName),
    /// To what an expression makes of the path.
    Path(Box<Substitution>),
}

impl HostRewriteRule {
    pub(crate) fn new(
        at: &FieldPath<'_>,
        specifier: Option<&HostRewriteSpecifier>,
    ) -> Result<Option<Self>, InvalidField> {
        Ok(Some(match specifier {
            None => return Ok(None),
            Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
                if host.is_empty() {
                    return Ok(None);
                }
                Self::To(visible(&at.field("host_rewrite_literal"), host)?.into())
            }
            Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => {
                if !auto.value {
                    return Ok(None);
                }
                Self::Endpoint
            }
            Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
                Self::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                    at.field("host_rewrite_header").wrong(format!("{name:?} is not the name of a header"))
                })?)
            }
            Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
                Self::Path(Box::new(Substitution::new(&at.field("host_rewrite_path_regex"), regex)?))
            }
            Some(HostRewriteSpecifier::HostRewrite(host)) => {
                let at = at.field("host_rewrite");
                let host = plain(&at, host)?;
                if host.is_empty() {
                    return Ok(None);
                }
                Self::To(visible(&at, &host)?.into())
            }
        }))
    }

    /// The host; nothing where it stays. `edits`: the changes of the request's headers, which come first.
    pub(crate) fn apply<'t, H: HeaderLookup>(
        &'t self,
        head: &RequestHead<'_, H>,
        edits: &HeaderEdits<'_>,
    ) -> Option<HostRewrite<'t>> {
        Some(match self {
            Self::To(host) => HostRewrite::To(Cow::Borrowed(host)),
            Self::Endpoint => HostRewrite::Endpoint,
            Self::Header(name) => {
                let value = edits.after(head.headers, name).filter(|value| !value.is_empty())?;
                HostRewrite::To(Cow::Owned(value.to_str().ok()?.to_owned()))
            }
            Self::Path(substitution) => HostRewrite::To(Cow::Owned(substitution.apply(head.bare_path())?)),
        })
    }
}

/// Host that a request is forwarded with, instead of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostRewrite<'t> {
    /// This one.
    To(Cow<'t, str>),
    /// The name of the endpoint that is chosen, if it has one.
    Endpoint,
}

/// Where a redirect leads.
#[derive(Clone, Debug)]
pub(crate) struct RedirectRule {
    scheme: Option<Box<str>>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: RedirectPath,
    strip_query: bool,
    pub(crate) status: StatusCode,
}

#[derive(Clone, Debug)]
enum RedirectPath {
    Keep,
    /// With a query of its own, if it has one.
    To(Box<str>),
    Rewrite(PathRewrite),
}

impl RedirectRule {
    pub(crate) fn new(at: &FieldPath<'_>, action: &RedirectAction) -> Result<Self, InvalidField> {
        let RedirectAction {
            host_redirect,
            port_redirect,
            response_code,
            strip_query,
            scheme_rewrite_specifier,
            path_rewrite_specifier,
        } = action;
        let text = |name, text: &str| match visible(&at.field(name), text)? {
            "" => Ok(None),
            text => Ok(Some(text.into())),
        };
        let scheme = match scheme_rewrite_specifier {
            None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => text("scheme_redirect", scheme)?,
        };
        let path = match path_rewrite_specifier {
            None => RedirectPath::Keep,
            Some(PathRewriteSpecifier::PathRedirect(path)) => {
                text("path_redirect", path)?.map_or(RedirectPath::Keep, RedirectPath::To)
            }
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => text("prefix_rewrite", prefix)?
                .map_or(RedirectPath::Keep, |prefix| RedirectPath::Rewrite(PathRewrite::Prefix(prefix))),
            Some(PathRewriteSpecifier::RegexRewrite(regex)) => RedirectPath::Rewrite(PathRewrite::Regex(
                Box::new(Substitution::new(&at.field("regex_rewrite"), regex)?),
            )),
            Some(PathRewriteSpecifier::PathRewrite(path)) => {
                text("path_rewrite", &plain(&at.field("path_rewrite"), path)?)?
                    .map_or(RedirectPath::Keep, |path| RedirectPath::Rewrite(PathRewrite::Whole(path)))
            }
        };
        let port = match u16::try_from(*port_redirect) {
            Ok(0) => None,
            Ok(port) => Some(port),
            Err(_) => return Err(at.field("port_redirect").wrong("not a port from 1 to 65535")),
        };
        let status = match RedirectResponseCode::try_from(*response_code) {
            Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
            Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
            Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
            Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            Err(_) => return Err(at.field("response_code").wrong("there is no such code")),
        };
        Ok(Self {
            scheme,
            host: text("host_redirect", host_redirect)?,
            port,
            path,
            strip_query: *strip_query,
            status,
        })
    }

    /// Value of the `Location` header.
    pub(crate) fn location<H: HeaderLookup>(
        &self,
        condition: &PathCondition,
        head: &RequestHead<'_, H>,
    ) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(head.scheme);
        let host = self.host.as_deref().unwrap_or_else(|| {
            let host = without_port(head.authority);
            let port = &head.authority[host.len()..];
            // A port that was the scheme's own isn't the other one's.
            let stale =
                scheme != head.scheme && matches!((head.scheme, port), ("https", ":443") | ("http", ":80"));
            if self.port.is_some() || stale { host } else { head.authority }
        });
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        let mut own_query = false;
        let mut path = match &self.path {
            RedirectPath::Keep => Cow::Borrowed(head.path),
            RedirectPath::To(path) if path.contains('?') => {
                own_query = true;
                Cow::Borrowed(&**path)
            }
            RedirectPath::To(path) => Cow::Owned([path, head.query_from_mark()].concat()),
            RedirectPath::Rewrite(rewrite) => {
                rewrite.apply(condition, head).map_or(Cow::Borrowed(head.path), Cow::Owned)
            }
        };
        if self.strip_query && !own_query {
            let end = path.find('?').unwrap_or(path.len());
            path = match path {
                Cow::Borrowed(path) => Cow::Borrowed(&path[..end]),
                Cow::Owned(mut path) => {
                    path.truncate(end);
                    Cow::Owned(path)
                }
            };
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        format!("{scheme}://{host}{port}{slash}{path}")
    }
}

/// The rewrite of the path that a route action has, of three that it may have.
pub(crate) fn path_rewrite(
    at: &FieldPath<'_>,
    prefix: &str,
    regex: Option<&RegexMatchAndSubstitute>,
    whole: &str,
) -> Result<Option<PathRewrite>, InvalidField> {
    if [!prefix.is_empty(), regex.is_some(), !whole.is_empty()].iter().filter(|set| **set).count() > 1 {
        return Err(at.wrong("more than one of prefix_rewrite, regex_rewrite and path_rewrite"));
    }
    if let Some(regex) = regex {
        let substitution = Substitution::new(&at.field("regex_rewrite"), regex)?;
        return Ok(Some(PathRewrite::Regex(Box::new(substitution))));
    }
    if !prefix.is_empty() {
        return Ok(Some(PathRewrite::Prefix(visible(&at.field("prefix_rewrite"), prefix)?.into())));
    }
    let at = at.field("path_rewrite");
    Ok(match plain(&at, whole)? {
        whole if whole.is_empty() => None,
        whole => Some(PathRewrite::Whole(visible(&at, &whole)?.into())),
    })
}
