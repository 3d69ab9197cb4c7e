//! `slotmesh man`: manual pages, made of the same text as `--help`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::{Args, Command, CommandFactory as _};

use crate::{Cli, render::print};

/// How the pages are read.
const EXAMPLES: &str = "Examples:
  slotmesh man | man -l -
  slotmesh man lint | man -l -
  slotmesh man --dir /usr/local/share/man/man1";

/// The flags of `slotmesh man`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Manual {
    /// The command that the page is about [default: slotmesh itself]
    command: Option<String>,

    /// Write the pages of all commands into this directory instead
    #[arg(long, env = "SLOTMESH_MAN_DIR", value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

impl Manual {
    /// Prints the page, or writes all.
    ///
    /// # Errors
    /// When there is no such command, or the pages can't be written.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { command, dir } = self;
        let mut all = Cli::command();
        all.build();
        if let Some(dir) = dir {
            let written = clap_mangen::generate_to(all, &dir);
            return written.with_context(|| format!("--dir {}: can't be written to", dir.display()));
        }
        let page = match command {
            None => all,
            Some(name) => {
                let known = all.get_subcommands().find(|command| command.get_name() == name);
                let names = || all.get_subcommands().map(Command::get_name).collect::<Vec<_>>().join(", ");
                let page =
                    known.ok_or_else(|| anyhow!("there is no command {name:?}; there are {}", names()))?;
                page.clone().display_name(format!("slotmesh-{name}"))
            }
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text)?;
        print(&String::from_utf8(text)?)
    }
}
