//! Plans over an archive of 100,000 segments and 100 backups: 1.6 TB of WAL, in segments of 16 MB.

#![allow(clippy::unwrap_used, reason = "a benchmark's way to fail")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use jiff::Timestamp;
use walden_model::{
    BackupId, BackupKind, BackupRecord, Catalog, ControlSettings, PlanOptions, RandomId,
    RecoveryPlan, RecoveryTarget, Sha256Digest, TargetKind, WalRange,
};
use walden_pg::{Lsn, SystemIdentifier, TimelineId, WalSegmentSize};

const SEGMENTS: u64 = 100_000;
const BACKUPS: u64 = 100;
const SYSTEM: SystemIdentifier = SystemIdentifier(7_302_911_111_111_111_111);
const TIMELINE: TimelineId = TimelineId(1);

fn backup(size: WalSegmentSize, number: u64) -> BackupRecord {
    let time = |seconds| Timestamp::from_second(1_795_348_800 + seconds).unwrap();
    let started_at = time(3600 * i64::try_from(number).unwrap());
    let start_lsn = Lsn((1 + number * SEGMENTS / BACKUPS) * size.bytes() + 40);
    let stop_lsn = Lsn(start_lsn.0 + 1000);
    let backup_id = BackupId::new(started_at, u32::try_from(number).unwrap());
    BackupRecord {
        backup_id,
        archive_id: RandomId([7; 16]),
        cluster: "main".parse().unwrap(),
        system_identifier: SYSTEM,
        write_token: RandomId([9; 16]),
        backup_kind: BackupKind::Full,
        parents: Vec::new(),
        pg_version: 17,
        pg_version_num: 170_011,
        wal_segment_size: size,
        block_size: 8192,
        data_checksums: true,
        host: "db1".to_owned(),
        from_standby: false,
        label: "walden".to_owned(),
        annotations: BTreeMap::new(),
        started_at,
        stopped_at: time(3600 * i64::try_from(number).unwrap() + 60),
        start_lsn,
        stop_lsn,
        checkpoint_lsn: Lsn(start_lsn.0 + 40),
        timeline: TIMELINE,
        wal_ranges: vec![WalRange {
            timeline: TIMELINE,
            start: start_lsn,
            end: stop_lsn,
        }],
        snapshot: None,
        control: ControlSettings {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level: "replica".to_owned(),
        },
        tablespaces: Vec::new(),
        cluster_size: 40 << 30,
        stored_size: 10 << 30,
        files: 1200,
        packs: Vec::new(),
        file_map: Vec::new(),
        damaged: Vec::new(),
        damaged_blocks: 0,
        extras: Vec::new(),
        names: None,
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();

    let size = WalSegmentSize::new(16 << 20).unwrap();
    let mut catalog = Catalog::empty("main".parse().unwrap(), SYSTEM, RandomId([7; 16]), size);
    let segments = &mut catalog.wal.entry(TIMELINE).or_default().segments;
    segments.extend((1..=SEGMENTS).map(|number| (number, 4_000_000)));
    catalog.backups = (0..BACKUPS).map(|number| backup(size, number)).collect();

    let middle = Lsn(SEGMENTS / 2 * size.bytes());
    for (name, kind) in [
        ("latest", TargetKind::Latest),
        ("an LSN in the middle", TargetKind::Lsn(middle)),
    ] {
        let target = RecoveryTarget {
            kind,
            ..RecoveryTarget::default()
        };
        criterion.bench_function(&format!("model/plan, 100,000 segments: {name}"), |bench| {
            bench.iter(|| {
                RecoveryPlan::build(black_box(&catalog), &target, &PlanOptions::default()).unwrap()
            });
        });
    }
    let oldest = catalog.backups.first().unwrap();
    criterion.bench_function("model/window of the oldest backup", |bench| {
        bench.iter(|| catalog.window(black_box(oldest)).unwrap());
    });

    let content = vec![7; 1 << 20];
    let mut group = criterion.benchmark_group("model");
    group.throughput(Throughput::Bytes(content.len() as u64));
    group.bench_function("SHA-256", |bench| {
        bench.iter(|| Sha256Digest::of(black_box(&content)));
    });
    group.finish();
    criterion.final_summary();
}
