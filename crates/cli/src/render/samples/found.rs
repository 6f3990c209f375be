//! Windows, and what was found.

use jiff::Timestamp;
use walden_engine::find::{FindReport, Finding, NoWayBack, What};
use walden_engine::index::{LastCommit, RunEnd};
use walden_engine::windows::{RestoreWindow, SystemWindows, TimelineWindows, Windows};
use walden_model::incident::{Action, Doubt, Incident, Lost, Object};
use walden_model::windows::WindowStart;
use walden_model::{DamagedDocument, Gap, TimelineWindow};
use walden_pg::wal_record::RelationOid;
use walden_pg::{Lsn, TimelineId};

use super::{identity, last_commit, record, segment};

/// Twelve seconds after the last commit.
pub fn now() -> Timestamp {
    "2026-11-22T17:58:13.123456Z".parse().expect("a time")
}

/// The newest window, from the only backup.
pub fn newest() -> RestoreWindow {
    let record = record();
    RestoreWindow {
        window: TimelineWindow {
            timeline: TimelineId(2),
            from: WindowStart {
                backup: record.backup_id.clone(),
                timeline: record.timeline,
                lsn: record.stop_lsn,
                at: record.stopped_at,
            },
            backups: vec![record.backup_id],
            first_segment: segment(1, 3),
            last_segment: segment(2, 7),
            segments: 5,
            ranges: vec![],
            gap: None,
        },
        end: RunEnd {
            commit: LastCommit::Known(last_commit()),
            wal_end: Some(Lsn(0x700_0000)),
        },
        archived_at: Some(now()),
    }
}

pub fn windows() -> Windows {
    let mut older = newest();
    older.window.timeline = TimelineId(1);
    older.window.last_segment = segment(1, 4);
    older.window.segments = 2;
    older.window.gap = Some(Gap {
        timeline: TimelineId(1),
        first: segment(1, 5),
        last: segment(1, 6),
        conflict: None,
        broken: None,
    });
    older.end = RunEnd {
        commit: LastCommit::Unknown,
        wal_end: None,
    };
    let timeline = |timeline, windows| TimelineWindows {
        timeline: TimelineId(timeline),
        windows: Ok(windows),
        newest_archived_at: Some(now()),
    };
    Windows {
        cluster: "main".parse().expect("a name"),
        systems: vec![SystemWindows {
            identity: identity(),
            timelines: vec![timeline(1, vec![older]), timeline(2, vec![newest()])],
            damaged_documents: vec![DamagedDocument {
                key: "main/7/commits/x.json".to_owned(),
                why: "its last line does not fit".to_owned(),
            }],
            conflicts: vec![segment(2, 10)],
            out: vec![],
        }],
        damaged_registrations: vec![],
    }
}

/// A loss with a way back, one that may be none, and a restore point.
pub fn findings() -> FindReport {
    let time = last_commit().time;
    let incident = |action, object, rows, doubt, lost| {
        What::Incident(Incident {
            time,
            xid: 745,
            lsn: Lsn(0x6FF_0000),
            committed_at: Lsn(0x6FF_FF00),
            action,
            object,
            along: 0,
            rows,
            doubt,
            lost,
        })
    };
    let finding = |xid, what, restore| Finding {
        time,
        xid,
        lsn: Lsn(0x6FF_0000),
        timeline: TimelineId(2),
        what,
        restore,
    };
    let words = |words: &[&str]| Ok(words.iter().map(|word| (*word).to_owned()).collect());
    let unnamed = Object::Unnamed {
        database: "\"sh\x1bop\"".to_owned(),
        oid: Some(RelationOid {
            database: 5,
            relation: 16384,
        }),
        file: None,
    };
    let database = Object::Database("shop".to_owned());
    FindReport {
        cluster: "main".parse().expect("a name"),
        system: identity().system_identifier,
        timeline: TimelineId(2),
        searched: Some((Lsn(0x300_0000), Lsn(0x700_0000))),
        findings: vec![
            finding(
                Some(4_294_968_041),
                incident(Action::DropDatabase, database, Some(1000), None, None),
                words(&[
                    "restore",
                    "/my data/before",
                    "--target-lsn",
                    "0/6FF0000",
                    "--target-exclusive",
                ]),
            ),
            finding(
                Some(745),
                incident(
                    Action::Truncate,
                    unnamed,
                    None,
                    Some(Doubt::Rebuilt),
                    Some(Lost::Unlogged),
                ),
                Err(NoWayBack::Lost(Lost::Unlogged)),
            ),
            finding(
                None,
                What::RestorePoint("before upgrade".to_owned()),
                words(&["restore", "/at", "--target-lsn", "0/6FF0000"]),
            ),
        ],
        more: true,
        gaps: vec![Gap {
            timeline: TimelineId(1),
            first: segment(1, 5),
            last: segment(1, 6),
            conflict: None,
            broken: None,
        }],
        unreadable: vec![segment(2, 7)],
        nameless: true,
        out: vec![],
    }
}
