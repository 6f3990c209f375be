//! What a copy did.

use std::fmt::Write as _;

use serde::Serialize;
use walden_engine::copy::{ClusterCopy, CopyReport, FindingKind, Tally};
use walden_model::{BackupId, ClusterName};

use super::size;

/// One line a cluster; below, what was copied by name, and what was not.
#[must_use]
pub fn copy_page(report: &CopyReport) -> String {
    let mut page = String::new();
    let CopyReport { from, to, .. } = report;
    let copied = match report.dry_run {
        true => "would be copied",
        false => "copied",
    };
    for cluster in &report.clusters {
        let _ = writeln!(
            page,
            "cluster {}: {copied} from {from} to {to}: {}, {}, {}, {}; {} were there",
            cluster.cluster,
            tally(&cluster.wal, "WAL file", "WAL files"),
            tally(&cluster.contents, "object of backups", "objects of backups"),
            tally(&cluster.documents, "document", "documents"),
            tally(&cluster.roll_ups, "roll-up", "roll-ups"),
            cluster.there
        );
        for backup in &cluster.backups {
            let _ = match report.dry_run {
                true => writeln!(page, "backup {backup} would be in {to}"),
                false => writeln!(page, "backup {backup} is in {to} now"),
            };
        }
        for finding in &cluster.findings {
            let kind = word(finding.kind);
            let _ = writeln!(page, "{kind}: {}: {}", finding.key, finding.why);
        }
        match cluster.found.saturating_sub(cluster.findings.len() as u64) {
            0 => {}
            more => {
                let _ = writeln!(page, "and {more} more were not copied");
            }
        }
        for key in &cluster.unknown {
            let _ = writeln!(
                page,
                "not known to this version of Walden, and not copied: {key}"
            );
        }
    }
    page
}

fn tally(tally: &Tally, one: &str, many: &str) -> String {
    match tally.objects {
        0 => format!("no {many}"),
        1 => format!("1 {one} ({})", size(tally.bytes)),
        objects => format!("{objects} {many} ({})", size(tally.bytes)),
    }
}

fn word(kind: FindingKind) -> &'static str {
    match kind {
        FindingKind::Damaged => "damaged",
        FindingKind::Conflict => "conflict",
        FindingKind::Incomplete => "incomplete",
    }
}

/// The JSON of `walden copy --json`. Keys may be added within a version; what is there keeps its meaning.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    from: &'a str,
    to: &'a str,
    dry_run: bool,
    whole: bool,
    clusters: Vec<Cluster<'a>>,
}

#[derive(Serialize)]
struct Cluster<'a> {
    cluster: &'a ClusterName,
    wal: Count,
    backup_objects: Count,
    documents: Count,
    roll_ups: Count,
    backups: &'a [BackupId],
    already_there: u64,
    not_copied: u64,
    findings: Vec<Finding<'a>>,
    unknown: &'a [String],
}

#[derive(Serialize)]
struct Count {
    objects: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Finding<'a> {
    kind: &'static str,
    key: &'a str,
    why: &'a str,
}

/// The same as [`copy_page`], for programs.
pub fn copy_json(report: &CopyReport) -> Result<String, serde_json::Error> {
    let page = Page {
        version: 1,
        from: &report.from,
        to: &report.to,
        dry_run: report.dry_run,
        whole: report.is_whole(),
        clusters: report.clusters.iter().map(json_cluster).collect(),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn json_cluster(cluster: &ClusterCopy) -> Cluster<'_> {
    let count = |tally: &Tally| Count {
        objects: tally.objects,
        bytes: tally.bytes,
    };
    Cluster {
        cluster: &cluster.cluster,
        wal: count(&cluster.wal),
        backup_objects: count(&cluster.contents),
        documents: count(&cluster.documents),
        roll_ups: count(&cluster.roll_ups),
        backups: &cluster.backups,
        already_there: cluster.there,
        not_copied: cluster.found,
        findings: cluster
            .findings
            .iter()
            .map(|finding| Finding {
                kind: word(finding.kind),
                key: &finding.key,
                why: &finding.why,
            })
            .collect(),
        unknown: &cluster.unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_copy_is_told_by_cluster_and_then_what_is_missing() {
        let mut report = samples::copied();
        assert_eq!(
            copy_page(&report),
            "\
cluster main: copied from here to elsewhere: 12 WAL files (13 MB), 1 object of backups (52 MB), no documents, no roll-ups; 4711 were there
backup 20261122T175007Z-0badcafe is in elsewhere now
damaged: main/7/wal/00000001/00000000/000000010000000000000003.zst: a frame does not fit
and 1 more were not copied
not known to this version of Walden, and not copied: main/7/tomorrow/
"
        );
        report.dry_run = true;
        assert!(
            copy_page(&report).starts_with("cluster main: would be copied from here"),
            "a dry run does not claim to have copied"
        );
    }

    #[test]
    fn json_says_whether_all_of_it_is_there() {
        let json = copy_json(&samples::copied()).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["version"], 1);
        assert_eq!(value["whole"], false);
        assert_eq!(value["clusters"][0]["not_copied"], 2);
        assert_eq!(value["clusters"][0]["findings"][0]["kind"], "damaged");
        assert_eq!(value["clusters"][0]["wal"]["objects"], 12);
    }
}
