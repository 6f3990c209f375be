//! What became of a server's WAL after a failover.

use walden_engine::push::{PushOutcome, PushReport};
use walden_engine::push_missing::{PushMissingReport, ToldFile};
use walden_model::SegmentRange;
use walden_model::unarchived::Fate;
use walden_pg::{Lsn, TimelineId, WalFileName, WalSegmentSize};

use super::{SYSTEM, segment};

pub fn push_missing() -> PushMissingReport {
    let file = |timeline, number, fate| ToldFile {
        file: WalFileName::Segment(segment(timeline, number)),
        fate,
        pushed: None,
    };
    let pushed = ToldFile {
        pushed: Some(Ok(PushReport {
            file: WalFileName::Segment(segment(1, 6)),
            key: "main/1/wal/x.zst".to_owned(),
            outcome: PushOutcome::Stored,
            size: 16 << 20,
            stored: 5 << 20,
            stored_in: vec!["here".to_owned()],
            lacking: vec![],
            taken_along: 0,
            warning: None,
        })),
        ..file(1, 6, Fate::Missing)
    };
    PushMissingReport {
        system: SYSTEM,
        timeline: TimelineId(2),
        segment_size: WalSegmentSize::DEFAULT,
        files: vec![
            file(1, 5, Fate::Archived),
            pushed,
            file(
                1,
                7,
                Fate::Left {
                    fork: Lsn(0x700_0120),
                },
            ),
            file(2, 8, Fate::Unfinished),
            file(2, 9, Fate::NotWritten),
        ],
        gaps: vec![SegmentRange {
            timeline: TimelineId(1),
            first: 3,
            last: 4,
        }],
    }
}
