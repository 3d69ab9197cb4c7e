//! Settings of filters that a route, a virtual host and the whole configuration have: the most specific ones count.

use std::{collections::HashMap, sync::Arc};

use slotmesh_xds::envoy::{
    envoy::{
        config::route::v3::FilterConfig,
        extensions::filters::http::{cors::v3::CorsPolicy, fault::v3::HttpFault},
    },
    google::protobuf::Any,
};

use crate::{
    cors::CorsRule,
    fault::FaultRule,
    field::{FieldPath, InvalidField, unpack},
};

const CORS: &str = "envoy.filters.http.cors";
const FAULT: &str = "envoy.filters.http.fault";
const WRAPPER: &str = "envoy.config.route.v3.FilterConfig";

/// Filters that are in force. A filter that is off has no settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filters {
    pub(crate) fault: Option<Arc<FaultRule>>,
    pub(crate) cors: Option<Arc<CorsRule>>,
}

impl Filters {
    /// Those of one level, over those of the more general ones.
    pub(crate) fn new(
        at: &FieldPath<'_>,
        configs: &HashMap<String, Any>,
        general: &Self,
    ) -> Result<Self, InvalidField> {
        let mut filters = general.clone();
        let mut names: Vec<&String> = configs.keys().collect();
        names.sort();
        for name in names {
            let at = at.entry("typed_per_filter_config", name);
            let mut any = configs[name].clone();
            let mut optional = false;
            let mut disabled = false;
            if any.type_url.ends_with(WRAPPER) {
                let FilterConfig { config, is_optional, disabled: off } = unpack(&at, &any)?;
                optional = is_optional;
                disabled = off;
                any = match config {
                    Some(config) => config,
                    None if disabled => Any::default(),
                    None => return Err(at.field("config").wrong("there is none")),
                };
            }
            match name.as_str() {
                FAULT if disabled => filters.fault = None,
                CORS if disabled => filters.cors = None,
                FAULT => {
                    filters.fault = Some(Arc::new(FaultRule::new(&at, &unpack::<HttpFault>(&at, &any)?)?));
                }
                CORS => {
                    let general = general.cors.as_deref();
                    let rule = CorsRule::new(&at, &unpack::<CorsPolicy>(&at, &any)?, general)?;
                    filters.cors = Some(Arc::new(rule));
                }
                // Whoever made it says that it may be left out, or that it is off.
                _ if optional || disabled => {}
                _ => return Err(at.wrong(format!("only {CORS} and {FAULT} are supported"))),
            }
        }
        Ok(filters)
    }
}
