//! Mirrors: copies of requests, whose responses nobody sees.

use std::borrow::Cow;

use slotmesh_xds::envoy::envoy::config::route::v3::route_action::RequestMirrorPolicy;

use crate::{
    domains::without_port,
    draws::Portion,
    field::{FieldPath, InvalidField, refuse_set},
    rewrite::visible,
};

/// Cluster that gets a copy of a share of the requests: as they are sent on, with their headers and path changed.
#[derive(Clone, Debug)]
pub struct MirrorTarget {
    /// Name of the cluster.
    pub cluster: Box<str>,
    pub(crate) share: Portion,
    host: Option<Box<str>>,
    suffix: bool,
}

impl MirrorTarget {
    /// All of a list.
    pub(crate) fn list(
        at: &FieldPath<'_>,
        policies: &[RequestMirrorPolicy],
    ) -> Result<Box<[Self]>, InvalidField> {
        (0..)
            .zip(policies)
            .map(|(i, policy)| Self::new(&at.element("request_mirror_policies", i), policy))
            .collect()
    }

    fn new(at: &FieldPath<'_>, policy: &RequestMirrorPolicy) -> Result<Self, InvalidField> {
        let RequestMirrorPolicy {
            cluster,
            cluster_header,
            runtime_fraction,
            trace_sampled,
            disable_shadow_host_suffix_append,
            request_headers_mutations,
            host_rewrite_literal,
        } = policy;
        refuse_set!(at,
            "no caller chooses a cluster": cluster_header;
            "nothing is traced": trace_sampled;
            "a copy has the request's headers": request_headers_mutations;
        );
        if cluster.is_empty() {
            return Err(at.field("cluster").wrong("it has no name"));
        }
        let host = visible(&at.field("host_rewrite_literal"), host_rewrite_literal)?;
        Ok(Self {
            cluster: cluster.as_str().into(),
            share: Portion::runtime(&at.field("runtime_fraction"), runtime_fraction.as_ref())?
                .unwrap_or(Portion::ALL),
            host: Some(host).filter(|host| !host.is_empty()).map(Into::into),
            suffix: !disable_shadow_host_suffix_append,
        })
    }

    /// Host of a copy, where the request is sent on with `authority`.
    pub fn host<'h>(&'h self, authority: &'h str) -> Cow<'h, str> {
        match &self.host {
            Some(host) => Cow::Borrowed(host),
            None if !self.suffix => Cow::Borrowed(authority),
            None => {
                let host = without_port(authority);
                Cow::Owned([host, "-shadow", &authority[host.len()..]].concat())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_says_by_its_host_that_it_is_one() {
        let mut policy = RequestMirrorPolicy { cluster: "m".into(), ..Default::default() };
        let host = |policy: &RequestMirrorPolicy, authority: &str| {
            MirrorTarget::new(&FieldPath::ROOT, policy).unwrap().host(authority).into_owned()
        };
        assert_eq!(host(&policy, "web"), "web-shadow");
        assert_eq!(host(&policy, "web:80"), "web-shadow:80");
        assert_eq!(host(&policy, "[fd00::1]:80"), "[fd00::1]-shadow:80");
        policy.disable_shadow_host_suffix_append = true;
        assert_eq!(host(&policy, "web:80"), "web:80");
        policy.host_rewrite_literal = "copy".into();
        assert_eq!(host(&policy, "web:80"), "copy");
    }
}
