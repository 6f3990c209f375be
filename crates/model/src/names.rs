//! The names behind OIDs and file numbers, as a backup recorded them (`docs/FORMAT.md`, "Names").
//!
//! WAL speaks in numbers alone. Names are a convenience: a backup without them restores all the same.

mod name;

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use walden_pg::wal_record::{RelFileLocator, RelationOid};

pub use name::Name;

/// Longer than any line with names of PostgreSQL's: `NAMEDATALEN` is 64 unless somebody builds it otherwise.
const MAX_LINE: usize = 64 * 1024;

/// One line of a backup's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameEntry {
    /// A database.
    Database(NamedDatabase),
    /// A relation.
    Relation(NamedRelation),
}

/// A database (`pg_database`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedDatabase {
    /// Its OID.
    #[serde(rename = "database")]
    pub oid: u32,
    /// Its name.
    pub name: Name,
    /// The OID of its default tablespace.
    pub tablespace: u32,
}

/// A relation (`pg_class`). `Display` writes its schema and name as SQL does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRelation {
    /// Its OID, and its database's: 0 for what all databases share.
    #[serde(rename = "relation")]
    pub oid: RelationOid,
    /// Its schema.
    pub schema: Name,
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: RelationKind,
    /// Whether its rows outlive a crash, or its session.
    #[serde(default, skip_serializing_if = "Persistence::is_permanent")]
    pub persistence: Persistence,
    /// Where its content stood; `None` of what has no storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<RelFileLocator>,
    /// The OID of the relation that it goes along with: of an index or a TOAST table the table (or materialized view), of the index of a
    /// TOAST table that one, of a sequence the table of the column that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub belongs_to: Option<u32>,
    /// The OID of the table, or index, that it is a partition of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_of: Option<u32>,
}

impl fmt::Display for NamedRelation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// What a relation is (`relkind`). In JSON PostgreSQL's letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "char", into = "char")]
pub enum RelationKind {
    /// `r`.
    Table,
    /// `i`.
    Index,
    /// `S`.
    Sequence,
    /// `t`: where a table's long values stand.
    Toast,
    /// `v`.
    View,
    /// `m`.
    MaterializedView,
    /// `c`.
    CompositeType,
    /// `f`.
    ForeignTable,
    /// `p`: without rows of its own.
    PartitionedTable,
    /// `I`: without content of its own.
    PartitionedIndex,
    /// One that this program does not know.
    Other(char),
}

impl RelationKind {
    const LETTERS: [(char, Self); 10] = [
        ('r', Self::Table),
        ('i', Self::Index),
        ('S', Self::Sequence),
        ('t', Self::Toast),
        ('v', Self::View),
        ('m', Self::MaterializedView),
        ('c', Self::CompositeType),
        ('f', Self::ForeignTable),
        ('p', Self::PartitionedTable),
        ('I', Self::PartitionedIndex),
    ];
}

impl From<char> for RelationKind {
    fn from(letter: char) -> Self {
        let known = Self::LETTERS.iter().find(|(known, _)| *known == letter);
        known.map_or(Self::Other(letter), |(_, kind)| *kind)
    }
}

impl From<RelationKind> for char {
    fn from(kind: RelationKind) -> Self {
        if let RelationKind::Other(letter) = kind {
            return letter;
        }
        let mut known = RelationKind::LETTERS.iter();
        known
            .find(|(_, known)| *known == kind)
            .map_or('?', |(letter, _)| *letter)
    }
}

impl fmt::Display for RelationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Table => "table",
            Self::Index => "index",
            Self::Sequence => "sequence",
            Self::Toast => "TOAST table",
            Self::View => "view",
            Self::MaterializedView => "materialized view",
            Self::CompositeType => "composite type",
            Self::ForeignTable => "foreign table",
            Self::PartitionedTable => "partitioned table",
            Self::PartitionedIndex => "partitioned index",
            Self::Other(_) => "relation",
        })
    }
}

/// Whether a relation's rows outlive a crash, or its session (`relpersistence`). In JSON PostgreSQL's letter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Persistence {
    /// `p`.
    #[default]
    #[serde(rename = "p")]
    Permanent,
    /// `u`: emptied after a crash, and in every restored copy.
    #[serde(rename = "u")]
    Unlogged,
    /// `t`.
    #[serde(rename = "t")]
    Temporary,
}

impl Persistence {
    fn is_permanent(&self) -> bool {
        *self == Self::Permanent
    }
}

/// Why a line of a backup's names is refused.
#[derive(Debug, thiserror::Error)]
pub enum NameEntryError {
    /// More bytes than a reader would keep.
    #[error("a line of the backup's names has {0} bytes, which no names of PostgreSQL's need")]
    Long(usize),
    /// Not JSON of the right shape.
    #[error("a line of the backup's names is not a well-formed entry")]
    Malformed(#[source] serde_json::Error),
    /// The entry could not be written as JSON.
    #[error("an entry of the backup's names cannot be written as JSON")]
    Unwritable(#[source] serde_json::Error),
}

impl NameEntry {
    /// The entry's line, with its line feed.
    ///
    /// # Errors
    /// [`NameEntryError::Unwritable`].
    pub fn encode_line(&self) -> Result<Vec<u8>, NameEntryError> {
        let mut line = match self {
            Self::Database(database) => serde_json::to_vec(database),
            Self::Relation(relation) => serde_json::to_vec(relation),
        }
        .map_err(NameEntryError::Unwritable)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Reads a line, with or without its line feed; `None` where it speaks of something that this program does not know.
    ///
    /// # Errors
    /// Malformed JSON, and lines that are too long.
    pub fn decode_line(line: &[u8]) -> Result<Option<Self>, NameEntryError> {
        if line.len() > MAX_LINE {
            return Err(NameEntryError::Long(line.len()));
        }
        #[derive(Deserialize)]
        struct What {
            relation: Option<IgnoredAny>,
            database: Option<IgnoredAny>,
        }
        let what: What = serde_json::from_slice(line).map_err(NameEntryError::Malformed)?;
        if what.relation.is_some() {
            let relation = serde_json::from_slice(line).map_err(NameEntryError::Malformed)?;
            return Ok(Some(Self::Relation(relation)));
        }
        if what.database.is_some() {
            let database = serde_json::from_slice(line).map_err(NameEntryError::Malformed)?;
            return Ok(Some(Self::Database(database)));
        }
        Ok(None)
    }
}

/// What a reader wants names for. Nothing else is kept, so memory is bounded by the question.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    databases: HashSet<u32>,
    relations: HashSet<RelationOid>,
    files: HashSet<RelFileLocator>,
}

impl Wanted {
    /// The database of this OID.
    pub fn database(&mut self, oid: u32) {
        self.databases.insert(oid);
    }

    /// The relation of this OID, and its database.
    pub fn relation(&mut self, oid: RelationOid) {
        self.relations.insert(oid);
        self.databases.insert(oid.database);
    }

    /// The relation whose content stood in this file, and its database.
    pub fn file(&mut self, file: RelFileLocator) {
        self.files.insert(file);
        self.databases.insert(file.database);
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.databases.is_empty() && self.relations.is_empty() && self.files.is_empty()
    }

    /// Whether this entry is one of those.
    #[must_use]
    pub fn wants(&self, entry: &NameEntry) -> bool {
        match entry {
            NameEntry::Database(database) => self.databases.contains(&database.oid),
            NameEntry::Relation(relation) => {
                self.relations.contains(&relation.oid)
                    || relation.file.is_some_and(|file| self.files.contains(&file))
            }
        }
    }
}

/// Names, looked up by number.
#[derive(Debug, Clone, Default)]
pub struct Names {
    databases: HashMap<u32, NamedDatabase>,
    relations: HashMap<RelationOid, NamedRelation>,
    files: HashMap<RelFileLocator, RelationOid>,
}

impl Names {
    /// More ownership than PostgreSQL has: the index of a TOAST table belongs to that, and that to a table.
    const MOST_STEPS: usize = 4;

    /// Takes an entry. One that is already there is replaced.
    pub fn insert(&mut self, entry: NameEntry) {
        match entry {
            NameEntry::Database(database) => {
                self.databases.insert(database.oid, database);
            }
            NameEntry::Relation(relation) => {
                if let Some(file) = relation.file {
                    self.files.insert(file, relation.oid);
                }
                self.relations.insert(relation.oid, relation);
            }
        }
    }

    /// The database of this OID.
    #[must_use]
    pub fn database(&self, oid: u32) -> Option<&NamedDatabase> {
        self.databases.get(&oid)
    }

    /// The relation of this OID.
    #[must_use]
    pub fn relation(&self, oid: RelationOid) -> Option<&NamedRelation> {
        self.relations.get(&oid)
    }

    /// The relation whose content stood in this file when the names were recorded. TRUNCATE and rewrites change a relation's file, and
    /// files' numbers come again after a long time.
    #[must_use]
    pub fn by_file(&self, file: RelFileLocator) -> Option<&NamedRelation> {
        self.relation(*self.files.get(&file)?)
    }

    /// The relation that this one goes along with ([`NamedRelation::belongs_to`]), followed to the end; itself where there is none.
    #[must_use]
    pub fn root<'a>(&'a self, relation: &'a NamedRelation) -> &'a NamedRelation {
        let mut root = relation;
        for _ in 0..Self::MOST_STEPS {
            match owner(root).and_then(|owner| self.relation(owner)) {
                Some(owner) => root = owner,
                None => break,
            }
        }
        root
    }

    /// The table at the top of those that this one is a partition of; itself where it is none.
    #[must_use]
    pub fn whole_table<'a>(&'a self, relation: &'a NamedRelation) -> &'a NamedRelation {
        /// Partitions of partitions are seldom more than three deep; this ends a circle that no honest names have.
        const MOST_LEVELS: usize = 64;
        let mut top = relation;
        for _ in 0..MOST_LEVELS {
            match parent(top).and_then(|parent| self.relation(parent)) {
                Some(parent) => top = parent,
                None => break,
            }
        }
        top
    }

    /// Relations that others here belong to, or are partitions of, and that are not here themselves.
    #[must_use]
    pub fn missing_owners(&self) -> HashSet<RelationOid> {
        let owners = self.relations.values().filter_map(owner);
        owners
            .chain(self.relations.values().filter_map(parent))
            .filter(|owner| !self.relations.contains_key(owner))
            .collect()
    }
}

fn parent(relation: &NamedRelation) -> Option<RelationOid> {
    relation.partition_of.map(|parent| RelationOid {
        relation: parent,
        ..relation.oid
    })
}

fn owner(relation: &NamedRelation) -> Option<RelationOid> {
    relation.belongs_to.map(|owner| RelationOid {
        relation: owner,
        ..relation.oid
    })
}

#[cfg(test)]
#[path = "names/tests.rs"]
mod tests;
