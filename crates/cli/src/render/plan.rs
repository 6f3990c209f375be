//! A restore's plan: a page for a person to read before it is carried out, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::archive::OutRepository;
use walden_engine::restore::TablespacePlace;
use walden_model::index::End;
use walden_model::resolve::{Ending, Stop};
use walden_model::{BackupId, ClusterName, RecoveryPlan, TargetKind, postgres_time};
use walden_pg::{Lsn, SystemIdentifier, TimelineId};

use super::several::{Unread, unread};
use super::{moment, size};

/// Where a plan is carried out.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// PGDATA.
    pub directory: &'a Path,
    /// What `pg_wal` will be a link to.
    pub wal: Option<&'a Path>,
    /// Where configuration files from outside PGDATA will lie.
    pub extras: Option<&'a Path>,
    /// Tablespaces.
    pub tablespaces: &'a [TablespacePlace],
    /// The cluster's other system identifiers.
    pub other_systems: &'a [SystemIdentifier],
    /// Whether the files will belong to root, as whom PostgreSQL refuses to run.
    pub as_root: bool,
    /// The repositories that hold all of the backup, where several are configured.
    pub whole_in: &'a [String],
    /// Repositories that were not read.
    pub out: &'a [OutRepository],
    /// How many packs each repository gave, once it is carried out.
    pub served: Option<&'a BTreeMap<String, u64>>,
}

impl Destination<'_> {
    /// What the person must know beside the plan's own notes.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.as_root {
            notes.push(format!(
                "This runs as root, and so the files will belong to root, as whom PostgreSQL does not run: chown -R postgres: {} \
                 before you start it, or restore as its user.",
                self.directory.display()
            ));
        }
        if !self.other_systems.is_empty() {
            let others: Vec<String> = self.other_systems.iter().map(ToString::to_string).collect();
            notes.push(format!(
                "The repository has backups of this cluster under other system identifiers too, from before an upgrade or initdb: \
                 --system-identifier chooses {}.",
                others.join(" or ")
            ));
        }
        notes
    }
}

/// What the restore will do, and what the person must know.
#[must_use]
pub fn plan_page(plan: &RecoveryPlan, destination: &Destination<'_>) -> String {
    let backup = &plan.backup;
    let target_dir = destination.directory;
    let mut page = format!(
        "Restore of cluster {} into {}\n\n",
        backup.cluster,
        target_dir.display()
    );
    let mut entry = |label: &str, text: String| {
        let _ = writeln!(page, "{label:<10} {text}");
    };
    entry("target", target(plan));
    if let Some(ending) = &plan.ending {
        entry("ends", stop(&ending.stop));
        entry("", last_commit(ending));
    }
    entry(
        "backup",
        format!(
            "{}, ended {} at {} on timeline {}",
            backup.backup_id,
            moment(backup.stopped_at),
            backup.stop_lsn,
            backup.timeline
        ),
    );
    match destination.whole_in {
        [] => {}
        names => entry("", format!("whole in {}", names.join(", "))),
    }
    for out in destination.out {
        entry(
            "not read",
            format!("repository \"{}\": {}", out.name, out.why()),
        );
    }
    entry("timeline", lineage(plan));
    let count: u64 = plan.wal.iter().map(|run| run.count).sum();
    entry(
        "WAL",
        format!(
            "{}, {} stored",
            segments(count),
            size(plan.wal_stored_bytes())
        ),
    );
    for run in &plan.wal {
        let last = if run.first == run.last {
            String::new()
        } else {
            format!(" to {}", run.last)
        };
        entry("", format!("{}{last}", run.first));
    }
    entry(
        "size",
        format!(
            "{} to write in {} files, {} to read",
            size(plan.restore_size),
            backup.files,
            size(plan.stored_size)
        ),
    );
    for tablespace in destination.tablespaces {
        let TablespacePlace {
            oid,
            original,
            target,
            ..
        } = tablespace;
        let moved = if original == target {
            String::new()
        } else {
            format!(", was {}", original.display())
        };
        entry(
            "tablespace",
            format!("{oid} in {}{moved}", target.display()),
        );
    }
    if let Some(wal) = destination.wal {
        entry("pg_wal", format!("in {}", wal.display()));
    }
    if let Some(extras) = destination.extras {
        entry(
            "extras",
            format!(
                "configuration from outside the data directory, in {}",
                extras.display()
            ),
        );
    }
    for (index, (name, value)) in plan.settings.iter().enumerate() {
        entry(
            if index == 0 { "settings" } else { "" },
            format!("{name} = '{}'", value.replace('\'', "''")),
        );
    }
    entry("signal", plan.signal.file_name().to_owned());
    page.push_str("\nWhat to know:\n");
    for note in notes(plan, destination) {
        let _ = writeln!(page, "- {note}");
    }
    page
}

fn notes(plan: &RecoveryPlan, destination: &Destination<'_>) -> Vec<String> {
    plan.notes
        .iter()
        .map(ToString::to_string)
        .chain(destination.notes())
        .collect()
}

fn target(plan: &RecoveryPlan) -> String {
    let target = &plan.target;
    let side = if target.inclusive { "" } else { ", exclusive" };
    match target.kind {
        TargetKind::Latest => target.kind.to_string(),
        _ => format!("{}{side}, then {}", target.kind, target.action),
    }
}

fn stop(stop: &Stop) -> String {
    match stop {
        Stop::Before(record) => format!("before the record at {}", record.lsn),
        Stop::After(record) => format!("after the record at {}", record.lsn),
        Stop::Consistent(lsn) => format!("when consistent, at {lsn}"),
        Stop::EndOfWal(lsn) => format!("with the archived WAL, at {lsn}"),
    }
}

fn last_commit(ending: &Ending) -> String {
    match &ending.last_commit {
        None => "no commit is replayed".to_owned(),
        Some(commit) => format!(
            "last commit: {}, transaction {}, at {}; {} in all",
            postgres_time(commit.time),
            commit.xid,
            commit.lsn,
            ending.commits
        ),
    }
}

fn segments(count: u64) -> String {
    if count == 1 {
        "1 segment".to_owned()
    } else {
        format!("{count} segments")
    }
}

/// `1 until 0/5000000, then 2`
fn lineage(plan: &RecoveryPlan) -> String {
    let parts: Vec<String> = plan
        .lineage
        .iter()
        .map(|span| match span.end {
            Some(end) => format!("{} until {end}", span.timeline),
            None => span.timeline.to_string(),
        })
        .collect();
    parts.join(", then ")
}

/// The JSON of `walden restore --json`. Keys may be added within a version; what is there keeps its meaning.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    cluster: &'a ClusterName,
    system_identifier: SystemIdentifier,
    target_dir: String,
    wal_dir: Option<String>,
    extras: Option<String>,
    tablespaces: Vec<Tablespace>,
    /// Whether it was carried out; with `--dry-run` it is only planned.
    restored: bool,
    backup: Backup<'a>,
    target: Target,
    /// null where the archive has no index, so that nobody can tell.
    ending: Option<JsonEnding<'a>>,
    timeline: TimelineId,
    lineage: Vec<Span>,
    wal: Vec<Run>,
    wal_stored_size: u64,
    restore_size: u64,
    stored_size: u64,
    settings: Vec<Setting<'a>>,
    signal: &'static str,
    notes: Vec<String>,
    unread: Vec<Unread<'a>>,
    served: Option<&'a BTreeMap<String, u64>>,
}

#[derive(Serialize)]
struct Backup<'a> {
    id: &'a BackupId,
    timeline: TimelineId,
    start_lsn: Lsn,
    stop_lsn: Lsn,
    stopped_at: Timestamp,
    files: u64,
    damaged_blocks: u64,
    repositories: &'a [String],
}

/// `kind` is `latest`, `immediate`, `time`, `lsn`, `xid` or `name`; `value` is absent for the first two.
#[derive(Serialize)]
struct Target {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    inclusive: bool,
    action: String,
}

#[derive(Serialize)]
struct JsonEnding<'a> {
    stop: &'static str,
    lsn: Lsn,
    last_commit: Option<&'a End>,
    commits: u64,
}

#[derive(Serialize)]
struct Tablespace {
    oid: u32,
    original: String,
    target: String,
}

#[derive(Serialize)]
struct Span {
    timeline: TimelineId,
    begin: Lsn,
    end: Option<Lsn>,
}

#[derive(Serialize)]
struct Run {
    timeline: TimelineId,
    first: String,
    last: String,
    segments: u64,
    stored_size: u64,
}

#[derive(Serialize)]
struct Setting<'a> {
    name: &'a str,
    value: &'a str,
}

/// The same as [`plan_page`] for programs; `restored` says whether it has been carried out.
pub fn plan_json(
    plan: &RecoveryPlan,
    destination: &Destination<'_>,
    restored: bool,
) -> Result<String, serde_json::Error> {
    let backup = &plan.backup;
    let page = Page {
        version: 1,
        cluster: &backup.cluster,
        system_identifier: backup.system_identifier,
        target_dir: destination.directory.display().to_string(),
        restored,
        backup: Backup {
            id: &backup.backup_id,
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            stopped_at: backup.stopped_at,
            files: backup.files,
            damaged_blocks: backup.damaged_blocks,
            repositories: destination.whole_in,
        },
        target: json_target(plan),
        ending: plan.ending.as_ref().map(json_ending),
        timeline: plan.timeline,
        lineage: plan
            .lineage
            .iter()
            .map(|span| Span {
                timeline: span.timeline,
                begin: span.begin,
                end: span.end,
            })
            .collect(),
        wal: plan
            .wal
            .iter()
            .map(|run| Run {
                timeline: run.timeline,
                first: run.first.to_string(),
                last: run.last.to_string(),
                segments: run.count,
                stored_size: run.stored_bytes,
            })
            .collect(),
        wal_stored_size: plan.wal_stored_bytes(),
        restore_size: plan.restore_size,
        stored_size: plan.stored_size,
        settings: plan
            .settings
            .iter()
            .map(|(name, value)| Setting { name, value })
            .collect(),
        signal: plan.signal.file_name(),
        notes: notes(plan, destination),
        unread: unread(destination.out),
        served: destination.served,
        tablespaces: destination
            .tablespaces
            .iter()
            .map(|place| Tablespace {
                oid: place.oid,
                original: text(&place.original),
                target: text(&place.target),
            })
            .collect(),
        wal_dir: destination.wal.map(text),
        extras: destination.extras.map(text),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn json_ending(ending: &Ending) -> JsonEnding<'_> {
    let (stop, lsn) = match ending.stop {
        Stop::Before(record) => ("before", record.lsn),
        Stop::After(record) => ("after", record.lsn),
        Stop::Consistent(lsn) => ("consistent", lsn),
        Stop::EndOfWal(lsn) => ("end-of-wal", lsn),
    };
    JsonEnding {
        stop,
        lsn,
        last_commit: ending.last_commit.as_ref(),
        commits: ending.commits,
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn json_target(plan: &RecoveryPlan) -> Target {
    let (kind, value) = match &plan.target.kind {
        TargetKind::Latest => ("latest", None),
        TargetKind::Immediate => ("immediate", None),
        TargetKind::Time(time) => ("time", Some(time.to_string())),
        TargetKind::Lsn(lsn) => ("lsn", Some(lsn.to_string())),
        TargetKind::Xid(xid) => ("xid", Some(xid.to_string())),
        TargetKind::Name(name) => ("name", Some(name.clone())),
    };
    Target {
        kind,
        value,
        inclusive: plan.target.inclusive,
        action: plan.target.action.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    fn destination(tablespaces: &[TablespacePlace]) -> Destination<'_> {
        Destination {
            directory: Path::new("/restored"),
            wal: Some(Path::new("/fast/wal")),
            extras: None,
            tablespaces,
            other_systems: &[],
            as_root: true,
            whole_in: &[],
            out: &[],
            served: None,
        }
    }

    #[test]
    fn a_plan_is_a_page_that_ends_with_what_the_person_must_know() {
        let place = |oid, target: &str| TablespacePlace {
            oid,
            original: "/srv/ts".into(),
            target: target.into(),
            size: 1,
        };
        let tablespaces = [place(16400, "/restored-ts"), place(16401, "/srv/ts")];
        assert_eq!(
            plan_page(&samples::plan(), &destination(&tablespaces)),
            "\
Restore of cluster main into /restored

target     --target-lsn 0/7000000, exclusive, then pause
ends       before the record at 0/7000028
           last commit: 2026-11-22 17:58:01.123456+00, transaction 745, at 0/6FFFF00; 12 in all
backup     20261122T175007Z-0badcafe, ended 2026-11-22T17:50:09Z at 0/3000120 on timeline 1
timeline   1 until 0/5000000, then 2
WAL        5 segments, 22 MB stored
           000000010000000000000003 to 000000010000000000000004
           000000020000000000000005 to 000000020000000000000007
size       4196 MB to write in 1234 files, 547 MB to read
tablespace 16400 in /restored-ts, was /srv/ts
tablespace 16401 in /srv/ts
pg_wal     in /fast/wal
settings   restore_command = 'walden-wal-fetch --config ''/etc/walden/walden.yaml'' %f %p'
           recovery_target_lsn = '0/7000000'
           recovery_target_timeline = '2'
signal     recovery.signal

What to know:
- Unlogged tables come back empty.
- 3 blocks of the cluster were damaged already when the backup was taken; `walden list-backups --json` names them.
- This runs as root, and so the files will belong to root, as whom PostgreSQL does not run: chown -R postgres: /restored before you start it, or restore as its user.
"
        );
    }

    #[test]
    fn json_says_whether_the_plan_was_carried_out() {
        let plan = samples::plan();
        let json = |restored| -> serde_json::Value {
            let text = plan_json(&plan, &destination(&[]), restored).expect("JSON");
            serde_json::from_str(&text).expect("JSON")
        };
        assert_eq!(json(false)["restored"], false);
        let done = json(true);
        assert_eq!(done["version"], 1);
        assert_eq!(done["restored"], true);
        assert_eq!(
            done["target"],
            serde_json::json!({"kind": "lsn", "value": "0/7000000", "inclusive": false, "action": "pause"})
        );
        assert_eq!(done["ending"]["stop"], "before");
        assert_eq!(done["ending"]["lsn"], "0/7000028");
        assert_eq!(done["ending"]["last_commit"]["xid"], 745);
        assert_eq!(done["lineage"][0]["end"], "0/5000000");
        assert_eq!(done["wal"][1]["segments"], 3);
        assert_eq!(done["settings"][2]["name"], "recovery_target_timeline");
    }
}
