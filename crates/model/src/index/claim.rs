//! Files that were created before their transaction had an id.

use std::collections::HashMap;

use walden_pg::Lsn;
use walden_pg::wal_record::RelationOid;

use super::{CreatedFile, TransactionFacts};

/// Gives files that CREATE INDEX created to its transaction. It has no id yet when it creates the file, whose number is the index's OID, and
/// locks the index at once when it has one (`index_create` in index.c). `carried` are such files of the segment before; what nobody
/// claims stays under the id 0.
pub fn claim(carried: &[CreatedFile], facts: &mut [TransactionFacts]) {
    /// What others may write between the two records.
    const AT_ONCE: u64 = 64 << 10;
    let nobodys = facts.iter().filter(|facts| facts.xid == 0);
    let created: Vec<CreatedFile> = nobodys
        .flat_map(|facts| &facts.created)
        .chain(carried)
        .copied()
        .collect();
    if created.is_empty() {
        return;
    }
    let mut locked: HashMap<RelationOid, (Lsn, usize)> = HashMap::new();
    for (position, facts) in facts.iter().enumerate() {
        for lock in &facts.locks {
            let first = locked.entry(lock.what).or_insert((lock.lsn, position));
            *first = (*first).min((lock.lsn, position));
        }
    }
    for created in created {
        let oid = RelationOid {
            database: created.file.database,
            relation: created.file.number,
        };
        let Some((lsn, position)) = locked.get(&oid) else {
            continue;
        };
        if !(created.lsn.0..=created.lsn.0.saturating_add(AT_ONCE)).contains(&lsn.0) {
            continue;
        }
        for nobodys in facts.iter_mut().filter(|facts| facts.xid == 0) {
            nobodys.created.retain(|other| other.file != created.file);
        }
        if let Some(owner) = facts.get_mut(*position) {
            owner.created.push(created);
        }
    }
}
