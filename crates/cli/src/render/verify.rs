//! What a verify found: a page, and JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::verify::{SystemReport, VerifyReport};
use walden_model::{BackupId, ClusterName, Finding, FindingKind, Findings, Severity, VerifyMode};
use walden_pg::SystemIdentifier;

use super::{moment, size, span, table};

/// Findings that the page shows of each system identifier; JSON has more.
const SHOWN: usize = 100;

const COLUMNS: [&str; 10] = [
    "SYSTEM IDENTIFIER",
    "BACKUPS",
    "SEGMENTS",
    "OBJECTS READ",
    "BYTES READ",
    "DAMAGE",
    "GAPS",
    "OUTAGES",
    "UNPROVEN",
    "NOTES",
];

/// For each repository a table with a line for each system identifier, and below it what was found, the worst first.
#[must_use]
pub fn verify_page(reports: &[VerifyReport]) -> String {
    let mut page = String::new();
    for report in reports {
        let of = match &report.backup {
            Some(id) => format!("backup {id}"),
            None => format!("cluster {}", report.cluster),
        };
        let _ = writeln!(
            page,
            "repository {} ({}), {of}, mode {}, {}",
            report.repository,
            report.location,
            report.mode,
            span(report.took)
        );
        if !report.systems.is_empty() {
            page.push_str(&table(&COLUMNS, report.systems.iter().map(row).collect()));
        }
        for system in &report.systems {
            if let (VerifyMode::New, None) = (report.mode, &report.backup) {
                let _ = match system.since {
                    Some(since) => {
                        writeln!(page, "read: what was stored since {}", moment(since))
                    }
                    None => writeln!(
                        page,
                        "read: everything, because no good verify is there to go on from"
                    ),
                };
            }
        }
        page.push_str(&found(&report.findings));
        for system in &report.systems {
            page.push_str(&found(&system.findings));
        }
        page.push_str(summary(report));
    }
    page
}

fn row(system: &SystemReport) -> [String; 10] {
    let count = |severity| system.findings.count(severity).to_string();
    [
        system.system.to_string(),
        system.backups.to_string(),
        system.segments.to_string(),
        system.objects.to_string(),
        size(system.bytes),
        count(Severity::Damage),
        count(Severity::Gap),
        count(Severity::Outage),
        count(Severity::Unproven),
        count(Severity::Note),
    ]
}

fn found(findings: &Findings) -> String {
    let mut page = String::new();
    let sorted = findings.sorted();
    for finding in sorted.iter().take(SHOWN) {
        let kind = finding.kind;
        let _ = writeln!(
            page,
            "{}: {}: {}",
            kind.severity(),
            kind.id(),
            finding.subject
        );
        let _ = writeln!(page, "    what: {}", finding.what);
        for (says, ids) in [
            ("cannot be restored", &finding.affected.lost),
            (
                "cannot be restored to what lies behind",
                &finding.affected.shortened,
            ),
        ] {
            if !ids.is_empty() {
                let ids: Vec<&str> = ids.iter().map(BackupId::as_str).collect();
                let _ = writeln!(page, "    {says}: {}", ids.join(", "));
            }
        }
        let _ = writeln!(page, "    what to do: {}", finding.remedy);
    }
    let more = sorted.len().saturating_sub(SHOWN) as u64 + findings.omitted();
    if more > 0 {
        let _ = writeln!(page, "and {more} more: --json names {}", sorted.len());
    }
    page
}

fn summary(report: &VerifyReport) -> &'static str {
    match report.worst() {
        Some(Severity::Damage) => "damaged\n",
        Some(Severity::Gap) => "nothing is damaged, but WAL is missing\n",
        Some(Severity::Outage) => {
            "nothing wrong was found, but not everything could be looked at\n"
        }
        Some(Severity::Unproven) => "nothing wrong was found, but not everything could be proven\n",
        None | Some(Severity::Note) => match report.mode {
            VerifyMode::Names => "all is there\n",
            VerifyMode::New | VerifyMode::All => "all is well\n",
        },
    }
}

#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    repositories: Vec<Repository<'a>>,
}

#[derive(Serialize)]
struct Repository<'a> {
    repository: &'a str,
    location: &'a str,
    cluster: &'a ClusterName,
    mode: VerifyMode,
    backup: Option<&'a BackupId>,
    started_at: Timestamp,
    seconds: f64,
    worst: Option<Severity>,
    systems: Vec<System>,
    findings: Vec<JsonFinding<'a>>,
    omitted: u64,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct System {
    system_identifier: SystemIdentifier,
    since: Option<Timestamp>,
    backups: u64,
    segments: u64,
    objects: u64,
    bytes: u64,
    complete: bool,
    damaged: u64,
    gaps: u64,
    outages: u64,
    unproven: u64,
    notes: u64,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    severity: Severity,
    kind: FindingKind,
    system_identifier: Option<SystemIdentifier>,
    subject: &'a str,
    what: &'a str,
    lost_backups: &'a BTreeSet<BackupId>,
    shortened_backups: &'a BTreeSet<BackupId>,
    remedy: &'a str,
}

/// The same as [`verify_page`], and more, for programs.
pub fn verify_json(reports: &[VerifyReport]) -> Result<String, serde_json::Error> {
    let page = Page {
        version: 1,
        repositories: reports.iter().map(json_report).collect(),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn json_report(report: &VerifyReport) -> Repository<'_> {
    let systems = report.systems.iter().map(|system| &system.findings);
    let all = || systems.clone().chain([&report.findings]);
    Repository {
        repository: &report.repository,
        location: &report.location,
        cluster: &report.cluster,
        mode: report.mode,
        backup: report.backup.as_ref(),
        started_at: report.started_at,
        seconds: report.took.as_secs_f64(),
        worst: report.worst(),
        systems: report.systems.iter().map(json_system).collect(),
        findings: all().flat_map(Findings::sorted).map(json_finding).collect(),
        omitted: all().map(Findings::omitted).sum(),
        warnings: &report.warnings,
    }
}

fn json_system(system: &SystemReport) -> System {
    let count = |severity| system.findings.count(severity);
    System {
        system_identifier: system.system,
        since: system.since,
        backups: system.backups,
        segments: system.segments,
        objects: system.objects,
        bytes: system.bytes,
        complete: system.complete,
        damaged: count(Severity::Damage),
        gaps: count(Severity::Gap),
        outages: count(Severity::Outage),
        unproven: count(Severity::Unproven),
        notes: count(Severity::Note),
    }
}

fn json_finding(finding: &Finding) -> JsonFinding<'_> {
    JsonFinding {
        severity: finding.kind.severity(),
        kind: finding.kind,
        system_identifier: finding.system,
        subject: &finding.subject,
        what: &finding.what,
        lost_backups: &finding.affected.lost,
        shortened_backups: &finding.affected.shortened,
        remedy: &finding.remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_page_says_what_is_wrong_whom_it_concerns_and_what_to_do() {
        assert_eq!(
            verify_page(&[samples::verified()]),
            "\
repository here (/srv/walden), cluster main, mode all, 12s
SYSTEM IDENTIFIER    BACKUPS  SEGMENTS  OBJECTS READ  BYTES READ  DAMAGE  GAPS  OUTAGES  UNPROVEN  NOTES
7123456789012345678  2        120       240           954 MB      1       0     0        0         0
damage: segment-damaged: main/7123456789012345678/wal/x.zst
    what: the object is cut off
    cannot be restored: 20261122T175007Z-0badcafe
    what to do: take a new backup
damaged
"
        );
    }
}
