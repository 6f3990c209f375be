//! From when until when a cluster can be restored: a table, and JSON.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::index::LastCommit;
use walden_engine::windows::{RestoreWindow, SystemWindows, TimelineWindows, Windows};
use walden_model::index::End;
use walden_model::{BackupId, ClusterName, postgres_time};
use walden_pg::{Lsn, SystemIdentifier, TimelineId};

use super::backups::{Damaged, JsonGap, json_gap};
use super::several::{Unread, unread, unread_lines};
use super::{moment, span, table};

const COLUMNS: [&str; 8] = [
    "TIMELINE",
    "FROM",
    "BACKUP",
    "UNTIL LAST COMMIT",
    "TRANSACTION",
    "LSN",
    "SEGMENTS",
    "GAP BEHIND IT",
];

/// One line a window, oldest first; below, what would be lost, and what else a person should know of.
#[must_use]
pub fn windows_table(windows: &Windows, now: Timestamp) -> String {
    let mut page = String::new();
    for system in &windows.systems {
        if windows.systems.len() > 1 {
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
        page.push_str(&system_page(&windows.cluster, system));
    }
    let newest = windows.systems.last().and_then(SystemWindows::newest);
    page.push_str(&loss_line(newest, now));
    for document in &windows.damaged_registrations {
        let _ = writeln!(
            page,
            "damaged: the registration {}, so nothing of it is told: {}",
            document.key, document.why
        );
    }
    page
}

/// What would be lost if the server were lost at `now`, with all that it has not archived.
pub(super) fn loss_line(newest: Option<&RestoreWindow>, now: Timestamp) -> String {
    let Some(window) = newest else {
        return String::new();
    };
    match (window.would_be_lost(now), window.until()) {
        (Some(lost), Some(until)) => format!(
            "would be lost if the server died now: {}, everything after {}\n",
            span(lost.try_into().unwrap_or_default()),
            postgres_time(until)
        ),
        _ => "would be lost if the server died now: not known\n".to_owned(),
    }
}

fn system_page(cluster: &ClusterName, system: &SystemWindows) -> String {
    let mut page = String::new();
    let mut rows = Vec::new();
    for timeline in &system.timelines {
        for window in timeline.windows.iter().flatten() {
            rows.push(row(window));
        }
    }
    if rows.is_empty() && !system.out.is_empty() {
        let _ = writeln!(
            page,
            "nothing of cluster {cluster} can be restored from the repositories that were read"
        );
    } else if rows.is_empty() {
        let _ = writeln!(
            page,
            "nothing of cluster {cluster} can be restored yet: take a backup with walden backup"
        );
    } else {
        page.push_str(&table(&COLUMNS, rows));
    }
    for timeline in &system.timelines {
        match &timeline.windows {
            Err(missing) => {
                let _ = writeln!(page, "missing: {missing}");
            }
            Ok(windows) if windows.is_empty() => {
                let _ = writeln!(
                    page,
                    "timeline {}: no whole backup leads to it, so nothing of it can be restored",
                    timeline.timeline
                );
            }
            Ok(_) => {}
        }
    }
    for segment in &system.conflicts {
        let _ = writeln!(
            page,
            "conflict: {segment} is archived, and another file of that name was set aside in quarantine: no window goes across it"
        );
    }
    for document in &system.damaged_documents {
        let _ = writeln!(page, "damaged: {}: {}", document.key, document.why);
    }
    page.push_str(&unread_lines(&system.out));
    page
}

fn row(window: &RestoreWindow) -> [String; 8] {
    let RestoreWindow {
        window,
        end,
        archived_at,
    } = window;
    let none = || "none".to_owned();
    let wal_end = || match end.wal_end {
        Some(lsn) => lsn.to_string(),
        None => format!("in {}", window.last_segment),
    };
    let (until, xid, lsn) = match end.commit {
        LastCommit::Known(commit) => (
            postgres_time(commit.time),
            commit.xid.to_string(),
            commit.lsn.to_string(),
        ),
        LastCommit::None => ("none since".to_owned(), none(), wal_end()),
        LastCommit::Unknown => {
            let archived = archived_at.map(|at| format!(", archived {}", moment(at)));
            let until = format!("not known{}", archived.unwrap_or_default());
            (until, "not known".to_owned(), wal_end())
        }
    };
    [
        window.timeline.to_string(),
        format!("{} at {}", postgres_time(window.from.at), window.from.lsn),
        window.from.backup.to_string(),
        until,
        xid,
        lsn,
        window.segments.to_string(),
        window.gap.as_ref().map_or_else(none, ToString::to_string),
    ]
}

/// The JSON of `walden windows --json`. Keys may be added within a version; what is there keeps its meaning.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    cluster: &'a ClusterName,
    now: Timestamp,
    would_be_lost_seconds: Option<f64>,
    windows: Vec<Window<'a>>,
    damaged_documents: Vec<Damaged<'a>>,
    unread: Vec<Unread<'a>>,
}

#[derive(Serialize)]
struct Window<'a> {
    system_identifier: SystemIdentifier,
    timeline: TimelineId,
    from: From<'a>,
    until: Option<Timestamp>,
    last_commit: Option<End>,
    last_commit_known: bool,
    wal_end: Option<Lsn>,
    archived_at: Option<Timestamp>,
    backups: &'a [BackupId],
    first_segment: String,
    last_segment: String,
    segments: u64,
    gap: Option<JsonGap>,
}

#[derive(Serialize)]
struct From<'a> {
    time: Timestamp,
    lsn: Lsn,
    timeline: TimelineId,
    backup: &'a BackupId,
}

/// The same as [`windows_table`], for programs.
pub fn windows_json(windows: &Windows, now: Timestamp) -> Result<String, serde_json::Error> {
    let systems = &windows.systems;
    let newest = systems.last().and_then(SystemWindows::newest);
    let page = Page {
        version: 1,
        cluster: &windows.cluster,
        now,
        would_be_lost_seconds: lost_seconds(newest, now),
        windows: systems
            .iter()
            .flat_map(|system| {
                let identifier = system.identity.system_identifier;
                let told = system.timelines.iter().flat_map(told);
                told.map(move |window| json_window(identifier, window))
            })
            .collect(),
        damaged_documents: systems
            .iter()
            .flat_map(|system| &system.damaged_documents)
            .chain(&windows.damaged_registrations)
            .map(Damaged::from)
            .collect(),
        unread: systems
            .last()
            .map_or_else(Vec::new, |system| unread(&system.out)),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

/// [`loss_line`] for programs.
pub(super) fn lost_seconds(newest: Option<&RestoreWindow>, now: Timestamp) -> Option<f64> {
    Some(newest?.would_be_lost(now)?.as_secs_f64())
}

fn told(timeline: &TimelineWindows) -> &[RestoreWindow] {
    timeline.windows.as_deref().unwrap_or_default()
}

fn json_window(system_identifier: SystemIdentifier, told: &RestoreWindow) -> Window<'_> {
    let window = &told.window;
    Window {
        system_identifier,
        timeline: window.timeline,
        from: From {
            time: window.from.at,
            lsn: window.from.lsn,
            timeline: window.from.timeline,
            backup: &window.from.backup,
        },
        until: told.until(),
        last_commit: told.end.commit.known(),
        last_commit_known: told.end.commit != LastCommit::Unknown,
        wal_end: told.end.wal_end,
        archived_at: told.archived_at,
        backups: &window.backups,
        first_segment: window.first_segment.to_string(),
        last_segment: window.last_segment.to_string(),
        segments: window.segments,
        gap: window.gap.as_ref().map(json_gap),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_window_has_a_line_and_what_would_be_lost_is_told() {
        assert_eq!(windows_table(&samples::windows(), samples::now()), "\
TIMELINE  FROM                                        BACKUP                     UNTIL LAST COMMIT                         TRANSACTION  LSN                          SEGMENTS  GAP BEHIND IT
1         2026-11-22 17:50:09.500000+00 at 0/3000120  20261122T175007Z-0badcafe  not known, archived 2026-11-22T17:58:13Z  not known    in 000000010000000000000004  2         000000010000000000000005 to 000000010000000000000006
2         2026-11-22 17:50:09.500000+00 at 0/3000120  20261122T175007Z-0badcafe  2026-11-22 17:58:01.123456+00             745          0/6FFFF00                    5         none
conflict: 00000002000000000000000A is archived, and another file of that name was set aside in quarantine: no window goes across it
damaged: main/7/commits/x.json: its last line does not fit
would be lost if the server died now: 12s, everything after 2026-11-22 17:58:01.123456+00
");
    }

    #[test]
    fn json_says_until_which_commit() {
        let json = windows_json(&samples::windows(), samples::now()).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["version"], 1);
        assert_eq!(value["would_be_lost_seconds"], 12.0);
        let (older, newest) = (&value["windows"][0], &value["windows"][1]);
        assert_eq!(older["last_commit_known"], false);
        assert_eq!(older["gap"]["first"], "000000010000000000000005");
        assert_eq!(newest["last_commit"]["xid"], 745);
        assert_eq!(newest["until"], "2026-11-22T17:58:01.123456Z");
        assert_eq!(newest["from"]["lsn"], "0/3000120");
    }
}
