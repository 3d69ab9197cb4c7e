//! Builders of objects, for tests, fuzzing and benches: `service("web").ip("10.0.0.1").port(80).build()`.

mod gateway_api;
mod istio;
mod kubernetes;
mod own;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use slotmesh_compile::Object;

pub use self::{gateway_api::*, istio::*, kubernetes::*, own::*};

macro_rules! meta_setters {
    ($($builder:ty),*) => {$(
        impl $builder {
            /// In this namespace instead of `default`.
            #[must_use]
            pub fn namespace(mut self, namespace: &str) -> Self {
                self.0.metadata.namespace = Some(namespace.to_owned());
                self
            }

            /// Created this many seconds after the epoch.
            #[must_use]
            pub fn created(mut self, seconds: i64) -> Self {
                self.0.metadata.creation_timestamp = Timestamp::from_second(seconds).ok().map(Time);
                self
            }

            /// The object.
            #[must_use]
            pub fn build(self) -> Object {
                self.0.into()
            }
        }
    )*};
}
meta_setters!(
    ServiceBuilder,
    SliceBuilder,
    PodBuilder,
    VirtualServiceBuilder,
    RuleBuilder,
    EntryBuilder,
    WorkloadBuilder,
    NodeBuilder,
    ProfileBuilder,
    PolicyBuilder,
    GrpcRouteBuilder,
    HttpRouteBuilder,
    TlsRouteBuilder,
    TcpRouteBuilder,
    GrantBuilder,
    SidecarBuilder
);
