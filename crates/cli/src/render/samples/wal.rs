//! Archived WAL.

use jiff::Timestamp;
use walden_engine::wal::{ArchivedWal, Indexed, ShownSegment};
use walden_model::index::*;
use walden_model::{Gap, Sha256Digest, WalName};
use walden_pg::wal_record::{RelFileLocator, RelationOid};
use walden_pg::{Lsn, TimelineId};

use super::{identity, segment};

fn time(second: &str) -> Timestamp {
    format!("2026-11-22T17:50:{second}Z")
        .parse()
        .expect("a time")
}

fn end(kind: Outcome, xid: u32, lsn: u64, second: &str) -> End {
    End {
        kind,
        xid,
        lsn: Lsn(lsn),
        end_lsn: Lsn(lsn + 0x20),
        time: time(second),
    }
}

fn at<T>(what: T, lsn: u64) -> At<T> {
    At {
        what,
        lsn: Lsn(lsn),
    }
}

fn relation(relation: u32) -> RelationOid {
    RelationOid {
        database: 5,
        relation,
    }
}

fn file(number: u32) -> RelFileLocator {
    RelFileLocator {
        tablespace: 1663,
        database: 5,
        number,
    }
}

fn rows(rows: u64, number: u32, lsn: u64) -> Vec<RowsOf> {
    vec![RowsOf {
        file: file(number),
        rows,
        lsn: Lsn(lsn),
    }]
}

fn facts() -> TransactionFacts {
    TransactionFacts {
        xid: 731,
        first_lsn: Lsn(0x500_0060),
        top: Some(730),
        locks: vec![at(relation(16384), 0x500_0068)],
        created: vec![CreatedFile {
            file: file(16390),
            lsn: Lsn(0x500_0070),
            rows: true,
            pages: true,
        }],
        databases_dropped: vec![at(16400, 0x500_0078)],
        database_rows: vec![at(DatabaseRow::Inplace, 0x500_0074)],
        truncated: vec![at(relation(16385), 0x500_0080)],
        deleted: rows(1000, 16386, 0x500_0088),
        updated: rows(10, 16387, 0x500_0090),
        class_rows: ClassRows {
            inserted: 1,
            updated: 0,
            deleted: 2,
        },
        end: Some(TransactionOutcome {
            end: end(Outcome::Commit, 731, 0x500_0100, "07.123456"),
            subxids: vec![],
            database: 5,
            dropped_files: vec![file(16384), file(16388)],
            dropped_stats: vec![relation(16384)],
            invalidated: vec![relation(16384)],
        }),
    }
}

fn point() -> RestorePoint {
    RestorePoint {
        name: "before \"upgrade\"".to_owned(),
        lsn: Lsn(0x500_0180),
        end_lsn: Lsn(0x500_01E8),
        time: time("07.5"),
    }
}

fn index() -> SegmentIndex {
    SegmentIndex {
        pg_version: 17,
        first_lsn: Some(Lsn(0x500_0028)),
        end_lsn: Some(Lsn(0x5FF_FF00)),
        records: 4711,
        stopped: Some(Stopped {
            at: Lsn(0x5FF_FF00),
            why: StopReason::Switch,
        }),
        head: Some(Fragment {
            lsn: None,
            length: 100,
            first_lsn: None,
            end_lsn: None,
            crc32c: 1,
            bytes: String::new(),
        }),
        tail: Some(Fragment {
            lsn: Some(Lsn(0x5FF_FF00)),
            length: 256,
            first_lsn: None,
            end_lsn: None,
            crc32c: 2,
            bytes: String::new(),
        }),
        ends: Some(Ends {
            commits: 2,
            aborts: 1,
            first: end(Outcome::Commit, 731, 0x500_0100, "07.123456"),
            last: end(Outcome::Abort, 745, 0x500_0300, "09"),
            last_commit: Some(end(Outcome::Commit, 740, 0x500_0200, "08")),
            min_time: time("07.123456"),
            max_time: time("09"),
            xids: XidRange {
                oldest: 731,
                newest: 745,
            },
            subxids: None,
        }),
        next_xid: Some(4_294_968_042),
        restore_points: vec![point()],
        checkpoints: vec![CheckpointMark {
            lsn: Lsn(0x500_0048),
            redo: Lsn(0x500_0028),
            shutdown: true,
            time: time("07"),
        }],
        switches: vec![TimelineSwitch {
            lsn: Lsn(0x500_0028),
            timeline: TimelineId(2),
            previous: TimelineId(1),
            time: time("07"),
        }],
        transactions: vec![facts()],
        incomplete: true,
        ..SegmentIndex::empty()
    }
}

/// A segment that has everything, read in full.
pub fn shown_segment() -> ShownSegment {
    ShownSegment {
        identity: identity(),
        name: segment(2, 5),
        key: "main/7123456789012345678/wal/00000002/00000000/000000020000000000000005.zst"
            .to_owned(),
        stored_size: 2706 * 1024,
        content_size: 16 << 20,
        sha256: Some(Sha256Digest([5; 32])),
        conflict: true,
        index: Some(Box::new(index())),
        moments: Some(vec![
            Moment {
                lsn: Lsn(0x500_0100),
                end_lsn: Lsn(0x500_0120),
                what: MomentKind::End {
                    kind: Outcome::Commit,
                    xid: 731,
                    time: time("07.123456"),
                    subxids: [732, 733].into(),
                    prepared: true,
                },
            },
            Moment {
                lsn: point().lsn,
                end_lsn: point().end_lsn,
                what: MomentKind::RestorePoint {
                    name: point().name,
                    time: point().time,
                },
            },
        ]),
    }
}

/// One of each kind, a gap among them.
pub fn archived_wal() -> Vec<ArchivedWal> {
    let file = |name, index| ArchivedWal {
        name,
        stored_size: 2706 * 1024,
        conflict: false,
        missing_before: None,
        index,
    };
    vec![
        file(WalName::History(TimelineId(2)), Indexed::NoRecords),
        file(
            WalName::Backup {
                segment: segment(2, 5),
                offset: 0x28,
            },
            Indexed::NoRecords,
        ),
        file(
            WalName::Segment(segment(2, 5)),
            Indexed::Said(Box::new(index())),
        ),
        ArchivedWal {
            missing_before: Some(Gap {
                timeline: TimelineId(2),
                first: segment(2, 6),
                last: segment(2, 8),
                conflict: None,
                broken: None,
            }),
            conflict: true,
            ..file(WalName::Segment(segment(2, 9)), Indexed::Nothing)
        },
        file(
            WalName::Segment(segment(2, 10)),
            Indexed::Damaged("its digest does not fit".to_owned()),
        ),
        file(
            WalName::Segment(segment(2, 11)),
            Indexed::Said(Box::new(SegmentIndex {
                stopped: Some(Stopped {
                    at: Lsn(0xB00_0100),
                    why: StopReason::Damaged,
                }),
                records: 3,
                ..SegmentIndex::empty()
            })),
        ),
    ]
}
