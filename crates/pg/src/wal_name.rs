//! Names of the files in `pg_wal` that are archived (`access/xlog_internal.h`: `XLogFileName`, `IsXLogFileName`,
//! `IsPartialXLogFileName`, `IsTLHistoryFileName`, `BackupHistoryFileName`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Lsn, TimelineId, WalSegmentSize};

/// The name of a WAL segment: 24 upper-case hexadecimal digits.
///
/// Where a segment stands in the log depends on the segment size, which the name does not tell. Names sort by
/// timeline, then by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SegmentName {
    /// The timeline that was current when the segment was finished.
    pub timeline: TimelineId,
    /// The upper 32 bits of the segment's addresses.
    pub log: u32,
    /// The segment's place within its log, counted in segments.
    pub seg: u32,
}

impl SegmentName {
    /// The segment's number counted from the start of the log (`XLogFromFileName`).
    /// `None` where no segment of that size has this name.
    pub fn number(&self, size: WalSegmentSize) -> Option<u64> {
        let (seg, per_log) = (u64::from(self.seg), size.segments_per_log());
        (seg < per_log).then(|| u64::from(self.log) * per_log + seg)
    }

    /// The name of a segment by its number (`XLogFileName`). Numbers beyond the last segment wrap, as PostgreSQL's do.
    pub fn from_number(timeline: TimelineId, number: u64, size: WalSegmentSize) -> SegmentName {
        let per_log = size.segments_per_log();
        SegmentName {
            timeline,
            log: (number / per_log) as u32,
            seg: (number % per_log) as u32,
        }
    }

    /// The address of the segment's first byte. `None` where no segment of that size has this name.
    pub fn start(&self, size: WalSegmentSize) -> Option<Lsn> {
        self.number(size).map(|number| Lsn(number * size.bytes()))
    }

    /// The segment that holds the byte at `lsn` (`XLByteToSeg`). What *ends* at `lsn` may end in the segment before.
    pub fn containing(timeline: TimelineId, lsn: Lsn, size: WalSegmentSize) -> SegmentName {
        Self::from_number(timeline, lsn.0 / size.bytes(), size)
    }

    /// The segment that follows on the same timeline. `None` after the last one, and for a name impossible at that size.
    pub fn next(&self, size: WalSegmentSize) -> Option<SegmentName> {
        self.start(size)?
            .checked_add(size.bytes())
            .map(|lsn| Self::containing(self.timeline, lsn, size))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.seg)
    }
}

/// The text is not the name of a WAL file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseWalNameError {
    /// Not the name of a whole segment.
    #[error(
        "{0:?} is not the name of a WAL segment: 24 upper-case hexadecimal digits are expected"
    )]
    Segment(String),
    /// Not one of the four kinds of file that PostgreSQL archives.
    #[error(
        "{0:?} is not the name of a WAL file: a segment (24 upper-case hexadecimal digits), a .partial, a .history or a .backup file is expected"
    )]
    File(String),
}

impl FromStr for SegmentName {
    type Err = ParseWalNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        segment(text).ok_or_else(|| ParseWalNameError::Segment(text.to_owned()))
    }
}

impl TryFrom<String> for SegmentName {
    type Error = ParseWalNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SegmentName> for String {
    fn from(name: SegmentName) -> String {
        name.to_string()
    }
}

fn segment(text: &str) -> Option<SegmentName> {
    if text.len() != 24 {
        return None;
    }
    Some(SegmentName {
        timeline: TimelineId(hex8(text.get(..8)?)?),
        log: hex8(text.get(8..16)?)?,
        seg: hex8(text.get(16..)?)?,
    })
}

/// Exactly 8 digits, upper case alone: PostgreSQL writes no other and recognises no other.
fn hex8(text: &str) -> Option<u32> {
    let fits = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

/// A file that PostgreSQL hands to `archive_command` or asks of `restore_command`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that a promotion left: `<segment>.partial`.
    Partial(SegmentName),
    /// Where a timeline came from: `<timeline>.history`.
    History(TimelineId),
    /// Where a base backup began and ended: `<segment>.<offset>.backup`.
    Backup {
        /// The segment that the backup starts in.
        segment: SegmentName,
        /// The start's offset in that segment, in bytes.
        offset: u32,
    },
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFileName::Segment(name) => name.fmt(f),
            WalFileName::Partial(name) => write!(f, "{name}.partial"),
            WalFileName::History(timeline) => write!(f, "{}.history", timeline.hex()),
            WalFileName::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

impl TryFrom<String> for WalFileName {
    type Error = ParseWalNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<WalFileName> for String {
    fn from(name: WalFileName) -> String {
        name.to_string()
    }
}

impl FromStr for WalFileName {
    type Err = ParseWalNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = match text.split_once('.') {
            None => segment(text).map(WalFileName::Segment),
            Some((stem, "partial")) => segment(stem).map(WalFileName::Partial),
            Some((stem, "history")) => hex8(stem).map(|id| WalFileName::History(TimelineId(id))),
            Some((stem, rest)) => rest
                .strip_suffix(".backup")
                .and_then(hex8)
                .zip(segment(stem))
                .map(|(offset, segment)| WalFileName::Backup { segment, offset }),
        };
        parsed.ok_or_else(|| ParseWalNameError::File(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TLI: TimelineId = TimelineId(1);

    fn size() -> impl Strategy<Value = WalSegmentSize> {
        (20u32..=30).prop_map(|bits| WalSegmentSize::new(1 << bits).unwrap())
    }

    fn name() -> impl Strategy<Value = SegmentName> {
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(timeline, log, seg)| SegmentName {
            timeline: TimelineId(timeline),
            log,
            seg,
        })
    }

    #[test]
    fn the_last_segment_of_a_log_is_followed_by_the_next_log() {
        for (bytes, last) in [
            (1 << 20, 0xFFF),
            (16 << 20, 0xFF),
            (64 << 20, 0x3F),
            (1 << 30, 3),
        ] {
            let size = WalSegmentSize::new(bytes).unwrap();
            let name = SegmentName {
                timeline: TLI,
                log: 7,
                seg: last,
            };
            assert_eq!(
                name.next(size),
                Some(SegmentName {
                    timeline: TLI,
                    log: 8,
                    seg: 0
                }),
                "at {size}"
            );
            assert_eq!(
                SegmentName {
                    seg: last + 1,
                    ..name
                }
                .number(size),
                None,
                "a name impossible at {size} got a number"
            );
            assert_eq!(
                SegmentName {
                    log: u32::MAX,
                    ..name
                }
                .next(size),
                None,
                "the last segment of all has a successor at {size}"
            );
        }
    }

    #[test]
    fn names_are_those_of_postgresql() {
        let name: SegmentName = "000000020000000A000000FE".parse().unwrap();
        assert_eq!(
            name,
            SegmentName {
                timeline: TimelineId(2),
                log: 10,
                seg: 254
            }
        );
        assert_eq!(
            name.start(WalSegmentSize::DEFAULT),
            Some(Lsn(0xA_FE00_0000))
        );
        assert_eq!(
            "0000001F.history".parse(),
            Ok(WalFileName::History(TimelineId(31)))
        );
        assert_eq!(
            "000000020000000A000000FE.partial".parse(),
            Ok(WalFileName::Partial(name))
        );
        assert_eq!(
            "000000020000000A000000FE.00000028.backup".parse(),
            Ok(WalFileName::Backup {
                segment: name,
                offset: 40
            })
        );
    }

    #[test]
    fn near_misses_are_refused() {
        for text in [
            "",
            "000000020000000A000000F",
            "000000020000000A000000FEE",
            "000000020000000a000000FE",
            "+00000020000000A000000FE",
            "000000020000000A000000FE.",
            "000000020000000A000000FE.Partial",
            "000000020000000A000000FE.partial.x",
            "0000001f.history",
            "00001F.history",
            "000000020000000A000000FE.backup",
            "000000020000000A000000FE.28.backup",
            "000000020000000A000000FE.00000028.backup.backup",
            "../0000020000000A000000FE",
            "é00000020000000A000000F",
        ] {
            assert!(
                text.parse::<WalFileName>().is_err(),
                "{text:?} was taken for a WAL file"
            );
        }
    }

    proptest! {
        #[test]
        fn numbers_and_names_agree_at_every_size(size in size(), lsn: u64) {
            let name = SegmentName::containing(TLI, Lsn(lsn), size);
            let start = name.start(size).unwrap();
            prop_assert!(start <= Lsn(lsn) && lsn - start.0 < size.bytes(), "{} does not hold {}", name, Lsn(lsn));
            prop_assert_eq!(SegmentName::from_number(TLI, name.number(size).unwrap(), size), name);
            if let Some(next) = name.next(size) {
                prop_assert_eq!(next.start(size).unwrap().distance_from(start), Some(size.bytes()));
                prop_assert!(next > name, "names do not sort by position");
            }
        }

        #[test]
        fn every_kind_round_trips(segment in name(), other: u32, kind in 0..4) {
            let name = match kind {
                0 => WalFileName::Segment(segment),
                1 => WalFileName::Partial(segment),
                2 => WalFileName::History(TimelineId(other)),
                _ => WalFileName::Backup { segment, offset: other },
            };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn no_text_panics_and_what_parses_prints_the_same(text in "[0-9A-F]{8}([0-9A-Fa-f]{16})?(\\.[0-9A-F]{8})?(\\.[a-z]{6,7})?|\\PC*") {
            if let Ok(name) = text.parse::<WalFileName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
