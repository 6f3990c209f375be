//! An expiry that was carried out.

use walden_engine::expire::{ExpireReport, Left, Removed, SystemExpiry};
use walden_model::retention::{ExpirePlan, Kept, KeptWal, Pin, Reason};
use walden_model::{BackupId, BackupRecord, Catalog, SegmentRange};
use walden_pg::{Lsn, TimelineId};

use super::{MB, identity, record};

pub fn expiry() -> ExpireReport {
    let id = |text: &str| -> BackupId { text.parse().expect("an id") };
    let stays = BackupRecord {
        backup_id: id("20261123T175007Z-0badcaff"),
        start_lsn: Lsn(0x800_0028),
        stop_lsn: Lsn(0x800_0120),
        ..record()
    };
    let goes = record();
    let kept = stays.backup_id.clone();
    let pin = Pin::Until("2027-01-01T00:00:00Z".parse().expect("a time"));
    let identity = identity();
    let nothing = Catalog::empty(
        identity.cluster.clone(),
        identity.system_identifier,
        identity.archive_id,
        identity.wal_segment_size,
    );
    let plan = ExpirePlan {
        kept: vec![Kept {
            backup: kept.clone(),
            reasons: [Reason::Full, Reason::Pinned].into(),
            good: true,
        }],
        removed: vec![goes.backup_id.clone()],
        begun: [].into(),
        abandoned: vec![id("20261124T175007Z-0badcb00")],
        running: vec![],
        kept_wal: KeptWal::new(8, &nothing),
        wal: vec![SegmentRange {
            timeline: TimelineId(1),
            first: 1,
            last: 7,
        }],
        wal_bytes: 112 * MB,
    };
    let done = Removed {
        backups: plan.removed.clone(),
        abandoned: plan.abandoned.clone(),
        spared: vec![],
        objects: 12,
        bytes: 547 * MB,
        left: vec![Left {
            key: "main/7123456789012345678/wal/x".to_owned(),
            why: "permission denied".to_owned(),
        }],
        left_count: 1,
    };
    let records = [goes, stays].map(|record| (record.backup_id.clone(), record));
    ExpireReport {
        failed: None,
        repository: "here".to_owned(),
        cluster: "main".parse().expect("a name"),
        systems: vec![SystemExpiry {
            identity,
            plan: Ok(plan),
            records: records.into(),
            pins: [(kept, pin)].into(),
            done: Some(done),
        }],
    }
}
