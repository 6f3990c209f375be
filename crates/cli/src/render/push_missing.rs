//! What became of a server's WAL: a table, and JSON.

use std::fmt::Write as _;

use serde::Serialize;
use walden_engine::push::PushOutcome;
use walden_engine::push_missing::{PushMissingReport, Told, ToldFile};
use walden_model::SegmentRange;
use walden_model::unarchived::Fate;
use walden_pg::{SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};

use super::{size, table};

/// What became of a file: a word for programs, and what a person should know.
fn told(file: &ToldFile) -> (&'static str, String) {
    match &file.pushed {
        Some(Ok(report)) => {
            let stored = format!("{} stored", size(report.stored));
            let note = report.warning.clone().unwrap_or(stored);
            return match report.outcome {
                PushOutcome::Stored => ("pushed", note),
                PushOutcome::AlreadyThere | PushOutcome::TakenAlong => {
                    ("already-there", String::new())
                }
                PushOutcome::SetAside => (
                    "set-aside",
                    "another file of its name is archived, and this one is in quarantine"
                        .to_owned(),
                ),
            };
        }
        Some(Err(error)) => {
            let outcome = match file.fate {
                Fate::Conflict => "in-conflict",
                _ => "failed",
            };
            return (outcome, whole_text(error));
        }
        None => {}
    }
    match file.fate {
        Fate::Missing => ("missing", "it would be pushed".to_owned()),
        Fate::Archived => ("already-there", String::new()),
        Fate::Conflict => (
            "in-conflict",
            "other content is archived under its name: another server's".to_owned(),
        ),
        Fate::Unreadable => (
            "failed",
            "it is archived, but what is archived is damaged".to_owned(),
        ),
        Fate::Withheld { because } => (
            "withheld",
            format!("{because} is in conflict, so this may not belong to what is archived"),
        ),
        Fate::Unfinished => (
            "unfinished",
            "it is still written to, or was when the server ended".to_owned(),
        ),
        Fate::NotWritten => (
            "not-written",
            "recycled, or made beforehand: it holds nothing yet".to_owned(),
        ),
        Fate::Left { fork } => (
            "left",
            format!(
                "the timeline was left at {fork}, and the next one has its content up to there"
            ),
        ),
        Fate::OtherTimeline => (
            "other-timeline",
            "of a timeline that does not lead to the server's".to_owned(),
        ),
    }
}

/// An error with its causes.
fn whole_text(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    let texts: Vec<String> = chain.map(ToString::to_string).collect();
    texts.join(": ")
}

fn range(gap: &SegmentRange, size: WalSegmentSize) -> (SegmentName, SegmentName) {
    let name = |number| SegmentName::from_number(gap.timeline, number, size);
    (name(gap.first), name(gap.last))
}

/// For each repository a line for each file that is not simply there, and what all of it comes to.
#[must_use]
pub fn push_missing_page(reports: &[PushMissingReport], dry_run: bool) -> String {
    let mut page = String::new();
    for report in reports {
        match &report.told {
            Ok(told) => page.push_str(&told_page(&report.repository, told, dry_run)),
            Err(why) => {
                let _ = writeln!(
                    page,
                    "repository {}: {}",
                    report.repository,
                    whole_text(why)
                );
            }
        }
    }
    page
}

fn told_page(repository: &str, report: &Told, dry_run: bool) -> String {
    let mut page = String::new();
    let files: Vec<_> = report
        .files
        .iter()
        .map(|file| (file.file, told(file)))
        .collect();
    let quiet = ["already-there", "not-written"];
    let rows: Vec<[String; 3]> = files
        .iter()
        .filter(|(_, (outcome, _))| !quiet.contains(outcome))
        .map(|(file, (outcome, note))| [file.to_string(), (*outcome).to_owned(), note.clone()])
        .collect();
    if !rows.is_empty() {
        page.push_str(&table(&["FILE", "OUTCOME", ""], rows));
    }
    let count = |wanted: &str| {
        let such = files.iter().filter(|(_, (outcome, _))| *outcome == wanted);
        such.count()
    };
    let _ = writeln!(
        page,
        "repository {repository}, timeline {}: {} files {}, {} archived already",
        report.timeline,
        count(if dry_run { "missing" } else { "pushed" }),
        if dry_run { "would be pushed" } else { "pushed" },
        count("already-there"),
    );
    for gap in &report.gaps {
        let (first, last) = range(gap, report.segment_size);
        let _ = writeln!(
            page,
            "still missing: {first} to {last} are neither archived nor in this pg_wal; another server may have them"
        );
    }
    page
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    dry_run: bool,
    repositories: Vec<JsonRepository<'a>>,
}

#[derive(Serialize)]
struct JsonRepository<'a> {
    repository: &'a str,
    required: bool,
    failed: Option<String>,
    system_identifier: Option<SystemIdentifier>,
    timeline: Option<TimelineId>,
    files: Vec<JsonFile>,
    still_missing: Vec<JsonGap>,
}

#[derive(Serialize)]
struct JsonFile {
    file: String,
    outcome: &'static str,
    note: Option<String>,
    stored_size: Option<u64>,
}

#[derive(Serialize)]
struct JsonGap {
    timeline: TimelineId,
    first: SegmentName,
    last: SegmentName,
}

/// The same as JSON, with every file.
///
/// # Errors
/// None that is known of.
pub fn push_missing_json(
    reports: &[PushMissingReport],
    dry_run: bool,
) -> Result<String, serde_json::Error> {
    let json = Json {
        version: 1,
        dry_run,
        repositories: reports.iter().map(json_repository).collect(),
    };
    serde_json::to_string_pretty(&json).map(|text| text + "\n")
}

fn json_repository(report: &PushMissingReport) -> JsonRepository<'_> {
    let told = report.told.as_ref().ok();
    let files = told.map(|told| told.files.iter().map(json_file).collect());
    let gaps = told.map(|told| {
        let gaps = told.gaps.iter().map(|gap| {
            let (first, last) = range(gap, told.segment_size);
            JsonGap {
                timeline: gap.timeline,
                first,
                last,
            }
        });
        gaps.collect()
    });
    JsonRepository {
        repository: &report.repository,
        required: report.required,
        failed: report.told.as_ref().err().map(|why| whole_text(why)),
        system_identifier: told.map(|told| told.system),
        timeline: told.map(|told| told.timeline),
        files: files.unwrap_or_default(),
        still_missing: gaps.unwrap_or_default(),
    }
}

fn json_file(file: &ToldFile) -> JsonFile {
    let (outcome, note) = told(file);
    let pushed = file.pushed.as_ref().and_then(|pushed| pushed.as_ref().ok());
    JsonFile {
        file: file.file.to_string(),
        outcome,
        note: Some(note).filter(|note| !note.is_empty()),
        stored_size: pushed
            .map(|report| report.stored)
            .filter(|stored| *stored > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn what_a_person_need_not_look_at_is_only_counted() {
        assert_eq!(
            push_missing_page(&samples::push_missing(), false),
            "FILE                      OUTCOME\n\
             000000010000000000000006  pushed      5120 kB stored\n\
             000000010000000000000007  left        the timeline was left at 0/7000120, and the next one has its content up to there\n\
             000000020000000000000008  unfinished  it is still written to, or was when the server ended\n\
             repository here, timeline 2: 1 files pushed, 1 archived already\n\
             still missing: 000000010000000000000003 to 000000010000000000000004 are neither archived nor in this pg_wal; \
             another server may have them\n"
        );
    }
}
