//! Lines of the access log.

use std::{fmt::Write as _, net::SocketAddr, time::SystemTime};

use serde::Serialize;
use slotmesh_records::{ConnectionEnd, ConnectionEnding, VipKey};

use super::super::destinations::{Destination, UNKNOWN, workload_of};

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogForm {
    /// A JSON object.
    Json,
    /// Words for people.
    Text,
}

/// All that is logged of a connection.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry<'e> {
    /// When it ended, in UTC.
    time: String,
    pub source_namespace: &'e str,
    pub source_workload: &'e str,
    pub source_pod: &'e str,
    #[serde(flatten, serialize_with = "destination")]
    pub destination: Destination,
    /// The address that was asked for.
    address: SocketAddr,
    /// Where it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    /// How it ended.
    pub ending: &'static str,
    /// In milliseconds.
    duration_ms: u64,
    #[serde(flatten)]
    figures: Option<EndFigures>,
}

/// Figures of a connection that was measured.
#[derive(Clone, Copy, Debug, Serialize)]
struct EndFigures {
    sent_bytes: u64,
    received_bytes: u64,
    retransmits: u32,
    round_trip_us: u32,
}

fn destination<S: serde::Serializer>(to: &Destination, serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::SerializeMap as _;
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("destination_service", &to.host)?;
    map.serialize_entry("destination_service_name", &to.name)?;
    map.serialize_entry("destination_namespace", &to.namespace)?;
    map.serialize_entry("destination_port", &to.port)?;
    if !to.subset.is_empty() {
        map.serialize_entry("destination_subset", &to.subset)?;
    }
    map.end()
}

impl<'e> Entry<'e> {
    pub fn new(
        end: &ConnectionEnd,
        at: SystemTime,
        source: Option<&'e [String; 2]>,
        cluster: Option<&str>,
    ) -> Self {
        let [namespace, pod] = source.map_or([UNKNOWN; 2], |[namespace, name]| [namespace, name]);
        let endpoint = VipKey { addr: end.target, port: end.target_port, protocol: 0, reserved: 0 };
        let figures = EndFigures {
            sent_bytes: end.sent,
            received_bytes: end.received,
            retransmits: end.retransmits,
            round_trip_us: end.round_trip_us,
        };
        Self {
            time: utc(at),
            source_namespace: namespace,
            source_workload: workload_of(pod),
            source_pod: pod,
            destination: Destination::of_cluster(cluster.unwrap_or(UNKNOWN)),
            address: end.original.socket_addr(),
            endpoint: (end.target_port != 0).then(|| endpoint.socket_addr()),
            ending: ConnectionEnding::from_number(end.ending).map_or(UNKNOWN, ConnectionEnding::as_str),
            duration_ms: (u64::from(end.lasted) << 20) / 1_000_000,
            figures: (end.is_measured != 0).then_some(figures),
        }
    }
}

impl LogForm {
    /// Adds a line.
    pub(super) fn write(self, entry: &Entry<'_>, lines: &mut String) {
        match self {
            // No field fails to be written.
            Self::Json => lines.push_str(&serde_json::to_string(entry).unwrap_or_default()),
            Self::Text => text(entry, lines),
        }
        lines.push('\n');
    }
}

fn text(entry: &Entry<'_>, lines: &mut String) {
    let Entry { time, source_namespace, source_pod, destination: to, address, .. } = entry;
    // Writing to a string doesn't fail.
    let _ = write!(lines, "{time} {source_namespace}/{source_pod} -> {}:{}", to.host, to.port);
    if !to.subset.is_empty() {
        let _ = write!(lines, " {}", to.subset);
    }
    let _ = write!(lines, " ({address}");
    if let Some(endpoint) = entry.endpoint {
        let _ = write!(lines, " at {endpoint}");
    }
    let _ = write!(lines, ") {} {} ms", entry.ending, entry.duration_ms);
    if let Some(EndFigures { sent_bytes, received_bytes, retransmits, round_trip_us }) = entry.figures {
        let _ = write!(
            lines,
            ", {sent_bytes} B sent, {received_bytes} B received, {retransmits} segments again, {round_trip_us} us round trip"
        );
    }
}

/// A time as RFC 3339 has it, in UTC, to the millisecond.
fn utc(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, milliseconds) = (since.as_secs(), since.subsec_millis());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{milliseconds:03}Z",
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// The date so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    loop {
        let of_year = if is_leap(year) { 366 } else { 365 };
        if days < of_year {
            break;
        }
        days -= of_year;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for of_month in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < of_month {
            break;
        }
        days -= of_month;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    fn end() -> ConnectionEnd {
        ConnectionEnd {
            at: 0,
            cluster: 1,
            sent: 10,
            received: 20,
            source: 1,
            lasted: 100,
            retransmits: 1,
            round_trip_us: 55,
            original: VipKey::new("10.96.0.10".parse().unwrap(), 80, VipKey::TCP),
            target: VipKey::new("10.0.0.1".parse().unwrap(), 0, 0).addr,
            target_port: 8080_u16.to_be(),
            ending: ConnectionEnding::Closed as u8,
            is_measured: 1,
        }
    }

    fn made(end: &ConnectionEnd) -> Entry<'static> {
        let source = Box::leak(Box::new(["shop".to_owned(), "cart-7d9f8c6b54-x2x4z".to_owned()]));
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_709_164_800_123);
        Entry::new(end, at, Some(source), Some("outbound|80|v1|web.shop.svc.cluster.local"))
    }

    pub fn entry() -> Entry<'static> {
        made(&end())
    }

    #[test]
    fn a_line_of_json_tells_all() {
        let mut lines = String::new();
        LogForm::Json.write(&entry(), &mut lines);
        let found: serde_json::Value = serde_json::from_str(&lines).unwrap();
        let expected = serde_json::json!({
            "time": "2024-02-29T00:00:00.123Z",
            "source_namespace": "shop",
            "source_workload": "cart",
            "source_pod": "cart-7d9f8c6b54-x2x4z",
            "destination_service": "web.shop.svc.cluster.local",
            "destination_service_name": "web",
            "destination_namespace": "shop",
            "destination_port": 80,
            "destination_subset": "v1",
            "address": "10.96.0.10:80",
            "endpoint": "10.0.0.1:8080",
            "ending": "closed",
            "duration_ms": 104,
            "sent_bytes": 10,
            "received_bytes": 20,
            "retransmits": 1,
            "round_trip_us": 55,
        });
        assert_eq!(found, expected);
        assert!(lines.ends_with('\n') && lines.matches('\n').count() == 1);
    }

    #[test]
    fn a_line_for_people_says_the_same() {
        let mut lines = String::new();
        LogForm::Text.write(&entry(), &mut lines);
        assert_eq!(
            lines,
            "2024-02-29T00:00:00.123Z shop/cart-7d9f8c6b54-x2x4z -> web.shop.svc.cluster.local:80 v1 (10.96.0.10:80 at \
             10.0.0.1:8080) closed 104 ms, 10 B sent, 20 B received, 1 segments again, 55 us round trip\n"
        );
    }

    #[test]
    fn a_refusal_has_neither_endpoint_nor_figures() {
        let refused = ConnectionEnd {
            target_port: 0,
            is_measured: 0,
            ending: ConnectionEnding::NoEndpoint as u8,
            lasted: 0,
            ..end()
        };
        let mut lines = String::new();
        LogForm::Json.write(&made(&refused), &mut lines);
        let found: serde_json::Value = serde_json::from_str(&lines).unwrap();
        assert_eq!(found["ending"], "no_endpoint");
        assert!(found.get("endpoint").is_none() && found.get("sent_bytes").is_none(), "{lines}");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_785, (2026, 11, 28)),
        ] {
            assert_eq!(date(days), expected);
        }
    }
}
