//! Values for the tests of what is rendered.

mod copied;
mod expiry;
mod found;
mod missing;
mod verified;
mod wal;

use walden_engine::backup::{BackupError, BackupReport, Lacking};
use walden_engine::list::{ListedBackup, Listing, SystemListing};
use walden_model::index::{End, Outcome};
use walden_model::resolve::{Ending, RecordSpan, Stop};
use walden_model::{
    BackupKind, BackupRecord, ControlSettings, DamagedBlock, DamagedDocument, Encryption, Gap,
    IdentityDocument, Note, RandomId, RecoveryPlan, RecoveryTarget, Signal, TargetKind,
    UnfinishedBackup, WalRun, Window,
};
use walden_pg::history::TimelineSpan;
use walden_pg::{Lsn, SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};

pub use copied::copied;
pub use expiry::expiry;
pub use found::{findings, newest, now, windows};
pub use missing::{conflicts, push_missing, resolved};
pub use verified::{verified, verified_event};
pub use wal::{archived_wal, shown_segment};

const SYSTEM: SystemIdentifier = SystemIdentifier(7_123_456_789_012_345_678);
const MB: u64 = 1024 * 1024;

pub fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId(timeline), number, WalSegmentSize::DEFAULT)
}

/// A backup that one of three repositories has.
pub fn taken() -> BackupReport {
    let lacking = |repository: &str, required| Lacking {
        repository: repository.to_owned(),
        required,
        why: BackupError::NoWalRange,
    };
    BackupReport {
        record: record(),
        committed: vec!["here".to_owned()],
        lacking: vec![lacking("there", true), lacking("elsewhere", false)],
        warnings: vec!["no names".to_owned()],
    }
}

pub fn record() -> BackupRecord {
    BackupRecord {
        backup_id: "20261122T175007Z-0badcafe".parse().expect("an id"),
        archive_id: RandomId([7; 16]),
        cluster: "main".parse().expect("a name"),
        system_identifier: SYSTEM,
        write_token: RandomId([8; 16]),
        backup_kind: BackupKind::Full,
        parents: vec![],
        pg_version: 17,
        pg_version_num: 170_011,
        wal_segment_size: WalSegmentSize::DEFAULT,
        block_size: 8192,
        data_checksums: true,
        host: "db1".to_owned(),
        from_standby: false,
        label: "walden".to_owned(),
        annotations: [].into(),
        started_at: "2026-11-22T17:50:07Z".parse().expect("a time"),
        stopped_at: "2026-11-22T17:50:09.5Z".parse().expect("a time"),
        start_lsn: Lsn(0x300_0028),
        stop_lsn: Lsn(0x300_0120),
        checkpoint_lsn: Lsn(0x300_0060),
        timeline: TimelineId(1),
        wal_ranges: vec![],
        snapshot: None,
        control: ControlSettings {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level: "replica".to_owned(),
        },
        tablespaces: vec![],
        cluster_size: 4196 * MB,
        stored_size: 547 * MB,
        files: 1234,
        packs: vec![],
        file_map: vec![],
        damaged: vec![],
        damaged_blocks: 0,
        extras: vec![],
        names: None,
    }
}

pub fn identity() -> IdentityDocument {
    IdentityDocument {
        cluster: "main".parse().expect("a name"),
        system_identifier: SYSTEM,
        archive_id: RandomId([7; 16]),
        wal_segment_size: WalSegmentSize::DEFAULT,
        pg_version: 17,
        created_at: "2026-11-22T17:00:00Z".parse().expect("a time"),
        host: "db1".to_owned(),
        encryption: Encryption::None,
    }
}

pub fn listing() -> Listing {
    let second = BackupRecord {
        backup_id: "20261123T175007Z-0badcaff".parse().expect("an id"),
        host: "db2".to_owned(),
        from_standby: true,
        annotations: [("reason".to_owned(), "upgrade".to_owned())].into(),
        started_at: "2026-11-23T17:50:07Z".parse().expect("a time"),
        stopped_at: "2026-11-23T17:53:27Z".parse().expect("a time"),
        start_lsn: Lsn(0x900_0028),
        stop_lsn: Lsn(0x900_0120),
        timeline: TimelineId(2),
        damaged: vec![DamagedBlock {
            path: "base/5/1259".to_owned(),
            block: 7,
            reason: "the checksum is 1, and should be 2".to_owned(),
        }],
        damaged_blocks: 2,
        ..record()
    };
    let gap = Gap {
        timeline: TimelineId(2),
        first: segment(2, 9),
        last: segment(2, 10),
        conflict: Some(segment(2, 10)),
        broken: None,
    };
    Listing {
        cluster: "main".parse().expect("a name"),
        systems: vec![SystemListing {
            identity: identity(),
            backups: vec![
                ListedBackup {
                    record: record(),
                    window: Ok(Window {
                        timeline: TimelineId(2),
                        until: Lsn(0x800_0000),
                        last_segment: Some(segment(2, 7)),
                        first_gap: None,
                        whole: true,
                    }),
                    until: Some(last_commit()),
                    missing_packs: vec![],
                    repositories: vec![],
                },
                ListedBackup {
                    window: Ok(Window {
                        timeline: TimelineId(2),
                        until: second.start_lsn,
                        last_segment: None,
                        first_gap: Some(gap),
                        whole: false,
                    }),
                    until: None,
                    missing_packs: vec![format!(
                        "main/{SYSTEM}/backups/{}/packs/00000003.zst",
                        second.backup_id
                    )],
                    repositories: vec![],
                    record: second,
                },
            ],
            unfinished: vec![UnfinishedBackup {
                id: "20261124T175007Z-0badcb00".parse().expect("an id"),
                started_at: "2026-11-24T17:50:07Z".parse().expect("a time"),
                host: "db1".to_owned(),
            }],
            damaged_documents: vec![DamagedDocument {
                key: format!("main/{SYSTEM}/commits/x.json"),
                why: "its last line does not fit".to_owned(),
            }],
            verified: vec![verified_event()],
            newest: Some(newest()),
            conflicts: vec![segment(2, 10)],
            repositories: vec![],
        }],
        damaged_registrations: vec![DamagedDocument {
            key: "main/identity/7.json".to_owned(),
            why: "a bit flipped".to_owned(),
        }],
    }
}

pub fn last_commit() -> End {
    End {
        kind: Outcome::Commit,
        xid: 745,
        lsn: Lsn(0x6FF_FF00),
        end_lsn: Lsn(0x6FF_FF28),
        time: "2026-11-22T17:58:01.123456Z".parse().expect("a time"),
    }
}

pub fn plan() -> RecoveryPlan {
    let run = |timeline, first, last| WalRun {
        timeline: TimelineId(timeline),
        first: segment(timeline, first),
        last: segment(timeline, last),
        count: last - first + 1,
        stored_bytes: (last - first + 1) * 43 * MB / 10,
    };
    let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    RecoveryPlan {
        backup: record(),
        target: RecoveryTarget {
            kind: TargetKind::Lsn(Lsn(0x700_0000)),
            inclusive: false,
            ..RecoveryTarget::default()
        },
        timeline: TimelineId(2),
        lineage: vec![
            TimelineSpan {
                timeline: TimelineId(1),
                begin: Lsn(0),
                end: Some(Lsn(0x500_0000)),
            },
            TimelineSpan {
                timeline: TimelineId(2),
                begin: Lsn(0x500_0000),
                end: None,
            },
        ],
        wal: vec![run(1, 3, 4), run(2, 5, 7)],
        restore_size: 4196 * MB,
        stored_size: 547 * MB,
        settings: vec![
            setting(
                "restore_command",
                "walden-wal-fetch --config '/etc/walden/walden.yaml' %f %p",
            ),
            setting("recovery_target_lsn", "0/7000000"),
            setting("recovery_target_timeline", "2"),
        ],
        signal: Signal::Recovery,
        take_over: false,
        notes: vec![Note::UnloggedTables, Note::DamagedBlocks(3)],
        ending: Some(Ending {
            stop: Stop::Before(RecordSpan {
                lsn: Lsn(0x700_0028),
                end_lsn: Lsn(0x700_0060),
            }),
            last_commit: Some(last_commit()),
            commits: 12,
        }),
    }
}
