//! From the facts of many segments to whole transactions.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use walden_pg::Lsn;
use walden_pg::wal_record::{RelFileLocator, RelationOid};

use crate::index::{
    ClassRows, CreatedFile, DatabaseRow, End, Moment, MomentKind, Outcome, SegmentIndex,
    TransactionFacts, XidRange, claim,
};

/// What a transaction did in all segments, its subtransactions that were not rolled back included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its commit.
    pub commit: End,
    /// PostgreSQL's major version.
    pub pg_version: u16,
    /// The first record of it that is known.
    pub first_lsn: Lsn,
    /// AccessExclusiveLocks, and where each was taken first.
    pub locks: BTreeMap<RelationOid, Lsn>,
    /// Files it created.
    pub created: BTreeMap<RelFileLocator, CreatedFile>,
    /// Databases whose directory it removed.
    pub databases_dropped: BTreeMap<u32, Lsn>,
    /// Where DROP DATABASE began, if it is one and that is known.
    pub drop_database_begins: Option<Lsn>,
    /// Relations that it truncated for certain.
    pub truncated: BTreeMap<RelationOid, Lsn>,
    /// Rows it deleted, by file, and where the first was.
    pub deleted: BTreeMap<RelFileLocator, (u64, Lsn)>,
    /// Rows it updated, by file, and where the first was.
    pub updated: BTreeMap<RelFileLocator, (u64, Lsn)>,
    /// Rows of `pg_class`.
    pub class_rows: ClassRows,
    /// Files that went with its commit.
    pub dropped_files: BTreeSet<RelFileLocator>,
    /// Relations whose statistics went with its commit.
    pub dropped_stats: BTreeSet<RelationOid>,
    /// Relations whose cached descriptions became invalid.
    pub invalidated: BTreeSet<RelationOid>,
}

/// A transaction, or subtransaction, of which no end was seen yet.
#[derive(Debug, Clone, Default)]
struct Open {
    facts: Vec<TransactionFacts>,
    rows: u64,
    /// The segment that spoke of it last, counted from the search's beginning.
    seen: u64,
}

impl Open {
    /// Whether its commit matters although that says nothing of its own that an index would keep.
    fn matters(&self, rows: u64) -> bool {
        self.rows > rows
            || self
                .facts
                .iter()
                .any(|facts| !facts.databases_dropped.is_empty())
    }
}

/// Joins transactions' facts, segment by segment in WAL order. Within a segment their order does not matter.
#[derive(Debug)]
pub struct Gathering {
    many_rows: u64,
    open: HashMap<u32, Open>,
    segments: u64,
    pg_version: u16,
    /// Files that the segment before has of transactions without an id yet.
    unclaimed: Vec<CreatedFile>,
    /// Where rows of `pg_database` were changed in place.
    marks: BTreeSet<Lsn>,
    forgot: bool,
}

impl Gathering {
    /// Transactions without an end that are remembered, and other facts of that kind.
    pub const MOST_OPEN: usize = 50_000;

    /// `many_rows`: a transaction that deleted or updated more than these matters although nothing else tells how it ended.
    #[must_use]
    pub fn new(many_rows: u64) -> Self {
        Self {
            many_rows,
            open: HashMap::new(),
            segments: 0,
            pg_version: 0,
            unclaimed: Vec::new(),
            marks: BTreeSet::new(),
            forgot: false,
        }
    }

    /// Takes the next segment's facts, and gives the transactions that committed in it, in WAL order, as far as their ends stand among the facts.
    pub fn segment(&mut self, index: SegmentIndex) -> Vec<Transaction> {
        self.segments += 1;
        self.pg_version = index.pg_version;
        let mut ends = Vec::new();
        let facts = self.claim(index.transactions);
        for mut facts in facts {
            self.marks.extend(marks_of(&facts));
            if facts.xid == 0 {
                continue;
            }
            if let Some(outcome) = facts.end.take() {
                ends.push(Ended {
                    end: outcome.end,
                    subxids: outcome.subxids.clone(),
                });
                facts.end = Some(outcome);
            }
            let open = self.open.entry(facts.xid).or_default();
            open.seen = self.segments;
            let rows = facts.deleted.iter().chain(&facts.updated);
            open.rows += rows.map(|rows| rows.rows).sum::<u64>();
            open.facts.push(facts);
        }
        let committed = self.close_all(ends);
        self.forget();
        committed
    }

    /// Takes all commits and aborts of that segment, where it was read in full, and gives the transactions of which it was not known that they committed.
    pub fn ends(&mut self, moments: &[Moment]) -> Vec<Transaction> {
        let ends = moments.iter().filter_map(|moment| self.ended(moment));
        let ends = ends.collect();
        self.close_all(ends)
    }

    fn close_all(&mut self, mut ends: Vec<Ended>) -> Vec<Transaction> {
        ends.sort_by_key(|ended| ended.end.lsn);
        ends.iter().filter_map(|ended| self.close(ended)).collect()
    }

    /// Whether a commit or abort of one of these ranges may be one of a transaction that matters, and that no index would tell.
    #[must_use]
    pub fn awaits(&self, ended: &[XidRange]) -> bool {
        self.open
            .iter()
            .any(|(xid, open)| contains(ended, *xid) && open.matters(self.many_rows))
    }

    /// Whether there was more to remember than [`Gathering::MOST_OPEN`].
    #[must_use]
    pub fn forgot(&self) -> bool {
        self.forgot
    }

    fn ended(&self, moment: &Moment) -> Option<Ended> {
        let MomentKind::End {
            kind,
            xid,
            time,
            subxids,
            ..
        } = &moment.what
        else {
            return None;
        };
        let known = self.open.contains_key(xid)
            || subxids.iter().any(|subxid| self.open.contains_key(subxid));
        known.then(|| Ended {
            end: End {
                kind: *kind,
                xid: *xid,
                lsn: moment.lsn,
                end_lsn: moment.end_lsn,
                time: *time,
            },
            subxids: subxids.iter().map(|&subxid| XidRange::of(subxid)).collect(),
        })
    }

    /// Gives files their creators, those of the segment before, too.
    fn claim(&mut self, mut facts: Vec<TransactionFacts>) -> Vec<TransactionFacts> {
        let carried = std::mem::take(&mut self.unclaimed);
        claim(&carried, &mut facts);
        let nobodys = facts.iter().filter(|facts| facts.xid == 0);
        self.unclaimed = nobodys.flat_map(|facts| facts.created.clone()).collect();
        facts
    }

    fn close(&mut self, ended: &Ended) -> Option<Transaction> {
        let mut facts = self
            .open
            .remove(&ended.end.xid)
            .map(|open| open.facts)
            .unwrap_or_default();
        if !ended.subxids.is_empty() {
            let subs: Vec<u32> = self.open.keys().copied().collect();
            for xid in subs
                .into_iter()
                .filter(|xid| contains(&ended.subxids, *xid))
            {
                facts.extend(self.open.remove(&xid).into_iter().flat_map(|sub| sub.facts));
            }
        }
        if ended.end.kind == Outcome::Abort || facts.is_empty() {
            return None;
        }
        Some(self.whole(ended.end, facts))
    }

    fn whole(&self, commit: End, facts: Vec<TransactionFacts>) -> Transaction {
        let mut whole = Transaction {
            commit,
            pg_version: self.pg_version,
            first_lsn: commit.lsn,
            locks: BTreeMap::new(),
            created: BTreeMap::new(),
            databases_dropped: BTreeMap::new(),
            drop_database_begins: None,
            truncated: BTreeMap::new(),
            deleted: BTreeMap::new(),
            updated: BTreeMap::new(),
            class_rows: ClassRows::default(),
            dropped_files: BTreeSet::new(),
            dropped_stats: BTreeSet::new(),
            invalidated: BTreeSet::new(),
        };
        let mut row_deleted = None;
        for facts in facts {
            let mut deleted = facts.database_rows.iter();
            let deleted = deleted.find(|row| row.what == DatabaseRow::Deleted);
            row_deleted = earlier(row_deleted, deleted.map(|row| row.lsn));
            whole.take(facts);
        }
        whole.drop_database_begins =
            row_deleted.map(|deleted| self.mark_before(deleted).min(whole.first_lsn));
        whole
    }

    /// DROP DATABASE marks its row, without a transaction id where nothing has given it one yet, and deletes it at once (`dropdb` in
    /// dbcommands.c). VACUUM changes rows there, too, and may come in between: so neighbours count as one, and the first of them is taken.
    fn mark_before(&self, deleted: Lsn) -> Lsn {
        /// What others may write between two steps of one server process that do not wait.
        const AT_ONCE: u64 = 16 << 20;
        const NEIGHBOURS: u64 = 64 << 10;
        let mut begin = deleted;
        for mark in self.marks.range(..deleted).rev() {
            let reach = if begin == deleted {
                AT_ONCE
            } else {
                NEIGHBOURS
            };
            if begin.0 - mark.0 > reach {
                break;
            }
            begin = *mark;
        }
        begin
    }

    /// Keeps memory bounded: transactions that ended without an index saying so are never told of.
    fn forget(&mut self) {
        if self.open.len() > Self::MOST_OPEN {
            let mut seen: Vec<u64> = self
                .open
                .values()
                .filter(|open| !open.matters(self.many_rows))
                .map(|open| open.seen)
                .collect();
            seen.sort_unstable();
            let horizon = seen.get(seen.len() / 2).copied().unwrap_or(0);
            self.open
                .retain(|_, open| open.matters(self.many_rows) || open.seen > horizon);
            if self.open.len() > Self::MOST_OPEN {
                self.forgot = true;
                self.open.clear();
            }
        }
        while self.marks.len() > Self::MOST_OPEN {
            self.marks.pop_first();
        }
    }
}

struct Ended {
    end: End,
    subxids: Vec<XidRange>,
}

impl Transaction {
    fn take(&mut self, facts: TransactionFacts) {
        self.first_lsn = self.first_lsn.min(facts.first_lsn);
        for lock in facts.locks {
            put_first(&mut self.locks, lock.what, lock.lsn);
        }
        for created in facts.created {
            let entry = self.created.entry(created.file).or_insert(created);
            entry.lsn = entry.lsn.min(created.lsn);
            entry.rows |= created.rows;
            entry.pages |= created.pages;
        }
        for dropped in facts.databases_dropped {
            put_first(&mut self.databases_dropped, dropped.what, dropped.lsn);
        }
        for truncated in facts.truncated {
            put_first(&mut self.truncated, truncated.what, truncated.lsn);
        }
        for (mine, rows) in [
            (&mut self.deleted, facts.deleted),
            (&mut self.updated, facts.updated),
        ] {
            for rows in rows {
                let (sum, first) = mine.entry(rows.file).or_insert((0, rows.lsn));
                *sum += rows.rows;
                *first = (*first).min(rows.lsn);
            }
        }
        self.class_rows.inserted += facts.class_rows.inserted;
        self.class_rows.updated += facts.class_rows.updated;
        self.class_rows.deleted += facts.class_rows.deleted;
        if let Some(outcome) = facts.end {
            self.dropped_files.extend(outcome.dropped_files);
            self.dropped_stats.extend(outcome.dropped_stats);
            self.invalidated.extend(outcome.invalidated);
        }
    }
}

fn put_first<K: Ord>(map: &mut BTreeMap<K, Lsn>, key: K, lsn: Lsn) {
    let entry = map.entry(key).or_insert(lsn);
    *entry = (*entry).min(lsn);
}

fn earlier(one: Option<Lsn>, other: Option<Lsn>) -> Option<Lsn> {
    one.into_iter().chain(other).min()
}

fn marks_of(facts: &TransactionFacts) -> impl Iterator<Item = Lsn> {
    let marks = facts.database_rows.iter();
    marks
        .filter(|row| row.what == DatabaseRow::Inplace)
        .map(|row| row.lsn)
}

fn contains(ranges: &[XidRange], xid: u32) -> bool {
    ranges.iter().any(|range| range.contains(xid))
}

/// The relation that has this file since it was created, if it was not rewritten.
pub(super) fn oid_of(file: RelFileLocator) -> RelationOid {
    RelationOid {
        database: file.database,
        relation: file.number,
    }
}
