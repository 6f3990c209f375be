//! From an index, and to one.

use super::Gatherer;
use crate::index::rows::Rows;
use crate::index::{RowsOf, SegmentIndex, TransactionFacts};

impl Gatherer {
    /// One that goes on where an index ended.
    pub fn resume(index: &SegmentIndex) -> Self {
        let mut gatherer = Self {
            ends: index.ends.clone(),
            next_xid: index.next_xid,
            restore_points: index.restore_points.clone(),
            checkpoints: index.checkpoints.clone(),
            switches: index.switches.clone(),
            ..Self::for_detail()
        };
        for facts in &index.transactions {
            gatherer.take_back(facts.clone());
        }
        gatherer
    }

    fn take_back(&mut self, mut facts: TransactionFacts) {
        let xid = facts.xid;
        if let Some(top) = facts.top {
            self.belongs(xid, top);
        }
        let Some(slot) = self.begin(xid, facts.first_lsn) else {
            return;
        };
        let ended = facts.end.is_some();
        if ended {
            self.open.remove(&xid);
        } else {
            for (place, created) in (0..).zip(&facts.created) {
                self.created.insert(created.file, (slot, place));
            }
        }
        let deleted = std::mem::take(&mut facts.deleted);
        let updated = std::mem::take(&mut facts.updated);
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            for (deleted, list) in [(true, deleted), (false, updated)] {
                for row in list {
                    let chain = &mut entry.rows;
                    let counted = self.rows.count(chain, row.file, deleted, row.rows, row.lsn);
                    self.incomplete |= !counted;
                }
            }
            facts.top = None;
            if facts != TransactionFacts::new(xid, facts.first_lsn) {
                entry.facts = Some(Box::new(facts));
            }
        }
    }

    /// The facts of all that were not forgotten: rows stand in them.
    pub fn take_transactions(&mut self) -> Vec<TransactionFacts> {
        let entries = std::mem::take(&mut self.entries);
        let (rows, tops) = (&self.rows, &self.tops);
        entries
            .into_iter()
            .filter(|entry| entry.facts.is_some() || entry.rows != Rows::NONE)
            .map(|mut entry| {
                let chain = entry.rows;
                let mut facts = match entry.facts.take() {
                    Some(facts) => *facts,
                    None => TransactionFacts::new(entry.xid, entry.first_lsn),
                };
                facts.top = tops.get(&facts.xid).copied();
                // Each checkpoint tells the locks that are held once more.
                facts
                    .locks
                    .sort_unstable_by_key(|lock| (lock.what, lock.lsn));
                facts.locks.dedup_by_key(|lock| lock.what);
                facts.locks.sort_by_key(|lock| lock.lsn);
                for row in rows.chain(chain) {
                    let of = |rows, lsn| RowsOf {
                        file: row.file,
                        rows,
                        lsn,
                    };
                    if row.deleted > 0 {
                        facts.deleted.push(of(row.deleted, row.deleted_lsn));
                    }
                    if row.updated > 0 {
                        facts.updated.push(of(row.updated, row.updated_lsn));
                    }
                }
                facts.deleted.sort_unstable_by_key(|rows| rows.lsn);
                facts.updated.sort_unstable_by_key(|rows| rows.lsn);
                facts
            })
            .collect()
    }

    /// Puts into an index what is not about single transactions.
    pub fn finish_into(self, index: &mut SegmentIndex) {
        index.ends = self.ends;
        index.next_xid = self.next_xid;
        index.restore_points = self.restore_points;
        index.checkpoints = self.checkpoints;
        index.switches = self.switches;
        index.incomplete |= self.incomplete;
        index
            .left_out
            .note(self.left_out.deleted, self.left_out.updated);
    }
}
