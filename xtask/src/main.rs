//! The steps behind `make` that need more than a line of shell.
//!
//! `setup` makes the machine able to build the eBPF programs and to run the tests, `ebpf` builds the
//! programs, `layers` and `deny` check who may depend on whom and on what. Each is idempotent and
//! costs a fraction of a second when there is nothing to do. `control-plane` builds what the end-to-end
//! tests on a real API server start, `gateway-conformance` the tests of Gateway API; `envoy` and `nginx` fetch
//! what the proxy is compared with and measured beside. `kernels` runs tests on
//! older kernels; `loom`, `asan` and `fuzz` prove what tests can only try; `test` runs all that; `images` builds
//! the container images.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod chain;
mod cmd;
mod control_plane;
mod deny;
mod ebpf;
mod envoy;
mod frames;
mod gateway_conformance;
mod images;
mod kernels;
mod layers;
mod nginx;
mod proofs;
mod setup;
mod test;
mod tool;
mod words;
mod workspace;

use workspace::Workspace;

/// Set-up and build steps of slotmesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build the eBPF programs and to run tests and demo.
    Setup,
    /// Build the eBPF programs to target/bpf/.
    Ebpf,
    /// Build the Kubernetes control plane for the end-to-end tests, once per machine.
    ControlPlane,
    /// Fetch the Envoy that the proxy is compared with, once per machine.
    Envoy,
    /// Fetch the nginx that the proxy is measured beside, once per machine.
    Nginx,
    /// Build Gateway API's conformance tests, once per machine.
    GatewayConformance,
    /// Check that workspace crates depend on each other in the designed direction only.
    Layers,
    /// Check names and doc comments: one meaning a word, one word a thing.
    Words(words::Words),
    /// Check licenses, bans and sources of all dependencies with cargo-deny.
    Deny,
    /// Build the container images to target/images, with buildah.
    Images(images::ImageFlags),
    /// Try the interleavings of the slot engine's threads with loom.
    Loom,
    /// Run the tests that need no kernel with the address sanitizer.
    Asan,
    /// Fuzz all that is decoded from outside.
    Fuzz(proofs::Fuzz),
    /// Run the tests that need the kernel on Debian's kernels, in QEMU.
    Kernels,
    /// Run all tests, and say how long each part took.
    Test,
}

fn main() -> ExitCode {
    if let Some(code) = proofs::as_rustc() {
        return code;
    }
    let Cli { task } = Cli::parse();
    let done = Workspace::locate().and_then(|workspace| match task {
        Task::Setup => setup::run(&workspace),
        Task::Ebpf => ebpf::run(&workspace),
        Task::ControlPlane => control_plane::run(&workspace),
        Task::Envoy => envoy::run(&workspace),
        Task::Nginx => nginx::run(&workspace),
        Task::GatewayConformance => gateway_conformance::run(&workspace),
        Task::Layers => layers::run(&workspace),
        Task::Words(words) => words::run(&workspace, &words),
        Task::Deny => deny::run(&workspace),
        Task::Images(images) => images::run(&workspace, &images),
        Task::Loom => proofs::loom(&workspace),
        Task::Asan => proofs::asan(&workspace),
        Task::Fuzz(options) => proofs::fuzz(&workspace, &options),
        Task::Kernels => kernels::run(&workspace),
        Task::Test => test::run(&workspace),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
