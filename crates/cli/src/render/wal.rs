//! The list of archived WAL: a line a file.

use std::fmt::Write as _;

use serde::Serialize;
use walden_engine::archive::OutRepository;
use walden_engine::wal::{ArchivedWal, Indexed};
use walden_model::index::{End, SegmentIndex, StopReason, Stopped};
use walden_model::{IdentityDocument, WalName};

use super::several::unread;
use super::{moment, size};

/// What stands above [`wal_line`]s.
#[must_use]
pub fn wal_header() -> String {
    columns(
        "FILE",
        "STORED",
        ["RECORDS", "COMMITS", "ABORTS"],
        "FIRST END",
        "LAST END",
        "NOTES",
    )
}

/// One line a file; one more before it where segments are missing.
#[must_use]
pub fn wal_line(file: &ArchivedWal) -> String {
    let mut line = String::new();
    if let Some(gap) = &file.missing_before {
        let _ = writeln!(line, "missing: {gap}");
    }
    let mut notes = Vec::new();
    if file.conflict {
        notes.push("in conflict, see quarantine".to_owned());
    }
    let (name, stored) = (file.name.file().to_string(), size(file.stored_size));
    let mut counts = [const { String::new() }; 3];
    let (mut first, mut last) = (String::new(), String::new());
    match &file.index {
        Indexed::NoRecords => {}
        Indexed::Nothing => notes.push("no index".to_owned()),
        Indexed::Damaged(why) => notes.push(format!("DAMAGED: {why}")),
        Indexed::Said(index) => {
            let ends = index.ends.as_ref();
            counts = [
                index.records,
                ends.map_or(0, |ends| ends.commits),
                ends.map_or(0, |ends| ends.aborts),
            ]
            .map(|count| count.to_string());
            if let Some(ends) = ends {
                (first, last) = (moment(ends.first.time), moment(ends.last.time));
            }
            notes.extend(marks(index));
        }
    }
    let counts = counts.each_ref().map(String::as_str);
    line + &columns(&name, &stored, counts, &first, &last, &notes.join("; "))
}

fn columns(
    name: &str,
    stored: &str,
    [records, commits, aborts]: [&str; 3],
    first: &str,
    last: &str,
    notes: &str,
) -> String {
    let line = format!(
        "{name:<24}  {stored:>10}  {records:>9}  {commits:>8}  {aborts:>7}  {first:<20}  {last:<20}  {notes}"
    );
    line.trim_end().to_owned() + "\n"
}

/// What is special about a segment.
fn marks(index: &SegmentIndex) -> Vec<String> {
    let points = index.restore_points.iter();
    let mut marks: Vec<String> = points
        .map(|point| format!("restore point {:?}", point.name))
        .collect();
    let switches = index.switches.iter();
    marks.extend(switches.map(|switch| format!("timeline {} begins", switch.timeline)));
    marks.extend(index.stopped.map(|stopped| stopped_text(&stopped)));
    if index.incomplete {
        marks.push("incomplete index".to_owned());
    }
    marks
}

pub(super) fn stopped_text(stopped: &Stopped) -> String {
    let at = stopped.at;
    match stopped.why {
        StopReason::Switch => format!("switch at {at}"),
        StopReason::EndOfWal => format!("end of WAL at {at}"),
        StopReason::Damaged => {
            format!("DAMAGED before it was archived: no record can be read from {at} on")
        }
        StopReason::UnknownVersion => "records of an unknown version of PostgreSQL".to_owned(),
    }
}

/// What stands before the files of `walden wal list --json`; the files follow, each [`wal_json_line`], and then [`WAL_JSON_END`].
pub fn wal_json_begin(
    identity: &IdentityDocument,
    out: &[OutRepository],
) -> Result<String, serde_json::Error> {
    Ok(format!(
        "{{\n  \"version\": 1,\n  \"cluster\": {},\n  \"system_identifier\": {},\n  \"unread\": {},\n  \"files\": [",
        serde_json::to_string(&identity.cluster)?,
        serde_json::to_string(&identity.system_identifier)?,
        serde_json::to_string(&unread(out))?
    ))
}

/// What stands behind the files of `walden wal list --json`.
pub const WAL_JSON_END: &str = "\n  ]\n}\n";

#[derive(Serialize)]
struct File<'a> {
    name: String,
    kind: &'static str,
    stored_size: u64,
    conflict: bool,
    missing_before: Option<Missing>,
    damaged: Option<&'a str>,
    indexed: bool,
    records: Option<u64>,
    commits: Option<u64>,
    aborts: Option<u64>,
    first_end: Option<&'a End>,
    last_end: Option<&'a End>,
    restore_points: Vec<&'a str>,
    stopped: Option<&'a Stopped>,
    incomplete: bool,
}

#[derive(Serialize)]
struct Missing {
    first: String,
    last: String,
}

/// The same as [`wal_line`], for programs, on one line; all but the first need a comma before them.
pub fn wal_json_line(file: &ArchivedWal) -> Result<String, serde_json::Error> {
    let index = match &file.index {
        Indexed::Said(index) => Some(index.as_ref()),
        _ => None,
    };
    let ends = index.and_then(|index| index.ends.as_ref());
    let line = serde_json::to_string(&File {
        name: file.name.file().to_string(),
        kind: match file.name {
            WalName::Segment(_) => "segment",
            WalName::Partial { .. } => "partial",
            WalName::History(_) => "history",
            WalName::Backup { .. } => "backup",
        },
        stored_size: file.stored_size,
        conflict: file.conflict,
        missing_before: file.missing_before.map(|gap| Missing {
            first: gap.first.to_string(),
            last: gap.last.to_string(),
        }),
        damaged: match &file.index {
            Indexed::Damaged(why) => Some(why),
            _ => None,
        },
        indexed: index.is_some(),
        records: index.map(|index| index.records),
        commits: index.map(|_| ends.map_or(0, |ends| ends.commits)),
        aborts: index.map(|_| ends.map_or(0, |ends| ends.aborts)),
        first_end: ends.map(|ends| &ends.first),
        last_end: ends.map(|ends| &ends.last),
        restore_points: index.map_or(Vec::new(), |index| {
            let points = index.restore_points.iter();
            points.map(|point| point.name.as_str()).collect()
        }),
        stopped: index.and_then(|index| index.stopped.as_ref()),
        incomplete: index.is_some_and(|index| index.incomplete),
    })?;
    Ok(format!("\n    {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_file_has_a_line_and_missing_segments_have_one() {
        let files = samples::archived_wal();
        let table = files
            .iter()
            .fold(wal_header(), |page, file| page + &wal_line(file));
        assert_eq!(
            table,
            "\
FILE                          STORED    RECORDS   COMMITS   ABORTS  FIRST END             LAST END              NOTES
00000002.history             2706 kB
000000020000000000000005.00000028.backup     2706 kB
000000020000000000000005     2706 kB       4711         2        1  2026-11-22T17:50:07Z  2026-11-22T17:50:09Z  restore point \"before \\\"upgrade\\\"\"; timeline 2 begins; switch at 0/5FFFF00; incomplete index
missing: 000000020000000000000006 to 000000020000000000000008
000000020000000000000009     2706 kB                                                                            in conflict, see quarantine; no index
00000002000000000000000A     2706 kB                                                                            DAMAGED: its digest does not fit
00000002000000000000000B     2706 kB          3         0        0                                              DAMAGED before it was archived: no record can be read from 0/B000100 on
"
        );
    }

    #[test]
    fn the_pieces_of_the_json_are_one_object() {
        let files = samples::archived_wal();
        let lines: Vec<String> = files
            .iter()
            .map(|file| wal_json_line(file).expect("JSON"))
            .collect();
        let begin = wal_json_begin(&samples::identity(), &[]).expect("JSON");
        let json = begin.clone() + &lines.join(",") + WAL_JSON_END;
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["version"], 1);
        assert_eq!(value["system_identifier"], "7123456789012345678");
        let kinds: Vec<_> = value["files"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|file| &file["kind"])
            .collect();
        assert_eq!(
            kinds,
            [
                "history", "backup", "segment", "segment", "segment", "segment"
            ]
        );
        let segment = &value["files"][2];
        assert_eq!(segment["commits"], 2);
        assert_eq!(segment["last_end"]["xid"], 745);
        assert_eq!(segment["stopped"]["why"], "switch");
        assert_eq!(
            value["files"][3]["missing_before"]["last"],
            "000000020000000000000008"
        );
        assert_eq!(value["files"][3]["indexed"], false);
        assert_eq!(value["files"][4]["damaged"], "its digest does not fit");
        let none: serde_json::Value =
            serde_json::from_str(&(begin + WAL_JSON_END)).expect("JSON, without a file too");
        assert_eq!(none["files"], serde_json::json!([]));
    }
}
