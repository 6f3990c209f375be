//! The small numbers that name a cluster, its timelines, its segment size and its version.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A timeline of a cluster (`TimeLineID` in `access/xlogdefs.h`). Decimal in messages, hexadecimal in file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(pub u32);

impl TimelineId {
    /// The timeline as file names write it: 8 upper-case hexadecimal digits.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a timeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a timeline: a decimal number from 1 to 4294967295 is expected")]
pub struct ParseTimelineError(String);

impl FromStr for TimelineId {
    type Err = ParseTimelineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match decimal(text) {
            Some(id @ 1..) => Ok(TimelineId(id)),
            _ => Err(ParseTimelineError(text.to_owned())),
        }
    }
}

/// The number that `initdb` gives a cluster for life (`system_identifier` in `catalog/pg_control.h`).
///
/// In JSON it is a decimal string, because it does not fit the integers of many readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a system identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a system identifier: a decimal number of up to 20 digits is expected, as pg_controldata prints it"
)]
pub struct ParseSystemIdentifierError(String);

impl FromStr for SystemIdentifier {
    type Err = ParseSystemIdentifierError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        decimal(text)
            .map(SystemIdentifier)
            .ok_or_else(|| ParseSystemIdentifierError(text.to_owned()))
    }
}

impl TryFrom<String> for SystemIdentifier {
    type Error = ParseSystemIdentifierError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SystemIdentifier> for String {
    fn from(id: SystemIdentifier) -> String {
        id.to_string()
    }
}

/// Digits alone: the standard parser would also take a leading plus.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// The size of one WAL segment file, chosen at `initdb` (`IsValidWalSegSize` in `access/xlog_internal.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct WalSegmentSize(u32);

/// The size is none that a WAL segment can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes is no WAL segment size: a power of two from 1 MiB to 1 GiB is expected")]
pub struct BadSegmentSize(pub u64);

impl WalSegmentSize {
    /// 16 MiB, what `initdb` takes when nobody says otherwise.
    pub const DEFAULT: WalSegmentSize = WalSegmentSize(16 << 20);

    /// A size in bytes: a power of two, 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<Self, BadSegmentSize> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => {
                Ok(WalSegmentSize(size))
            }
            _ => Err(BadSegmentSize(bytes)),
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// Segments in 4 GiB of log, the unit of the name's middle part (`XLogSegmentsPerXLogId`).
    pub fn segments_per_log(self) -> u64 {
        0x1_0000_0000 / self.bytes()
    }
}

impl fmt::Display for WalSegmentSize {
    /// As `SHOW wal_segment_size` prints it: `16MB`, `1GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 20 {
            1024 => f.write_str("1GB"),
            megabytes => write!(f, "{megabytes}MB"),
        }
    }
}

impl TryFrom<u64> for WalSegmentSize {
    type Error = BadSegmentSize;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<WalSegmentSize> for u64 {
    fn from(size: WalSegmentSize) -> u64 {
        size.bytes()
    }
}

/// A major version of PostgreSQL, as in `17`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MajorVersion(pub u16);

impl MajorVersion {
    /// The versions whose formats this crate knows, oldest first.
    pub const KNOWN: [MajorVersion; 5] = [
        MajorVersion(14),
        MajorVersion(15),
        MajorVersion(16),
        MajorVersion(17),
        MajorVersion(18),
    ];

    /// The version that writes WAL pages with this magic (`XLOG_PAGE_MAGIC` in `access/xlog_internal.h`).
    pub fn from_magic(magic: u16) -> Option<MajorVersion> {
        match magic {
            0xD10D => Some(MajorVersion(14)),
            0xD110 => Some(MajorVersion(15)),
            0xD113 => Some(MajorVersion(16)),
            0xD116 => Some(MajorVersion(17)),
            0xD118 => Some(MajorVersion(18)),
            _ => None,
        }
    }

    /// The version of a `server_version_num`, such as 170011, where it is one of the known ones.
    pub fn from_version_num(number: u32) -> Option<MajorVersion> {
        Self::KNOWN
            .into_iter()
            .find(|version| u32::from(version.0) == number / 10_000)
    }
}

impl fmt::Display for MajorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_eleven_legal_segment_sizes_are_taken() {
        let legal: Vec<u64> = (20..=30).map(|bits| 1u64 << bits).collect();
        for &bytes in &legal {
            let size = WalSegmentSize::new(bytes).unwrap();
            assert_eq!(
                size.bytes() * size.segments_per_log(),
                1 << 32,
                "{size} does not divide a log"
            );
        }
        for bytes in [
            0,
            1,
            1 << 19,
            (1 << 20) + 1,
            3 << 20,
            1 << 31,
            1 << 32,
            (1 << 32) + (1 << 24),
            u64::MAX,
        ] {
            assert_eq!(WalSegmentSize::new(bytes), Err(BadSegmentSize(bytes)));
        }
        assert_eq!(WalSegmentSize::DEFAULT.to_string(), "16MB");
        assert_eq!(WalSegmentSize::new(1 << 30).unwrap().to_string(), "1GB");
    }

    #[test]
    fn json_forms_are_stable() {
        assert_eq!(serde_json::to_string(&TimelineId(3)).unwrap(), "3");
        assert_eq!(
            serde_json::to_string(&SystemIdentifier(u64::MAX)).unwrap(),
            "\"18446744073709551615\""
        );
        assert_eq!(
            serde_json::to_string(&WalSegmentSize::DEFAULT).unwrap(),
            "16777216"
        );
        assert!(
            serde_json::from_str::<WalSegmentSize>("16777217").is_err(),
            "an illegal size came in through JSON"
        );
        assert!(
            serde_json::from_str::<SystemIdentifier>("7").is_err(),
            "a bare number was taken for an identifier"
        );
    }

    #[test]
    fn decimal_text_is_strict() {
        for text in ["", "0", "+1", "-1", " 1", "4294967296", "1f"] {
            assert!(
                text.parse::<TimelineId>().is_err(),
                "{text:?} was taken for a timeline"
            );
        }
        for text in ["", "+1", "18446744073709551616", "x"] {
            assert!(
                text.parse::<SystemIdentifier>().is_err(),
                "{text:?} was taken for an identifier"
            );
        }
        assert_eq!(TimelineId(0x1A).hex(), "0000001A");
    }

    #[test]
    fn versions_are_known_by_magic_and_number() {
        assert_eq!(MajorVersion::from_magic(0xD116), Some(MajorVersion(17)));
        assert_eq!(MajorVersion::from_magic(0xD117), None);
        assert_eq!(
            MajorVersion::from_version_num(140_023),
            Some(MajorVersion(14))
        );
        assert_eq!(MajorVersion::from_version_num(130_023), None);
        assert_eq!(MajorVersion::from_version_num(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn identifiers_round_trip(raw: u64, timeline in 1u32..) {
            prop_assert_eq!(SystemIdentifier(raw).to_string().parse(), Ok(SystemIdentifier(raw)));
            prop_assert_eq!(TimelineId(timeline).to_string().parse(), Ok(TimelineId(timeline)));
        }
    }
}
