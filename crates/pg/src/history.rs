//! Timeline history files: which timelines a timeline came from (`access/transam/timeline.c`: `readTimeLineHistory`).

use crate::{Lsn, TimelineId};

/// What `<timeline>.history` says. Timeline 1 has no such file: its history has no entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineHistory {
    /// The timeline that the history is of.
    pub timeline: TimelineId,
    /// Its ancestors, oldest first; their numbers rise and stay below the timeline's own.
    pub entries: Vec<HistoryEntry>,
}

/// One ancestor of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The ancestor.
    pub timeline: TimelineId,
    /// Where its successor left it, as the file says.
    pub switch: Lsn,
    /// Why, in PostgreSQL's words. For people only.
    pub reason: String,
}

/// A stretch of the log that one timeline of a lineage contributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineSpan {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its first byte in this lineage.
    pub begin: Lsn,
    /// The first byte that is its successor's; `None` for the last timeline.
    pub end: Option<Lsn>,
}

/// The bytes are not the history of that timeline. Lines are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// A line is neither a comment nor an ancestor with its switch point.
    #[error(
        "line {line} of the history of timeline {timeline} is not a timeline and an LSN: {text:?}"
    )]
    Syntax {
        /// The timeline that the history is of.
        timeline: TimelineId,
        /// The line's number.
        line: usize,
        /// What stands there.
        text: String,
    },
    /// An ancestor's number is not above the one before.
    #[error(
        "line {line} of the history of timeline {timeline} names timeline {found} after timeline {before}, but ancestors' numbers must rise"
    )]
    Order {
        /// The timeline that the history is of.
        timeline: TimelineId,
        /// The line's number.
        line: usize,
        /// The ancestor of that line.
        found: TimelineId,
        /// The ancestor before.
        before: TimelineId,
    },
    /// An ancestor's number is not below the timeline's own.
    #[error(
        "line {line} of the history of timeline {timeline} names timeline {found}, which cannot be its ancestor: the number is not lower"
    )]
    NotAncestor {
        /// The timeline that the history is of.
        timeline: TimelineId,
        /// The line's number.
        line: usize,
        /// The ancestor of that line.
        found: TimelineId,
    },
}

impl TimelineHistory {
    /// Reads the history file of `timeline`. An empty one is right: a timeline without ancestors.
    pub fn parse(timeline: TimelineId, bytes: &[u8]) -> Result<TimelineHistory, HistoryError> {
        let mut entries: Vec<HistoryEntry> = Vec::new();
        for (line, raw) in (1..).zip(bytes.split(|&b| b == b'\n')) {
            let text = String::from_utf8_lossy(raw);
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let entry = entry(text).ok_or_else(|| HistoryError::Syntax {
                timeline,
                line,
                text: text.chars().take(200).collect(),
            })?;
            let found = entry.timeline;
            if let Some(before) = entries
                .last()
                .map(|last| last.timeline)
                .filter(|&before| found <= before)
            {
                return Err(HistoryError::Order {
                    timeline,
                    line,
                    found,
                    before,
                });
            }
            if found >= timeline {
                return Err(HistoryError::NotAncestor {
                    timeline,
                    line,
                    found,
                });
            }
            entries.push(entry);
        }
        Ok(TimelineHistory { timeline, entries })
    }

    /// The stretches of log that lead to this timeline: oldest first, without gap or overlap, from `0/0` on, the last being
    /// the timeline itself without an end.
    ///
    /// A promotion in mid-recovery can write a switch point that lies before the one above it. What is
    /// behind the later fork is then not part of the lineage, and an ancestor that contributes nothing is left out.
    pub fn lineage(&self) -> Vec<TimelineSpan> {
        let mut spans = Vec::with_capacity(self.entries.len() + 1);
        let mut begin = Lsn(0);
        for (entry, end) in self.entries.iter().zip(self.ends()) {
            if begin < end {
                spans.push(TimelineSpan {
                    timeline: entry.timeline,
                    begin,
                    end: Some(end),
                });
                begin = end;
            }
        }
        spans.push(TimelineSpan {
            timeline: self.timeline,
            begin,
            end: None,
        });
        spans
    }

    /// Whether `timeline` is this one or one of its ancestors.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        timeline == self.timeline || self.entries.iter().any(|entry| entry.timeline == timeline)
    }

    /// Where this lineage leaves the ancestor `timeline`: from here on, that timeline's log is not ours.
    /// `None` for the timeline itself and for one that is no ancestor.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.entries
            .iter()
            .zip(self.ends())
            .find(|(entry, _)| entry.timeline == timeline)
            .map(|(_, end)| end)
    }

    /// Each ancestor's end: its own switch point, or a later fork's that lies before it.
    fn ends(&self) -> Vec<Lsn> {
        let mut end = Lsn(u64::MAX);
        let mut ends: Vec<Lsn> = Vec::with_capacity(self.entries.len());
        for entry in self.entries.iter().rev() {
            end = end.min(entry.switch);
            ends.push(end);
        }
        ends.reverse();
        ends
    }
}

fn entry(text: &str) -> Option<HistoryEntry> {
    let (timeline, rest) = text.split_once(char::is_whitespace)?;
    let rest = rest.trim_start();
    let (switch, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some(HistoryEntry {
        timeline: timeline.parse().ok()?,
        switch: switch.parse().ok()?,
        reason: reason.trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(timeline: u32, text: &str) -> Result<TimelineHistory, HistoryError> {
        TimelineHistory::parse(TimelineId(timeline), text.as_bytes())
    }

    fn span(timeline: u32, begin: u64, end: Option<u64>) -> TimelineSpan {
        TimelineSpan {
            timeline: TimelineId(timeline),
            begin: Lsn(begin),
            end: end.map(Lsn),
        }
    }

    #[test]
    fn comments_blank_lines_and_a_missing_last_newline_are_fine() {
        let history = parse(
            4,
            "# a comment\n\n1\t0/30000A0\tno recovery target specified\n\r\n  3 1/0",
        )
        .unwrap();
        assert_eq!(
            history.lineage(),
            [
                span(1, 0, Some(0x300_00A0)),
                span(3, 0x300_00A0, Some(1 << 32)),
                span(4, 1 << 32, None)
            ]
        );
        assert_eq!(history.entries[0].reason, "no recovery target specified");
        assert!(
            history.contains(TimelineId(3))
                && history.contains(TimelineId(4))
                && !history.contains(TimelineId(2))
        );
        assert_eq!(
            (
                history.end_of(TimelineId(3)),
                history.end_of(TimelineId(4)),
                history.end_of(TimelineId(2))
            ),
            (Some(Lsn(1 << 32)), None, None)
        );
    }

    #[test]
    fn a_timeline_without_ancestors_is_its_own_lineage() {
        assert_eq!(parse(1, "").unwrap().lineage(), [span(1, 0, None)]);
    }

    #[test]
    fn a_fork_before_the_fork_above_it_cuts_that_one_off() {
        let history = parse(3, "1\t0/5000000\n2\t0/4000000\n").unwrap();
        assert_eq!(
            history.lineage(),
            [span(1, 0, Some(0x400_0000)), span(3, 0x400_0000, None)]
        );
        assert_eq!(history.end_of(TimelineId(1)), Some(Lsn(0x400_0000)));
    }

    #[test]
    fn what_postgresql_refuses_is_refused() {
        for (text, what) in [
            ("x 0/1", "no number"),
            ("1", "no LSN"),
            ("1 0", "half an LSN"),
            ("0 0/1", "timeline zero"),
            ("99999999999 0/1", "too large"),
        ] {
            assert!(
                matches!(parse(9, text), Err(HistoryError::Syntax { line: 1, .. })),
                "{what} was taken"
            );
        }
        assert!(matches!(
            parse(9, "2 0/1\n2 0/2"),
            Err(HistoryError::Order { line: 2, .. })
        ));
        assert!(matches!(
            parse(2, "1 0/1\n2 0/2"),
            Err(HistoryError::NotAncestor { line: 2, .. })
        ));
    }

    proptest! {
        #[test]
        fn lineages_are_contiguous(switches in prop::collection::btree_map(1u32..50, 1u64.., 0..10)) {
            let text: String = switches.iter().map(|(timeline, &switch)| format!("{timeline}\t{}\tbecause\n", Lsn(switch))).collect();
            let history = parse(50, &text).unwrap();
            prop_assert_eq!(history.entries.len(), switches.len());
            let lineage = history.lineage();
            prop_assert_eq!(lineage[0].begin, Lsn(0));
            prop_assert_eq!(lineage.last().map(|last| (last.timeline, last.end)), Some((TimelineId(50), None)));
            for pair in lineage.windows(2) {
                prop_assert_eq!(pair[0].end, Some(pair[1].begin), "a gap or an overlap");
                prop_assert!(pair[0].begin < pair[1].begin && pair[0].timeline < pair[1].timeline);
                prop_assert_eq!(history.end_of(pair[0].timeline), pair[0].end);
            }
        }

        #[test]
        fn no_bytes_panic(timeline: u32, bytes: Vec<u8>, text in "([0-9]{1,3}[\t ]?[0-9A-F]/[0-9A-F]{1,9}[ #]?\n?){0,9}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(history) = TimelineHistory::parse(TimelineId(timeline), bytes) {
                    history.lineage();
                }
            }
        }
    }
}
