//! Requests from pages of other origins (CORS): preflights are answered here, and responses are marked.

use http::{HeaderName, HeaderValue, Method, header};
use slotmesh_xds::envoy::{
    envoy::extensions::filters::http::cors::v3::CorsPolicy, google::protobuf::BoolValue,
};

use crate::{
    draws::{Draws, Portion},
    field::{FieldPath, InvalidField, refuse_set},
    head::{HeaderLookup, RequestHead},
    text::TextMatcher,
};

const TRUE: HeaderValue = HeaderValue::from_static("true");
static ASKS_FOR_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
static ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// The policy of a rule: its own fields, and of those that it doesn't have the more general level's.
#[derive(Clone, Debug)]
pub(crate) struct CorsRule {
    enabled: Portion,
    origins: Box<[TextMatcher]>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: Option<bool>,
    private_network: Option<bool>,
    forward_not_matching: Option<bool>,
}

/// Headers that a response gets, in place of those that it has.
pub(crate) type CorsHeaders = Vec<(HeaderName, HeaderValue)>;

/// Outcome for one request.
pub(crate) enum CorsOutcome {
    /// The request has nothing to do with it.
    None,
    /// The response gets these headers.
    Mark(CorsHeaders),
    /// The request is a preflight, and answered by 200 with these headers.
    Preflight(CorsHeaders),
}

impl CorsRule {
    pub(crate) fn new(
        at: &FieldPath<'_>,
        policy: &CorsPolicy,
        general: Option<&Self>,
    ) -> Result<Self, InvalidField> {
        let CorsPolicy {
            allow_origin_string_match,
            allow_methods,
            allow_headers,
            expose_headers,
            max_age,
            allow_credentials,
            filter_enabled,
            shadow_enabled,
            allow_private_network_access,
            forward_not_matching_preflights,
        } = policy;
        refuse_set!(at, "there are no statistics of it": shadow_enabled;);
        let origins: Box<[_]> = (0..)
            .zip(allow_origin_string_match)
            .map(|(i, origin)| TextMatcher::new(&at.element("allow_origin_string_match", i), origin))
            .collect::<Result<_, _>>()?;
        let text = |name, text: &str, general: fn(&Self) -> &Option<HeaderValue>, of: Option<&Self>| {
            if text.is_empty() {
                return Ok(of.and_then(|of| general(of).clone()));
            }
            HeaderValue::from_str(text)
                .map(Some)
                .map_err(|_| at.field(name).wrong("a header can't have this value"))
        };
        let flag =
            |own: &Option<BoolValue>, general: Option<bool>| own.as_ref().map(|own| own.value).or(general);
        Ok(Self {
            enabled: Portion::runtime(&at.field("filter_enabled"), filter_enabled.as_ref())?
                .unwrap_or(Portion::ALL),
            origins: match general {
                Some(general) if origins.is_empty() => general.origins.clone(),
                _ => origins,
            },
            methods: text("allow_methods", allow_methods, |of| &of.methods, general)?,
            headers: text("allow_headers", allow_headers, |of| &of.headers, general)?,
            expose: text("expose_headers", expose_headers, |of| &of.expose, general)?,
            max_age: text("max_age", max_age, |of| &of.max_age, general)?,
            credentials: flag(allow_credentials, general.and_then(|of| of.credentials)),
            private_network: flag(allow_private_network_access, general.and_then(|of| of.private_network)),
            forward_not_matching: flag(
                forward_not_matching_preflights,
                general.and_then(|of| of.forward_not_matching),
            ),
        })
    }

    pub(crate) fn decide<H: HeaderLookup>(
        &self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> CorsOutcome {
        if !self.enabled.hit(draws) {
            return CorsOutcome::None;
        }
        let origin = head.headers.values(&header::ORIGIN).next().filter(|origin| !origin.is_empty());
        let Some(origin) = origin.and_then(|origin| HeaderValue::from_bytes(origin).ok()) else {
            return CorsOutcome::None;
        };
        let allowed =
            self.origins.iter().any(|allowed| allowed.matches(b"*") || allowed.matches(origin.as_bytes()));
        let asked = head.headers.values(&header::ACCESS_CONTROL_REQUEST_METHOD).next();
        let preflight = *head.method == Method::OPTIONS && asked.is_some_and(|method| !method.is_empty());
        let answered = allowed || (preflight && self.forward_not_matching == Some(false));
        if !answered {
            return CorsOutcome::None;
        }
        let mut headers = Vec::new();
        let mut add = |name: &HeaderName, value: Option<&HeaderValue>| {
            headers.extend(value.map(|value| (name.clone(), value.clone())));
        };
        add(&header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed.then_some(&origin));
        add(&header::ACCESS_CONTROL_ALLOW_CREDENTIALS, (self.credentials == Some(true)).then_some(&TRUE));
        add(&header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.as_ref().filter(|_| allowed));
        if !preflight {
            return CorsOutcome::Mark(headers);
        }
        add(&header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.as_ref());
        add(&header::ACCESS_CONTROL_ALLOW_HEADERS, self.headers.as_ref());
        add(&header::ACCESS_CONTROL_MAX_AGE, self.max_age.as_ref());
        let private = head.headers.values(&ASKS_FOR_PRIVATE_NETWORK).next() == Some(b"true");
        if private && self.private_network == Some(true) {
            add(&ALLOW_PRIVATE_NETWORK, Some(&TRUE));
        }
        CorsOutcome::Preflight(headers)
    }
}
