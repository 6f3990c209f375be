//! From a whole transaction to what it took away.

use std::collections::{BTreeMap, BTreeSet};

use walden_pg::Lsn;
use walden_pg::wal_record::{RelFileLocator, RelationOid};

use super::gather::oid_of;
use super::scene::{Scene, Told};
use super::{Action, Doubt, Incident, Lost, Object, Transaction};
use crate::names::{Name, NamedRelation, Names, Persistence, RelationKind, Wanted};

/// What is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Relations and databases that were dropped.
    pub dropped: bool,
    /// Tables that were truncated.
    pub truncated: bool,
    /// Deletions of more rows than this.
    pub deleted: Option<u64>,
    /// Updates of more rows than this.
    pub updated: Option<u64>,
}

impl Limits {
    /// Whether the transaction may have done something worth telling: names decide about the rest.
    #[must_use]
    pub fn suspect(&self, transaction: &Transaction) -> bool {
        let rows = |rows: &BTreeMap<RelFileLocator, (u64, Lsn)>, limit: Option<u64>| {
            let sum: u64 = rows.values().map(|(rows, _)| rows).sum();
            limit.is_some_and(|limit| sum > limit)
        };
        let relations = self.dropped || self.truncated;
        (relations && !transaction.dropped_files.is_empty())
            || (self.dropped && !transaction.databases_dropped.is_empty())
            || (self.truncated && !transaction.truncated.is_empty())
            || rows(&transaction.deleted, self.deleted)
            || rows(&transaction.updated, self.updated)
    }
}

impl Transaction {
    /// The names that a verdict on it needs.
    pub fn want(&self, wanted: &mut Wanted) {
        let oids = self.locks.keys().chain(&self.dropped_stats);
        for oid in oids.chain(self.truncated.keys()) {
            wanted.relation(*oid);
        }
        let rows = self.deleted.keys().chain(self.updated.keys());
        for file in rows.chain(&self.dropped_files) {
            wanted.file(*file);
            wanted.relation(oid_of(*file));
        }
        for database in self.databases_dropped.keys() {
            wanted.database(*database);
        }
    }
}

/// Judges transactions by the names that backups recorded.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// Names from before: those of the newest backup that ended before the transaction.
    pub before: Option<&'a Names>,
    /// Names from after: those of the oldest backup that began behind it.
    pub after: Option<&'a Names>,
    /// What is worth telling.
    pub limits: Limits,
}

impl<'a> Judge<'a> {
    /// What a committed transaction took away, or may have, in WAL order.
    #[must_use]
    pub fn incidents(&self, transaction: &Transaction) -> Vec<Incident> {
        let scene = Scene::new(self, transaction);
        let dropped = scene.dropped();
        let truncated = scene.truncated(&dropped);
        let mut incidents = Vec::new();
        if self.limits.dropped {
            incidents.extend(self.databases(transaction));
            let told = scene.tell_dropped(&dropped);
            incidents.extend(
                told.iter()
                    .map(|told| self.told(transaction, Action::Drop, told)),
            );
        }
        if self.limits.truncated {
            let told = truncated.iter();
            incidents.extend(told.map(|told| self.told(transaction, Action::Truncate, told)));
        }
        let mut gone: BTreeSet<RelationOid> = dropped.keys().copied().collect();
        gone.extend(truncated.iter().map(|told| told.oid));
        for (action, rows, limit) in [
            (Action::Delete, &transaction.deleted, self.limits.deleted),
            (Action::Update, &transaction.updated, self.limits.updated),
        ] {
            if let Some(limit) = limit {
                incidents.extend(self.rows(transaction, action, rows, limit, &gone));
            }
        }
        incidents.sort_by_key(|incident| (incident.lsn, incident.action));
        incidents
    }

    pub(super) fn named_before(&self, oid: RelationOid) -> Option<&'a NamedRelation> {
        self.before?.relation(oid)
    }

    fn database_name(&self, oid: u32) -> String {
        let names = self.before.into_iter().chain(self.after);
        let name = names.filter_map(|names| names.database(oid)).next();
        name.map_or_else(|| oid.to_string(), |named| named.name.to_string())
    }

    fn object(&self, oid: RelationOid, file: Option<RelFileLocator>) -> Object {
        let names = self.before.into_iter().chain(self.after);
        let database = self.database_name(oid.database);
        match names.filter_map(|names| names.relation(oid)).next() {
            Some(relation) => Object::Named {
                database,
                relation: Box::new(relation.clone()),
            },
            None => Object::Unnamed {
                database,
                oid: Some(oid),
                file,
            },
        }
    }

    fn told(&self, transaction: &Transaction, action: Action, told: &Told) -> Incident {
        let object = self.object(told.oid, told.file);
        let lost = lost_of(&object);
        Incident {
            time: transaction.commit.time,
            xid: transaction.commit.xid,
            lsn: told.lsn,
            committed_at: transaction.commit.lsn,
            action,
            object,
            along: told.along,
            rows: None,
            doubt: told.doubt,
            lost,
        }
    }

    fn databases(&self, transaction: &Transaction) -> Vec<Incident> {
        let mut incidents = Vec::new();
        for (database, removed) in &transaction.databases_dropped {
            if self
                .after
                .is_some_and(|names| names.database(*database).is_some())
            {
                continue;
            }
            let begins = transaction.drop_database_begins;
            incidents.push(Incident {
                time: transaction.commit.time,
                xid: transaction.commit.xid,
                lsn: begins.unwrap_or(transaction.first_lsn.min(*removed)),
                committed_at: transaction.commit.lsn,
                action: Action::DropDatabase,
                object: Object::Database(self.database_name(*database)),
                along: 0,
                rows: None,
                doubt: begins.is_none().then_some(Doubt::Moved),
                lost: begins.is_none().then_some(Lost::BeginningUnknown),
            });
        }
        incidents
    }

    /// Rows of tables; what is derived (materialized views), goes along (TOAST) or was the transaction's own is not told.
    fn rows(
        &self,
        transaction: &Transaction,
        action: Action,
        rows: &BTreeMap<RelFileLocator, (u64, Lsn)>,
        limit: u64,
        gone: &BTreeSet<RelationOid>,
    ) -> Vec<Incident> {
        let mut tables: BTreeMap<RelationOid, (u64, Lsn, Object)> = BTreeMap::new();
        for (file, (count, lsn)) in rows {
            if transaction.created.contains_key(file) {
                continue;
            }
            let (oid, object) = match self.relation_in(*file) {
                Some((names, relation)) => {
                    let table = relation.kind == RelationKind::Table;
                    if !table || is_system(&relation.schema) || gone.contains(&relation.oid) {
                        continue;
                    }
                    let whole = names.whole_table(relation);
                    let object = Object::Named {
                        database: self.database_name(whole.oid.database),
                        relation: Box::new(whole.clone()),
                    };
                    (whole.oid, object)
                }
                None if gone.contains(&oid_of(*file)) => continue,
                None => {
                    let object = Object::Unnamed {
                        database: self.database_name(file.database),
                        oid: None,
                        file: Some(*file),
                    };
                    (oid_of(*file), object)
                }
            };
            let (sum, first, _) = tables.entry(oid).or_insert((0, *lsn, object));
            *sum += count;
            *first = (*first).min(*lsn);
        }
        let many = tables.into_values().filter(|(count, ..)| *count > limit);
        many.map(|(count, lsn, object)| Incident {
            time: transaction.commit.time,
            xid: transaction.commit.xid,
            lsn,
            committed_at: transaction.commit.lsn,
            action,
            lost: lost_of(&object),
            object,
            along: 0,
            rows: Some(count),
            doubt: None,
        })
        .collect()
    }

    /// The relation whose rows stood in this file.
    fn relation_in(&self, file: RelFileLocator) -> Option<(&'a Names, &'a NamedRelation)> {
        let names = || self.before.into_iter().chain(self.after);
        names()
            .find_map(|names| Some((names, names.by_file(file)?)))
            .or_else(|| names().find_map(|names| Some((names, names.relation(oid_of(file))?))))
    }
}

fn lost_of(object: &Object) -> Option<Lost> {
    match object {
        Object::Named { relation, .. } if relation.persistence == Persistence::Unlogged => {
            Some(Lost::Unlogged)
        }
        _ => None,
    }
}

fn is_system(schema: &Name) -> bool {
    matches!(
        schema.as_bytes(),
        b"pg_catalog" | b"pg_toast" | b"information_schema"
    )
}
