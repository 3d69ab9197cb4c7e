//! `slotmesh changes`: which objects were changed lately, what was compiled because of that, and when it came into force;
//! and the pages that tell of it.

use std::{
    net::SocketAddr,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::bail;
use axum::{Router, extract::State, routing::get};
use clap::Args;
use k8s_openapi::jiff::{SignedDuration, Timestamp, civil, tz::TimeZone};
use serde::Serialize;
use slotmesh_admin::{ChangeView, ChangedObjectView, ChangedResourceView, paths};
use slotmesh_agent::{Remembered, admin::json};
use slotmesh_operator::{ChangeRecord, ChangedObject, History};

use crate::{
    ask::AskedAgent,
    flags::address,
    in_force::is_meant,
    render::{Columns, OutputForm, Paint, or_dash, print},
};

/// The page of who compiles objects, and its content.
pub const PAGE: (&str, &str) =
    (paths::CHANGES, "the last changes of objects and what was compiled because of them, JSON");
/// The page of agents, and its content.
pub const UPDATES_PAGE: (&str, &str) =
    (paths::UPDATES, "the last updates of what is in force on this node, JSON");

/// The route `/changes`.
pub fn router(history: History) -> Router {
    let list = |State(history): State<History>| async move {
        json(&history.list().into_iter().map(view).collect::<Vec<_>>())
    };
    Router::new().route(PAGE.0, get(list)).with_state(history)
}

/// The route `/updates` of an agent.
pub fn updates_router(remembered: Remembered) -> Router {
    let list = |State(remembered): State<Remembered>| async move { json(&remembered.list()) };
    Router::new().route(UPDATES_PAGE.0, get(list)).with_state(remembered)
}

fn view(record: ChangeRecord) -> ChangeView {
    let ChangeRecord { at, objects, resources, more } = record;
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let object = |object: ChangedObject| {
        let ChangedObject { key, deleted, resource_version, source } = object;
        ChangedObjectView {
            object: key.to_string(),
            deleted,
            resource_version,
            file: source.as_ref().map(|source| source.file.to_string()),
            line: source.and_then(|source| source.line),
        }
    };
    let resources = resources.into_iter().map(|(ty, name, version)| ChangedResourceView {
        ty: ty.to_string(),
        name: name.to_string(),
        version: version.map(|version| version.to_string()),
        refused: None,
    });
    ChangeView {
        at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
        objects: objects.into_iter().map(object).collect(),
        resources: resources.collect(),
        more,
    }
}

/// The end of `slotmesh changes --help`.
const EXAMPLES: &str = "Examples:
  slotmesh changes --since 10m
  slotmesh changes --at 10:42
  slotmesh changes shop/reviews --since 2026-11-28T09:00:00Z
  kubectl slotmesh changes --at 10:42 --node worker-1";

/// The flags of `slotmesh changes`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Changes {
    /// Only changes of an object, Service, host or resource of this name
    name: Option<String>,

    /// Only those within this minute, or second: HH:MM or HH:MM:SS (UTC, the last one that there was), or a whole time
    #[arg(long, env = "SLOTMESH_AT", value_name = "TIME", conflicts_with_all = ["since", "until"])]
    at: Option<Moment>,

    /// Only those since then: a time, or so long ago (90s, 10m, 2h)
    #[arg(long, env = "SLOTMESH_SINCE", value_name = "TIME")]
    since: Option<Moment>,

    /// Only those before then
    #[arg(long, env = "SLOTMESH_UNTIL", value_name = "TIME")]
    until: Option<Moment>,

    #[command(flatten)]
    asked: AskedAgent,

    /// Whoever compiles the objects: address of its admin interface [default: the agent's own, where `slotmesh up`
    /// answers, else 127.0.0.1:15021; as `kubectl slotmesh`, or with --node, an operator of the cluster]
    #[arg(long, env = "SLOTMESH_OPERATOR_ADMIN", value_name = "ADDRESS", value_parser = address)]
    served_by: Option<SocketAddr>,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

/// A time, as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// A time of the day, and whether seconds are said.
    Clock(civil::Time, bool),
    /// A time of a day.
    Whole(Timestamp),
    /// So many seconds ago.
    Ago(i64),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_clock = text.len() <= 8 && text.contains(':');
        if is_clock && let Ok(time) = text.parse() {
            return Ok(Self::Clock(time, text.matches(':').count() == 2));
        }
        if let Ok(time) = text.parse() {
            return Ok(Self::Whole(time));
        }
        let unit = |of: char| match of {
            's' => Some(1),
            'm' => Some(60),
            'h' => Some(3_600),
            _ => None,
        };
        let parts = text
            .char_indices()
            .last()
            .and_then(|(at, of)| Some((text[..at].parse::<u32>().ok()?, unit(of)?)));
        let ago = parts.map(|(count, unit)| Self::Ago(i64::from(count) * unit));
        ago.ok_or_else(|| {
            "expected a time: 10:42, 10:42:07, 10m (so long ago) or 2026-11-28T10:42:07Z".to_owned()
        })
    }
}

impl Moment {
    /// When it is, and how many milliseconds it lasts.
    fn span(self, now: Timestamp) -> anyhow::Result<(i64, i64)> {
        Ok(match self {
            Self::Clock(time, has_seconds) => {
                let today =
                    now.to_zoned(TimeZone::UTC).date().to_zoned(TimeZone::UTC)?.with().time(time).build()?;
                let today = today.timestamp();
                let is_over = today <= now;
                let last = if is_over { today } else { today - SignedDuration::from_hours(24) };
                (last.as_millisecond(), if has_seconds { 1_000 } else { 60_000 })
            }
            Self::Whole(time) => (time.as_millisecond(), 1_000),
            Self::Ago(seconds) => (now.as_millisecond() - seconds * 1_000, 1_000),
        })
    }
}

/// A change, and who tells of it.
#[derive(Debug, Serialize)]
struct Told {
    /// `operator`, or the name of a node.
    by: String,
    at: String,
    #[serde(flatten)]
    change: ChangeView,
}

impl Changes {
    /// Prints what was changed, oldest first.
    ///
    /// # Errors
    /// Where nobody answers.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { name, at, since, until, asked, served_by, output } = self;
        let now = Timestamp::try_from(SystemTime::now())?;
        let edge = |moment: Option<Moment>| moment.map(|moment| moment.span(now)).transpose();
        let (from, to) = match edge(at)? {
            Some((begin, length)) => (Some(begin), Some(begin + length)),
            None => (edge(since)?.map(|(begin, _)| begin), edge(until)?.map(|(begin, _)| begin)),
        };
        let is_within = |change: &ChangeView| {
            let at = i64::try_from(change.at_ms).unwrap_or(i64::MAX);
            from.is_none_or(|from| at >= from) && to.is_none_or(|to| at < to)
        };
        let mut told = Vec::new();
        let mut add = |by: &str, changes: Vec<ChangeView>| {
            let kept =
                changes.into_iter().filter(is_within).filter_map(|change| about(change, name.as_deref()));
            told.extend(kept.map(|change| Told { by: by.to_owned(), at: clock(change.at_ms), change }));
        };
        let operators = asked.servers(served_by).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            Vec::new()
        });
        let compiled = operators.iter().find_map(|site| site.find(paths::CHANGES).ok().flatten());
        let mut answered = false;
        if let Some(changes) = compiled {
            add("operator", changes);
            answered = true;
        }
        if asked.names_an_agent() {
            let agent = asked.site()?;
            let updates = agent.find(paths::UPDATES);
            match updates {
                Ok(Some(updates)) => {
                    add(asked.node().unwrap_or("node"), updates);
                    answered = true;
                }
                Err(error) if !answered => return Err(error),
                _ => {}
            }
        }
        if !answered {
            bail!("neither an operator nor an agent answers; name one with --served-by, --admin or --node");
        }
        told.sort_by_key(|told| told.change.at_ms);
        print(&output.of(&told, |wide| table(&told, wide))?)?;
        if told.is_empty() {
            eprintln!(
                "no changes; at most some hundred are remembered, since the start of who tells of them"
            );
        }
        Ok(())
    }
}

/// The part of a change that is about a name; `None` where nothing of it is.
fn about(mut change: ChangeView, name: Option<&str>) -> Option<ChangeView> {
    let Some(name) = name else { return Some(change) };
    let is_named = |object: &str| {
        let called = object.split_once(' ').map_or(object, |(_, called)| called);
        called == name || object == name || called.rsplit('/').next() == Some(name)
    };
    // What was compiled because of the object is of it, whatever it is called.
    if change.objects.iter().any(|one| is_named(&one.object)) {
        return Some(change);
    }
    change.resources.retain(|resource| is_meant(&resource.name, name));
    (!change.resources.is_empty()).then_some(change)
}

/// `2026-11-28T10:42:03.123Z`
fn clock(at_ms: u64) -> String {
    let at = Timestamp::from_millisecond(i64::try_from(at_ms).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
    format!("{at:.3}")
}

fn table(told: &[Told], wide: bool) -> Columns {
    let mut header = vec!["TIME", "BY", "CHANGE", "OF"];
    if wide {
        header.push("VERSION");
    }
    let mut table =
        Columns::new(header).paint("CHANGE", |change| change.starts_with("refused").then_some(Paint::Red));
    for Told { by, at, change } in told {
        let by_operator = by == "operator";
        let mut row = |what: &str, of: String, version: Option<&String>| {
            let mut cells = vec![at.clone(), by.clone(), what.to_owned(), of];
            if wide {
                cells.push(or_dash(version));
            }
            table.row(cells);
        };
        for object in &change.objects {
            let place = object.file.as_ref().map_or(String::new(), |file| {
                let line = object.line.map_or(String::new(), |line| format!(":{line}"));
                format!(" ({file}{line})")
            });
            let what = if object.deleted { "deleted" } else { "applied" };
            row(what, format!("{}{place}", object.object), object.resource_version.as_ref());
        }
        for resource in &change.resources {
            let of = format!("{} {}", resource.ty, resource.name);
            match (&resource.refused, &resource.version) {
                (Some(why), version) => row("refused", format!("{of}: {why}"), version.as_ref()),
                (None, None) => row("gone", of, None),
                (None, version) => row(if by_operator { "serves" } else { "has" }, of, version.as_ref()),
            }
        }
        if change.more > 0 {
            row("…", format!("and {} more", change.more), None);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(object: &str, resources: &[&str]) -> ChangeView {
        let resource = |name: &&str| ChangedResourceView {
            ty: "route".to_owned(),
            name: (*name).to_owned(),
            version: Some("1".to_owned()),
            refused: None,
        };
        let object = ChangedObjectView {
            object: object.to_owned(),
            deleted: false,
            resource_version: Some("7".to_owned()),
            file: None,
            line: None,
        };
        ChangeView {
            at_ms: 1_764_326_523_123,
            objects: vec![object],
            resources: resources.iter().map(resource).collect(),
            more: 0,
        }
    }

    #[test]
    fn times_are_written_as_people_write_them() {
        let now: Timestamp = "2026-11-28T10:45:00Z".parse().unwrap();
        let span = |text: &str| text.parse::<Moment>().unwrap().span(now).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond();
        assert_eq!(span("10:42"), (at("2026-11-28T10:42:00Z"), 60_000));
        assert_eq!(span("10:42:07"), (at("2026-11-28T10:42:07Z"), 1_000));
        assert_eq!(span("11:00"), (at("2026-11-27T11:00:00Z"), 60_000), "the last one that there was");
        assert_eq!(span("10m").0, at("2026-11-28T10:35:00Z"));
        assert_eq!(span("2026-11-28T10:42:07Z").0, at("2026-11-28T10:42:07Z"));
        for bad in ["", "10", "25:00", "10:42:99", "m", "-5m", "tomorrow", "5ü"] {
            assert!(bad.parse::<Moment>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_is_found_by_its_object_or_by_what_came_of_it() {
        let reviews = || {
            change("VirtualService shop/canary", &["80|reviews.shop.svc.cluster.local", "80|other.shop.svc"])
        };
        assert_eq!(about(reviews(), Some("shop/canary")).unwrap().resources.len(), 2);
        assert_eq!(about(reviews(), Some("canary")).unwrap().resources.len(), 2);
        assert_eq!(about(reviews(), Some("shop/reviews")).unwrap().resources.len(), 1);
        assert!(about(reviews(), Some("shop/ratings")).is_none());
    }

    #[test]
    fn objects_stand_before_what_came_of_them() {
        let told = Told {
            by: "operator".to_owned(),
            at: clock(1_764_326_523_123),
            change: change("VirtualService shop/canary", &["80|a"]),
        };
        let expected = "\
TIME                       BY         CHANGE    OF
2025-11-28T10:42:03.123Z   operator   applied   VirtualService shop/canary
2025-11-28T10:42:03.123Z   operator   serves    route 80|a
";
        assert_eq!(table(&[told], false).to_string(), expected);
    }
}
