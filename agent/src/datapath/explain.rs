//! Questions to the programs: where a connection would go.

use std::{net::SocketAddr, os::fd::AsFd as _};

use bytemuck::Zeroable as _;
use slotmesh_kernel::test_run;
use slotmesh_records::{Answer, Question, Verdict, VipKey, name_hash};
use slotmesh_xds::Transport;

use super::{Datapath, DatapathError, ETHERNET, error::bpf};

impl Datapath {
    /// Asks where a connection would go that chooses by these numbers.
    ///
    /// # Errors
    /// Where the kernel refuses the test run.
    pub fn ask(
        &self,
        to: impl Into<AskedAddress>,
        numbers: impl Into<Numbers>,
    ) -> Result<Decision, DatapathError> {
        self.ask_as("", "", to, numbers)
    }

    /// The same of a connection that a caller of this namespace and class makes.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_as(
        &self,
        namespace: &str,
        class: &str,
        to: impl Into<AskedAddress>,
        numbers: impl Into<Numbers>,
    ) -> Result<Decision, DatapathError> {
        self.ask_by_hashes([namespace, class].map(name_hash), to.into(), numbers.into())
    }

    /// The same, by the hashes of namespace and class.
    pub(super) fn ask_by_hashes(
        &self,
        [namespace, class]: [u64; 2],
        AskedAddress { address, protocol }: AskedAddress,
        Numbers { cluster, endpoint, other }: Numbers,
    ) -> Result<Decision, DatapathError> {
        let question = Question {
            vip: crate::flatten::asked_key(address, protocol),
            namespace,
            class,
            cluster_random: cluster,
            endpoint_random: endpoint,
            other_random: other,
            ..Question::zeroed()
        };
        let answer = self.run(&question)?;
        Ok(match Verdict::try_from(answer.verdict) {
            Ok(Verdict::Redirect) => Decision::Redirect {
                to: VipKey { addr: answer.addr, port: answer.port, protocol: 0, reserved: 0 }.socket_addr(),
                cluster: answer.cluster,
            },
            Ok(Verdict::Refuse) => Decision::Refuse,
            Ok(Verdict::Pass) | Err(_) => Decision::Pass,
        })
    }

    pub(super) fn run(&self, question: &Question) -> Result<Answer, DatapathError> {
        const ANSWER: usize = ETHERNET + size_of::<Question>();
        let mut packet = [0_u8; ANSWER + size_of::<Answer>()];
        packet[ETHERNET..ANSWER].copy_from_slice(bytemuck::bytes_of(question));
        test_run(self.question.as_fd(), &mut packet).map_err(bpf("ask the question program"))?;
        Ok(bytemuck::pod_read_unaligned(&packet[ANSWER..]))
    }
}

/// Address to which a connection, or a datagram, is meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedAddress {
    /// The address.
    pub address: SocketAddr,
    /// Its protocol.
    pub protocol: Transport,
}

impl From<SocketAddr> for AskedAddress {
    /// In TCP.
    fn from(address: SocketAddr) -> Self {
        Self { address, protocol: Transport::Tcp }
    }
}

/// The numbers that a connection chooses by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The random number for the cluster.
    pub cluster: u32,
    /// The random number for the endpoint; where the source decides,
    /// [`source_hash`](slotmesh_records::source_hash) of it.
    pub endpoint: u32,
    /// The random number for another endpoint, where the less busy of two is taken.
    pub other: u32,
}

impl From<(u32, u32)> for Numbers {
    /// For cluster and endpoint; where the less busy of two is taken, both are the same.
    fn from((cluster, endpoint): (u32, u32)) -> Self {
        Self { cluster, endpoint, other: endpoint }
    }
}

/// The outcome of a connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
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
