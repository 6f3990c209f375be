//! What records say, gathered for an index or for a reading in full.

mod end;
mod whole;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;

use jiff::Timestamp;
use walden_pg::Lsn;
use walden_pg::wal_record::{Event, HeapChange, PgTimestamp, Record, RelFileLocator};

use super::detail::{Moment, MomentKind, SegmentDetail};
use super::matter::Matter;
use super::rows::Rows;
use super::xid::XidHasher;
use super::{
    At, CheckpointMark, CreatedFile, DatabaseRow, Ends, LeftOut, RestorePoint, TimelineSwitch,
    TransactionFacts,
};

/// `pg_class`'s and `pg_database`'s first files (`RelationRelationId`, `DatabaseRelationId`).
const PG_CLASS: u32 = 1259;
const PG_DATABASE: u32 = 1262;
/// Where files of relations that are no catalogs are numbered from (`FirstNormalObjectId`).
const FIRST_USER_FILE: u32 = 16384;
/// Rows of one file of which there are few: below it updates are left out if there is nothing else to tell of the transaction.
pub(super) const FEW: u64 = 32;
/// Transactions under way, facts and rows that are held at most. A segment of 16 MiB has no room for as many.
const MOST: usize = 1 << 20;

type XidMap<T> = HashMap<u32, T, BuildHasherDefault<XidHasher>>;
type FileMap<T> = HashMap<RelFileLocator, T, BuildHasherDefault<XidHasher>>;

/// A transaction, or a subtransaction, that has records here.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub xid: u32,
    pub first_lsn: Lsn,
    pub facts: Option<Box<TransactionFacts>>,
    /// A chain in [`Rows`].
    pub rows: u32,
}

/// Takes records in WAL order and keeps what matters.
#[derive(Debug, Clone)]
pub(super) struct Gatherer {
    pub ends: Option<Ends>,
    pub next_xid: Option<u64>,
    pub restore_points: Vec<RestorePoint>,
    pub checkpoints: Vec<CheckpointMark>,
    pub switches: Vec<TimelineSwitch>,
    pub incomplete: bool,
    pub left_out: LeftOut,
    pub entries: Vec<Entry>,
    pub rows: Rows,
    /// Subtransactions' transactions, as far as records here say.
    pub tops: XidMap<u32>,
    free: Vec<u32>,
    /// Transactions that have not ended yet.
    open: XidMap<u32>,
    last: Option<(u32, u32)>,
    /// Files whose transaction has not ended: who created it, and which of its files it is.
    created: FileMap<(u32, u32)>,
    facts: usize,
    /// Transactions that deleted few rows, and did nothing else, that may yet be kept.
    few: usize,
    moments: Option<Vec<Moment>>,
    watched: HashSet<RelFileLocator>,
    filled: HashSet<RelFileLocator>,
}

impl Gatherer {
    /// One for an index: moments are not kept, and of small deletions only some.
    pub fn for_index() -> Self {
        const FEW_DELETIONS: usize = 16;
        Self::new(None, FEW_DELETIONS)
    }

    /// One that keeps all.
    pub fn for_detail() -> Self {
        Self::new(Some(Vec::new()), MOST)
    }

    /// Says where a transaction's first record is, unless that is known.
    pub fn began(&mut self, xid: u32, lsn: Lsn) {
        if xid != 0 {
            self.slot(xid, lsn);
        }
    }

    fn new(moments: Option<Vec<Moment>>, few: usize) -> Self {
        Self {
            ends: None,
            next_xid: None,
            restore_points: Vec::new(),
            checkpoints: Vec::new(),
            switches: Vec::new(),
            incomplete: false,
            left_out: LeftOut::default(),
            entries: Vec::new(),
            rows: Rows::default(),
            tops: XidMap::default(),
            free: Vec::new(),
            open: XidMap::default(),
            last: None,
            created: FileMap::default(),
            facts: 0,
            few,
            moments,
            watched: HashSet::new(),
            filled: HashSet::new(),
        }
    }

    pub fn watch(&mut self, files: impl IntoIterator<Item = RelFileLocator>) {
        self.watched.extend(files);
    }

    pub fn take_moments(&mut self) -> Vec<Moment> {
        self.moments.take().unwrap_or_default()
    }

    /// The watched files that rows or pages came into, in their order.
    pub fn take_filled(&mut self) -> Vec<RelFileLocator> {
        let mut filled: Vec<_> = self.filled.drain().collect();
        filled.sort_unstable();
        filled
    }

    /// Where a transaction that has not ended has its first record.
    pub fn first_lsn_of(&self, xid: u32) -> Option<Lsn> {
        self.open
            .get(&xid)
            .and_then(|slot| self.entries.get(*slot as usize))
            .map(|entry| entry.first_lsn)
    }

    /// Whether there is a file that could still get its first rows or pages.
    pub fn has_open_files(&self) -> bool {
        self.created.values().any(|(slot, place)| {
            let entry = self.entries.get(*slot as usize);
            let facts = entry.and_then(|entry| entry.facts.as_ref());
            let created = facts.and_then(|facts| facts.created.get(*place as usize));
            created.is_some_and(|created| !created.rows && !created.pages)
        })
    }

    pub fn visit(&mut self, record: &Record<'_>) {
        let xid = record.header.xid;
        if xid != 0 && self.last.is_none_or(|(last, _)| last != xid) {
            let is_new = !self.open.contains_key(&xid);
            self.slot(xid, record.lsn);
            // A record says so once, and before it the subtransaction has no other.
            if is_new && let Some(top) = record.top_xid() {
                self.belongs(xid, top);
            }
        }
        match record.event() {
            Some(event) => self.note(xid, record.lsn, record.end_lsn, event),
            None if record.body.is_none() => {
                self.incomplete |= Matter::of(record.header.rmgr, record.header.info) == Matter::Yes
            }
            None => {}
        }
    }

    fn slot(&mut self, xid: u32, lsn: Lsn) -> Option<u32> {
        if let Some((last, slot)) = self.last
            && last == xid
        {
            return Some(slot);
        }
        let slot = match self.open.get(&xid) {
            Some(slot) => *slot,
            None => self.begin(xid, lsn)?,
        };
        self.last = Some((xid, slot));
        Some(slot)
    }

    fn begin(&mut self, xid: u32, first_lsn: Lsn) -> Option<u32> {
        let entry = Entry {
            xid,
            first_lsn,
            facts: None,
            rows: Rows::NONE,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                *self.entries.get_mut(slot as usize)? = entry;
                slot
            }
            None if self.entries.len() < MOST => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).ok()?
            }
            None => {
                self.incomplete = true;
                return None;
            }
        };
        self.open.insert(xid, slot);
        Some(slot)
    }

    fn entry(&mut self, xid: u32, lsn: Lsn) -> Option<&mut Entry> {
        let slot = self.slot(xid, lsn)?;
        self.entries.get_mut(slot as usize)
    }

    /// The facts of a transaction, of which `more` are to come.
    fn facts(&mut self, xid: u32, lsn: Lsn, more: usize) -> Option<&mut TransactionFacts> {
        if self.facts >= MOST {
            self.incomplete = true;
            return None;
        }
        self.facts += more;
        self.entry(xid, lsn).map(Entry::facts)
    }

    fn belongs(&mut self, xid: u32, top: u32) {
        if self.tops.len() < MOST {
            self.tops.insert(xid, top);
        } else {
            self.incomplete = true;
        }
    }

    /// Notes what a record says. `xid` is its header's.
    pub fn note(&mut self, xid: u32, lsn: Lsn, end_lsn: Lsn, event: Event) {
        match event {
            Event::Heap { change, file, rows } => self.heap(xid, lsn, change, file, rows),
            Event::Pages(file) => self.content(file, false),
            Event::End(end) => self.end(lsn, end_lsn, end),
            Event::Assignment { top, subxids } => {
                for xid in subxids {
                    self.belongs(xid, top);
                }
            }
            Event::Locks(locks) => {
                for (xid, what) in locks {
                    if let Some(facts) = self.facts(xid, lsn, 1) {
                        facts.locks.push(At { what, lsn });
                    }
                }
            }
            Event::FileCreated(file) => self.create(xid, lsn, file),
            Event::DatabaseDropped { database } => {
                if let Some(facts) = self.facts(xid, lsn, 1) {
                    let what = database;
                    facts.databases_dropped.push(At { what, lsn });
                }
            }
            Event::Truncate {
                database,
                relations,
            } => {
                if let Some(facts) = self.facts(xid, lsn, relations.len()) {
                    facts
                        .truncated
                        .extend(relations.into_iter().map(|relation| {
                            let what = (database, relation).into();
                            At { what, lsn }
                        }));
                }
            }
            Event::RestorePoint { time, name } => {
                let time = timestamp(time);
                self.moment(lsn, end_lsn, || MomentKind::RestorePoint {
                    name: name.clone(),
                    time,
                });
                if self.room() {
                    self.restore_points.push(RestorePoint {
                        name,
                        lsn,
                        end_lsn,
                        time,
                    });
                }
            }
            Event::Checkpoint(checkpoint) => {
                self.next_xid = Some(checkpoint.next_xid);
                let time = timestamp(checkpoint.time);
                if self.room() {
                    self.checkpoints.push(CheckpointMark {
                        lsn,
                        redo: checkpoint.redo,
                        shutdown: checkpoint.shutdown,
                        time,
                    });
                }
                if checkpoint.timeline != checkpoint.previous_timeline && self.room() {
                    self.switches.push(TimelineSwitch {
                        lsn,
                        timeline: checkpoint.timeline,
                        previous: checkpoint.previous_timeline,
                        time,
                    });
                }
            }
            Event::EndOfRecovery {
                time,
                timeline,
                previous_timeline,
            } => {
                if self.room() {
                    self.switches.push(TimelineSwitch {
                        lsn,
                        timeline,
                        previous: previous_timeline,
                        time: timestamp(time),
                    });
                }
            }
            Event::Switch | Event::RunningXacts { .. } => {}
        }
    }

    fn room(&mut self) -> bool {
        self.facts += 1;
        self.incomplete |= self.facts > MOST;
        self.facts <= MOST
    }

    fn moment(&mut self, lsn: Lsn, end_lsn: Lsn, what: impl FnOnce() -> MomentKind) {
        let Some(moments) = &mut self.moments else {
            return;
        };
        if moments.len() < SegmentDetail::MOST {
            moments.push(Moment {
                lsn,
                end_lsn,
                what: what(),
            });
        } else {
            self.incomplete = true;
        }
    }

    fn create(&mut self, xid: u32, lsn: Lsn, file: RelFileLocator) {
        let Some(slot) = self.slot(xid, lsn) else {
            return;
        };
        let Some(facts) = self.facts(xid, lsn, 1) else {
            return;
        };
        let place = facts.created.len() as u32;
        facts.created.push(CreatedFile {
            file,
            lsn,
            rows: false,
            pages: false,
        });
        self.created.insert(file, (slot, place));
    }

    /// Rows or whole pages came into a file. While its creator has not ended, nobody else sees the file.
    fn content(&mut self, file: RelFileLocator, rows: bool) {
        if !self.watched.is_empty() && self.watched.contains(&file) {
            self.filled.insert(file);
        }
        if self.created.is_empty() {
            return;
        }
        let created = self.created.get(&file).and_then(|(slot, place)| {
            let facts = self.entries.get_mut(*slot as usize)?.facts.as_mut()?;
            facts.created.get_mut(*place as usize)
        });
        if let Some(created) = created {
            created.rows |= rows;
            created.pages |= !rows;
        }
    }

    fn heap(&mut self, xid: u32, lsn: Lsn, change: HeapChange, file: RelFileLocator, count: u32) {
        match (change, file.number) {
            (HeapChange::Inplace | HeapChange::Delete, PG_DATABASE) => {
                let what = match change {
                    HeapChange::Delete => DatabaseRow::Deleted,
                    _ => DatabaseRow::Inplace,
                };
                if let Some(facts) = self.facts(xid, lsn, 1) {
                    facts.database_rows.push(At { what, lsn });
                }
            }
            (HeapChange::Insert | HeapChange::Update | HeapChange::Delete, PG_CLASS) => {
                if let Some(facts) = self.facts(xid, lsn, 0) {
                    let rows = match change {
                        HeapChange::Insert => &mut facts.class_rows.inserted,
                        HeapChange::Update => &mut facts.class_rows.updated,
                        _ => &mut facts.class_rows.deleted,
                    };
                    *rows = rows.saturating_add(count);
                }
            }
            (HeapChange::Insert, _) => self.content(file, true),
            (HeapChange::Update | HeapChange::Delete, FIRST_USER_FILE..) => {
                let Some(slot) = self.slot(xid, lsn) else {
                    return;
                };
                if let Some(entry) = self.entries.get_mut(slot as usize) {
                    let deleted = change == HeapChange::Delete;
                    let counted =
                        self.rows
                            .count(&mut entry.rows, file, deleted, count.into(), lsn);
                    self.incomplete |= !counted;
                }
            }
            _ => {}
        }
    }
}

impl Entry {
    fn facts(&mut self) -> &mut TransactionFacts {
        self.facts
            .get_or_insert_with(|| Box::new(TransactionFacts::new(self.xid, self.first_lsn)))
    }
}

/// The server's clock as ours; what lies beyond what we can say is the end of that.
fn timestamp(time: PgTimestamp) -> Timestamp {
    let beyond = match time.0 {
        ..0 => Timestamp::MIN,
        _ => Timestamp::MAX,
    };
    time.unix_micros()
        .and_then(|micros| Timestamp::from_microsecond(micros).ok())
        .unwrap_or(beyond)
}
