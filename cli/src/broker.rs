//! `slotmesh broker`: makes sockets in the network namespaces of pods, for the proxy of the node.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use slotmesh_broker::{Broker, PeerRole};
use tokio::sync::oneshot;

use crate::{
    flags::LogFlag,
    process::{GRACE, LIMIT, Parts, raise_descriptor_limit, stop_on_signals},
};

/// Read and write for owner and group: both are needed to connect.
const MODE: u32 = 0o660;

/// Text that `slotmesh broker --help` ends with.
const EXAMPLES: &str = "Examples:
  # As the chart runs it, with CAP_SYS_ADMIN and nothing else
  slotmesh broker --steward-socket /run/slotmesh/broker.sock --proxy-socket /run/slotmesh/sockets.sock \\
    --proxy-socket-group 65532";

/// The flags of `slotmesh broker`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BrokerCommand {
    /// Unix socket on which the agent says which namespaces there are: its owner and group may connect
    #[arg(long, env = "SLOTMESH_BROKER_STEWARD_SOCKET", value_name = "PATH")]
    steward_socket: PathBuf,

    /// Unix socket on which the proxy asks for sockets: its owner and group may connect
    #[arg(long, env = "SLOTMESH_BROKER_PROXY_SOCKET", value_name = "PATH")]
    proxy_socket: PathBuf,

    /// Group of the proxy's socket, by number [default: that of this process]
    #[arg(long, env = "SLOTMESH_BROKER_PROXY_SOCKET_GROUP", value_name = "GID")]
    proxy_socket_group: Option<u32>,

    /// Folder in which network namespaces have names
    #[arg(long, env = "SLOTMESH_NETWORK_NAMESPACES", default_value = "/run/netns", value_name = "DIR")]
    namespaces: PathBuf,

    #[command(flatten)]
    log: LogFlag,
}

impl BrokerCommand {
    /// Serves until SIGINT or SIGTERM.
    ///
    /// # Errors
    /// Names the socket that can't be used.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { steward_socket, proxy_socket, proxy_socket_group, namespaces, log } = self;
        log.init()?;
        raise_descriptor_limit();
        let mut broker = Broker::new(namespaces);
        listen(&mut broker, PeerRole::Steward, &steward_socket, None)
            .with_context(|| format!("--steward-socket {} can't be used", steward_socket.display()))?;
        listen(&mut broker, PeerRole::Proxy, &proxy_socket, proxy_socket_group)
            .with_context(|| format!("--proxy-socket {} can't be used", proxy_socket.display()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let stop = stop_on_signals(LIMIT)?;
            let ended = start(broker)?;
            let mut parts = Parts::new(stop.clone());
            parts.add("the broker", async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Ok(()),
                    ended = ended => Err(match ended {
                        Ok(Err(error)) => anyhow!(error),
                        _ => anyhow!("its thread has ended"),
                    }),
                }
            });
            tracing::info!("running");
            let outcome = parts.run().await;
            outcome.and(parts.end(GRACE).await)
        })
    }
}

/// Runs a broker on a thread of its own, which moves from namespace to namespace, and tells when it has ended.
///
/// # Errors
/// Where there can't be another thread.
pub fn start(broker: Broker) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (tell, ended) = oneshot::channel();
    thread::Builder::new().name("broker".to_owned()).spawn(move || drop(tell.send(broker.run())))?;
    Ok(ended)
}

/// Lets peers come to a socket at a path, in the place of what an earlier process has left there.
///
/// # Errors
/// Where the path can't be used, or can't be the group's.
pub fn listen(broker: &mut Broker, role: PeerRole, path: &Path, group: Option<u32>) -> io::Result<()> {
    // It gets its name when its rights are what they should be.
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    broker.listen(&new, role)?;
    chown(&new, None, group)?;
    fs::set_permissions(&new, Permissions::from_mode(MODE))?;
    fs::rename(&new, path)
}
