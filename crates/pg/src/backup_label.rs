//! `backup_label` and the backup history file that is archived when a backup ends. Both have one grammar
//! (`access/transam/xlogbackup.c`: `build_backup_content`; read by `read_backup_label` in `xlogrecovery.c`).

use std::str::FromStr;

use crate::{Lsn, SegmentName, TimelineId};

/// What a base backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// `START WAL LOCATION`: recovery must replay from here.
    pub start: Lsn,
    /// The segment of that location.
    pub start_segment: SegmentName,
    /// `CHECKPOINT LOCATION`: the backup's checkpoint record.
    pub checkpoint: Lsn,
    /// `BACKUP METHOD`: `streamed`, or `pg_start_backup` for the exclusive backups of 14.
    pub method: String,
    /// `BACKUP FROM`.
    pub from: BackupFrom,
    /// `START TIME`, in the server's log time zone, as it stands there.
    pub start_time: String,
    /// `LABEL`: what the person who took the backup called it.
    pub label: String,
    /// `START TIMELINE`, proven equal to the start segment's.
    pub start_timeline: TimelineId,
    /// How the backup ended. The history file alone says that.
    pub stop: Option<BackupStop>,
    /// What an incremental backup (17 and later) leans on.
    pub incremental_from: Option<IncrementalFrom>,
}

/// Where the backup was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupFrom {
    /// On a primary.
    Primary,
    /// On a standby: recovery reaches consistency at the end point that `pg_control` names.
    Standby,
}

/// The end of a backup, from its history file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStop {
    /// `STOP WAL LOCATION`: the first byte behind what the backup needs.
    pub lsn: Lsn,
    /// The segment that PostgreSQL names beside it.
    pub segment: SegmentName,
    /// `STOP TIME`, as it stands there.
    pub time: String,
    /// `STOP TIMELINE`.
    pub timeline: TimelineId,
}

/// The backup that an incremental one leans on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IncrementalFrom {
    /// `INCREMENTAL FROM LSN`: that backup's start.
    pub lsn: Lsn,
    /// `INCREMENTAL FROM TLI`: its timeline.
    pub timeline: TimelineId,
}

/// The bytes are no backup label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupLabelError {
    /// A line that every label has is not there.
    #[error("the backup label has no line {0:?}")]
    Missing(&'static str),
    /// A line's value is not what belongs there.
    #[error("the backup label's line {key:?} cannot be read: {value:?}")]
    Value {
        /// The line.
        key: &'static str,
        /// What stands there.
        value: String,
    },
    /// Two lines contradict each other.
    #[error(
        "the backup label contradicts itself: it starts in segment {segment}, but on timeline {timeline}"
    )]
    Timeline {
        /// The segment of the start location.
        segment: SegmentName,
        /// The start timeline.
        timeline: TimelineId,
    },
}

impl BackupLabel {
    /// Reads a `backup_label` or a backup history file.
    ///
    /// Lines that are not known are passed over, and of two with one key the first counts: a label can hold line breaks, and
    /// must not be able to play another line.
    pub fn parse(bytes: &[u8]) -> Result<BackupLabel, BackupLabelError> {
        let text = String::from_utf8_lossy(bytes);
        let lines = Lines(&text);
        let (start, start_segment) = lines.location("START WAL LOCATION")?;
        let start_timeline = lines.value("START TIMELINE")?;
        if start_segment.timeline != start_timeline {
            return Err(BackupLabelError::Timeline {
                segment: start_segment,
                timeline: start_timeline,
            });
        }
        let from = match lines.required("BACKUP FROM")? {
            "primary" => BackupFrom::Primary,
            "standby" => BackupFrom::Standby,
            other => {
                return Err(BackupLabelError::Value {
                    key: "BACKUP FROM",
                    value: other.to_owned(),
                });
            }
        };
        let stop = match lines.find("STOP WAL LOCATION") {
            None => None,
            Some(_) => {
                let (lsn, segment) = lines.location("STOP WAL LOCATION")?;
                Some(BackupStop {
                    lsn,
                    segment,
                    time: lines.required("STOP TIME")?.to_owned(),
                    timeline: lines.value("STOP TIMELINE")?,
                })
            }
        };
        let incremental_from = match lines.find("INCREMENTAL FROM LSN") {
            None => None,
            Some(_) => Some(IncrementalFrom {
                lsn: lines.value("INCREMENTAL FROM LSN")?,
                timeline: lines.value("INCREMENTAL FROM TLI")?,
            }),
        };
        Ok(BackupLabel {
            start,
            start_segment,
            checkpoint: lines.value("CHECKPOINT LOCATION")?,
            method: lines.required("BACKUP METHOD")?.to_owned(),
            from,
            start_time: lines.required("START TIME")?.to_owned(),
            label: lines.required("LABEL")?.to_owned(),
            start_timeline,
            stop,
            incremental_from,
        })
    }
}

struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn find(&self, key: &str) -> Option<&'a str> {
        self.0
            .split('\n')
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
    }

    fn required(&self, key: &'static str) -> Result<&'a str, BackupLabelError> {
        self.find(key).ok_or(BackupLabelError::Missing(key))
    }

    fn value<T: FromStr>(&self, key: &'static str) -> Result<T, BackupLabelError> {
        let text = self.required(key)?;
        text.parse().map_err(|_| BackupLabelError::Value {
            key,
            value: text.to_owned(),
        })
    }

    /// `0/2000028 (file 000000010000000000000002)`
    fn location(&self, key: &'static str) -> Result<(Lsn, SegmentName), BackupLabelError> {
        let text = self.required(key)?;
        text.split_once(" (file ")
            .and_then(|(lsn, rest)| {
                Some((lsn.parse().ok()?, rest.strip_suffix(')')?.parse().ok()?))
            })
            .ok_or_else(|| BackupLabelError::Value {
                key,
                value: text.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\n\
        BACKUP FROM: standby\nSTART TIME: 2026-11-22 19:33:26 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

    #[test]
    fn each_line_is_needed() {
        assert_eq!(
            BackupLabel::parse(LABEL.as_bytes()).unwrap().from,
            BackupFrom::Standby
        );
        for gone in LABEL.lines() {
            let rest: String = LABEL
                .lines()
                .filter(|line| *line != gone)
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(
                matches!(
                    BackupLabel::parse(rest.as_bytes()),
                    Err(BackupLabelError::Missing(_))
                ),
                "{gone:?} is not missed"
            );
        }
    }

    #[test]
    fn a_label_with_line_breaks_plays_no_other_line() {
        let text = LABEL.replace(
            "LABEL: x\nSTART TIMELINE: 1\n",
            "START TIMELINE: 1\nLABEL: x\nSTART TIMELINE: 7\nBACKUP FROM: primary\n",
        );
        let label = BackupLabel::parse(text.as_bytes()).unwrap();
        assert_eq!(
            (label.start_timeline, label.from),
            (TimelineId(1), BackupFrom::Standby)
        );
    }

    #[test]
    fn contradictions_and_nonsense_are_named() {
        let parse = |from: &str, to: &str| BackupLabel::parse(LABEL.replace(from, to).as_bytes());
        assert!(matches!(
            parse("TIMELINE: 1", "TIMELINE: 2"),
            Err(BackupLabelError::Timeline { .. })
        ));
        assert!(matches!(
            parse("standby", "elsewhere"),
            Err(BackupLabelError::Value {
                key: "BACKUP FROM",
                ..
            })
        ));
        assert!(matches!(
            parse("0/2000060", "2000060"),
            Err(BackupLabelError::Value {
                key: "CHECKPOINT LOCATION",
                ..
            })
        ));
        assert!(matches!(
            parse("02)", "02"),
            Err(BackupLabelError::Value {
                key: "START WAL LOCATION",
                ..
            })
        ));
        let half = format!("{LABEL}INCREMENTAL FROM LSN: 0/1\n");
        assert_eq!(
            BackupLabel::parse(half.as_bytes()),
            Err(BackupLabelError::Missing("INCREMENTAL FROM TLI"))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, at in 0usize..LABEL.len(), byte: u8) {
            let _ = BackupLabel::parse(&bytes);
            let mut label = LABEL.as_bytes().to_vec();
            label[at] = byte;
            let _ = BackupLabel::parse(&label);
        }
    }
}
