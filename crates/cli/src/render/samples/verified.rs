//! What a verify found.

use std::time::Duration;

use walden_engine::list::ListedVerify;
use walden_engine::verify::{SystemReport, VerifyReport};
use walden_model::{
    Affected, Event, Finding, FindingKind, Findings, RandomId, Verified, VerifyMode, Writer,
};

use super::{MB, SYSTEM, record};

pub fn verified() -> VerifyReport {
    let mut findings = Findings::default();
    findings.add(Finding {
        kind: FindingKind::SegmentDamaged,
        system: Some(SYSTEM),
        subject: format!("main/{SYSTEM}/wal/x.zst"),
        what: "the object is cut off".to_owned(),
        affected: Affected::lost(&record().backup_id),
        remedy: "take a new backup".to_owned(),
    });
    VerifyReport {
        repository: "here".to_owned(),
        location: "/srv/walden".to_owned(),
        cluster: record().cluster,
        mode: VerifyMode::All,
        backup: None,
        started_at: "2026-11-23T01:30:00Z".parse().expect("a time"),
        took: Duration::from_secs(12),
        systems: vec![SystemReport {
            system: SYSTEM,
            since: None,
            objects: 240,
            bytes: 954 * MB,
            backups: 2,
            segments: 120,
            complete: true,
            findings,
        }],
        findings: Findings::default(),
        warnings: vec![],
    }
}

pub fn verified_event() -> ListedVerify {
    let at = "2026-11-23T01:30:12Z".parse().expect("a time");
    let writer = Writer {
        host: "db1".to_owned(),
        started_at: at,
        pid: 4711,
        version: "0.1.0".to_owned(),
    };
    let body = Verified {
        repository_id: RandomId([1; 16]),
        mode: VerifyMode::All,
        backup: None,
        complete: true,
        proven_until: None,
        objects: 240,
        bytes: 954 * MB,
        seconds: 12,
        damaged: 1,
        gaps: 0,
        outages: 0,
        unproven: 0,
        notes: 0,
        lost_backups: vec![record().backup_id],
    };
    ListedVerify {
        repository: "here".to_owned(),
        event: Event::new(RandomId([7; 16]), at, 1, writer, body),
    }
}
