//! What of a segment's transactions gets into its index.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::gather::FEW;
use super::{Outcome, RowsOf, SegmentIndex, TransactionFacts, claim};

/// Transactions in an index.
const MOST_TRANSACTIONS: usize = 256;
/// Of these, transactions that only deleted or updated rows.
const MOST_ROWS: usize = 64;
/// Items in a list of a transaction.
const MOST_ITEMS: usize = 64;
/// Restore points, checkpoints and switches, each.
const MOST_MARKS: usize = 256;
/// Bytes of JSON in all, and for transactions at least.
const MOST_JSON: usize = 48 * 1024;
const LEAST_JSON: usize = 8 * 1024;

/// What a transaction's facts are about, the most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Something is surely gone.
    Gone,
    /// Files went, or may go.
    Files,
    /// Rows of `pg_class` went.
    Catalog,
    /// Rows went.
    Rows,
    /// It was rolled back, so nothing went.
    Aborted,
}

impl Weight {
    /// `None`: there is nothing worth telling.
    fn of(facts: &TransactionFacts) -> Option<Self> {
        let end = facts.end.as_ref();
        let gone = !facts.databases_dropped.is_empty()
            || !facts.database_rows.is_empty()
            || !facts.truncated.is_empty()
            || end.is_some_and(|end| !end.dropped_stats.is_empty());
        // A transaction that committed and dropped no file has, with its locks and its new files, taken nothing away.
        let files = match end {
            Some(end) => !end.dropped_files.is_empty(),
            None => !facts.locks.is_empty() || !facts.created.is_empty(),
        };
        let many = |rows: &RowsOf| rows.rows >= FEW;
        let rows = !facts.deleted.is_empty()
            || facts.updated.iter().any(many)
            || end.is_some_and(|end| !end.subxids.is_empty());
        if end.is_some_and(|end| end.end.kind == Outcome::Abort) {
            Some(Self::Aborted)
        } else if gone {
            Some(Self::Gone)
        } else if files {
            Some(Self::Files)
        } else if facts.class_rows.deleted > 0 {
            Some(Self::Catalog)
        } else {
            rows.then_some(Self::Rows)
        }
    }
}

fn most(rows: &[RowsOf]) -> u64 {
    rows.iter().map(|rows| rows.rows).max().unwrap_or(0)
}

/// Puts in all that is worth telling.
pub(super) fn take_all(index: &mut SegmentIndex, mut transactions: Vec<TransactionFacts>) {
    claim(&[], &mut transactions);
    let mut left = LeftRows::default();
    for facts in transactions {
        match Weight::of(&facts) {
            Some(_) => index.transactions.push(facts),
            None => left.note(index, &facts.deleted, &facts.updated, &facts),
        }
    }
    left.finish(index);
    order(index);
}

/// Puts in what is worth telling and fits.
pub(super) fn take_most(index: &mut SegmentIndex, mut transactions: Vec<TransactionFacts>) {
    claim(&[], &mut transactions);
    let mut cut = cut(&mut index.restore_points, MOST_MARKS);
    cut |= self::cut(&mut index.checkpoints, MOST_MARKS);
    cut |= self::cut(&mut index.switches, MOST_MARKS);
    index.incomplete |= cut;
    let mut room = MOST_JSON.saturating_sub(length(index)).max(LEAST_JSON);

    let mut left = LeftRows::default();
    let mut ranked = Vec::new();
    for facts in transactions {
        match Weight::of(&facts) {
            Some(weight) => {
                let rows = (most(&facts.deleted), most(&facts.updated));
                ranked.push(((weight, Reverse(rows), facts.first_lsn), facts));
            }
            None => left.note(index, &facts.deleted, &facts.updated, &facts),
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut rows_alone = 0;
    for ((weight, ..), mut facts) in ranked {
        let shortened = shorten(index, &mut facts, &mut left);
        rows_alone += usize::from(weight == Weight::Rows);
        let length = length(&facts);
        if length <= room
            && index.transactions.len() < MOST_TRANSACTIONS
            && (weight != Weight::Rows || rows_alone <= MOST_ROWS)
        {
            room -= length;
            index.transactions.push(facts);
            index.incomplete |= shortened;
        } else if weight != Weight::Aborted {
            left.note(index, &facts.deleted, &facts.updated, &facts);
            index.incomplete |= weight != Weight::Rows;
        }
    }
    left.finish(index);
    order(index);
}

/// By first record, as they were gathered.
fn order(index: &mut SegmentIndex) {
    index
        .transactions
        .sort_unstable_by_key(|facts| (facts.first_lsn, facts.xid));
}

/// Bytes of JSON, with a comma.
fn length<T: serde::Serialize>(value: &T) -> usize {
    serde_json::to_vec(value).map_or(usize::MAX, |json| json.len().saturating_add(1))
}

fn cut<T>(list: &mut Vec<T>, most: usize) -> bool {
    let longer = list.len() > most;
    list.truncate(most);
    longer
}

/// Shortens a transaction's lists; true: something is lost. Rows that are lost are few, and left out.
fn shorten(index: &mut SegmentIndex, facts: &mut TransactionFacts, left: &mut LeftRows) -> bool {
    let mut rest = [Vec::new(), Vec::new()];
    for (rows, rest) in [&mut facts.deleted, &mut facts.updated]
        .into_iter()
        .zip(&mut rest)
    {
        if rows.len() > MOST_ITEMS {
            rows.sort_by_key(|rows| Reverse(rows.rows));
            *rest = rows.split_off(MOST_ITEMS);
            rows.sort_unstable_by_key(|rows| rows.lsn);
        }
    }
    left.note(index, &rest[0], &rest[1], facts);
    let mut lost = cut(&mut facts.locks, MOST_ITEMS);
    lost |= cut(&mut facts.created, MOST_ITEMS);
    lost |= cut(&mut facts.databases_dropped, MOST_ITEMS);
    lost |= cut(&mut facts.database_rows, MOST_ITEMS);
    lost |= cut(&mut facts.truncated, MOST_ITEMS);
    if let Some(end) = &mut facts.end {
        lost |= cut(&mut end.subxids, MOST_ITEMS);
        lost |= cut(&mut end.dropped_files, MOST_ITEMS);
        lost |= cut(&mut end.dropped_stats, MOST_ITEMS);
        lost |= cut(&mut end.invalidated, MOST_ITEMS);
    }
    lost
}

/// Rows that are left out, of subtransactions together.
#[derive(Default)]
struct LeftRows {
    of_parts: HashMap<(u32, walden_pg::wal_record::RelFileLocator), (u64, u64)>,
}

impl LeftRows {
    fn note(
        &mut self,
        index: &mut SegmentIndex,
        deleted: &[RowsOf],
        updated: &[RowsOf],
        facts: &TransactionFacts,
    ) {
        let deleted = deleted.iter().map(|rows| (rows.file, (rows.rows, 0)));
        let updated = updated.iter().map(|rows| (rows.file, (0, rows.rows)));
        for (file, rows) in deleted.chain(updated) {
            match facts.top {
                Some(top) => {
                    let sum = self.of_parts.entry((top, file)).or_default();
                    *sum = (sum.0.saturating_add(rows.0), sum.1.saturating_add(rows.1));
                }
                None => index.left_out.note(rows.0, rows.1),
            }
        }
    }

    fn finish(self, index: &mut SegmentIndex) {
        for (deleted, updated) in self.of_parts.into_values() {
            index.left_out.note(deleted, updated);
        }
    }
}
