//! `slotmesh top`: nodes, their slot tables, how long changes take, the busiest clusters and what fails, live.
//!
//! ```text
//!  asker (a thread): MeshNodes, the agent of the selected node --TopSnapshot a second--> TopView --draw--> terminal
//!  keys ------------------------------------------------------------------------------/
//! ```

mod draw;
mod snapshot;
mod view;

use std::{
    io::{self, IsTerminal as _},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use self::{
    snapshot::{TopAsker, TopSnapshot},
    view::TopView,
};
use crate::ask::AskedAgent;

/// The pause between two looks at the keys.
const KEYS: Duration = Duration::from_millis(100);

/// The end of `slotmesh top --help`.
const EXAMPLES: &str = "Keys:
  up, down   select a node
  s          sort clusters by connections, rate, refusals, name
  /          show clusters with these letters only; Enter ends it, Esc takes it back
  p          pause
  q          quit";

/// The flags of `slotmesh top`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Top {
    #[command(flatten)]
    asked: AskedAgent,

    /// Seconds between two answers
    #[arg(long, env = "SLOTMESH_TOP_INTERVAL", default_value_t = 1, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=3_600))]
    interval: u64,
}

impl Top {
    /// Draws until somebody quits.
    ///
    /// # Errors
    /// Where there is no terminal, or no agent answers at first.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { asked, interval } = self;
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            bail!("top draws on a terminal; for programs there are `slotmesh slots -o json` and /metrics");
        }
        let mut asker = TopAsker::new(asked)?;
        let first = asker.ask(None)?;
        let selected = Arc::new(Mutex::new(None));
        let (sender, snapshots) = mpsc::channel();
        let of = selected.clone();
        thread::Builder::new().name("top".to_owned()).spawn(move || {
            follow(&mut asker, Duration::from_secs(interval), &of, &sender);
        })?;
        let mut view = TopView::default();
        view.take(first);
        let mut terminal = ratatui::init();
        let outcome = show(&mut terminal, &mut view, &snapshots, &selected);
        ratatui::restore();
        outcome
    }
}

/// Asks until nobody listens.
fn follow(
    asker: &mut TopAsker,
    pause: Duration,
    selected: &Mutex<Option<String>>,
    snapshots: &Sender<anyhow::Result<TopSnapshot>>,
) {
    loop {
        thread::sleep(pause);
        let node = selected.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if snapshots.send(asker.ask(node.as_deref())).is_err() {
            return;
        }
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    view: &mut TopView,
    snapshots: &Receiver<anyhow::Result<TopSnapshot>>,
    selected: &Mutex<Option<String>>,
) -> anyhow::Result<()> {
    loop {
        for snapshot in snapshots.try_iter() {
            match snapshot {
                Ok(snapshot) => view.take(snapshot),
                Err(error) => view.fail(format!("{error:#}")),
            }
        }
        terminal.draw(|frame| draw::draw(frame, view))?;
        if event::poll(KEYS)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && view.press(key.code, key.modifiers)
        {
            return Ok(());
        }
        *selected.lock().unwrap_or_else(PoisonError::into_inner) = view.selected().map(str::to_owned);
    }
}
