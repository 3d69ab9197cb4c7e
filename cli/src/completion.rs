//! `slotmesh completion`: a script by which a shell completes what is typed.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::{Cli, render::print};

/// How the script is used.
const EXAMPLES: &str = "Examples:
  slotmesh completion bash > /etc/bash_completion.d/slotmesh
  slotmesh completion zsh > \"${fpath[1]}/_slotmesh\"
  slotmesh completion fish > ~/.config/fish/completions/slotmesh.fish";

/// The flags of `slotmesh completion`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completion {
    /// The shell
    shell: Shell,
}

impl Completion {
    /// Prints the script.
    ///
    /// # Errors
    /// When it can't be printed.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { shell } = self;
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "slotmesh", &mut script);
        print(&String::from_utf8(script)?)
    }
}
