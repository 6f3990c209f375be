//! Values for this crate's tests.

use std::collections::BTreeMap;

use jiff::Timestamp;
use walden_pg::history::{HistoryEntry, TimelineHistory};
use walden_pg::{Lsn, SystemIdentifier, TimelineId, WalSegmentSize};

use crate::catalog::Catalog;
use crate::digest::Sha256Digest;
use crate::keys::BackupId;
use crate::plan::{PlanOptions, RecoveryPlan};
use crate::records::{
    BackupKind, BackupRecord, ControlSettings, DamagedBlock, PackRef, RandomId, ShardRef, Snapshot,
    Tablespace, WalRange,
};
use crate::target::{RecoveryTarget, TargetKind, TargetTimeline};
use crate::unreachable::Unreachable;

/// One segment of the tests' catalogs, in bytes.
pub(crate) const SEGMENT: u64 = 1 << 20;

pub(crate) fn size() -> WalSegmentSize {
    WalSegmentSize::new(SEGMENT).unwrap()
}

/// 2026-11-22T12:00:00Z and some seconds.
pub(crate) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_348_800 + seconds).unwrap()
}

/// An LSN so many hundredths of a segment from the log's beginning.
pub(crate) fn lsn(hundredths: u64) -> Lsn {
    Lsn(hundredths * SEGMENT / 100)
}

pub(crate) fn id(number: u32) -> BackupId {
    BackupId::new(time(i64::from(number)), number)
}

/// A backup of one timeline; `start` and `stop` in hundredths of a segment; it stops at the second `stop`.
pub(crate) fn backup(number: u32, timeline: u32, start: u64, stop: u64) -> BackupRecord {
    let timeline = TimelineId(timeline);
    BackupRecord {
        backup_id: id(number),
        archive_id: RandomId([7; 16]),
        cluster: "main".parse().unwrap(),
        system_identifier: SystemIdentifier(7_302_911_111_111_111_111),
        write_token: RandomId([9; 16]),
        backup_kind: BackupKind::Full,
        parents: vec![],
        pg_version: 17,
        pg_version_num: 170_011,
        wal_segment_size: size(),
        block_size: 8192,
        data_checksums: true,
        host: "db1".to_owned(),
        from_standby: false,
        label: "walden".to_owned(),
        annotations: BTreeMap::from([("why".to_owned(), "before the upgrade".to_owned())]),
        started_at: time(i64::try_from(start).unwrap()),
        stopped_at: time(i64::try_from(stop).unwrap()),
        start_lsn: lsn(start),
        stop_lsn: lsn(stop),
        checkpoint_lsn: Lsn(lsn(start).0 + 40),
        timeline,
        wal_ranges: vec![WalRange {
            timeline,
            start: lsn(start),
            end: lsn(stop),
        }],
        snapshot: Some(Snapshot {
            xmin: 740,
            xmax: 745,
            in_progress: vec![740, 742],
        }),
        control: ControlSettings {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level: "replica".to_owned(),
        },
        tablespaces: vec![Tablespace {
            oid: 16400,
            path: "/srv/fast".to_owned(),
            size: 1 << 30,
        }],
        cluster_size: 40 << 30,
        stored_size: 10 << 30,
        files: 1200,
        packs: vec![PackRef {
            backup: id(number),
            number: 0,
            size: 10 << 30,
            table: Sha256Digest([1; 32]),
        }],
        file_map: vec![ShardRef {
            number: 0,
            size: 4096,
            table: Sha256Digest([2; 32]),
            entries: 1200,
        }],
        damaged: vec![DamagedBlock {
            path: "base/5/16384".to_owned(),
            block: 7,
            reason: "checksum".to_owned(),
        }],
        damaged_blocks: 1,
        extras: vec!["/etc/postgresql/17/main/postgresql.conf".to_owned()],
        names: None,
    }
}

/// A catalog without backups: segments by timeline, and forks as (timeline, its parent, hundredths of a segment).
pub(crate) fn catalog(wal: &[(u32, &[u64])], forks: &[(u32, u32, u64)]) -> Catalog {
    let mut catalog = Catalog::empty(
        "main".parse().unwrap(),
        SystemIdentifier(7_302_911_111_111_111_111),
        RandomId([7; 16]),
        size(),
    );
    for (timeline, numbers) in wal {
        let segments = &mut catalog
            .wal
            .entry(TimelineId(*timeline))
            .or_default()
            .segments;
        segments.extend(numbers.iter().map(|&number| (number, 1000)));
    }
    for &(timeline, parent, at) in forks {
        let parents = catalog
            .histories
            .get(&TimelineId(parent))
            .map(|history| history.entries.clone());
        let mut entries = parents.unwrap_or_default();
        entries.push(HistoryEntry {
            timeline: TimelineId(parent),
            switch: lsn(at),
            reason: String::new(),
        });
        let timeline = TimelineId(timeline);
        catalog
            .histories
            .insert(timeline, TimelineHistory { timeline, entries });
    }
    catalog
}

/// Segments 2 to 9 on timeline 1, and backups that end in 3 and 6.
pub(crate) fn whole() -> Catalog {
    let mut catalog = catalog(&[(1, &[2, 3, 4, 5, 6, 7, 8, 9])], &[]);
    catalog.backups = vec![backup(1, 1, 250, 350), backup(2, 1, 550, 650)];
    catalog.newest_archived_at.insert(TimelineId(1), time(1000));
    catalog
}

/// As [`whole`], without segments 7 and 8 and with a backup behind them.
pub(crate) fn broken() -> Catalog {
    let mut catalog = catalog(&[(1, &[2, 3, 4, 5, 6, 9, 10, 11])], &[]);
    catalog.backups = vec![
        backup(1, 1, 250, 350),
        backup(2, 1, 550, 650),
        backup(3, 1, 950, 1050),
    ];
    catalog.newest_archived_at.insert(TimelineId(1), time(1200));
    catalog
}

/// Timeline 2 leaves timeline 1 in segment 5, and timeline 1 goes on to segment 8; backups on both.
pub(crate) fn forked() -> Catalog {
    let mut catalog = catalog(&[(1, &[2, 3, 4, 5, 6, 7, 8]), (2, &[5, 6])], &[(2, 1, 550)]);
    catalog.backups = vec![backup(1, 1, 250, 350), backup(2, 1, 610, 650)];
    catalog
}

pub(crate) fn target(kind: TargetKind) -> RecoveryTarget {
    RecoveryTarget {
        kind,
        ..RecoveryTarget::default()
    }
}

pub(crate) fn plan(catalog: &Catalog, kind: TargetKind) -> Result<RecoveryPlan, Unreachable> {
    RecoveryPlan::build(catalog, &target(kind), &PlanOptions::default())
}

pub(crate) fn plan_with(
    catalog: &Catalog,
    kind: TargetKind,
    backup: u32,
) -> Result<RecoveryPlan, Unreachable> {
    let options = PlanOptions {
        backup: Some(id(backup)),
        ..PlanOptions::default()
    };
    RecoveryPlan::build(catalog, &target(kind), &options)
}

pub(crate) fn on(
    catalog: &Catalog,
    kind: TargetKind,
    timeline: u32,
) -> Result<RecoveryPlan, Unreachable> {
    let target = RecoveryTarget {
        timeline: TargetTimeline::Number(TimelineId(timeline)),
        ..target(kind)
    };
    RecoveryPlan::build(catalog, &target, &PlanOptions::default())
}

pub(crate) fn refusal(result: Result<RecoveryPlan, Unreachable>) -> String {
    result.expect_err("a refusal was expected").to_string()
}

pub(crate) fn runs(plan: &RecoveryPlan) -> Vec<String> {
    plan.wal
        .iter()
        .map(|run| {
            format!(
                "{} {} x{} {}B",
                run.first, run.last, run.count, run.stored_bytes
            )
        })
        .collect()
}
