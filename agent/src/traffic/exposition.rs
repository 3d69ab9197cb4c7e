//! Traffic as metrics. Those that Istio has, too, have its names and labels, so that what reads these reads ours; the
//! others are called `slotmesh_tcp_…` and have the same labels.

use std::fmt::{Display, Write as _};

use slotmesh_records::ConnectionEnding;

use super::{
    FAILURES, REFUSALS, Told,
    destinations::UNKNOWN,
    ledger::{Ledger, Sums, Talk},
};

/// The name that stands for all that has no series of its own.
const OTHER: &str = "other";
/// Seconds of a unit in which the kernel's programs measure how long a connection lasted.
const UNIT: f64 = (1 << 20) as f64 / 1e9;

/// A family of metrics: its lines are behind each other.
struct Writer<'s> {
    text: String,
    series: &'s [(String, &'s Sums)],
}

impl Writer<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string doesn't fail.
        let _ = write!(self.text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &str, more: &str, value: impl Display) {
        let _ = writeln!(self.text, "{name}{{{labels}{more}}} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Fn(&Sums) -> u64) {
        self.head(name, "counter", help);
        for (labels, sums) in self.series {
            self.line(&format!("{name}_total"), labels, "", value(sums));
        }
    }

    fn by_reason(&mut self, name: &str, help: &str, reasons: &[ConnectionEnding]) {
        self.head(name, "counter", help);
        let total = format!("{name}_total");
        for (i, (labels, sums)) in self.series.iter().enumerate() {
            for reason in reasons {
                let count = sums.ended.of(*reason);
                // Sums over all always have a value; what never happens costs no series.
                if count > 0 || i == 0 {
                    self.line(&total, labels, &format!(",reason=\"{}\"", reason.as_str()), count);
                }
            }
        }
    }

    fn summary(&mut self, name: &str, help: &str, value: impl Fn(&Sums) -> (f64, u64)) {
        self.head(name, "summary", help);
        for (labels, sums) in self.series {
            let (sum, count) = value(sums);
            self.line(&format!("{name}_sum"), labels, "", sum);
            self.line(&format!("{name}_count"), labels, "", count);
        }
    }
}

/// The lines of all that is shown.
pub(super) fn lines(ledger: &Ledger) -> String {
    let other = labels([OTHER; 2], [OTHER, OTHER, OTHER], 0, "");
    let mut series = vec![(other, ledger.rest())];
    for (Talk { source, source_namespace, destination: to }, sums) in ledger.shown() {
        let labels =
            labels([source, source_namespace], [&to.host, &to.name, &to.namespace], to.port, &to.subset);
        series.push((labels, sums));
    }
    let mut writer = Writer { text: String::with_capacity(series.len() * 4_096), series: &series };
    writer.counter(
        "istio_tcp_connections_opened",
        "TCP connections of this node's workloads that were established",
        |sums| sums.opened,
    );
    let closed = "istio_tcp_connections_closed";
    writer.head(
        closed,
        "counter",
        "TCP connections that ended, with UC as response_flags where the other end reset them",
    );
    for (labels, sums) in writer.series {
        for (flags, ending) in [("-", ConnectionEnding::Closed), ("UC", ConnectionEnding::Reset)] {
            let count = sums.ended.of(ending);
            if count > 0 || ending == ConnectionEnding::Closed {
                // In the place of those flags that the labels have.
                let labels =
                    labels.replacen("response_flags=\"-\"", &format!("response_flags=\"{flags}\""), 1);
                writer.line("istio_tcp_connections_closed_total", &labels, "", count);
            }
        }
    }
    writer.counter(
        "istio_tcp_sent_bytes",
        "Bytes that workloads sent, also by connections that are open",
        |sums| sums.ended.sent,
    );
    writer.counter(
        "istio_tcp_received_bytes",
        "Bytes that workloads received, also by connections that are open",
        |sums| sums.ended.received,
    );
    writer.head("slotmesh_tcp_connections_open", "gauge", "TCP connections that are established now");
    for (labels, sums) in writer.series {
        writer.line("slotmesh_tcp_connections_open", labels, "", sums.open);
    }
    writer.by_reason(
        "slotmesh_tcp_connections_failed",
        "Connects that weren't answered with a connection: refused by the other end, not answered (timeout), given up sooner \
         (abandoned), or nothing was sent, as there is no way (unsent)",
        &FAILURES,
    );
    writer.by_reason(
        "slotmesh_tcp_connections_refused",
        "Connects refused in the kernel: as many connections as there may be (limit), faster than they may come (rate), no \
         endpoint to take (no_endpoint), no room to count them (no_room)",
        &REFUSALS,
    );
    writer.counter("slotmesh_tcp_retransmitted_segments", "TCP segments that workloads sent again", |sums| {
        sums.ended.retransmits
    });
    writer.counter(
        "slotmesh_tcp_connections_unmeasured",
        "Connections that ended without figures of bytes and times: MPTCP, a socket that was connected anew, or a kernel that \
         tells none",
        |sums| sums.ended.unmeasured,
    );
    writer.summary(
        "slotmesh_tcp_round_trip_seconds",
        "Smoothed round-trip time of connections at their end",
        |sums| (sums.ended.round_trip_us as f64 / 1e6, sums.ended.round_trips),
    );
    writer.summary(
        "slotmesh_tcp_connection_duration_seconds",
        "Time from connect to the end of connections, to about a millisecond",
        |sums| {
            let count = sums.ended.of(ConnectionEnding::Closed) + sums.ended.of(ConnectionEnding::Reset);
            (sums.ended.lasted as f64 * UNIT, count)
        },
    );
    let pairs = "slotmesh_agent_traffic_pairs";
    let help = "Pairs of a pod and a cluster whose connections are counted, each on some of 8 lanes, of --max-traffic in all";
    writer.head(pairs, "gauge", help);
    let _ = writeln!(writer.text, "{pairs} {}", ledger.pairs());
    writer.text
}

/// The lines of the access log.
pub(super) fn of_log(told: Told) -> String {
    let mut text = String::new();
    for (name, help, value) in [
        ("slotmesh_agent_access_log_records", "Ends of connections that the kernel told", told.told),
        (
            "slotmesh_agent_access_log_lost",
            "Ends of connections for which there was no room, as the agent didn't read them in time",
            told.lost,
        ),
    ] {
        let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {value}\n");
    }
    text
}

/// The labels of a series; `response_flags` come last.
fn labels(
    [source, source_namespace]: [&str; 2],
    [host, name, namespace]: [&str; 3],
    port: u16,
    subset: &str,
) -> String {
    let mut text = String::with_capacity(512);
    for (label, value) in [
        ("reporter", "source"),
        ("source_workload", source),
        ("source_workload_namespace", source_namespace),
        ("source_canonical_service", source),
        ("destination_service", host),
        ("destination_service_name", name),
        ("destination_service_namespace", namespace),
        ("destination_canonical_service", name),
        ("destination_workload", UNKNOWN),
        ("destination_workload_namespace", UNKNOWN),
        ("destination_subset", subset),
        ("request_protocol", "tcp"),
        ("connection_security_policy", "none"),
    ] {
        let _ = write!(text, "{label}=\"{}\",", Escaped(value));
    }
    let _ = write!(text, "destination_port=\"{port}\",response_flags=\"-\"");
    text
}

/// The value of a label.
struct Escaped<'v>(&'v str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use slotmesh_records::TrafficState;

    use super::{
        super::ledger::{Open, Pair, PairNames},
        *,
    };

    #[test]
    fn a_pair_shows_what_it_did() {
        let sources = HashMap::from([(1, ["shop".to_owned(), "cart-7d9f8c6b54-x2x4z".to_owned()])]);
        let clusters = HashMap::from([(2, "outbound|80|v1|web.shop.svc.cluster.local".to_owned())]);
        let at = Pair { cluster: 2, source: 1 };
        let mut ended = TrafficState { sent: 7, round_trip_us: 1_500, round_trips: 3, ..TrafficState::NONE };
        ended.ended[ConnectionEnding::Closed as usize] = 3;
        ended.ended[ConnectionEnding::Reset as usize] = 1;
        ended.ended[ConnectionEnding::TimedOut as usize] = 2;
        ended.ended[ConnectionEnding::TooFast as usize] = 5;
        let open = Open { connections: 2, sent: 3, received: 9, retransmits: 0 };
        let mut ledger = Ledger::default();
        ledger.set_most(1);
        let names = PairNames { sources: &sources, clusters: &clusters };
        ledger.take(&HashMap::from([(at, ended)]), &HashMap::from([(at, open)]), names, true);
        let text = lines(&ledger);
        let value = |name: &str, more: &str| {
            let is = |line: &&str| {
                line.starts_with(&format!("{name}{{"))
                    && line.contains("source_workload=\"cart\"")
                    && line.contains("destination_service=\"web.shop.svc.cluster.local\"")
                    && line.contains(more)
            };
            let mut found = text.lines().filter(is);
            let line = found.next().unwrap_or_else(|| panic!("no {name} {more} in {text}"));
            assert_eq!(found.next(), None, "{name} {more}");
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        };
        for (name, more, expected) in [
            ("istio_tcp_connections_opened_total", "destination_port=\"80\"", 6.0),
            ("istio_tcp_connections_closed_total", "response_flags=\"-\"", 3.0),
            ("istio_tcp_connections_closed_total", "response_flags=\"UC\"", 1.0),
            ("istio_tcp_sent_bytes_total", "destination_subset=\"v1\"", 10.0),
            ("istio_tcp_received_bytes_total", "", 9.0),
            ("slotmesh_tcp_connections_open", "", 2.0),
            ("slotmesh_tcp_connections_failed_total", "", 2.0),
            ("slotmesh_tcp_connections_refused_total", "reason=\"rate\"", 5.0),
            ("slotmesh_tcp_round_trip_seconds_sum", "", 0.0015),
            ("slotmesh_tcp_round_trip_seconds_count", "", 3.0),
        ] {
            assert_eq!(value(name, more), expected, "{name}");
        }
        assert!(text.lines().all(|line| line.starts_with('#') || line.matches("reporter=").count() <= 1));
    }

    #[test]
    fn what_a_name_holds_breaks_no_line() {
        assert_eq!(Escaped("a\"b\\c\nd").to_string(), "a\\\"b\\\\c\\nd");
    }
}
