//! Explanations by the explain program: where a connection would go, decided by the same look-up.

use std::{net::SocketAddr, os::fd::AsFd as _};

use bytemuck::Zeroable as _;
use slotmesh_kernel::test_run;
use slotmesh_records::{ExplainRequest, ExplainResponse, Identity, Verdict, VipKey, name_hash};
use slotmesh_xds::Transport;

use super::{Datapath, DatapathError, ETHERNET, error::bpf};

impl Datapath {
    /// Asks where a connection would go.
    ///
    /// # Errors
    /// Where the kernel refuses the test run.
    pub fn explain(&self, attempt: ConnectAttempt) -> Result<ConnectOutcome, DatapathError> {
        let ConnectAttempt { to, protocol, namespace, class, numbers } = attempt;
        let request = ExplainRequest {
            vip: crate::flatten::asked_key(to, protocol),
            namespace,
            class,
            cluster_random: numbers.cluster,
            endpoint_random: numbers.endpoint,
            other_random: numbers.other,
            ..ExplainRequest::zeroed()
        };
        let response = self.run_explain(&request)?;
        Ok(match Verdict::try_from(response.verdict) {
            Ok(Verdict::Redirect) => ConnectOutcome::Redirect {
                to: VipKey { addr: response.addr, port: response.port, protocol: 0, reserved: 0 }
                    .socket_addr(),
                cluster: response.cluster,
            },
            Ok(Verdict::Refuse) => ConnectOutcome::Refuse,
            Ok(Verdict::Pass) | Err(_) => ConnectOutcome::Pass,
        })
    }

    pub(super) fn run_explain(&self, request: &ExplainRequest) -> Result<ExplainResponse, DatapathError> {
        const RESPONSE: usize = ETHERNET + size_of::<ExplainRequest>();
        let mut packet = [0_u8; RESPONSE + size_of::<ExplainResponse>()];
        packet[ETHERNET..RESPONSE].copy_from_slice(bytemuck::bytes_of(request));
        test_run(self.explain.as_fd(), &mut packet).map_err(bpf("run the explain program"))?;
        Ok(bytemuck::pod_read_unaligned(&packet[RESPONSE..]))
    }
}

/// A connection, or a datagram, that isn't made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectAttempt {
    to: SocketAddr,
    protocol: Transport,
    /// [`name_hash`] of the caller's namespace.
    namespace: u64,
    /// [`name_hash`] of the caller's class.
    class: u64,
    numbers: ChoiceNumbers,
}

impl ConnectAttempt {
    /// A connection to an address by TCP, of a caller whom no rule knows. It takes the first of all that there is to
    /// choose from.
    pub const fn to(to: SocketAddr) -> Self {
        let numbers = ChoiceNumbers { cluster: 0, endpoint: 0, other: 0 };
        Self { to, protocol: Transport::Tcp, namespace: name_hash(""), class: name_hash(""), numbers }
    }

    /// The same in this protocol.
    #[must_use]
    pub const fn in_protocol(self, protocol: Transport) -> Self {
        Self { protocol, ..self }
    }

    /// The same of a caller of this namespace and class.
    #[must_use]
    pub const fn of_caller(self, namespace: &str, class: &str) -> Self {
        Self { namespace: name_hash(namespace), class: name_hash(class), ..self }
    }

    /// The same of a caller with this identity.
    #[must_use]
    pub(crate) const fn of_identity(self, caller: &Identity) -> Self {
        Self { namespace: caller.namespace, class: caller.class, ..self }
    }

    /// The same, where it chooses by these numbers.
    #[must_use]
    pub fn choosing(self, numbers: impl Into<ChoiceNumbers>) -> Self {
        Self { numbers: numbers.into(), ..self }
    }
}

/// The numbers that a connection chooses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoiceNumbers {
    /// The random number for the cluster.
    pub cluster: u32,
    /// The random number for the endpoint; where the source decides,
    /// [`source_hash`](slotmesh_records::source_hash) of it.
    pub endpoint: u32,
    /// The random number for another endpoint, where the less busy of two is taken.
    pub other: u32,
}

impl From<(u32, u32)> for ChoiceNumbers {
    /// For cluster and endpoint; where the less busy of two is taken, both are the same.
    fn from((cluster, endpoint): (u32, u32)) -> Self {
        Self { cluster, endpoint, other: endpoint }
    }
}

/// The outcome of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// Not an address of ours.
    Pass,
    /// A known service without endpoints.
    Refuse,
    /// It goes to an endpoint.
    Redirect {
        /// The endpoint.
        to: SocketAddr,
        /// [`name_hash`] of the cluster's name.
        cluster: u64,
    },
}
