//! What an expiry removes and keeps: a table, and JSON.

use std::fmt::Write as _;

use serde::Serialize;
use walden_engine::expire::{ExpireError, ExpireReport, SystemExpiry};
use walden_model::retention::{ExpirePlan, Kept, Pin, Reason};
use walden_model::{BackupId, ClusterName};
use walden_pg::{Lsn, SegmentName, SystemIdentifier};

use super::{moment, size, table};

const COLUMNS: [&str; 7] = [
    "BACKUP",
    "ENDED",
    "TIMELINE",
    "STORED",
    "",
    "BECAUSE",
    "RESTORABLE",
];

/// One line a backup, oldest first; below, what becomes of WAL and of backups that never ended.
#[must_use]
pub fn expiry_page(reports: &[ExpireReport], several: bool) -> String {
    let mut page = String::new();
    for report in reports {
        for system in &report.systems {
            if several || report.systems.len() > 1 {
                let _ = writeln!(
                    page,
                    "{}repository {}, system identifier {}",
                    if page.is_empty() { "" } else { "\n" },
                    report.repository,
                    system.identity.system_identifier
                );
            }
            match &system.plan {
                Ok(plan) => page.push_str(&system_page(system, plan)),
                Err(refused) => {
                    let _ = writeln!(page, "{refused}");
                }
            }
        }
    }
    page
}

fn system_page(system: &SystemExpiry, plan: &ExpirePlan) -> String {
    let mut page = String::new();
    let rows = rows(system, plan);
    if !rows.is_empty() {
        page.push_str(&table(&COLUMNS, rows));
    }
    let done = system.done.is_some();
    for id in &plan.begun {
        let _ = writeln!(page, "an earlier expire had begun to remove backup {id}");
    }
    for id in &plan.abandoned {
        let _ = writeln!(page, "abandoned: {id} never ended, and goes");
    }
    for id in &plan.running {
        let _ = writeln!(
            page,
            "running: {id} keeps its objects, and WAL that it may need"
        );
    }
    for range in &plan.wal {
        let size = system.identity.wal_segment_size;
        let name = |number| SegmentName::from_number(range.timeline, number, size);
        let _ = writeln!(
            page,
            "WAL that goes: {} to {}, {} segments",
            name(range.first),
            name(range.last),
            range.last - range.first + 1
        );
    }
    if plan.is_empty() {
        page.push_str("nothing goes\n");
    } else if !done {
        let _ = writeln!(
            page,
            "a dry run: nothing was removed. WAL that would go: {}",
            size(plan.wal_bytes)
        );
    }
    if let Some(done) = &system.done {
        for id in &done.spared {
            let _ = writeln!(page, "backup {id} was pinned meanwhile, and stays");
        }
        if done.objects > 0 {
            let _ = writeln!(
                page,
                "removed: {} objects, {}",
                done.objects,
                size(done.bytes)
            );
        }
    }
    page
}

/// In WAL order, as the catalog has them: by timeline and stop LSN.
fn rows(system: &SystemExpiry, plan: &ExpirePlan) -> Vec<[String; 7]> {
    let mut records: Vec<_> = system.records.values().collect();
    records.sort_by_key(|record| (record.timeline, record.stop_lsn, &record.backup_id));
    let rows = records.into_iter().map(|record| {
        let kept = plan
            .kept
            .iter()
            .find(|kept| kept.backup == record.backup_id);
        let (what, because, restorable) = match kept {
            Some(kept) => (
                "stays",
                because(kept, system.pins.get(&kept.backup).copied()),
                match (kept.good, kept.promises_window()) {
                    (false, _) => "not whole",
                    (true, true) => "from its end on",
                    (true, false) => "its own end alone",
                },
            ),
            None => ("goes", "no rule keeps it".to_owned(), ""),
        };
        [
            record.backup_id.to_string(),
            moment(record.stopped_at),
            record.timeline.to_string(),
            size(record.stored_size),
            what.to_owned(),
            because,
            restorable.to_owned(),
        ]
    });
    rows.collect()
}

fn because(kept: &Kept, pin: Option<Pin>) -> String {
    let words = kept.reasons.iter().map(|reason| match (reason, pin) {
        (Reason::Pinned, Some(Pin::Until(until))) => format!("pinned until {}", moment(until)),
        (Reason::Pinned, _) => "pinned for ever".to_owned(),
        (Reason::Minimum, _) => "one of the newest".to_owned(),
        (Reason::Full | Reason::Days | Reason::Window, _) => reason.word().to_owned(),
        (Reason::WindowStart, _) => "the window begins behind it".to_owned(),
        (Reason::Younger, _) => "as young as one that stays".to_owned(),
        (Reason::Within, _) => "behind the oldest that stays".to_owned(),
        (Reason::Daily, _) => "last of its day".to_owned(),
        (Reason::Weekly, _) => "last of its week".to_owned(),
        (Reason::Monthly, _) => "last of its month".to_owned(),
        (Reason::Yearly, _) => "last of its year".to_owned(),
        (Reason::Proven, _) => "newest that is verified".to_owned(),
        (Reason::Future, _) => "ended in the future by its clock".to_owned(),
        (Reason::UnknownTimeline, _) => "its timeline's origin is unknown".to_owned(),
        (Reason::Undecided, _) => "its WAL is in conflict".to_owned(),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// What the store kept, for standard error.
#[must_use]
pub fn expiry_warnings(reports: &[ExpireReport]) -> String {
    let mut text = String::new();
    for report in reports {
        for done in report
            .systems
            .iter()
            .filter_map(|system| system.done.as_ref())
        {
            if done.left_count == 0 {
                continue;
            }
            let _ = writeln!(
                text,
                "warning: repository {} kept {} objects that were to go; walden expire tries again when it runs next",
                report.repository, done.left_count
            );
            for left in done.left.iter().take(SHOWN) {
                let _ = writeln!(text, "         {}: {}", left.key, left.why);
            }
            if done.left_count > SHOWN as u64 {
                text.push_str("         --json names more\n");
            }
        }
    }
    text
}

/// Objects that are named on standard error.
const SHOWN: usize = 10;

/// The JSON of `walden expire --json`. Keys may be added within a version; what is there keeps its meaning.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    cluster: &'a ClusterName,
    systems: Vec<System<'a>>,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct System<'a> {
    repository: &'a str,
    system_identifier: SystemIdentifier,
    refused: Option<String>,
    kept: Vec<KeptBackup<'a>>,
    removed: &'a [BackupId],
    begun: Vec<&'a BackupId>,
    abandoned: &'a [BackupId],
    running: &'a [BackupId],
    wal_from: Option<Lsn>,
    wal_removed: Vec<Range>,
    wal_bytes: u64,
    done: Option<Done<'a>>,
}

#[derive(Serialize)]
struct KeptBackup<'a> {
    id: &'a BackupId,
    reasons: Vec<&'static str>,
    good: bool,
    promises_window: bool,
    pinned_until: Option<String>,
}

#[derive(Serialize)]
struct Range {
    timeline: u32,
    first: SegmentName,
    last: SegmentName,
    segments: u64,
}

#[derive(Serialize)]
struct Done<'a> {
    backups: &'a [BackupId],
    abandoned: &'a [BackupId],
    spared: &'a [BackupId],
    objects: u64,
    bytes: u64,
    left_count: u64,
    left: Vec<Left<'a>>,
}

#[derive(Serialize)]
struct Left<'a> {
    key: &'a str,
    why: &'a str,
}

/// The same as JSON.
///
/// # Errors
/// None that these values can cause.
pub fn expiry_json(
    cluster: &ClusterName,
    reports: &[ExpireReport],
    failed: &[ExpireError],
) -> Result<String, serde_json::Error> {
    let systems = reports.iter().flat_map(|report| {
        let systems = report.systems.iter();
        systems.map(|system| system_json(&report.repository, system))
    });
    let page = Page {
        version: 1,
        cluster,
        systems: systems.collect(),
        errors: failed.iter().map(|error| whole(error)).collect(),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn whole(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    chain
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn system_json<'a>(repository: &'a str, system: &'a SystemExpiry) -> System<'a> {
    let identity = &system.identity;
    let size = identity.wal_segment_size;
    let (plan, refused) = match &system.plan {
        Ok(plan) => (Some(plan), None),
        Err(refused) => (None, Some(refused.to_string())),
    };
    let kept = |kept: &'a Kept| {
        let pin = system.pins.get(&kept.backup);
        KeptBackup {
            id: &kept.backup,
            reasons: kept.reasons.iter().map(|reason| reason.word()).collect(),
            good: kept.good,
            promises_window: kept.promises_window(),
            pinned_until: pin.map(|pin| match pin {
                Pin::Until(until) => until.to_string(),
                Pin::Forever => "forever".to_owned(),
            }),
        }
    };
    System {
        repository,
        system_identifier: identity.system_identifier,
        refused,
        kept: plan
            .into_iter()
            .flat_map(|plan| &plan.kept)
            .map(kept)
            .collect(),
        removed: plan.map_or(&[], |plan| &plan.removed),
        begun: plan.into_iter().flat_map(|plan| &plan.begun).collect(),
        abandoned: plan.map_or(&[], |plan| &plan.abandoned),
        running: plan.map_or(&[], |plan| &plan.running),
        wal_from: plan.map(|plan| Lsn(plan.kept_wal.floor().saturating_mul(size.bytes()))),
        wal_removed: plan
            .into_iter()
            .flat_map(|plan| &plan.wal)
            .map(|range| Range {
                timeline: range.timeline.0,
                first: SegmentName::from_number(range.timeline, range.first, size),
                last: SegmentName::from_number(range.timeline, range.last, size),
                segments: range.last - range.first + 1,
            })
            .collect(),
        wal_bytes: plan.map_or(0, |plan| plan.wal_bytes),
        done: system.done.as_ref().map(|done| Done {
            backups: &done.backups,
            abandoned: &done.abandoned,
            spared: &done.spared,
            objects: done.objects,
            bytes: done.bytes,
            left_count: done.left_count,
            left: done
                .left
                .iter()
                .map(|left| Left {
                    key: &left.key,
                    why: &left.why,
                })
                .collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_plan_says_what_stays_and_why() {
        let mut report = samples::expiry();
        assert_eq!(
            expiry_page(std::slice::from_ref(&report), false),
            "\
BACKUP                     ENDED                 TIMELINE  STORED         BECAUSE                                  RESTORABLE
20261122T175007Z-0badcafe  2026-11-22T17:50:09Z  1         547 MB  goes   no rule keeps it
20261123T175007Z-0badcaff  2026-11-22T17:50:09Z  1         547 MB  stays  full, pinned until 2027-01-01T00:00:00Z  from its end on
abandoned: 20261124T175007Z-0badcb00 never ended, and goes
WAL that goes: 000000010000000000000001 to 000000010000000000000007, 7 segments
removed: 12 objects, 547 MB
"
        );
        let done = report.systems[0].done.take();
        let page = expiry_page(std::slice::from_ref(&report), true);
        assert!(
            page.starts_with("repository here, system identifier 7123456789012345678\n")
                && page.ends_with("a dry run: nothing was removed. WAL that would go: 112 MB\n"),
            "{page}"
        );
        report.systems[0].done = done;
        assert_eq!(
            expiry_warnings(&[report]),
            "warning: repository here kept 1 objects that were to go; walden expire tries again when it runs next\n         \
             main/7123456789012345678/wal/x: permission denied\n"
        );
    }
}
