//! Ends of transactions: what is kept of them, and what is forgotten.

use walden_pg::Lsn;
use walden_pg::wal_record::{EndKind, TransactionEnd};

use super::{FEW, Gatherer, timestamp};
use crate::index::detail::MomentKind;
use crate::index::rows::Rows;
use crate::index::xid::ranges;
use crate::index::{End, Ends, Outcome, TransactionOutcome};

impl Gatherer {
    pub(super) fn end(&mut self, lsn: Lsn, end_lsn: Lsn, said: TransactionEnd) {
        let end = End {
            kind: match said.kind {
                EndKind::Commit => Outcome::Commit,
                EndKind::Abort => Outcome::Abort,
            },
            xid: said.xid,
            lsn,
            end_lsn,
            time: timestamp(said.time),
        };
        Ends::note(&mut self.ends, &end, &said.subxids);
        self.moment(lsn, end_lsn, || MomentKind::End {
            kind: end.kind,
            xid: said.xid,
            time: end.time,
            subxids: said.subxids.as_slice().into(),
            prepared: said.prepared,
        });

        let Some(slot) = self.slot(said.xid, lsn) else {
            return;
        };
        let mut matters = !said.dropped_files.is_empty() || !said.dropped_stats.is_empty();
        for sub in &said.subxids {
            let Some(of) = self.open.remove(sub) else {
                continue;
            };
            self.take_over(slot, of, end.kind);
            if self.close(of) {
                self.belongs(*sub, said.xid);
                matters = true;
            }
        }
        self.open.remove(&said.xid);
        self.last = None;
        self.settle(slot, end.kind, matters);
        if matters && let Some(entry) = self.entries.get_mut(slot as usize) {
            // Of a transaction that did all else in earlier segments nothing is known so far.
            entry.facts();
        }
        if !self.close(slot) {
            return;
        }
        let lists = said.dropped_files.len() + said.dropped_stats.len() + said.invalidated.len();
        self.facts += lists + said.subxids.len();
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.facts().end = Some(TransactionOutcome {
                end,
                subxids: ranges(said.subxids),
                database: said.database,
                dropped_files: said.dropped_files,
                dropped_stats: said.dropped_stats,
                invalidated: said.invalidated,
            });
        }
    }

    /// A subtransaction's rows count as its transaction's, once that has committed.
    fn take_over(&mut self, slot: u32, sub: u32, kind: Outcome) {
        let Some(of) = self.entries.get_mut(sub as usize) else {
            return;
        };
        let mut chain = std::mem::replace(&mut of.rows, Rows::NONE);
        if kind == Outcome::Commit
            && let Some(entry) = self.entries.get_mut(slot as usize)
        {
            self.incomplete |= !self.rows.merge(&mut entry.rows, chain);
        }
        self.rows.release(&mut chain, |_| false);
    }

    /// Forgets the rows of an ended transaction that nobody needs to be told of.
    fn settle(&mut self, slot: u32, kind: Outcome, matters: bool) {
        let Some(entry) = self.entries.get_mut(slot as usize) else {
            return;
        };
        if kind == Outcome::Abort {
            self.rows.release(&mut entry.rows, |_| false);
        } else if !matters && entry.facts.is_none() {
            let (left_out, few) = (&mut self.left_out, &mut self.few);
            self.rows.release(&mut entry.rows, |row| {
                let many = row.deleted >= FEW || row.updated >= FEW;
                let keep = many || (row.deleted > 0 && *few > 0);
                if !keep {
                    left_out.note(row.deleted, row.updated);
                } else if !many {
                    *few -= 1;
                }
                keep
            });
        }
    }

    /// Closes an entry that gets no more records; one of which nothing is to be told is used again. Gives whether there is something.
    fn close(&mut self, slot: u32) -> bool {
        let Some(entry) = self.entries.get_mut(slot as usize) else {
            return false;
        };
        for created in entry.facts.iter().flat_map(|facts| &facts.created) {
            self.created.remove(&created.file);
        }
        let tells = entry.facts.is_some() || entry.rows != Rows::NONE;
        if !tells {
            self.free.push(slot);
        }
        tells
    }
}

#[cfg(test)]
mod tests {
    use walden_pg::wal_record::{Event, PgTimestamp};

    use super::*;

    #[test]
    fn a_commit_whose_other_records_stand_in_earlier_segments_is_kept() {
        let mut gatherer = Gatherer::for_detail();
        let end = TransactionEnd {
            kind: EndKind::Commit,
            xid: 7,
            prepared: true,
            time: PgTimestamp(0),
            subxids: Vec::new(),
            database: 5,
            dropped_files: vec![(1663, 5, 16400).into()],
            dropped_stats: Vec::new(),
            invalidated: Vec::new(),
        };
        gatherer.note(0, Lsn(100), Lsn(200), Event::End(end));
        let created = Event::FileCreated((1663, 5, 16500).into());
        gatherer.note(8, Lsn(200), Lsn(300), created);
        let told = gatherer.take_transactions();
        let of_7 = told.iter().find(|facts| facts.xid == 7);
        let dropped = of_7
            .and_then(|facts| facts.end.as_ref())
            .map(|end| end.dropped_files.len());
        assert_eq!(
            dropped,
            Some(1),
            "the next transaction must not take its place: {told:?}"
        );
    }
}
