//! What happened to a transaction's relations: which were dropped, which truncated, and which only rewritten.
//!
//! The files that go with a commit look alike for all three. What tells them apart:
//!
//! - A new relation's OID and first file have the same number (`heap_create` in heap.c), and the relation is locked by its creator. A relation
//!   that stays and gets a new file (`RelationSetNewRelfilenumber` in relcache.c: TRUNCATE, REINDEX) gets one whose number is no relation's.
//! - VACUUM FULL, CLUSTER, REFRESH and ALTER TABLE fill a relation of their own, swap files with it and drop it (`finish_heap_swap` in
//!   cluster.c): created and dropped in one transaction, while its file stays.
//! - From version 15 on, commits name the relations that they drop. In 14 only rows of `pg_class` are counted: the swap changes two for each
//!   file, and a dropped table's indexes are not built anew.

use std::collections::{BTreeMap, BTreeSet};

use walden_pg::Lsn;
use walden_pg::wal_record::{RelFileLocator, RelationOid};

use super::gather::oid_of;
use super::judge::Judge;
use super::{Doubt, Transaction};
use crate::names::{NamedRelation, Persistence, RelationKind};

/// OIDs from here on are not PostgreSQL's own (`FirstNormalObjectId` in access/transam.h).
const FIRST_USER_OID: u32 = 16_384;

/// A relation that was dropped or truncated.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) oid: RelationOid,
    pub(super) file: Option<RelFileLocator>,
    pub(super) lsn: Lsn,
    pub(super) along: usize,
    pub(super) doubt: Option<Doubt>,
}

/// A transaction's relations and files.
pub(super) struct Scene<'a> {
    judge: &'a Judge<'a>,
    transaction: &'a Transaction,
    /// Relations that it created, if they have files.
    own: BTreeSet<RelationOid>,
    /// Files that went and were others', with the relation, where that is known.
    gone: BTreeMap<RelFileLocator, Option<RelationOid>>,
    /// Files that stayed of relations that it created and dropped: rewrites'.
    swapped: BTreeSet<RelFileLocator>,
    /// Files that it created and that stayed, of relations that it created.
    fresh: BTreeSet<RelFileLocator>,
    /// Files that it created and that stayed, of relations that were there before, or that [`Self::reborn`] counts.
    replacing: BTreeSet<RelFileLocator>,
    /// Relations that it created, and that got another file at once: indexes that ALTER TABLE drops, creates, and builds with the new content.
    reborn: usize,
}

impl<'a> Scene<'a> {
    pub(super) fn new(judge: &'a Judge<'a>, transaction: &'a Transaction) -> Self {
        let knows = |oid: &RelationOid| {
            transaction.locks.contains_key(oid) || transaction.dropped_stats.contains(oid)
        };
        let mut scene = Self {
            judge,
            transaction,
            own: BTreeSet::new(),
            gone: BTreeMap::new(),
            swapped: BTreeSet::new(),
            fresh: BTreeSet::new(),
            replacing: BTreeSet::new(),
            reborn: 0,
        };
        for file in transaction.created.keys() {
            let oid = oid_of(*file);
            let new_relation = knows(&oid);
            if new_relation {
                scene.own.insert(oid);
            }
            if transaction.dropped_files.contains(file) {
                let stays = new_relation && !transaction.dropped_stats.contains(&oid);
                scene.reborn += usize::from(stays);
                continue;
            }
            if !new_relation {
                scene.replacing.insert(*file);
            } else if transaction.dropped_stats.contains(&oid) {
                scene.swapped.insert(*file);
            } else {
                scene.fresh.insert(*file);
            }
        }
        for file in &transaction.dropped_files {
            if transaction.created.contains_key(file) {
                continue;
            }
            let named = judge.before.and_then(|names| names.by_file(*file));
            let owner = named
                .map(|named| named.oid)
                .or_else(|| Some(oid_of(*file)).filter(knows));
            scene.gone.insert(*file, owner);
        }
        scene
    }

    fn lock(&self, oid: RelationOid) -> Lsn {
        let locks = &self.transaction.locks;
        *locks.get(&oid).unwrap_or(&self.transaction.first_lsn)
    }

    fn named(&self, oid: RelationOid) -> Option<&'a NamedRelation> {
        self.judge.named_before(oid)
    }

    fn kind(&self, oid: RelationOid) -> Option<RelationKind> {
        self.named(oid).map(|named| named.kind)
    }

    fn file_of(&self, oid: RelationOid) -> Option<RelFileLocator> {
        let mut gone = self.gone.iter();
        gone.find_map(|(file, owner)| (*owner == Some(oid)).then_some(*file))
    }

    fn owners(&self) -> BTreeSet<RelationOid> {
        self.gone.values().flatten().copied().collect()
    }

    /// Files that went of relations that nobody knows.
    fn strays(&self) -> bool {
        self.gone.values().any(Option::is_none)
    }

    /// Relations that were there before, are not these, and were changed under a lock: a file that went may be theirs.
    fn may_own_strays(&self, known: &BTreeSet<RelationOid>) -> Vec<RelationOid> {
        if !self.strays() {
            return Vec::new();
        }
        let invalidated = &self.transaction.invalidated;
        let locked = self.transaction.locks.keys().copied();
        locked
            .filter(|oid| {
                !known.contains(oid)
                    && !self.own.contains(oid)
                    && (invalidated.is_empty() || invalidated.contains(oid))
                    && self.named(*oid).is_none_or(|named| {
                        named.file.is_some() && named.persistence != Persistence::Temporary
                    })
            })
            .collect()
    }

    /// Whether a relation was changed without the lock that DROP TABLE and TRUNCATE take: then this is about its index.
    fn table_unlocked(&self) -> bool {
        self.transaction.invalidated.iter().any(|oid| {
            oid.relation >= FIRST_USER_OID
                && !self.transaction.locks.contains_key(oid)
                && !self.own.contains(oid)
        })
    }

    /// Indexes of tables that were changed. One that no backup knows may be an index.
    fn indexes(&self, unknown: bool) -> BTreeSet<RelationOid> {
        let invalidated = self.transaction.invalidated.iter();
        let changed = invalidated.filter(|oid| self.transaction.locks.contains_key(oid));
        let mut changed: BTreeSet<RelationOid> = changed.copied().collect();
        changed.extend(self.owners());
        changed.retain(|oid| {
            !self.own.contains(oid)
                && match self.kind(*oid) {
                    Some(RelationKind::Index) => !self.is_of_toast(*oid),
                    Some(_) => false,
                    None => unknown,
                }
        });
        changed
    }

    fn replacing_is_indexes(&self) -> bool {
        self.replacing.iter().all(|file| {
            let created = self.transaction.created.get(file);
            created.is_some_and(|created| created.pages && !created.rows)
        })
    }

    /// The relations that were dropped, be they worth telling or not.
    pub(super) fn dropped(&self) -> BTreeMap<RelationOid, Option<Doubt>> {
        if self.transaction.pg_version >= 15 {
            let dropped = self.transaction.dropped_stats.difference(&self.own);
            return dropped.map(|oid| (*oid, None)).collect();
        }
        self.dropped_by_counting()
    }

    fn dropped_by_counting(&self) -> BTreeMap<RelationOid, Option<Doubt>> {
        let rows = self.transaction.class_rows;
        if rows.deleted == 0 {
            return BTreeMap::new();
        }
        let replacing = self.replacing.len();
        let swaps_none = self.fresh.is_empty() || (rows.updated as usize) < 2 + replacing;
        let indexes = self.indexes(false).len();
        let owners = self.owners();
        let fate = |oid: RelationOid| -> Option<Option<Doubt>> {
            match (swaps_none, replacing) {
                (true, 0) => Some(None),
                (true, _) => Some(Some(Doubt::DroppedOrTruncated)),
                (false, 0) if indexes > 0 => Some(None),
                (false, 0) => Some(Some(Doubt::Rewritten)),
                (false, _) => {
                    let rewritten = match self.named(oid) {
                        Some(_) => indexes > 0 && replacing >= indexes,
                        None => self.replacing_is_indexes(),
                    };
                    (!rewritten).then_some(Some(Doubt::Rewritten))
                }
            }
        };
        let stays = |oid: &RelationOid| {
            let after = self.judge.after;
            after.is_some_and(|names| names.relation(*oid).is_some())
        };
        let mut dropped: BTreeMap<_, _> = owners
            .iter()
            .filter(|oid| !stays(oid))
            .filter_map(|oid| Some((*oid, fate(*oid)?)))
            .collect();
        let strays = self.may_own_strays(&owners);
        let alone = strays.len() == 1;
        for oid in strays.into_iter().filter(|oid| !stays(oid)) {
            if let Some(doubt) = fate(oid) {
                let which = (!alone).then_some(Doubt::AnotherRelation);
                dropped.insert(oid, doubt.or(which));
            }
        }
        dropped
    }

    /// Those that are worth telling: an index or a sequence that goes along with its table is not, nor is what has no content of its own.
    pub(super) fn tell_dropped(&self, dropped: &BTreeMap<RelationOid, Option<Doubt>>) -> Vec<Told> {
        let mut told = Vec::new();
        let mut unknown = Vec::new();
        let mut without_file = Vec::new();
        for (oid, doubt) in dropped {
            let file = self.file_of(*oid);
            let Some(named) = self.named(*oid) else {
                match file {
                    Some(_) => unknown.push(*oid),
                    None => without_file.push(*oid),
                }
                continue;
            };
            if self.is_worth_telling(named, dropped, doubt.is_some()) {
                told.push(Told {
                    oid: *oid,
                    file,
                    lsn: self.lock(*oid),
                    along: 0,
                    doubt: *doubt,
                });
            }
        }
        self.leave_out_toast(&mut unknown);
        let mut doubt = unknown.iter().find_map(|oid| *dropped.get(oid)?);
        if self.strays() && !without_file.is_empty() {
            let created = self.replacing.len() + self.swapped.len() + self.fresh.len();
            doubt = doubt.or((created > 0).then_some(Doubt::Rewritten));
            unknown.extend(without_file);
        }
        if self.swaps() && unknown.len() <= self.reborn {
            unknown.clear();
        }
        // Nobody but REINDEX CONCURRENTLY and DROP INDEX CONCURRENTLY leaves a changed table unlocked.
        if !self.table_unlocked() {
            let part = self.first_locked_stays(dropped);
            let doubt = doubt.or(part.then_some(Doubt::PartOfTable));
            self.tell_unknown(unknown, doubt, &mut told);
        }
        told
    }

    fn is_worth_telling(
        &self,
        named: &NamedRelation,
        dropped: &BTreeMap<RelationOid, Option<Doubt>>,
        doubtful: bool,
    ) -> bool {
        let owner = named.belongs_to.map(|relation| RelationOid {
            relation,
            ..named.oid
        });
        let goes_along = owner.is_some_and(|owner| dropped.contains_key(&owner));
        match named.kind {
            _ if named.persistence == Persistence::Temporary => false,
            RelationKind::Table | RelationKind::MaterializedView | RelationKind::Other(_) => true,
            RelationKind::Sequence => !goes_along && !doubtful,
            // ALTER TABLE drops indexes to build them anew, and so does REINDEX CONCURRENTLY, which does not lock the table.
            RelationKind::Index => {
                let table_locked =
                    owner.is_some_and(|owner| self.transaction.locks.contains_key(&owner));
                let built_anew = !self.fresh.is_empty() || !self.swapped.is_empty();
                !goes_along && !doubtful && table_locked && !built_anew
            }
            RelationKind::Toast
            | RelationKind::View
            | RelationKind::CompositeType
            | RelationKind::ForeignTable
            | RelationKind::PartitionedTable
            | RelationKind::PartitionedIndex => false,
        }
    }

    /// A rewrite by ALTER TABLE or REFRESH drops the old TOAST table and its index, which have neighbouring OIDs, behind the new one's creation.
    fn leave_out_toast(&self, unknown: &mut Vec<RelationOid>) {
        let created = &self.transaction.created;
        let swaps = self.swapped.iter().filter_map(|file| created.get(file));
        let Some(begin) = swaps.map(|created| created.lsn).min() else {
            return;
        };
        let candidates: BTreeSet<RelationOid> = unknown
            .iter()
            .copied()
            .filter(|oid| self.lock(*oid) > begin)
            .collect();
        let next = |oid: &RelationOid| RelationOid {
            relation: oid.relation.saturating_add(1),
            ..*oid
        };
        let pairs: Vec<RelationOid> = candidates
            .iter()
            .copied()
            .filter(|oid| candidates.contains(&next(oid)))
            .take(self.swapped.len())
            .collect();
        unknown.retain(|oid| {
            !pairs
                .iter()
                .any(|toast| toast == oid || next(toast) == *oid)
        });
    }

    /// Whether what the transaction locked first is still there: then it was no DROP TABLE that began it.
    fn first_locked_stays(&self, dropped: &BTreeMap<RelationOid, Option<Doubt>>) -> bool {
        let locks = self.transaction.locks.iter();
        let first = locks
            .filter(|(oid, _)| !self.own.contains(oid))
            .min_by_key(|(_, lsn)| **lsn);
        first.is_some_and(|(oid, _)| !dropped.contains_key(oid))
    }

    /// One line for all relations of which no backup knows the name: which of them is the table cannot be told.
    fn tell_unknown(&self, unknown: Vec<RelationOid>, doubt: Option<Doubt>, told: &mut Vec<Told>) {
        let Some(first) = unknown.iter().copied().min_by_key(|oid| self.lock(*oid)) else {
            return;
        };
        let lsn = self.lock(first);
        match told.first_mut() {
            Some(with) => {
                with.along += unknown.len();
                with.lsn = with.lsn.min(lsn);
            }
            None => told.push(Told {
                oid: first,
                file: self.file_of(first),
                lsn,
                along: unknown.len() - 1,
                doubt,
            }),
        }
    }

    /// The tables that were truncated.
    pub(super) fn truncated(&self, dropped: &BTreeMap<RelationOid, Option<Doubt>>) -> Vec<Told> {
        let certain = &self.transaction.truncated;
        if !certain.is_empty() {
            let others = |oid: &RelationOid| !dropped.contains_key(oid) && !self.own.contains(oid);
            let tables = certain.iter().filter(|(oid, _)| others(oid));
            return tables
                .map(|(oid, lsn)| Told {
                    oid: *oid,
                    file: self.file_of(*oid),
                    lsn: self.lock(*oid).min(*lsn),
                    along: 0,
                    doubt: None,
                })
                .collect();
        }
        let staying: BTreeSet<RelationOid> = self
            .owners()
            .into_iter()
            .filter(|oid| !dropped.contains_key(oid) && !self.own.contains(oid))
            .collect();
        let mut told = Vec::new();
        let mut unknown = Vec::new();
        for oid in &staying {
            match self.kind(*oid) {
                Some(RelationKind::Table) => {
                    if let Some(doubt) = self.truncation(*oid, dropped) {
                        told.push(self.truncated_table(*oid, doubt));
                    }
                }
                Some(_) => {}
                None => unknown.push(*oid),
            }
        }
        let mut known = staying;
        known.extend(dropped.keys());
        let mut strays = self.may_own_strays(&known);
        unknown.extend(strays.iter().filter(|oid| self.named(**oid).is_none()));
        strays.retain(|oid| self.kind(*oid) == Some(RelationKind::Table));
        let alone = (strays.len() > 1).then_some(Doubt::AnotherRelation);
        for oid in strays {
            if let Some(doubt) = self.truncation(oid, dropped) {
                told.push(self.truncated_table(oid, doubt.or(alone)));
            }
        }
        if let Some(doubt) = self.unknown_truncation() {
            self.tell_unknown(unknown, doubt, &mut told);
        }
        told
    }

    fn truncated_table(&self, oid: RelationOid, doubt: Option<Doubt>) -> Told {
        Told {
            oid,
            file: self.file_of(oid),
            lsn: self.lock(oid),
            along: 0,
            doubt,
        }
    }

    fn swaps(&self) -> bool {
        let rows = self.transaction.class_rows;
        let by_counting =
            self.transaction.pg_version < 15 && rows.deleted > 0 && !self.fresh.is_empty();
        !self.swapped.is_empty() || by_counting
    }

    /// Whether a table that stayed and lost its file was truncated, or only rewritten or moved: `None`.
    fn truncation(
        &self,
        oid: RelationOid,
        dropped: &BTreeMap<RelationOid, Option<Doubt>>,
    ) -> Option<Option<Doubt>> {
        if self.swaps() {
            let built = self.indexes_that_stay(dropped) + self.reborn;
            let surplus = self.replacing.len() > built;
            return surplus.then_some(Some(Doubt::Rewritten));
        }
        let places: BTreeSet<u32> = match self.file_of(oid) {
            Some(file) => BTreeSet::from([file.tablespace]),
            None => {
                let strays = self.gone.iter().filter(|(_, owner)| owner.is_none());
                strays.map(|(file, _)| file.tablespace).collect()
            }
        };
        let there = |file: &RelFileLocator| places.contains(&file.tablespace);
        let replacing = self.replacing.iter().filter(|file| there(file)).count();
        let replaced = self.gone.iter().filter(|(file, owner)| {
            there(file) && owner.is_none_or(|owner| !dropped.contains_key(&owner))
        });
        match replacing {
            // ALTER TABLE SET TABLESPACE.
            0 => None,
            enough if enough >= replaced.count() => Some(None),
            _ => Some(Some(Doubt::Rewritten)),
        }
    }

    fn indexes_that_stay(&self, dropped: &BTreeMap<RelationOid, Option<Doubt>>) -> usize {
        let indexes = self.indexes(true);
        indexes
            .iter()
            .filter(|oid| !dropped.contains_key(oid))
            .count()
    }

    fn is_of_toast(&self, oid: RelationOid) -> bool {
        let owner = self.named(oid).and_then(|index| index.belongs_to);
        owner.is_some_and(|relation| {
            self.kind(RelationOid { relation, ..oid }) == Some(RelationKind::Toast)
        })
    }

    /// The same for relations of which nobody knows whether they are tables.
    fn unknown_truncation(&self) -> Option<Option<Doubt>> {
        let created = &self.transaction.created;
        let replacing = || self.replacing.iter().filter_map(|file| created.get(file));
        let rebuilt = self.replacing_is_indexes();
        if self.swaps() {
            return (!rebuilt).then_some(Some(Doubt::Rewritten));
        }
        if replacing().any(|created| created.rows) {
            return Some(None);
        }
        let places: BTreeSet<u32> = self.gone.keys().map(|file| file.tablespace).collect();
        let moved = !self
            .replacing
            .iter()
            .any(|file| places.contains(&file.tablespace));
        if moved || self.table_unlocked() {
            return None;
        }
        Some(rebuilt.then_some(Doubt::Rebuilt))
    }
}
