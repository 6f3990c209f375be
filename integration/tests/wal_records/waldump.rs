//! What `pg_waldump` says of a record, and what Walden says of it, in the same words.

use anyhow::{Context, Result};
use walden_pg::Lsn;
use walden_pg::wal_record::{
    Checkpoint, EndKind, Event, HeapChange, PgTimestamp, Record, RelFileLocator, TransactionEnd,
};
use walden_testkit::Timestamp;

/// A line of `pg_waldump`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub rmgr: String,
    pub total_length: u32,
    pub xid: u32,
    pub lsn: Lsn,
    pub prev: Lsn,
    /// See [`event`]; empty where there is no event.
    pub event: String,
}

/// Managers by their number (`access/rmgrlist.h`), as `pg_waldump` calls them.
const MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// The line that a record should have.
pub fn expected(record: &Record<'_>) -> Line {
    Line {
        rmgr: MANAGERS
            .get(usize::from(record.header.rmgr))
            .map_or_else(String::new, |name| (*name).to_owned()),
        total_length: record.header.total_length,
        xid: record.header.xid,
        lsn: record.lsn,
        prev: record.header.prev,
        event: record.event().as_ref().map(event).unwrap_or_default(),
    }
}

/// Reads a line such as
/// `rmgr: Heap len (rec/tot): 54/ 54, tx: 733, lsn: 0/0194B5E8, prev 0/0194B5A0, desc: LOCK off 1, blkref #0: rel 1663/5/16390 blk 0`.
pub fn parse(text: &str) -> Result<Line> {
    let understood = || -> Option<Line> {
        let (front, desc) = text.split_once(", desc: ")?;
        let rmgr = front.strip_prefix("rmgr: ")?.split_whitespace().next()?;
        let (_, total_length) = word(front, "(rec/tot):", ',')?.split_once('/')?;
        Some(Line {
            rmgr: rmgr.to_owned(),
            total_length: total_length.trim().parse().ok()?,
            xid: word(front, "tx:", ',')?.parse().ok()?,
            lsn: word(front, "lsn: ", ',')?.parse().ok()?,
            prev: word(front, "prev ", ',')?.parse().ok()?,
            event: said(rmgr, desc)?,
        })
    };
    understood().with_context(|| format!("odd line of pg_waldump: {text}"))
}

/// What stands between `before` and `after`, or the end.
fn word<'a>(text: &'a str, before: &str, after: char) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    rest.split(after).next().map(str::trim)
}

/// All that an event says, as words.
fn event(event: &Event) -> String {
    match event {
        Event::End(end) => ended(end),
        Event::Assignment { top, subxids } => format!("assignment {top} {subxids:?}"),
        Event::RestorePoint { name, .. } => format!("restore point {name}"),
        Event::Checkpoint(Checkpoint {
            shutdown,
            redo,
            timeline,
            previous_timeline,
            next_xid,
            time: _,
        }) => {
            format!("checkpoint {shutdown} {redo} {timeline} {previous_timeline} {next_xid}")
        }
        Event::EndOfRecovery {
            time,
            timeline,
            previous_timeline,
        } => format!(
            "end of recovery {timeline} {previous_timeline} {}",
            micros(*time)
        ),
        Event::Switch => "switch".to_owned(),
        Event::DatabaseDropped { database } => format!("database dropped {database}"),
        Event::FileCreated(file) => format!("created {}", path(*file)),
        Event::Heap { change, file, rows } => {
            let RelFileLocator {
                tablespace,
                database,
                number,
            } = file;
            format!("{change:?} {tablespace}/{database}/{number} {rows}")
        }
        Event::Truncate {
            database: _,
            relations,
        } => format!("truncate {relations:?}"),
        Event::Pages(file) => format!(
            "pages {}/{}/{}",
            file.tablespace, file.database, file.number
        ),
        Event::Locks(locks) => {
            let locks = locks.iter().map(|(xid, relation)| {
                format!(" {xid} {} {}", relation.database, relation.relation)
            });
            format!("locks{}", locks.collect::<String>())
        }
        Event::RunningXacts { next_xid } => format!("running {next_xid}"),
    }
}

fn ended(end: &TransactionEnd) -> String {
    let mut files: Vec<String> = end.dropped_files.iter().copied().map(path).collect();
    files.sort();
    let stats: Vec<String> = end
        .dropped_stats
        .iter()
        .map(|stats| format!("{}/{}", stats.database, stats.relation))
        .collect();
    let mut relations: Vec<u32> = end.invalidated.iter().map(|of| of.relation).collect();
    relations.sort_unstable();
    relations.dedup();
    let xid = if end.prepared {
        end.xid.to_string()
    } else {
        HEADERS.to_owned()
    };
    format!(
        "{:?} prepared {} xid {xid} at {} files {files:?} stats {stats:?} subxids {:?} relcache {relations:?}",
        end.kind,
        end.prepared,
        micros(end.time),
        end.subxids,
    )
}

/// Descriptions have the id of prepared transactions alone.
const HEADERS: &str = "of the header";

fn micros(time: PgTimestamp) -> i64 {
    time.unix_micros().unwrap_or(i64::MIN)
}

/// `relpathperm`, without what a tablespace's folder is called.
fn path(file: RelFileLocator) -> String {
    match file.tablespace {
        1664 => format!("global/{}", file.number),
        1663 => format!("base/{}/{}", file.database, file.number),
        other => format!("pg_tblspc/{other}/{}/{}", file.database, file.number),
    }
}

/// The same words from a description; empty for what is no event.
fn said(rmgr: &str, desc: &str) -> Option<String> {
    let (kind, rest) = desc.split_once(' ').unwrap_or((desc, ""));
    let rest = rest.trim();
    let kind = kind.trim_end_matches("+INIT");
    let file = || word(desc, "blkref #0: rel ", ' ');
    let heap = |change: HeapChange, rows: &str| Some(format!("{change:?} {} {rows}", file()?));
    let event = match (rmgr, kind) {
        ("Transaction", "COMMIT" | "COMMIT_PREPARED") => {
            end(EndKind::Commit, kind == "COMMIT_PREPARED", rest)?
        }
        ("Transaction", "ABORT" | "ABORT_PREPARED") => {
            end(EndKind::Abort, kind == "ABORT_PREPARED", rest)?
        }
        ("Transaction", "ASSIGNMENT") => {
            let subxids = numbers(word(rest, "subxacts: ", ';')?)?;
            format!("assignment {} {subxids:?}", word(rest, "xtop ", ':')?)
        }
        ("XLOG", "RESTORE_POINT") => format!("restore point {rest}"),
        ("XLOG", "CHECKPOINT_SHUTDOWN" | "CHECKPOINT_ONLINE") => {
            let (epoch, xid) = word(rest, "; xid ", ';')?.split_once(':')?;
            let next_xid = epoch.parse::<u64>().ok()? << 32 | xid.parse::<u64>().ok()?;
            format!(
                "checkpoint {} {} {} {} {next_xid}",
                kind == "CHECKPOINT_SHUTDOWN",
                word(rest, "redo ", ';')?.parse::<Lsn>().ok()?,
                word(rest, "; tli ", ';')?,
                word(rest, "; prev tli ", ';')?
            )
        }
        ("XLOG", "END_OF_RECOVERY") => format!(
            "end of recovery {} {} {}",
            word(rest, "tli ", ';')?,
            word(rest, "prev tli ", ';')?,
            time(word(rest, "time ", ';')?)?
        ),
        ("XLOG", "SWITCH") => "switch".to_owned(),
        ("XLOG", "FPI") if !desc.contains(" fork ") => format!("pages {}", file()?),
        ("Database", "DROP") => format!("database dropped {}", word(rest, "/", ' ')?),
        // Other forks than the main one have their name behind the number.
        ("Storage", "CREATE") => match rest.split_once('_') {
            None => format!("created {rest}"),
            Some((file, "init")) => format!("created {file}"),
            Some(_) => String::new(),
        },
        ("Heap", "INSERT") => heap(HeapChange::Insert, "1")?,
        ("Heap", "UPDATE" | "HOT_UPDATE") => heap(HeapChange::Update, "1")?,
        ("Heap", "INPLACE") => heap(HeapChange::Inplace, "1")?,
        ("Heap", "DELETE") => {
            let flags = rest.split_once("flags")?.1.split_once("0x")?.1.get(..2)?;
            let flags = u8::from_str_radix(flags, 16).ok()?;
            // XLH_DELETE_IS_SUPER, XLH_DELETE_IS_PARTITION_MOVE
            match flags & 0x18 {
                0 => heap(HeapChange::Delete, "1")?,
                _ => String::new(),
            }
        }
        ("Heap", "TRUNCATE") => {
            let list = rest.split("relids").last()?;
            let list = list.split("blkref").next()?;
            format!(
                "truncate {:?}",
                numbers(list.trim_matches(|c: char| !c.is_ascii_digit()))?
            )
        }
        ("Heap2", "MULTI_INSERT") => {
            let rows = match word(rest, "ntuples: ", ',') {
                Some(rows) => rows,
                None => rest.split(" tuples").next()?,
            };
            heap(HeapChange::Insert, rows)?
        }
        ("Standby", "LOCK") => {
            let words = rest.split_whitespace();
            let held: Vec<&str> = words.filter(|word| word.parse::<u32>().is_ok()).collect();
            format!("locks {}", held.join(" "))
        }
        ("Standby", "RUNNING_XACTS") => format!("running {}", word(rest, "nextXid ", ' ')?),
        _ => String::new(),
    };
    Some(event)
}

/// Reads `2026-11-22 19:00:00.123456 UTC; rels: base/5/16390; subxacts: 735 736; inval msgs: catcache 80 relcache 16394`, for a prepared
/// transaction with its id in front.
fn end(kind: EndKind, prepared: bool, rest: &str) -> Option<String> {
    let mut parts = rest.split("; ");
    let at = parts.next()?;
    let (xid, at) = match at.split_once(": ") {
        Some((xid, at)) => (Some(xid.parse::<u32>().ok()?), at),
        None => (None, at),
    };
    let (mut files, mut stats, mut subxids, mut relations) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        let (name, list) = part.split_once(':').unwrap_or((part, ""));
        let words: Vec<&str> = list.split_whitespace().collect();
        match name {
            "rels" => files = words.iter().map(|word| (*word).to_owned()).collect(),
            // Of each kind; relations are of kind 2.
            "dropped stats" => {
                stats = words
                    .iter()
                    .filter_map(|word| word.strip_prefix("2/").map(str::to_owned))
                    .collect();
            }
            "subxacts" => subxids = numbers(list.trim())?,
            "inval msgs" => {
                relations = words
                    .windows(2)
                    .filter_map(|pair| match pair {
                        ["relcache", relation] => relation.parse::<u32>().ok(),
                        _ => None,
                    })
                    .filter(|relation| *relation != 0)
                    .collect();
            }
            _ => (),
        }
    }
    files.sort();
    relations.sort_unstable();
    relations.dedup();
    let xid = xid.map_or_else(|| HEADERS.to_owned(), |xid| xid.to_string());
    Some(format!(
        "{kind:?} prepared {prepared} xid {xid} at {} files {files:?} stats {stats:?} subxids {subxids:?} relcache {relations:?}",
        time(at)?
    ))
}

fn numbers(list: &str) -> Option<Vec<u32>> {
    list.split_whitespace()
        .map(|number| number.trim_end_matches(',').parse().ok())
        .collect()
}

/// Microseconds since 1970 of `2026-11-22 19:00:00.123456 UTC`.
fn time(text: &str) -> Option<i64> {
    let time: Timestamp = format!("{}Z", text.strip_suffix(" UTC")?).parse().ok()?;
    Some(time.as_microsecond())
}
