//! One archived segment, with all that its index says.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;
use walden_engine::wal::ShownSegment;
use walden_model::index::{
    DatabaseRow, End, Ends, Moment, MomentKind, Outcome, SegmentIndex, TransactionFacts,
};
use walden_model::{ClusterName, Sha256Digest, postgres_time};
use walden_pg::wal_record::{RelFileLocator, RelationOid};
use walden_pg::{Lsn, SystemIdentifier};

use super::wal::stopped_text;
use super::{moment, size};

/// A segment, and all that is known of what stands in it.
#[must_use]
pub fn segment_page(segment: &ShownSegment) -> String {
    let mut page = Entries(String::new());
    let identity = &segment.identity;
    page.entry(
        "segment",
        format_args!(
            "{} of cluster {}, system identifier {}",
            segment.name, identity.cluster, identity.system_identifier
        ),
    );
    page.entry(
        "stored",
        format_args!(
            "{} in {}, {} of content",
            size(segment.stored_size),
            segment.key,
            size(segment.content_size)
        ),
    );
    if let Some(sha256) = &segment.sha256 {
        page.entry("digest", format_args!("{sha256}"));
    }
    if segment.conflict {
        page.entry(
            "conflict",
            format_args!("another file of that name was set aside in quarantine"),
        );
    }
    match &segment.index {
        None => page.entry(
            "index",
            format_args!(
                "none that this version of Walden can use; --read reads the segment itself"
            ),
        ),
        Some(index) => index_entries(&mut page, index),
    }
    if let Some(moments) = &segment.moments {
        page.entry("ends", format_args!("and restore points, in WAL order"));
        for moment in moments {
            page.entry("", format_args!("{}", moment_text(moment)));
        }
    }
    page.0
}

/// Lines with a label in front.
struct Entries(String);

impl Entries {
    fn entry(&mut self, label: &str, text: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{label:<13} {text}");
    }
}

fn index_entries(page: &mut Entries, index: &SegmentIndex) {
    let range = match (index.first_lsn, index.end_lsn) {
        (Some(first), Some(end)) => format!(", from {first} to {end}"),
        _ => String::new(),
    };
    page.entry(
        "records",
        format_args!(
            "{} of PostgreSQL {}{range}",
            index.records, index.pg_version
        ),
    );
    if let Some(head) = &index.head {
        page.entry(
            "",
            format_args!(
                "begins with {} bytes of a record of an earlier segment",
                head.length
            ),
        );
    }
    if let Some(tail) = &index.tail {
        let at = tail.lsn.map(|lsn| format!(" at {lsn}")).unwrap_or_default();
        page.entry(
            "",
            format_args!(
                "ends with {} bytes of a record{at} that goes on in the next segment, and is not told of here",
                tail.length
            ),
        );
    }
    if let Some(stopped) = &index.stopped {
        page.entry("", format_args!("{}", stopped_text(stopped)));
    }
    if let Some(ends) = &index.ends {
        ends_entries(page, ends);
    }
    if let Some(next) = index.next_xid {
        page.entry(
            "next xid",
            format_args!("{next}, with its epoch, at the last checkpoint"),
        );
    }
    for point in &index.restore_points {
        page.entry(
            "restore point",
            format_args!(
                "{:?} at {}, {}",
                point.name,
                point.lsn,
                postgres_time(point.time)
            ),
        );
    }
    for checkpoint in &index.checkpoints {
        let shutdown = if checkpoint.shutdown {
            ", at shutdown"
        } else {
            ""
        };
        page.entry(
            "checkpoint",
            format_args!(
                "at {}, redo from {}, {}{shutdown}",
                checkpoint.lsn,
                checkpoint.redo,
                moment(checkpoint.time)
            ),
        );
    }
    for switch in &index.switches {
        page.entry(
            "timeline",
            format_args!(
                "{} begins at {}, was {}, {}",
                switch.timeline,
                switch.lsn,
                switch.previous,
                postgres_time(switch.time)
            ),
        );
    }
    if index.incomplete {
        page.entry(
            "incomplete",
            format_args!("not everything found room in the index; --read shows all of it"),
        );
    }
    for facts in &index.transactions {
        transaction_entries(page, facts);
    }
}

fn ends_entries(page: &mut Entries, ends: &Ends) {
    page.entry(
        "ends",
        format_args!(
            "{} commits, {} aborts, of transactions {} to {}",
            ends.commits, ends.aborts, ends.xids.oldest, ends.xids.newest
        ),
    );
    page.entry("", format_args!("first: {}", end_text(&ends.first)));
    page.entry("", format_args!("last: {}", end_text(&ends.last)));
    match &ends.last_commit {
        Some(commit) if *commit != ends.last => {
            page.entry("", format_args!("last commit: {}", end_text(commit)));
        }
        _ => {}
    }
    page.entry(
        "",
        format_args!(
            "times from {} to {}",
            postgres_time(ends.min_time),
            postgres_time(ends.max_time)
        ),
    );
}

fn end_text(end: &End) -> String {
    format!(
        "{} of {} at {}, {}",
        outcome(end.kind),
        end.xid,
        end.lsn,
        postgres_time(end.time)
    )
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Commit => "commit",
        Outcome::Abort => "abort",
    }
}

fn moment_text(moment: &Moment) -> String {
    let at = moment.lsn;
    match &moment.what {
        MomentKind::RestorePoint { name, time } => {
            format!("{at}  {}  restore point {name:?}", postgres_time(*time))
        }
        MomentKind::End {
            kind,
            xid,
            time,
            prepared,
            ..
        } => {
            let prepared = if *prepared { ", prepared" } else { "" };
            let kind = outcome(*kind);
            format!("{at}  {}  {kind} of {xid}{prepared}", postgres_time(*time))
        }
    }
}

fn transaction_entries(page: &mut Entries, facts: &TransactionFacts) {
    let top = facts
        .top
        .map(|top| format!(", part of {top}"))
        .unwrap_or_default();
    page.entry(
        "transaction",
        format_args!("{}{top}, first record at {}", facts.xid, facts.first_lsn),
    );
    let mut line = |text: String| page.entry("", format_args!("{text}"));
    for lock in &facts.locks {
        line(format!("locked {} at {}", oid(lock.what), lock.lsn));
    }
    for created in &facts.created {
        let filled = match (created.rows, created.pages) {
            (false, false) => "",
            (true, false) => ", then filled with rows",
            (false, true) => ", then filled with pages",
            (true, true) => ", then filled with rows and pages",
        };
        let path = path(created.file);
        line(format!("created {path} at {}{filled}", created.lsn));
    }
    for row in &facts.database_rows {
        let what = match row.what {
            DatabaseRow::Inplace => "changed in place",
            DatabaseRow::Deleted => "deleted",
        };
        line(format!("pg_database: a row {what} at {}", row.lsn));
    }
    for database in &facts.databases_dropped {
        line(format!(
            "dropped database {} at {}",
            database.what, database.lsn
        ));
    }
    for relation in &facts.truncated {
        line(format!(
            "truncated {} at {}",
            oid(relation.what),
            relation.lsn
        ));
    }
    for (what, rows) in [("deleted", &facts.deleted), ("updated", &facts.updated)] {
        for of in rows {
            let path = path(of.file);
            line(format!(
                "{what} {} rows of {path} from {} on",
                of.rows, of.lsn
            ));
        }
    }
    let class = &facts.class_rows;
    if !class.is_empty() {
        line(format!(
            "pg_class: {} rows inserted, {} updated, {} deleted",
            class.inserted, class.updated, class.deleted
        ));
    }
    let Some(end) = &facts.end else { return };
    line(end_text(&end.end));
    let list = |what: &str, of: Vec<String>| match of.as_slice() {
        [] => None,
        of => Some(format!("{what} {}", of.join(", "))),
    };
    let files = end.dropped_files.iter().map(|file| path(*file)).collect();
    let oids = |of: &[RelationOid]| of.iter().map(|of| oid(*of)).collect();
    let lists = [
        list("dropped files", files),
        list("dropped statistics of", oids(&end.dropped_stats)),
        list("invalidated", oids(&end.invalidated)),
    ];
    lists.into_iter().flatten().for_each(line);
}

/// As PostgreSQL prints one: tablespace, database, number.
fn path(file: RelFileLocator) -> String {
    format!("{}/{}/{}", file.tablespace, file.database, file.number)
}

fn oid(oid: RelationOid) -> String {
    format!("relation {} of database {}", oid.relation, oid.database)
}

/// The JSON of `walden wal show --json`.
#[derive(Serialize)]
struct Page<'a> {
    version: u32,
    cluster: &'a ClusterName,
    system_identifier: SystemIdentifier,
    segment: String,
    key: &'a str,
    stored_size: u64,
    content_size: u64,
    sha256: Option<&'a Sha256Digest>,
    conflict: bool,
    index: Option<&'a SegmentIndex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    moments: Option<Vec<JsonMoment<'a>>>,
}

#[derive(Serialize)]
struct JsonMoment<'a> {
    kind: &'static str,
    lsn: Lsn,
    end_lsn: Lsn,
    time: Timestamp,
    name: Option<&'a str>,
    xid: Option<u32>,
    subxids: &'a [u32],
    prepared: bool,
}

/// The same as [`segment_page`], for programs.
pub fn segment_json(segment: &ShownSegment) -> Result<String, serde_json::Error> {
    let moments = segment.moments.as_ref();
    let page = Page {
        version: 1,
        cluster: &segment.identity.cluster,
        system_identifier: segment.identity.system_identifier,
        segment: segment.name.to_string(),
        key: &segment.key,
        stored_size: segment.stored_size,
        content_size: segment.content_size,
        sha256: segment.sha256.as_ref(),
        conflict: segment.conflict,
        index: segment.index.as_deref(),
        moments: moments.map(|moments| moments.iter().map(json_moment).collect()),
    };
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

fn json_moment(moment: &Moment) -> JsonMoment<'_> {
    let (lsn, end_lsn) = (moment.lsn, moment.end_lsn);
    match &moment.what {
        MomentKind::RestorePoint { name, time } => JsonMoment {
            kind: "restore-point",
            lsn,
            end_lsn,
            time: *time,
            name: Some(name),
            xid: None,
            subxids: &[],
            prepared: false,
        },
        MomentKind::End {
            kind,
            xid,
            time,
            subxids,
            prepared,
        } => JsonMoment {
            kind: outcome(*kind),
            lsn,
            end_lsn,
            time: *time,
            name: None,
            xid: Some(*xid),
            subxids,
            prepared: *prepared,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_segment_is_shown_with_all_that_its_index_says() {
        assert_eq!(
            segment_page(&samples::shown_segment()),
            "\
segment       000000020000000000000005 of cluster main, system identifier 7123456789012345678
stored        2706 kB in main/7123456789012345678/wal/00000002/00000000/000000020000000000000005.zst, 16 MB of content
digest        sha256:0505050505050505050505050505050505050505050505050505050505050505
conflict      another file of that name was set aside in quarantine
records       4711 of PostgreSQL 17, from 0/5000028 to 0/5FFFF00
              begins with 100 bytes of a record of an earlier segment
              ends with 256 bytes of a record at 0/5FFFF00 that goes on in the next segment, and is not told of here
              switch at 0/5FFFF00
ends          2 commits, 1 aborts, of transactions 731 to 745
              first: commit of 731 at 0/5000100, 2026-11-22 17:50:07.123456+00
              last: abort of 745 at 0/5000300, 2026-11-22 17:50:09.000000+00
              last commit: commit of 740 at 0/5000200, 2026-11-22 17:50:08.000000+00
              times from 2026-11-22 17:50:07.123456+00 to 2026-11-22 17:50:09.000000+00
next xid      4294968042, with its epoch, at the last checkpoint
restore point \"before \\\"upgrade\\\"\" at 0/5000180, 2026-11-22 17:50:07.500000+00
checkpoint    at 0/5000048, redo from 0/5000028, 2026-11-22T17:50:07Z, at shutdown
timeline      2 begins at 0/5000028, was 1, 2026-11-22 17:50:07.000000+00
incomplete    not everything found room in the index; --read shows all of it
transaction   731, part of 730, first record at 0/5000060
              locked relation 16384 of database 5 at 0/5000068
              created 1663/5/16390 at 0/5000070, then filled with rows and pages
              pg_database: a row changed in place at 0/5000074
              dropped database 16400 at 0/5000078
              truncated relation 16385 of database 5 at 0/5000080
              deleted 1000 rows of 1663/5/16386 from 0/5000088 on
              updated 10 rows of 1663/5/16387 from 0/5000090 on
              pg_class: 1 rows inserted, 0 updated, 2 deleted
              commit of 731 at 0/5000100, 2026-11-22 17:50:07.123456+00
              dropped files 1663/5/16384, 1663/5/16388
              dropped statistics of relation 16384 of database 5
              invalidated relation 16384 of database 5
ends          and restore points, in WAL order
              0/5000100  2026-11-22 17:50:07.123456+00  commit of 731, prepared
              0/5000180  2026-11-22 17:50:07.500000+00  restore point \"before \\\"upgrade\\\"\"
"
        );
    }

    #[test]
    fn a_segment_without_an_index_says_how_to_look_into_it() {
        let mut segment = samples::shown_segment();
        segment.index = None;
        segment.moments = None;
        let page = segment_page(&segment);
        assert!(
            page.ends_with(
                "index         none that this version of Walden can use; --read reads the segment itself\n"
            ),
            "{page}"
        );
    }

    #[test]
    fn json_has_the_index_as_it_is_stored() {
        let json = segment_json(&samples::shown_segment()).expect("JSON");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["version"], 1);
        assert_eq!(value["segment"], "000000020000000000000005");
        assert_eq!(value["index"]["version"], 1, "the index has its own");
        assert_eq!(value["index"]["ends"]["last_commit"]["xid"], 740);
        assert_eq!(value["moments"][0]["kind"], "commit");
        assert_eq!(
            value["moments"][0]["subxids"],
            serde_json::json!([732, 733])
        );
        assert_eq!(value["moments"][1]["name"], "before \"upgrade\"");
    }
}
