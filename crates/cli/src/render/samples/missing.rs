//! What became of a server's WAL after a failover, and two servers in one archive.

use walden_engine::conflicts::{Conflict, Refused, RepositoryConflicts, Side, SideFacts};
use walden_engine::push::{Difference, PushOutcome, PushReport};
use walden_engine::push_missing::{PushMissingReport, Told, ToldFile};
use walden_model::unarchived::Fate;
use walden_model::{Event, RandomId, Resolved, SegmentRange, Sha256Digest, Whose, Writer};
use walden_pg::{Lsn, TimelineId, WalFileName, WalSegmentSize};

use super::{SYSTEM, now, segment};

pub fn push_missing() -> Vec<PushMissingReport> {
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
    let told = Told {
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
    };
    vec![PushMissingReport {
        repository: "here".to_owned(),
        required: true,
        told: Ok(told),
    }]
}

fn writer(host: &str) -> Writer {
    Writer {
        host: host.to_owned(),
        started_at: now(),
        pid: 4711,
        version: "0.1.0".to_owned(),
    }
}

pub fn resolved() -> Event<Resolved> {
    let body = Resolved {
        file: WalFileName::Segment(segment(1, 6)),
        archived: Sha256Digest([1; 32]),
        aside: Sha256Digest([2; 32]),
        archived_is: Whose::Ours,
    };
    Event::new(RandomId([7; 16]), now(), 7, writer("laptop"), body)
}

pub fn conflicts() -> Vec<RepositoryConflicts> {
    let side = |key: &str, host: &str, digest| Side {
        key: key.to_owned(),
        read: Ok(SideFacts {
            size: 16 << 20,
            sha256: Some(Sha256Digest([digest; 32])),
            writer: writer(host),
        }),
    };
    let conflict = |number, decision| Conflict {
        file: WalFileName::Segment(segment(1, number)),
        archived: side("main/1/wal/x.zst", "db1", 1),
        aside: side("main/1/quarantine/x.zst", "clone", 2),
        difference: Some(Difference::Lsn(Lsn(0x600_2000))),
        decision,
    };
    let refused = Refused {
        file: WalFileName::Segment(segment(1, 8)),
        archived: Ok((Difference::Lsn(Lsn(0x800_0120)), writer("db1"))),
    };
    vec![RepositoryConflicts {
        repository: "here".to_owned(),
        system: SYSTEM,
        set_aside: vec![conflict(6, Some(resolved())), conflict(7, None)],
        refused: vec![refused],
        partials: [(segment(1, 9), 2)].into(),
    }]
}
