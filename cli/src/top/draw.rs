//! The picture.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Table},
};

use super::{
    snapshot::{NodeBar, TopSnapshot},
    view::TopView,
};

/// Characters of a bar.
const BAR: usize = 30;
/// The most lines of nodes: the others are beyond.
const NODES: u16 = 10;
/// Of 100 slabs, how many have to be left.
const SCARCE: f64 = 0.95;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, view: &TopView) {
    let Some(snapshot) = &view.snapshot else { return };
    let shown = u16::try_from(snapshot.nodes.len()).unwrap_or(NODES).clamp(1, NODES) + 2;
    let below =
        u16::try_from(snapshot.flushes.len().max(snapshot.failures.len())).unwrap_or(0).clamp(1, 8) + 3;
    let [head, nodes, clusters, rest, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(shown),
        Constraint::Min(3),
        Constraint::Length(below),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(header(view, snapshot)), head);
    self::nodes(frame, view, snapshot, nodes);
    self::clusters(frame, view, snapshot, clusters);
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(rest);
    flushes(frame, snapshot, left);
    failures(frame, snapshot, right);
    frame.render_widget(Paragraph::new(footer(view)), foot);
}

fn header(view: &TopView, snapshot: &TopSnapshot) -> Line<'static> {
    let ready = snapshot.nodes.iter().filter(|node| node.ready).count();
    let text = format!("slotmesh top: {ready} of {} nodes ready", snapshot.nodes.len());
    let mut spans = vec![Span::styled(text, Style::new().add_modifier(Modifier::BOLD))];
    if view.paused {
        spans.push(Span::styled("  paused", Style::new().fg(Color::Yellow)));
    }
    if let Some(failure) = &view.failure {
        spans.push(Span::styled(format!("  {failure}"), Style::new().fg(Color::Red)));
    }
    Line::from(spans)
}

fn footer(view: &TopView) -> Line<'static> {
    if view.typing {
        return Line::from(format!("/{}_", view.filter));
    }
    let filter = if view.filter.is_empty() { String::new() } else { format!(" (/{})", view.filter) };
    Line::styled(
        format!("up/down node  s sort: {}  / filter{filter}  p pause  q quit", view.order.as_str()),
        Style::new().add_modifier(Modifier::DIM),
    )
}

/// A bar of the slabs that hold something.
fn bar(node: &NodeBar) -> (String, f64) {
    let full =
        if node.slabs_cap == 0 { 0.0 } else { 1.0 - f64::from(node.slabs_left) / f64::from(node.slabs_cap) };
    let filled = ((full * BAR as f64).round() as usize).min(BAR);
    (format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled)), full)
}

fn nodes(frame: &mut Frame<'_>, view: &TopView, snapshot: &TopSnapshot, area: Rect) {
    let width = snapshot.nodes.iter().map(|node| node.name.chars().count()).max().unwrap_or_default();
    // The selected one is always to be seen.
    let lines = usize::from(area.height.saturating_sub(2)).max(1);
    let first = (view.node + 1).saturating_sub(lines);
    let line = |(place, node): (usize, &NodeBar)| {
        let (bar, full) = bar(node);
        let colour = match (node.ready, full) {
            (false, _) => Color::Red,
            (true, full) if full > SCARCE => Color::Yellow,
            _ => Color::Green,
        };
        let mark = if place == view.node && snapshot.nodes.len() > 1 { ">" } else { " " };
        Line::from(vec![
            Span::raw(format!("{mark} {:width$} ", node.name)),
            Span::styled(bar, Style::new().fg(colour)),
            Span::raw(format!(
                " {:>5.1}% of slabs, {} slots used, {} idle ",
                full * 100.0,
                node.used,
                node.idle
            )),
            Span::styled(node.trouble.clone(), Style::new().fg(Color::Red)),
        ])
    };
    let shown: Vec<Line<'_>> = snapshot.nodes.iter().enumerate().skip(first).take(lines).map(line).collect();
    frame.render_widget(Paragraph::new(shown).block(Block::bordered().title("Slot tables")), area);
}

fn clusters(frame: &mut Frame<'_>, view: &TopView, snapshot: &TopSnapshot, area: Rect) {
    let rows = view.clusters().into_iter().map(|one| {
        let rate = view.rate(&one.name).map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        let style = if one.refused > 0.0 { Style::new().fg(Color::Yellow) } else { Style::new() };
        Row::new([one.name.clone(), one.active.to_string(), rate, one.refused.to_string()]).style(style)
    });
    let widths = [Constraint::Min(20), Constraint::Length(11), Constraint::Length(9), Constraint::Length(9)];
    let header = Row::new(["CLUSTER", "CONNECTIONS", "NEW/S", "REFUSED"]);
    let title = format!("Busiest on {}", snapshot.node);
    let table = Table::new(rows, widths).header(header.style(Style::new().add_modifier(Modifier::BOLD)));
    frame.render_widget(table.block(Block::bordered().title(title)), area);
}

/// Seconds in the unit that fits.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds.is_infinite() => "slower".to_owned(),
        seconds if seconds < 0.001 => format!("{:.1} us", seconds * 1e6),
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

fn flushes(frame: &mut Frame<'_>, snapshot: &TopSnapshot, area: Rect) {
    let rows = snapshot.flushes.iter().map(|flush| {
        Row::new([flush.ty.clone(), flush.count.to_string(), duration(flush.p50), duration(flush.p99)])
    });
    let widths = [Constraint::Min(9), Constraint::Length(8), Constraint::Length(9), Constraint::Length(9)];
    let header = Row::new(["TYPE", "FLUSHES", "HALF", "99%"]);
    let table = Table::new(rows, widths).header(header.style(Style::new().add_modifier(Modifier::BOLD)));
    frame.render_widget(table.block(Block::bordered().title("Flush latency, at most")), area);
}

fn failures(frame: &mut Frame<'_>, snapshot: &TopSnapshot, area: Rect) {
    let lines: Vec<Line<'_>> = if snapshot.failures.is_empty() {
        vec![Line::styled("none since the agent's start", Style::new().fg(Color::Green))]
    } else {
        let one = |(what, count): &(&str, f64)| {
            Line::styled(format!("{count} {what}"), Style::new().fg(Color::Yellow))
        };
        snapshot.failures.iter().map(one).collect()
    };
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title("Failures")), area);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::{
        Terminal,
        backend::TestBackend,
        crossterm::event::{KeyCode, KeyModifiers},
    };

    use super::*;
    use crate::top::snapshot::{BusyCluster, FlushLatency};

    fn snapshot(at: Instant, opened: f64) -> TopSnapshot {
        let node = |name: &str, left: u32, trouble: &str| NodeBar {
            name: name.to_owned(),
            ready: trouble.is_empty(),
            used: 9,
            idle: 1,
            slabs_left: left,
            slabs_cap: 100,
            trouble: trouble.to_owned(),
        };
        let cluster = |name: &str, active: f64, opened: f64, refused: f64| BusyCluster {
            name: name.to_owned(),
            active,
            opened,
            refused,
        };
        TopSnapshot {
            at,
            nodes: vec![node("worker-1", 50, ""), node("worker-2", 3, "ConnectionLost")],
            node: "worker-1".to_owned(),
            clusters: vec![cluster("reviews", 3.0, opened, 0.0), cluster("web", 7.0, 5.0, 4.0)],
            flushes: vec![FlushLatency { ty: "route".to_owned(), count: 8.0, p50: 2.5e-7, p99: 0.002 }],
            failures: vec![("resources refused", 2.0)],
        }
    }

    fn drawn(view: &TopView) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y: u16| (0..100_u16).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>();
        (0..24_u16).map(line).collect()
    }

    fn press(view: &mut TopView, keys: &str) -> bool {
        keys.chars().any(|key| view.press(KeyCode::Char(key), KeyModifiers::NONE))
    }

    #[test]
    fn all_is_on_the_screen() {
        let mut view = TopView::default();
        let start = Instant::now();
        view.take(snapshot(start, 10.0));
        view.take(snapshot(start + Duration::from_secs(2), 30.0));
        let screen = drawn(&view).join("\n");
        for part in [
            "1 of 2 nodes ready",
            "> worker-1 ███████████████░░░░░░░░░░░░░░░  50.0% of slabs, 9 slots used",
            "97.0% of slabs, 9 slots used, 1 idle ConnectionLost",
            "Busiest on worker-1",
            "10.0",
            "0.2 us",
            "2.0 ms",
            "2 resources refused",
            "s sort: connections",
        ] {
            assert!(screen.contains(part), "{part}:\n{screen}");
        }
    }

    #[test]
    fn keys_sort_filter_select_and_pause() {
        let mut view = TopView::default();
        view.take(snapshot(Instant::now(), 10.0));
        let names = |view: &TopView| view.clusters().iter().map(|one| one.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&view), ["web", "reviews"]);
        assert!(!press(&mut view, "sss"));
        assert_eq!(
            (names(&view), view.order.as_str()),
            (vec!["reviews".to_owned(), "web".to_owned()], "name")
        );
        assert!(!press(&mut view, "/qeb"), "q is a letter of the filter");
        view.press(KeyCode::Backspace, KeyModifiers::NONE);
        assert!(drawn(&view)[23].starts_with("/qe_"));
        view.press(KeyCode::Esc, KeyModifiers::NONE);
        press(&mut view, "/web");
        view.press(KeyCode::Enter, KeyModifiers::NONE);
        assert_eq!(names(&view), ["web"]);
        press(&mut view, "jjj");
        assert_eq!(view.selected(), Some("worker-2"));
        press(&mut view, "k");
        assert_eq!(view.selected(), Some("worker-1"));
        press(&mut view, "p");
        view.take(TopSnapshot { clusters: Vec::new(), ..snapshot(Instant::now(), 10.0) });
        assert_eq!(names(&view), ["web"], "it is paused");
        assert!(press(&mut view, "q"));
        assert!(view.press(KeyCode::Char('c'), KeyModifiers::CONTROL));
    }

    #[test]
    fn a_small_terminal_is_no_failure() {
        let mut view = TopView::default();
        view.take(snapshot(Instant::now(), 10.0));
        view.fail("nobody answers".to_owned());
        for (width, height) in [(1, 1), (20, 5), (60, 12)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &view)).unwrap();
        }
    }
}
