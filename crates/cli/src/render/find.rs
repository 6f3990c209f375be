//! What was found: a table with the commands that lead back, and JSON.

use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::find::{FindReport, Finding, What};
use walden_model::{ClusterName, postgres_time};
use walden_pg::{Lsn, SystemIdentifier, TimelineId};

use super::backups::{JsonGap, json_gap};
use super::several::{Unread, unread, unread_lines};
use super::{shell_word, table};

const COLUMNS: [&str; 6] = ["TIME", "TRANSACTION", "LSN", "ACTION", "RELATION", "ROWS"];

/// Under each finding the command that leads back, to be run as it stands; `walden` is how it begins.
#[must_use]
pub fn findings_page(report: &FindReport, walden: &str) -> String {
    let rows = report.findings.iter().map(row).collect();
    let table = table(&COLUMNS, rows);
    let mut lines = table.lines();
    let mut page = String::new();
    if report.findings.is_empty() {
        page.push_str("nothing was found");
    } else {
        page.push_str(lines.next().unwrap_or_default());
    }
    page.push('\n');
    for (finding, line) in report.findings.iter().zip(lines) {
        let _ = writeln!(page, "{line}");
        for note in notes(finding) {
            let _ = writeln!(page, "    {note}");
        }
        let _ = match &finding.restore {
            Ok(arguments) => writeln!(page, "    {}", command(walden, arguments)),
            Err(why) => writeln!(page, "    no way back: {}", plain(&why.to_string())),
        };
    }
    match report.searched {
        Some((from, until)) => {
            let _ = writeln!(
                page,
                "searched: timeline {} from {from} to {until}",
                report.timeline
            );
        }
        None => page.push_str("searched: nothing, for nothing is archived yet\n"),
    }
    for gap in &report.gaps {
        let _ = writeln!(page, "missing: {gap}: what happened there cannot be told");
    }
    for segment in &report.unreadable {
        let _ = writeln!(
            page,
            "unreadable: {segment}: what happened there cannot be told"
        );
    }
    page.push_str(&unread_lines(&report.out));
    if report.more {
        page.push_str("there is more: narrow the search, for instance with --between\n");
    }
    if report.nameless && !report.findings.is_empty() {
        page.push_str("no backup has recorded names, so there are only numbers\n");
    }
    page
}

fn row(finding: &Finding) -> [String; 6] {
    let (relation, rows) = match &finding.what {
        What::Incident(incident) => (incident.object.to_string(), incident.rows),
        What::RestorePoint(name) => (name.clone(), None),
    };
    [
        postgres_time(finding.time),
        finding.xid.map_or_else(String::new, |xid| xid.to_string()),
        finding.lsn.to_string(),
        action(finding),
        plain(&relation),
        rows.map_or_else(String::new, |rows| format!("≥ {rows}")),
    ]
}

fn action(finding: &Finding) -> String {
    match &finding.what {
        What::Incident(incident) => match incident.doubt {
            Some(_) => format!("{}?", incident.statement()),
            None => incident.statement(),
        },
        What::RestorePoint(_) => "restore point".to_owned(),
    }
}

fn notes(finding: &Finding) -> Vec<String> {
    let What::Incident(incident) = &finding.what else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    if let Some(doubt) = incident.doubt {
        notes.push(format!("ambiguous: {doubt}"));
    }
    match incident.along {
        0 => {}
        1 => notes.push("1 more relation went along, of which no backup has the name".to_owned()),
        along => notes.push(format!(
            "{along} more relations went along, of which no backup has the names"
        )),
    }
    notes
}

fn command(walden: &str, arguments: &[String]) -> String {
    let mut command = walden.to_owned();
    for argument in arguments {
        command.push(' ');
        command.push_str(&shell_word(Path::new(argument)));
    }
    command
}

/// Names may hold anything; what would break a line, or steer a terminal, is shown as an escape.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// The JSON of `walden find --json`. Keys may be added within a version; what is there keeps its meaning.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    cluster: &'a ClusterName,
    system_identifier: SystemIdentifier,
    timeline: TimelineId,
    searched: Option<Searched>,
    findings: Vec<JsonFinding<'a>>,
    more: bool,
    gaps: Vec<JsonGap>,
    unreadable: Vec<String>,
    nameless: bool,
    unread: Vec<Unread<'a>>,
}

#[derive(Serialize)]
struct Searched {
    from: Lsn,
    until: Lsn,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    time: Timestamp,
    xid: Option<u64>,
    lsn: Lsn,
    timeline: TimelineId,
    action: String,
    relation: Option<String>,
    restore_point: Option<&'a str>,
    rows: Option<u64>,
    ambiguous: Option<String>,
    along: usize,
    restore: Option<String>,
    no_restore: Option<String>,
}

/// The same as [`findings_page`], for programs.
pub fn findings_json(report: &FindReport, walden: &str) -> Result<String, serde_json::Error> {
    let page = Page {
        version: 1,
        cluster: &report.cluster,
        system_identifier: report.system,
        timeline: report.timeline,
        searched: report
            .searched
            .map(|(from, until)| Searched { from, until }),
        findings: report
            .findings
            .iter()
            .map(|finding| json_finding(finding, walden))
            .collect(),
        more: report.more,
        gaps: report.gaps.iter().map(json_gap).collect(),
        unreadable: report.unreadable.iter().map(ToString::to_string).collect(),
        nameless: report.nameless,
        unread: unread(&report.out),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn json_finding<'a>(finding: &'a Finding, walden: &str) -> JsonFinding<'a> {
    let (incident, restore_point) = match &finding.what {
        What::Incident(incident) => (Some(incident), None),
        What::RestorePoint(name) => (None, Some(name.as_str())),
    };
    JsonFinding {
        time: finding.time,
        xid: finding.xid,
        lsn: finding.lsn,
        timeline: finding.timeline,
        action: match incident {
            Some(incident) => incident.statement(),
            None => action(finding),
        },
        relation: incident.map(|incident| incident.object.to_string()),
        restore_point,
        rows: incident.and_then(|incident| incident.rows),
        ambiguous: incident.and_then(|incident| incident.doubt.map(|doubt| doubt.to_string())),
        along: incident.map_or(0, |incident| incident.along),
        restore: finding
            .restore
            .as_ref()
            .ok()
            .map(|arguments| command(walden, arguments)),
        no_restore: finding.restore.as_ref().err().map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn under_each_finding_stands_the_way_back() {
        assert_eq!(
            findings_page(&samples::findings(), "walden --cluster main"),
            "\
TIME                           TRANSACTION  LSN        ACTION         RELATION                 ROWS
2026-11-22 17:58:01.123456+00  4294968041   0/6FF0000  DROP DATABASE  shop                     ≥ 1000
    walden --cluster main restore '/my data/before' --target-lsn 0/6FF0000 --target-exclusive
2026-11-22 17:58:01.123456+00  745          0/6FF0000  TRUNCATE?      \"sh\\u{1b}op\", OID 16384
    ambiguous: the WAL does not tell it from REINDEX
    no way back: an unlogged table comes back empty: its rows are not in the WAL
2026-11-22 17:58:01.123456+00               0/6FF0000  restore point  before upgrade
    walden --cluster main restore /at --target-lsn 0/6FF0000
searched: timeline 2 from 0/3000000 to 0/7000000
missing: 000000010000000000000005 to 000000010000000000000006: what happened there cannot be told
unreadable: 000000020000000000000007: what happened there cannot be told
there is more: narrow the search, for instance with --between
no backup has recorded names, so there are only numbers
"
        );
    }

    #[test]
    fn json_has_the_commands_ready() {
        let json = findings_json(&samples::findings(), "walden --cluster main").expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["version"], 1);
        let found = &value["findings"];
        assert_eq!(
            found[0]["restore"],
            "walden --cluster main restore '/my data/before' --target-lsn 0/6FF0000 --target-exclusive"
        );
        assert_eq!(found[0]["action"], "DROP DATABASE");
        assert_eq!(found[0]["relation"], "shop");
        assert_eq!(found[0]["rows"], 1000);
        assert_eq!(found[0]["ambiguous"], serde_json::Value::Null);
        assert_eq!(found[1]["action"], "TRUNCATE", "the doubt stands beside it");
        assert_eq!(found[1]["restore"], serde_json::Value::Null);
        assert_eq!(found[2]["restore_point"], "before upgrade");
    }
}
