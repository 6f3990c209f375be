//! How many rows transactions deleted and updated, by file.

use walden_pg::Lsn;
use walden_pg::wal_record::RelFileLocator;

/// Rows that one transaction deleted from and updated in one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub file: RelFileLocator,
    pub deleted: u64,
    pub updated: u64,
    /// Where the first record begins that deleted some.
    pub deleted_lsn: Lsn,
    /// Where the first record begins that updated some.
    pub updated_lsn: Lsn,
    next: u32,
}

/// Chains of [`Row`]s, one a transaction. What is released is used again, so that a segment of many small transactions takes little memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    free: Vec<u32>,
}

impl Rows {
    /// The chain without rows.
    pub const NONE: u32 = u32::MAX;
    /// Rows in all, and files of one transaction: what takes longer to look through than it is worth.
    const MOST: usize = 1 << 20;
    const LONGEST: usize = 4096;

    /// Counts a record's rows. False: there was no room for another file.
    pub fn count(
        &mut self,
        chain: &mut u32,
        file: RelFileLocator,
        deleted: bool,
        count: u64,
        lsn: Lsn,
    ) -> bool {
        let mut at = *chain;
        let mut length = 0;
        while let Some(row) = self.rows.get_mut(at as usize) {
            if row.file == file {
                let (rows, first) = if deleted {
                    (&mut row.deleted, &mut row.deleted_lsn)
                } else {
                    (&mut row.updated, &mut row.updated_lsn)
                };
                if *rows == 0 || lsn < *first {
                    *first = lsn;
                }
                *rows = rows.saturating_add(count);
                return true;
            }
            at = row.next;
            length += 1;
            if length == Self::LONGEST {
                return false;
            }
        }
        let row = Row {
            file,
            deleted: if deleted { count } else { 0 },
            updated: if deleted { 0 } else { count },
            deleted_lsn: lsn,
            updated_lsn: lsn,
            next: *chain,
        };
        if let Some(free) = self.free.pop()
            && let Some(place) = self.rows.get_mut(free as usize)
        {
            *place = row;
            *chain = free;
            return true;
        }
        if self.rows.len() == Self::MOST {
            return false;
        }
        *chain = self.rows.len() as u32;
        self.rows.push(row);
        true
    }

    /// Counts the rows of `other` in `chain`, too. False: there was no room for all files.
    pub fn merge(&mut self, chain: &mut u32, other: u32) -> bool {
        let mut all = true;
        let mut at = other;
        while let Some(&row) = self.rows.get(at as usize) {
            for (deleted, rows, lsn) in [
                (true, row.deleted, row.deleted_lsn),
                (false, row.updated, row.updated_lsn),
            ] {
                if rows > 0 {
                    all &= self.count(chain, row.file, deleted, rows, lsn);
                }
            }
            at = row.next;
        }
        all
    }

    pub fn chain(&self, chain: u32) -> impl Iterator<Item = &Row> {
        let get = |at: u32| self.rows.get(at as usize);
        std::iter::successors(get(chain), move |row| get(row.next))
    }

    /// Releases the rows of a chain that `keep` does not want.
    pub fn release(&mut self, chain: &mut u32, mut keep: impl FnMut(&Row) -> bool) {
        let mut at = std::mem::replace(chain, Self::NONE);
        while let Some(row) = self.rows.get_mut(at as usize) {
            let next = row.next;
            if keep(row) {
                row.next = *chain;
                *chain = at;
            } else {
                self.free.push(at);
            }
            at = next;
        }
    }
}
