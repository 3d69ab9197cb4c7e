//! The state of the display: what it has been told, and what keys have made of it.

use std::{cmp::Ordering, collections::HashMap, time::Instant};

use ratatui::crossterm::event::{KeyCode, KeyModifiers};

use super::snapshot::{BusyCluster, TopSnapshot};

/// The order of clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterOrder {
    /// Most connections first.
    #[default]
    Active,
    /// Most new connections first.
    Rate,
    /// Most refusals first.
    Refused,
    /// By name.
    Name,
}

impl ClusterOrder {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "connections",
            Self::Rate => "rate",
            Self::Refused => "refusals",
            Self::Name => "name",
        }
    }

    const fn next(self) -> Self {
        match self {
            Self::Active => Self::Rate,
            Self::Rate => Self::Refused,
            Self::Refused => Self::Name,
            Self::Name => Self::Active,
        }
    }
}

/// The display.
#[derive(Debug, Default)]
pub struct TopView {
    pub snapshot: Option<TopSnapshot>,
    /// Why there is no newer one.
    pub failure: Option<String>,
    pub order: ClusterOrder,
    pub filter: String,
    /// The filter is being typed.
    pub typing: bool,
    pub paused: bool,
    /// Place of the selected node.
    pub node: usize,
    /// New connections a second, by cluster.
    rates: HashMap<String, f64>,
    /// Connections at the last snapshot.
    before: HashMap<String, f64>,
    seen: Option<(String, Instant)>,
}

impl TopView {
    /// Takes over a snapshot, unless it is paused.
    pub fn take(&mut self, snapshot: TopSnapshot) {
        if self.paused {
            return;
        }
        let opened = snapshot.clusters.iter().map(|one| (one.name.clone(), one.opened)).collect();
        let before = std::mem::replace(&mut self.before, opened);
        let since = self.seen.replace((snapshot.node.clone(), snapshot.at));
        // Of another node nothing follows.
        let since = since.filter(|(node, _)| *node == snapshot.node);
        let seconds = since.map(|(_, at)| snapshot.at.duration_since(at).as_secs_f64());
        self.rates = match seconds.filter(|seconds| *seconds > 0.0) {
            Some(seconds) => {
                let rate = |one: &BusyCluster| {
                    let before = before.get(&one.name).copied().unwrap_or_default();
                    (one.name.clone(), ((one.opened - before) / seconds).max(0.0))
                };
                snapshot.clusters.iter().map(rate).collect()
            }
            None => HashMap::new(),
        };
        if self.snapshot.is_none() {
            let place = snapshot.nodes.iter().position(|node| node.name == snapshot.node);
            self.node = place.unwrap_or_default();
        }
        self.node = self.node.min(snapshot.nodes.len().saturating_sub(1));
        self.snapshot = Some(snapshot);
        self.failure = None;
    }

    /// Somebody didn't answer: what is shown stays.
    pub fn fail(&mut self, why: String) {
        self.failure = Some(why);
    }

    /// The selected node, where there are several.
    pub fn selected(&self) -> Option<&str> {
        let nodes = &self.snapshot.as_ref()?.nodes;
        (nodes.len() > 1).then(|| nodes.get(self.node).map(|node| node.name.as_str())).flatten()
    }

    /// New connections a second; `None` where it isn't known yet.
    pub fn rate(&self, cluster: &str) -> Option<f64> {
        self.rates.get(cluster).copied()
    }

    /// The clusters that are shown, in their order.
    pub fn clusters(&self) -> Vec<&BusyCluster> {
        let all = self.snapshot.iter().flat_map(|snapshot| &snapshot.clusters);
        let mut kept: Vec<&BusyCluster> = all.filter(|one| one.name.contains(&self.filter)).collect();
        let most = |a: f64, b: f64| b.total_cmp(&a);
        let order = |a: &&BusyCluster, b: &&BusyCluster| -> Ordering {
            let rate = |one: &BusyCluster| self.rate(&one.name).unwrap_or_default();
            let first = match self.order {
                ClusterOrder::Active => most(a.active, b.active),
                ClusterOrder::Rate => most(rate(a), rate(b)),
                ClusterOrder::Refused => most(a.refused, b.refused),
                ClusterOrder::Name => Ordering::Equal,
            };
            first.then_with(|| a.name.cmp(&b.name))
        };
        kept.sort_by(order);
        kept
    }

    /// A key is pressed: true where that ends the display.
    pub fn press(&mut self, key: KeyCode, modifiers: KeyModifiers) -> bool {
        if key == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL) {
            return true;
        }
        if self.typing {
            match key {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => _ = self.filter.pop(),
                KeyCode::Char(letter) => self.filter.push(letter),
                _ => {}
            }
            return false;
        }
        let nodes = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.nodes.len());
        match key {
            KeyCode::Char('q') => return true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('p') => self.paused = !self.paused,
            KeyCode::Up | KeyCode::Char('k') => self.node = self.node.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.node = (self.node + 1).min(nodes.saturating_sub(1)),
            _ => {}
        }
        false
    }
}
