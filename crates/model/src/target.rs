//! What a person asks a restore for, in PostgreSQL's terms (`recovery_target*`).

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;
use walden_pg::{Lsn, TimelineId};

/// A recovery target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryTarget {
    /// Where recovery ends.
    pub kind: TargetKind,
    /// `recovery_target_inclusive`: whether the record or transaction of the target is replayed too.
    pub inclusive: bool,
    /// Along which timeline.
    pub timeline: TargetTimeline,
    /// What PostgreSQL does there.
    pub action: TargetAction,
}

impl Default for RecoveryTarget {
    /// Everything there is, on the newest timeline.
    fn default() -> Self {
        Self {
            kind: TargetKind::Latest,
            inclusive: true,
            timeline: TargetTimeline::Latest,
            action: TargetAction::Pause,
        }
    }
}

/// Where recovery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// With the last archived segment.
    Latest,
    /// As soon as the backup is consistent.
    Immediate,
    /// Before the first commit or abort whose time is later.
    Time(Timestamp),
    /// At the first record that begins here or later.
    Lsn(Lsn),
    /// With this transaction; above 32 bits with its epoch.
    Xid(u64),
    /// At the restore point of this name (`pg_create_restore_point`).
    Name(String),
}

impl TargetKind {
    /// A transaction id as `pg_current_xact_id()` or a row's `xmin` prints it.
    ///
    /// # Errors
    /// Anything but a decimal number that can be a transaction's.
    pub fn parse_xid(text: &str) -> Result<Self, BadTarget> {
        let xid = digits(text).and_then(|digits| digits.parse::<u64>().ok());
        // 0 to 2 are InvalidTransactionId, BootstrapTransactionId and FrozenTransactionId (access/transam.h).
        xid.filter(|xid| xid & 0xFFFF_FFFF >= 3)
            .map(Self::Xid)
            .ok_or_else(|| BadTarget::Xid(text.to_owned()))
    }

    /// A restore point's name.
    ///
    /// # Errors
    /// Names that PostgreSQL cannot have stored: empty, or longer than 63 bytes (`MAXFNAMELEN` in xlog_internal.h is 64).
    pub fn parse_name(text: &str) -> Result<Self, BadTarget> {
        let fits = (1..=63).contains(&text.len()) && !text.chars().any(char::is_control);
        if fits {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err(BadTarget::Name(text.to_owned()))
        }
    }
}

impl fmt::Display for TargetKind {
    /// The option with which the target is asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("the end of the archived WAL"),
            Self::Immediate => f.write_str("--target-immediate"),
            Self::Time(time) => write!(f, "--target-time '{}'", postgres_time(*time)),
            Self::Lsn(lsn) => write!(f, "--target-lsn {lsn}"),
            Self::Xid(xid) => write!(f, "--target-xid {xid}"),
            Self::Name(name) => write!(f, "--target-name {name:?}"),
        }
    }
}

/// Along which timeline a restore goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetTimeline {
    /// The newest archived one that descends from the backup's.
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(TimelineId),
}

impl FromStr for TargetTimeline {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        match text {
            "latest" => Ok(Self::Latest),
            "current" => Ok(Self::Current),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| BadTarget::Timeline(text.to_owned())),
        }
    }
}

/// What PostgreSQL does at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetAction {
    /// Stays read-only until `pg_wal_replay_resume()`.
    Pause,
    /// Ends recovery and accepts writes.
    Promote,
    /// Stops the server.
    Shutdown,
}

impl fmt::Display for TargetAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        })
    }
}

impl FromStr for TargetAction {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        match text {
            "pause" => Ok(Self::Pause),
            "promote" => Ok(Self::Promote),
            "shutdown" => Ok(Self::Shutdown),
            _ => Err(BadTarget::Action(text.to_owned())),
        }
    }
}

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadTarget {
    /// A time without a zone could be meant in any.
    #[error(
        "the time {time:?} has no zone: write '{time}Z' if you mean UTC, or add the offset you mean, as in '{time}+01:00'"
    )]
    NoZone {
        /// The time as it was given.
        time: String,
    },
    /// A zone that is not an offset.
    #[error(
        "the time {time:?} has the zone {zone:?}: write an offset instead, as in '{local}+01:00', or '{local}Z' for UTC"
    )]
    NamedZone {
        /// The time as it was given.
        time: String,
        /// Its zone.
        zone: String,
        /// The time without the zone.
        local: String,
    },
    /// Finer than PostgreSQL's clock.
    #[error(
        "the time {0:?} is finer than a microsecond, which PostgreSQL's timestamps are not: write at most six digits"
    )]
    TooFine(String),
    /// Not a time at all.
    #[error(
        "{0:?} is not a time: write it as '2026-11-22 17:50:07.123456+01:00', or with Z for UTC"
    )]
    Time(String),
    /// Not a transaction id.
    #[error(
        "{0:?} is not a transaction id: write the decimal number that pg_current_xact_id() gave (3 or above)"
    )]
    Xid(String),
    /// Not a restore point's name.
    #[error(
        "{0:?} cannot be a restore point's name: those have 1 to 63 bytes and no control characters"
    )]
    Name(String),
    /// Not a timeline.
    #[error("{0:?} is not a timeline: write latest, current, or its decimal number")]
    Timeline(String),
    /// Not an action.
    #[error("{0:?} is not an action: write pause, promote or shutdown")]
    Action(String),
}

/// A time as PostgreSQL's settings take it, in UTC with microseconds.
#[must_use]
pub fn postgres_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

/// Reads PostgreSQL's ISO form of a time: date, a blank or `T`, time, optionally a fraction to the microsecond, and an offset (`Z`,
/// `UTC`, `+01`, `+01:00`, `-0330`). Stricter than PostgreSQL, which would take a missing zone for the server's.
///
/// # Errors
/// Says what to write instead; never reads another hour into the text.
pub fn parse_target_time(text: &str) -> Result<Timestamp, BadTarget> {
    let text = text.trim_matches(' ');
    let bad = || BadTarget::Time(text.to_owned());
    let (date, rest) = text.split_once([' ', 'T', 't']).ok_or_else(bad)?;
    let clock_length = rest
        .find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.'))
        .unwrap_or(rest.len());
    let (clock, zone) = rest.split_at_checked(clock_length).ok_or_else(bad)?;
    let local = parse_local(date, clock, text)?;
    let zone = zone.trim_start_matches(' ');
    let written = || format!("{date} {clock}");
    if zone.is_empty() {
        return Err(BadTarget::NoZone { time: written() });
    }
    let offset = match parse_offset(zone) {
        Some(offset) => offset,
        None if zone.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            return Err(BadTarget::NamedZone {
                time: text.to_owned(),
                zone: zone.to_owned(),
                local: written(),
            });
        }
        None => return Err(bad()),
    };
    offset.to_timestamp(local).map_err(|_| bad())
}

fn parse_local(date: &str, clock: &str, text: &str) -> Result<DateTime, BadTarget> {
    let bad = || BadTarget::Time(text.to_owned());
    let number = |part: &str, length: usize| {
        digits(part)
            .filter(|part| part.len() == length)
            .and_then(|part| part.parse::<i16>().ok())
            .ok_or_else(bad)
    };
    let small =
        |part: &str| number(part, 2).and_then(|number| i8::try_from(number).map_err(|_| bad()));
    let mut parts = date.split('-');
    let mut part = || parts.next().ok_or_else(bad);
    let (year, month, day) = (number(part()?, 4)?, small(part()?)?, small(part()?)?);
    let (clock, fraction) = clock
        .split_once('.')
        .map_or((clock, None), |(clock, f)| (clock, Some(f)));
    let mut clock_parts = clock.split(':');
    let mut clock_part = || clock_parts.next().ok_or_else(bad);
    let (hour, minute) = (small(clock_part()?)?, small(clock_part()?)?);
    let second = match (clock_parts.next(), fraction) {
        (Some(second), _) => small(second)?,
        (None, None) => 0,
        (None, Some(_)) => return Err(bad()),
    };
    if parts.next().is_some() || clock_parts.next().is_some() {
        return Err(bad());
    }
    let nanosecond = fraction.map_or(Ok(0), |fraction| parse_fraction(fraction, text))?;
    DateTime::new(year, month, day, hour, minute, second, nanosecond).map_err(|_| bad())
}

fn parse_fraction(fraction: &str, text: &str) -> Result<i32, BadTarget> {
    let fraction = digits(fraction).ok_or_else(|| BadTarget::Time(text.to_owned()))?;
    if fraction.len() > 6 {
        return Err(BadTarget::TooFine(text.to_owned()));
    }
    format!("{fraction:0<9}")
        .parse()
        .map_err(|_| BadTarget::Time(text.to_owned()))
}

fn parse_offset(zone: &str) -> Option<Offset> {
    if matches!(zone, "Z" | "z" | "UTC" | "utc") {
        return Some(Offset::UTC);
    }
    let (sign, rest) = match (zone.strip_prefix('+'), zone.strip_prefix('-')) {
        (Some(rest), _) => (1, rest),
        (None, Some(rest)) => (-1, rest),
        (None, None) => return None,
    };
    let (hours, minutes) = match rest.split_once(':') {
        Some((hours, minutes)) => (hours, minutes),
        None if rest.len() == 4 => rest.split_at_checked(2)?,
        None => (rest, "00"),
    };
    let two = |part: &str| {
        digits(part)
            .filter(|part| part.len() == 2)?
            .parse::<i32>()
            .ok()
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    // datetime.h: MAX_TZDISP_HOUR is 15.
    if hours > 15 || minutes > 59 {
        return None;
    }
    Offset::from_seconds(sign * (hours * 60 + minutes) * 60).ok()
}

/// The text itself where it is decimal digits only: Rust's own parsers would take a sign as well.
fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_a_zone_are_read_to_the_microsecond() {
        for (text, expected) in [
            ("2026-11-22 17:50:07Z", "2026-11-22T17:50:07Z"),
            ("2026-11-22T17:50:07Z", "2026-11-22T17:50:07Z"),
            ("2026-11-22 17:50:07 UTC", "2026-11-22T17:50:07Z"),
            ("2026-11-22 17:50Z", "2026-11-22T17:50:00Z"),
            ("2026-11-22 17:50:07.5+01", "2026-11-22T16:50:07.5Z"),
            (
                "2026-11-22 17:50:07.123456+01:00",
                "2026-11-22T16:50:07.123456Z",
            ),
            ("2026-11-22 17:50:07-0330", "2026-11-22T21:20:07Z"),
            ("2026-11-22 17:50:07 +05:45", "2026-11-22T12:05:07Z"),
            ("2026-11-22 17:50:07-00:30", "2026-11-22T18:20:07Z"),
            (
                "  2026-02-28 23:59:59.999999-12 ",
                "2026-03-01T11:59:59.999999Z",
            ),
        ] {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(parse_target_time(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_is_refused_with_what_to_write() {
        let refusal = parse_target_time("2026-11-22 17:50:07").unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the time \"2026-11-22 17:50:07\" has no zone: write '2026-11-22 17:50:07Z' if you mean UTC, \
             or add the offset you mean, as in '2026-11-22 17:50:07+01:00'"
        );
        let refusal = parse_target_time("2026-11-22T17:50:07 Europe/Berlin").unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "the time \"2026-11-22T17:50:07 Europe/Berlin\" has the zone \"Europe/Berlin\": \
             write an offset instead, as in '2026-11-22 17:50:07+01:00', or '2026-11-22 17:50:07Z' for UTC"
        );
    }

    #[test]
    fn what_is_not_exactly_a_time_is_refused() {
        assert!(matches!(
            parse_target_time("2026-11-22 17:50:07.1234567Z"),
            Err(BadTarget::TooFine(_))
        ));
        for text in [
            "",
            "now",
            "2026-11-22",
            "17:50:07Z",
            "2026-11-22 Z",
            "2026-13-22 17:50:07Z",
            "2026-02-29 17:50:07Z",
            "2026-11-22 24:00:00Z",
            "2026-11-22 17:60:07Z",
            "2026-11-22 17:50:60Z",
            "2026-11-22 17:50:07+16",
            "2026-11-22 17:50:07+1",
            "2026-11-22 17:50:07+01:60",
            "2026-11-22 17:50:07+01:00:00",
            "26-11-22 17:50:07Z",
            "2026-11-22 17:50:07.Z",
            "2026-11-22 17:50.5Z",
            "2026-11-22-01 17:50:07Z",
            "2026-11-22 17:50:07:08Z",
            "2026-11-22 1750Z",
            "2026-11-22 7:50:07Z",
            "2026-11-22 17:50:07++1",
            "+026-11-22 17:50:07Z",
            "2026-11-22 17:50:07−01",
            "\u{7f}",
            "2026-11-22 17:50:07+0\u{e4}",
        ] {
            let result = parse_target_time(text);
            assert!(
                matches!(result, Err(BadTarget::Time(_))),
                "{text:?} must be refused, got {result:?}"
            );
        }
    }

    #[test]
    fn a_time_in_a_setting_is_read_back_as_the_same_moment() {
        let time = parse_target_time("2026-11-22 17:50:07.000001-03:30").unwrap();
        assert_eq!(postgres_time(time), "2026-11-22 21:20:07.000001+00");
        assert_eq!(parse_target_time(&postgres_time(time)), Ok(time));
    }

    #[test]
    fn the_other_targets_are_read_strictly() {
        assert_eq!(
            TargetKind::parse_xid("4294967299"),
            Ok(TargetKind::Xid(4_294_967_299))
        );
        for text in [
            "",
            "0",
            "2",
            "+5",
            "-1",
            "4294967296",
            "18446744073709551616",
            "7a",
        ] {
            assert!(
                TargetKind::parse_xid(text).is_err(),
                "{text:?} is no transaction id"
            );
        }
        assert_eq!(
            TargetKind::parse_name("x"),
            Ok(TargetKind::Name("x".to_owned()))
        );
        for text in [String::new(), "n".repeat(64), "a\nb".to_owned()] {
            assert!(
                TargetKind::parse_name(&text).is_err(),
                "{text:?} is no restore point's name"
            );
        }
        assert_eq!("latest".parse(), Ok(TargetTimeline::Latest));
        assert_eq!("2".parse(), Ok(TargetTimeline::Number(TimelineId(2))));
        for text in ["0", "newest", "", "+2"] {
            assert!(
                text.parse::<TargetTimeline>().is_err(),
                "{text:?} is no timeline"
            );
        }
        assert!("stop".parse::<TargetAction>().is_err(), "stop is no action");
    }
}
