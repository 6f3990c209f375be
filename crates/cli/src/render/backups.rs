//! The list of backups, for audits: a table, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::list::{ListedBackup, Listing, SystemListing};
use walden_engine::windows::RestoreWindow;
use walden_model::index::{End, StopReason};
use walden_model::{
    BackupId, BackupKind, BackupRecord, ClusterName, DamagedBlock, DamagedDocument, Gap,
    Tablespace, VerifyMode, postgres_time,
};
use walden_pg::{Lsn, SystemIdentifier, TimelineId};

use super::several::{JsonRepository, json_repositories, repository_lines};
use super::windows::{loss_line, lost_seconds};
use super::{moment, size, span, table};

const COLUMNS: [&str; 16] = [
    "BACKUP",
    "KIND",
    "ENDED",
    "TOOK",
    "SIZE",
    "STORED",
    "RATIO",
    "START",
    "STOP",
    "TIMELINE",
    "POSTGRESQL",
    "HOST",
    "ANNOTATIONS",
    "DAMAGE",
    "RESTORABLE UNTIL",
    "FIRST GAP",
];

/// One line a backup, oldest first; below, what else a person should know of.
#[must_use]
pub fn backups_table(listing: &Listing, now: Timestamp) -> String {
    let mut page = String::new();
    for system in &listing.systems {
        if listing.systems.len() > 1 {
            let identity = &system.identity;
            let _ = writeln!(
                page,
                "{}system identifier {}, PostgreSQL {}, registered {}",
                if page.is_empty() { "" } else { "\n" },
                identity.system_identifier,
                identity.pg_version,
                moment(identity.created_at)
            );
        }
        page.push_str(&system_page(&listing.cluster, system));
    }
    page.push_str(&loss_line(newest(listing), now));
    for document in &listing.damaged_registrations {
        let _ = writeln!(
            page,
            "damaged: the registration {}, so nothing of it is listed: {}",
            document.key, document.why
        );
    }
    page
}

/// The newest window of the system identifier that was registered last.
fn newest(listing: &Listing) -> Option<&RestoreWindow> {
    listing.systems.last()?.newest.as_ref()
}

fn system_page(cluster: &ClusterName, system: &SystemListing) -> String {
    let unread = system.repositories.iter().any(|one| one.lack.is_err());
    let mut page = if system.backups.is_empty() && unread {
        format!("no backup of cluster {cluster} is in a repository that was read\n")
    } else if system.backups.is_empty() {
        format!("cluster {cluster} has no backup yet: take one with walden backup\n")
    } else {
        table(&COLUMNS, system.backups.iter().map(row).collect())
    };
    for backup in &system.backups {
        for key in &backup.missing_packs {
            let _ = writeln!(
                page,
                "missing: {key}, which backup {} needs",
                backup.record.backup_id
            );
        }
    }
    let mut unknown: Vec<_> = system
        .backups
        .iter()
        .filter_map(|b| b.window.as_ref().err())
        .collect();
    unknown.dedup();
    for missing in unknown {
        let _ = writeln!(page, "missing: {missing}");
    }
    for segment in &system.conflicts {
        let _ = writeln!(
            page,
            "conflict: {segment} is archived, and another file of that name was set aside in quarantine; nobody can tell which of the two is \
             this cluster's, so nothing is restored across it: take a new backup, and what comes after that is whole"
        );
    }
    for backup in &system.unfinished {
        let begun = moment(backup.started_at);
        let _ = writeln!(
            page,
            "unfinished: {}, begun {begun} on {}: it runs, or was killed",
            backup.id, backup.host
        );
    }
    for document in &system.damaged_documents {
        let _ = writeln!(page, "damaged: {}: {}", document.key, document.why);
    }
    page.push_str(&repository_lines(cluster, system));
    page.push_str(&verified_lines(system));
    page
}

/// When everything was verified last, and what was found then.
fn verified_lines(system: &SystemListing) -> String {
    let several = system.verified.len() > 1;
    let lines = system.verified.iter().map(|verified| {
        let body = &verified.event.body;
        let counts = [
            (body.damaged, "damaged"),
            (body.gaps, "gaps"),
            (body.outages, "not looked at"),
            (body.unproven, "not proven"),
        ];
        let found = counts.iter().filter(|(count, _)| *count > 0);
        let found: Vec<String> = found
            .map(|(count, what)| format!("{what}: {count}"))
            .collect();
        let found = match found.is_empty() {
            true => "nothing wrong was found".to_owned(),
            false => found.join(", "),
        };
        let repository = match several {
            true => format!(" in {}", verified.repository),
            false => String::new(),
        };
        let (at, mode) = (moment(verified.event.at), body.mode);
        format!("verified{repository} {at} ({mode}): {found}\n")
    });
    lines.collect()
}

fn row(backup: &ListedBackup) -> [String; 16] {
    let record = &backup.record;
    let annotations: Vec<String> = record
        .annotations
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let none = || "none".to_owned();
    let (until, gap) = match &backup.window {
        Err(_) => ("unknown".to_owned(), "unknown".to_owned()),
        Ok(window) => {
            let until = match (window.whole, window.timeline == record.timeline) {
                (false, _) => "its WAL is missing".to_owned(),
                (true, true) => until(backup, window.until),
                (true, false) => {
                    let until = until(backup, window.until);
                    format!("{until} on timeline {}", window.timeline)
                }
            };
            (
                until,
                window
                    .first_gap
                    .as_ref()
                    .map_or_else(none, ToString::to_string),
            )
        }
    };
    [
        record.backup_id.to_string(),
        record.backup_kind.to_string(),
        moment(record.stopped_at),
        span(took(record)),
        size(record.cluster_size),
        size(record.stored_size),
        record
            .ratio()
            .map_or_else(none, |ratio| format!("{ratio:.1}")),
        record.start_lsn.to_string(),
        record.stop_lsn.to_string(),
        record.timeline.to_string(),
        version(record.pg_version_num),
        if record.from_standby {
            format!("{} (standby)", record.host)
        } else {
            record.host.clone()
        },
        if annotations.is_empty() {
            none()
        } else {
            annotations.join(" ")
        },
        damage(backup).unwrap_or_else(none),
        until,
        gap,
    ]
}

/// The last commit, else the end of the last segment.
fn until(backup: &ListedBackup, wal_end: Lsn) -> String {
    match &backup.until {
        Some(End { xid, lsn, time, .. }) => {
            format!("{}, transaction {xid} at {lsn}", postgres_time(*time))
        }
        None => wal_end.to_string(),
    }
}

fn took(record: &BackupRecord) -> Duration {
    Duration::try_from(record.duration()).unwrap_or_default()
}

/// `server_version_num` as people say it: two parts since PostgreSQL 10.
fn version(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}

fn damage(backup: &ListedBackup) -> Option<String> {
    let count = |count: u64, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let missing = count(
        backup.missing_packs.len() as u64,
        "object missing",
        "objects missing",
    );
    let blocks = count(backup.record.damaged_blocks, "block", "blocks");
    match (missing, blocks) {
        (Some(missing), Some(blocks)) => Some(format!("{missing}, {blocks}")),
        (missing, blocks) => missing.or(blocks),
    }
}

/// The JSON of `walden list-backups --json`. Keys may be added within a version; what is there keeps its meaning.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    cluster: &'a ClusterName,
    restorable_until: Option<Timestamp>,
    would_be_lost_seconds: Option<f64>,
    backups: Vec<Backup<'a>>,
    unfinished: Vec<Unfinished<'a>>,
    damaged_documents: Vec<Damaged<'a>>,
    conflicts: Vec<Conflict>,
    repositories: Vec<JsonRepository<'a>>,
    verified: Vec<JsonVerified<'a>>,
}

/// The last verify of everything.
#[derive(Serialize)]
struct JsonVerified<'a> {
    system_identifier: SystemIdentifier,
    repository: &'a str,
    at: Timestamp,
    mode: VerifyMode,
    complete: bool,
    damaged: u64,
    gaps: u64,
    outages: u64,
    unproven: u64,
    notes: u64,
    lost_backups: &'a [BackupId],
}

#[derive(Serialize)]
struct Backup<'a> {
    id: &'a BackupId,
    kind: BackupKind,
    system_identifier: SystemIdentifier,
    timeline: TimelineId,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    started_at: Timestamp,
    stopped_at: Timestamp,
    duration_seconds: f64,
    cluster_size: u64,
    stored_size: u64,
    ratio: Option<f64>,
    files: u64,
    pg_version: u16,
    pg_version_num: u32,
    data_checksums: bool,
    host: &'a str,
    from_standby: bool,
    label: &'a str,
    annotations: &'a BTreeMap<String, String>,
    tablespaces: &'a [Tablespace],
    damaged_blocks: u64,
    damaged: &'a [DamagedBlock],
    missing_objects: &'a [String],
    repositories: &'a [String],
    /// null where a history file is missing or damaged, so that nobody can tell.
    window: Option<Window>,
}

#[derive(Serialize)]
struct Window {
    timeline: TimelineId,
    until: Lsn,
    last_segment: Option<String>,
    last_commit: Option<End>,
    first_gap: Option<JsonGap>,
    /// Whether the WAL is there without which the backup cannot be restored at all.
    whole: bool,
}

#[derive(Serialize)]
pub(super) struct JsonGap {
    timeline: TimelineId,
    first: String,
    last: String,
    conflict: Option<String>,
    broken: Option<JsonBreak>,
}

/// Where and why recovery ends in a segment that is archived.
#[derive(Serialize)]
struct JsonBreak {
    at: Lsn,
    why: StopReason,
}

#[derive(Serialize)]
struct Conflict {
    system_identifier: SystemIdentifier,
    segment: String,
}

#[derive(Serialize)]
struct Unfinished<'a> {
    id: &'a BackupId,
    system_identifier: SystemIdentifier,
    started_at: Timestamp,
    host: &'a str,
}

#[derive(Serialize)]
pub(super) struct Damaged<'a> {
    key: &'a str,
    why: &'a str,
}

impl<'a> From<&'a DamagedDocument> for Damaged<'a> {
    fn from(document: &'a DamagedDocument) -> Self {
        Self {
            key: &document.key,
            why: &document.why,
        }
    }
}

/// The same as [`backups_table`], and more, for programs.
pub fn backups_json(listing: &Listing, now: Timestamp) -> Result<String, serde_json::Error> {
    let systems = &listing.systems;
    let page = Page {
        version: 1,
        cluster: &listing.cluster,
        restorable_until: newest(listing).and_then(RestoreWindow::until),
        would_be_lost_seconds: lost_seconds(newest(listing), now),
        backups: systems
            .iter()
            .flat_map(|system| &system.backups)
            .map(json_backup)
            .collect(),
        unfinished: systems
            .iter()
            .flat_map(|system| {
                system
                    .unfinished
                    .iter()
                    .map(|backup| (system.identity.system_identifier, backup))
            })
            .map(|(system_identifier, backup)| Unfinished {
                id: &backup.id,
                system_identifier,
                started_at: backup.started_at,
                host: &backup.host,
            })
            .collect(),
        damaged_documents: systems
            .iter()
            .flat_map(|system| &system.damaged_documents)
            .chain(&listing.damaged_registrations)
            .map(Damaged::from)
            .collect(),
        conflicts: systems
            .iter()
            .flat_map(|system| {
                system.conflicts.iter().map(|segment| Conflict {
                    system_identifier: system.identity.system_identifier,
                    segment: segment.to_string(),
                })
            })
            .collect(),
        repositories: systems.iter().flat_map(json_repositories).collect(),
        verified: systems.iter().flat_map(json_verified).collect(),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn json_verified(system: &SystemListing) -> impl Iterator<Item = JsonVerified<'_>> {
    system.verified.iter().map(|verified| {
        let body = &verified.event.body;
        JsonVerified {
            system_identifier: system.identity.system_identifier,
            repository: &verified.repository,
            at: verified.event.at,
            mode: body.mode,
            complete: body.complete,
            damaged: body.damaged,
            gaps: body.gaps,
            outages: body.outages,
            unproven: body.unproven,
            notes: body.notes,
            lost_backups: &body.lost_backups,
        }
    })
}

fn json_backup(backup: &ListedBackup) -> Backup<'_> {
    let record = &backup.record;
    Backup {
        id: &record.backup_id,
        kind: record.backup_kind,
        system_identifier: record.system_identifier,
        timeline: record.timeline,
        start_lsn: record.start_lsn,
        stop_lsn: record.stop_lsn,
        started_at: record.started_at,
        stopped_at: record.stopped_at,
        duration_seconds: took(record).as_secs_f64(),
        cluster_size: record.cluster_size,
        stored_size: record.stored_size,
        ratio: record.ratio(),
        files: record.files,
        pg_version: record.pg_version,
        pg_version_num: record.pg_version_num,
        data_checksums: record.data_checksums,
        host: &record.host,
        from_standby: record.from_standby,
        label: &record.label,
        annotations: &record.annotations,
        tablespaces: &record.tablespaces,
        damaged_blocks: record.damaged_blocks,
        damaged: &record.damaged,
        missing_objects: &backup.missing_packs,
        repositories: &backup.repositories,
        window: backup.window.as_ref().ok().map(|window| Window {
            timeline: window.timeline,
            until: window.until,
            last_segment: window.last_segment.map(|segment| segment.to_string()),
            last_commit: backup.until,
            first_gap: window.first_gap.as_ref().map(json_gap),
            whole: window.whole,
        }),
    }
}

pub(super) fn json_gap(gap: &Gap) -> JsonGap {
    JsonGap {
        timeline: gap.timeline,
        first: gap.first.to_string(),
        last: gap.last.to_string(),
        conflict: gap.conflict.map(|segment| segment.to_string()),
        broken: gap.broken.map(|broken| JsonBreak {
            at: broken.at,
            why: broken.why,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_list_has_one_line_a_backup_and_then_what_is_wrong() {
        assert_eq!(
            backups_table(&samples::listing(), samples::now()),
            "\
BACKUP                     KIND  ENDED                 TOOK      SIZE     STORED  RATIO  START      STOP       TIMELINE  POSTGRESQL  HOST           ANNOTATIONS     DAMAGE                      RESTORABLE UNTIL                                                           FIRST GAP
20261122T175007Z-0badcafe  full  2026-11-22T17:50:09Z  2.5s      4196 MB  547 MB  7.7    0/3000028  0/3000120  1         17.11       db1            none            none                        2026-11-22 17:58:01.123456+00, transaction 745 at 0/6FFFF00 on timeline 2  none
20261123T175007Z-0badcaff  full  2026-11-23T17:53:27Z  3min 20s  4196 MB  547 MB  7.7    0/9000028  0/9000120  2         17.11       db2 (standby)  reason=upgrade  1 object missing, 2 blocks  its WAL is missing                                                         000000020000000000000009 to 00000002000000000000000A (conflict at 00000002000000000000000A, see quarantine)
missing: main/7123456789012345678/backups/20261123T175007Z-0badcaff/packs/00000003.zst, which backup 20261123T175007Z-0badcaff needs
conflict: 00000002000000000000000A is archived, and another file of that name was set aside in quarantine; nobody can tell which of the two is this cluster's, so nothing is restored across it: take a new backup, and what comes after that is whole
unfinished: 20261124T175007Z-0badcb00, begun 2026-11-24T17:50:07Z on db1: it runs, or was killed
damaged: main/7123456789012345678/commits/x.json: its last line does not fit
verified 2026-11-23T01:30:12Z (all): damaged: 1
would be lost if the server died now: 12s, everything after 2026-11-22 17:58:01.123456+00
damaged: the registration main/identity/7.json, so nothing of it is listed: a bit flipped
"
        );
    }

    #[test]
    fn json_says_its_version_and_what_the_table_says() {
        let json = backups_json(&samples::listing(), samples::now()).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["version"], 1, "programs look at the version first");
        assert_eq!(value["cluster"], "main");
        let first = &value["backups"][0];
        assert_eq!(first["id"], "20261122T175007Z-0badcafe");
        assert_eq!(
            first["system_identifier"], "7123456789012345678",
            "too large for a double, so a string"
        );
        assert_eq!(first["stop_lsn"], "0/3000120");
        assert_eq!(first["duration_seconds"], 2.5);
        assert_eq!(first["window"]["until"], "0/8000000");
        assert_eq!(first["window"]["last_commit"]["xid"], 745);
        assert_eq!(value["would_be_lost_seconds"], 12.0);
        assert_eq!(first["window"]["first_gap"], serde_json::Value::Null);
        let second = &value["backups"][1];
        assert_eq!(
            second["window"]["first_gap"]["first"],
            "000000020000000000000009"
        );
        assert_eq!(
            second["window"]["first_gap"]["conflict"],
            "00000002000000000000000A"
        );
        assert_eq!(value["conflicts"][0]["segment"], "00000002000000000000000A");
        assert_eq!(
            value["damaged_documents"][1]["key"], "main/identity/7.json",
            "a registration, too"
        );
        assert_eq!(second["window"]["whole"], false);
        assert_eq!(second["damaged"][0]["block"], 7);
        assert_eq!(value["unfinished"][0]["host"], "db1");
        assert_eq!(
            value["damaged_documents"][0]["why"],
            "its last line does not fit"
        );
    }

    #[test]
    fn an_archive_without_backups_says_what_to_do() {
        let mut listing = samples::listing();
        for system in &mut listing.systems {
            system.backups.clear();
            system.unfinished.clear();
            system.damaged_documents.clear();
            system.conflicts.clear();
            system.newest = None;
            system.verified.clear();
        }
        listing.damaged_registrations.clear();
        assert_eq!(
            backups_table(&listing, samples::now()),
            "cluster main has no backup yet: take one with walden backup\n"
        );
    }
}
