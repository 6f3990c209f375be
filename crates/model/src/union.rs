//! What several repositories hold of one archive, as one catalog.
//!
//! An object has the same key everywhere, so the archive holds what any of its repositories holds, and each lacks what only another has.

use std::collections::{BTreeMap, BTreeSet};

use walden_pg::history::TimelineHistory;
use walden_pg::{Lsn, SegmentName, TimelineId};

use crate::catalog::{Catalog, DamagedDocument};
use crate::coverage::TimelineWal;
use crate::keys::{BackupId, SystemKeys, WalName, parse_wal_key};

/// What one of several repositories holds of an archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Holding {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Its segments.
    pub wal: BTreeMap<TimelineId, TimelineWal>,
    /// The timelines whose history files it holds whole.
    pub histories: BTreeSet<TimelineId>,
    /// The backups that are committed in it, each with the keys of its packs and shards that are missing there or have another size.
    pub backups: BTreeMap<BackupId, Vec<String>>,
}

/// What a repository lacks and another has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lack {
    /// How many segments.
    pub segments: u64,
    /// The first of them, by timeline and position.
    pub first: Option<SegmentName>,
    /// The last of them.
    pub last: Option<SegmentName>,
    /// Timelines whose history files.
    pub histories: Vec<TimelineId>,
    /// Backups: not committed there, or without packs that another repository has. In WAL order.
    pub backups: Vec<BackupId>,
}

impl Lack {
    /// Whether nothing is lacking.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Holding {
    fn of(repository: String, part: Catalog) -> Self {
        let mut missing = part.missing_packs;
        let ids = part.backups.into_iter().map(|record| record.backup_id);
        Self {
            repository,
            wal: part.wal,
            histories: part.histories.into_keys().collect(),
            backups: ids
                .map(|id| {
                    let missing = missing.remove(&id).unwrap_or_default();
                    (id, missing)
                })
                .collect(),
        }
    }
}

impl Catalog {
    /// The catalog of an archive whose repositories, in the order of the configuration, hold this. `None` without any. Where they do not agree
    /// about one object, what the first holds counts; but a history file that tells something else in another repository is disputed.
    #[must_use]
    pub fn union(mut parts: Vec<(String, Self)>) -> Option<Self> {
        let (_, first) = parts.first()?;
        if parts.len() == 1 {
            return parts.pop().map(|(_, only)| only);
        }
        let mut union = Self::empty(
            first.cluster.clone(),
            first.system_identifier,
            first.archive_id,
            first.segment_size,
        );
        for (_, part) in &parts {
            union.add_wal(part);
            union.add_backups(part);
        }
        let committed: BTreeSet<_> = union.backups.iter().map(|b| b.backup_id.clone()).collect();
        union
            .unfinished
            .retain(|unfinished| !committed.contains(&unfinished.id));
        union.partials.sort_unstable();
        union.partials.dedup();
        union.add_newest(&parts);
        union.add_damaged(&parts);
        union.holdings = parts
            .into_iter()
            .map(|(repository, part)| Holding::of(repository, part))
            .collect();
        union.add_missing();
        Some(union)
    }

    fn add_wal(&mut self, part: &Self) {
        for (timeline, wal) in &part.wal {
            let into = self.wal.entry(*timeline).or_default();
            for (number, size) in &wal.segments {
                into.segments.entry(*number).or_insert(*size);
            }
            into.conflicts.extend(&wal.conflicts);
            for (number, found) in &wal.breaks {
                into.breaks.entry(*number).or_insert(*found);
            }
        }
        for (timeline, history) in &part.histories {
            let known = self.histories.entry(*timeline);
            if forks(known.or_insert_with(|| history.clone())) != forks(history)
                && self.disputed_histories.insert(*timeline)
            {
                self.damaged_documents.push(DamagedDocument {
                    key: self.keys().wal(&WalName::History(*timeline)),
                    why: "in conflict: it says something else in another repository".to_owned(),
                });
            }
        }
        self.disputed_histories.extend(&part.disputed_histories);
        self.partials.extend(&part.partials);
    }

    fn add_backups(&mut self, part: &Self) {
        let known: BTreeSet<_> = self.backups.iter().map(|b| b.backup_id.clone()).collect();
        let new = part.backups.iter();
        let new = new.filter(|record| !known.contains(&record.backup_id));
        self.backups.extend(new.cloned());
        for unfinished in &part.unfinished {
            if !self
                .unfinished
                .iter()
                .any(|known| known.id == unfinished.id)
            {
                self.unfinished.push(unfinished.clone());
            }
        }
    }

    /// When the newest segments were archived, as a repository says that has them.
    fn add_newest(&mut self, parts: &[(String, Self)]) {
        for (timeline, wal) in &self.wal {
            let told = parts.iter().find_map(|(_, part)| {
                let last = part.wal.get(timeline)?.last();
                let newest = part.newest_archived_at.get(timeline);
                newest.filter(|_| last == wal.last())
            });
            if let Some(at) = told {
                self.newest_archived_at.insert(*timeline, *at);
            }
        }
    }

    /// Damaged is what no repository has whole.
    fn add_damaged(&mut self, parts: &[(String, Self)]) {
        let keys = self.keys();
        for document in parts.iter().flat_map(|(_, part)| &part.damaged_documents) {
            let whole = parts.iter().any(|(_, part)| part.has(&keys, &document.key));
            let mut known = self.damaged_documents.iter();
            if !whole && !known.any(|known| known.key == document.key) {
                self.damaged_documents.push(document.clone());
            }
        }
    }

    /// Whether what this key names was read as what it should be.
    fn has(&self, keys: &SystemKeys, key: &str) -> bool {
        if let Some(id) = keys.parse_commit(key) {
            return self.backup(&id).is_some();
        }
        if let Some(id) = keys.parse_backup(key) {
            return self.backup(&id).is_some() || self.unfinished.iter().any(|b| b.id == id);
        }
        let name = key.strip_prefix(&keys.wal_prefix());
        match name.and_then(parse_wal_key) {
            Some(WalName::History(timeline)) => self.histories.contains_key(&timeline),
            Some(WalName::Segment(segment)) => {
                let timeline = &segment.timeline;
                let last = self.wal.get(timeline).and_then(TimelineWal::last);
                last == segment.number(self.segment_size)
                    && self.newest_archived_at.contains_key(timeline)
            }
            _ => false,
        }
    }

    /// Of a backup is missing what is missing wherever it is committed.
    fn add_missing(&mut self) {
        for record in &self.backups {
            let id = &record.backup_id;
            let mut committed = self.holdings.iter().filter_map(|h| h.backups.get(id));
            let mut missing = committed.next().cloned().unwrap_or_default();
            for other in committed {
                missing.retain(|key| other.contains(key));
            }
            if !missing.is_empty() {
                self.missing_packs.insert(id.clone(), missing);
            }
        }
    }

    fn keys(&self) -> SystemKeys {
        SystemKeys {
            cluster: self.cluster.clone(),
            system: self.system_identifier,
        }
    }

    /// The segments of one repository. Of an archive that was read from one alone, all of them.
    #[must_use]
    pub fn wal_in(&self, repository: &str) -> &BTreeMap<TimelineId, TimelineWal> {
        let mut holdings = self.holdings.iter();
        let holding = holdings.find(|holding| holding.repository == repository);
        holding.map_or(&self.wal, |holding| &holding.wal)
    }

    /// Says that an archived segment is in conflict.
    pub fn dispute(&mut self, segment: SegmentName) {
        let Some(number) = segment.number(self.segment_size) else {
            return;
        };
        let holdings = self.holdings.iter_mut().map(|holding| &mut holding.wal);
        for wal in std::iter::once(&mut self.wal).chain(holdings) {
            if let Some(wal) = wal.get_mut(&segment.timeline)
                && wal.segments.contains_key(&number)
            {
                wal.conflicts.insert(number);
            }
        }
    }

    /// What a repository lacks and another has.
    #[must_use]
    pub fn lack_of(&self, holding: &Holding) -> Lack {
        let mut lack = Lack::default();
        for (timeline, wal) in &self.wal {
            let there = holding.wal.get(timeline);
            let missing = wal
                .segments
                .keys()
                .filter(|number| !there.is_some_and(|there| there.segments.contains_key(number)));
            for number in missing {
                let name = SegmentName::from_number(*timeline, *number, self.segment_size);
                lack.segments += 1;
                lack.first.get_or_insert(name);
                lack.last = Some(name);
            }
        }
        let histories = self.histories.keys().copied();
        lack.histories = histories
            .filter(|timeline| !holding.histories.contains(timeline))
            .collect();
        let backups = self.ordered_backups().into_iter();
        lack.backups = backups
            .map(|record| &record.backup_id)
            .filter(|id| match holding.backups.get(id) {
                None => true,
                Some(missing) => {
                    let nowhere = self.missing_packs.get(id);
                    let elsewhere = |key| !nowhere.is_some_and(|nowhere| nowhere.contains(key));
                    missing.iter().any(elsewhere)
                }
            })
            .cloned()
            .collect();
        lack
    }

    /// The repositories in which a backup is committed, those first in which nothing of it is missing. Empty for an archive that was read from
    /// one repository alone.
    #[must_use]
    pub fn repositories_of(&self, backup: &BackupId) -> Vec<String> {
        let committed = self.holdings.iter().filter_map(|holding| {
            let missing = holding.backups.get(backup)?;
            Some((!missing.is_empty(), holding.repository.clone()))
        });
        let mut committed: Vec<_> = committed.collect();
        committed.sort_by_key(|(incomplete, _)| *incomplete);
        committed.into_iter().map(|(_, name)| name).collect()
    }
}

/// What a history file says about where WAL is; the rest is for people.
fn forks(history: &TimelineHistory) -> Vec<(TimelineId, Lsn)> {
    let entries = history.entries.iter();
    entries
        .map(|entry| (entry.timeline, entry.switch))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::UnfinishedBackup;
    use crate::sample::{backup, catalog, forked, id, time, whole};

    fn both(a: Catalog, b: Catalog) -> Catalog {
        let parts = vec![("a".to_owned(), a), ("b".to_owned(), b)];
        Catalog::union(parts).unwrap()
    }

    fn without_holdings(mut catalog: Catalog) -> Catalog {
        catalog.holdings.clear();
        catalog
    }

    #[test]
    fn one_repository_is_the_archive_and_two_of_the_same_are_no_more() {
        for only in [whole(), forked()] {
            let one = Catalog::union(vec![("a".to_owned(), only.clone())]);
            assert_eq!(one.as_ref(), Some(&only), "nothing is added to one");
            let two = both(only.clone(), only.clone());
            for holding in &two.holdings {
                assert!(two.lack_of(holding).is_empty(), "{}", holding.repository);
            }
            assert_eq!(without_holdings(two), only, "the same twice");
        }
        assert_eq!(Catalog::union(Vec::new()), None, "nothing at all");
    }

    #[test]
    fn a_backup_is_whole_where_each_object_is_somewhere_and_lacks_what_another_has() {
        let (mut a, mut b) = (whole(), whole());
        let backup = a.backups[0].backup_id.clone();
        let lost = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect();
        a.missing_packs.insert(backup.clone(), lost(&["x", "y"]));
        let only_a = both(a.clone(), b.clone());
        assert!(only_a.missing_packs.is_empty(), "b has them all");
        assert_eq!(
            only_a.repositories_of(&backup),
            ["b", "a"],
            "whole ones first"
        );
        b.missing_packs.insert(backup.clone(), lost(&["y"]));
        let shared = both(a, b);
        assert_eq!(shared.missing_packs.get(&backup), Some(&lost(&["y"])));
        let lack = |at: usize| shared.lack_of(&shared.holdings[at]).backups;
        assert_eq!(lack(0), [backup], "a lacks x, which b has");
        assert_eq!(lack(1), [], "what b lacks nobody has");
    }

    #[test]
    fn what_is_whole_or_finished_anywhere_is_so() {
        let (mut a, mut b) = (whole(), whole());
        let keys = a.keys();
        let record = a.backups.remove(1);
        let running = UnfinishedBackup {
            id: record.backup_id.clone(),
            started_at: time(500),
            host: "db1".to_owned(),
        };
        a.unfinished = vec![running];
        let damaged = |key: String| DamagedDocument {
            key,
            why: "a bit flipped".to_owned(),
        };
        a.damaged_documents = vec![damaged(keys.commit(&record.backup_id))];
        a.newest_archived_at.clear();
        let nowhere = damaged(keys.commit(&id(9)));
        b.damaged_documents = vec![nowhere.clone()];
        a.damaged_documents.push(nowhere.clone());
        let union = both(a, b.clone());
        assert_eq!(union.unfinished, [], "b has its commit document");
        assert_eq!(
            union.damaged_documents,
            [nowhere],
            "once, and the other is whole in b"
        );
        assert_eq!(union.newest_archived_at, b.newest_archived_at, "as b says");
        assert_eq!(
            union.lack_of(&union.holdings[0]).backups,
            [record.backup_id],
            "it is committed in b alone"
        );
    }

    #[test]
    fn histories_that_disagree_are_disputed() {
        let (a, mut b) = (forked(), forked());
        let (timeline, history) = b.histories.last_key_value().unwrap();
        let (timeline, mut other) = (*timeline, history.clone());
        if let Some(entry) = other.entries.last_mut() {
            entry.reason = "other words".to_owned();
        }
        b.histories.insert(timeline, other.clone());
        assert!(
            both(a.clone(), b.clone()).disputed_histories.is_empty(),
            "words do not count"
        );
        if let Some(entry) = other.entries.last_mut() {
            entry.switch.0 += 1;
        }
        b.histories.insert(timeline, other);
        assert_eq!(
            both(a, b).disputed_histories,
            [timeline].into(),
            "another fork does"
        );
    }

    fn part() -> impl Strategy<Value = Catalog> {
        let segments = proptest::collection::btree_set(0_u64..30, 0..20);
        let backups = proptest::collection::btree_set(1_u32..6, 0..4);
        (segments.clone(), segments, backups).prop_map(|(one, two, backups)| {
            let (one, two): (Vec<_>, Vec<_>) =
                (one.into_iter().collect(), two.into_iter().collect());
            let mut part = catalog(&[(1, &one), (2, &two)], &[(2, 1, 500)]);
            let of = |number: u32| backup(number, 1, 100, 150 + u64::from(number));
            part.backups = backups.into_iter().map(of).collect();
            part
        })
    }

    proptest! {
        #[test]
        fn the_archive_holds_what_any_repository_holds_and_each_lacks_the_rest(parts in proptest::collection::vec(part(), 1..4)) {
            let named: Vec<_> = parts.iter().cloned().enumerate().map(|(at, part)| (at.to_string(), part)).collect();
            let union = Catalog::union(named).unwrap();
            let segments = |catalog: &Catalog| -> BTreeSet<(TimelineId, u64)> {
                let all = catalog.wal.iter();
                all.flat_map(|(timeline, wal)| wal.segments.keys().map(|number| (*timeline, *number))).collect()
            };
            let ids = |catalog: &Catalog| -> BTreeSet<BackupId> {
                catalog.backups.iter().map(|record| record.backup_id.clone()).collect()
            };
            let all: BTreeSet<_> = parts.iter().flat_map(segments).collect();
            prop_assert_eq!(segments(&union), all.clone());
            prop_assert_eq!(ids(&union), parts.iter().flat_map(ids).collect::<BTreeSet<_>>());
            prop_assert_eq!(union.backups.len(), ids(&union).len(), "each once");
            for (holding, part) in union.holdings.iter().zip(&parts) {
                let lack = union.lack_of(holding);
                let missing: Vec<_> = all.difference(&segments(part)).copied().collect();
                let name = |at: Option<&(TimelineId, u64)>| {
                    at.map(|(timeline, number)| SegmentName::from_number(*timeline, *number, union.segment_size))
                };
                prop_assert_eq!(lack.segments, missing.len() as u64);
                prop_assert_eq!(lack.first, name(missing.first()));
                prop_assert_eq!(lack.last, name(missing.last()));
                let lacking: BTreeSet<_> = lack.backups.iter().cloned().collect();
                let expected: BTreeSet<_> = ids(&union).difference(&ids(part)).cloned().collect();
                prop_assert_eq!(lacking, expected);
                prop_assert_eq!(union.wal_in(&holding.repository), &part.wal);
            }
        }
    }
}
