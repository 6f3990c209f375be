//! The documents and metadata of `docs/FORMAT.md`, as values.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use walden_pg::{Lsn, SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};

use crate::digest::{Sha256Digest, bytes_of_hex, hex_of, parse_text};
use crate::document::{self, Document, DocumentError};
use crate::keys::{BackupId, ClusterName};
use crate::names::Name;

/// 128 random bits as 32 lower-case hexadecimal digits: the ids of repositories and archives, and write tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RandomId(pub [u8; 16]);

impl fmt::Display for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_of(&self.0))
    }
}

/// A text that is not 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id of 32 lower-case hexadecimal digits")]
pub struct BadRandomId(String);

impl FromStr for RandomId {
    type Err = BadRandomId;

    fn from_str(text: &str) -> Result<Self, BadRandomId> {
        bytes_of_hex(text)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| BadRandomId(text.chars().take(100).collect()))
    }
}

impl Serialize for RandomId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RandomId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parse_text(deserializer)
    }
}

/// `walden.json`: proves that the repository is really there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryDocument {
    /// Stands here and nowhere else.
    pub repository_id: RandomId,
    /// When `walden init` made it.
    pub created_at: Timestamp,
}

impl Document for RepositoryDocument {
    const KIND: &'static str = "repository";
}

/// How an archive's objects are encrypted, by its registration. Each object says itself whether it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not at all, or as each writer's configuration says since a later day.
    None,
    /// With age, all of it: a writer without recipients is refused.
    Age,
}

/// The registration of a system identifier under a cluster's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityDocument {
    /// The cluster.
    pub cluster: ClusterName,
    /// Which cluster PostgreSQL says it is.
    pub system_identifier: SystemIdentifier,
    /// Ties every framed object to this registration; copies of the repository keep it.
    pub archive_id: RandomId,
    /// The length of a whole segment.
    pub wal_segment_size: WalSegmentSize,
    /// PostgreSQL's major version.
    pub pg_version: u16,
    /// When `walden init` registered it.
    pub created_at: Timestamp,
    /// Where.
    pub host: String,
    /// How objects are encrypted.
    pub encryption: Encryption,
}

impl Document for IdentityDocument {
    const KIND: &'static str = "identity";
}

/// The first object of a backup. Without a commit document beside it the backup is unfinished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedDocument {
    /// The backup.
    pub backup_id: BackupId,
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// By the clock of `host`.
    pub started_at: Timestamp,
    /// Where the backup runs.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// Backups whose packs this one may name; empty for a full backup.
    pub parents: Vec<BackupId>,
    /// No WAL before this is needed: where recovery would begin if the server crashed now. `None` where an older version took the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_from: Option<Lsn>,
    /// By which a writer recognises its own document after a lost reply.
    pub write_token: RandomId,
}

impl Document for StartedDocument {
    const KIND: &'static str = "started";
}

/// Closes a backup that never ended: there is no such backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonedDocument {
    /// The backup that is not one.
    pub backup_id: BackupId,
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// When it was closed.
    pub abandoned_at: Timestamp,
    /// Where that was decided.
    pub host: String,
    /// By which a writer recognises its own document after a lost reply.
    pub write_token: RandomId,
}

impl Document for AbandonedDocument {
    const KIND: &'static str = "abandoned";
}

/// What may stand at a commit document's key.
#[derive(Debug, Clone, PartialEq)]
pub enum CommitDocument {
    /// A backup.
    Backup(Box<BackupRecord>),
    /// The mark of a backup that never ended.
    Abandoned(AbandonedDocument),
}

impl CommitDocument {
    /// Reads either.
    ///
    /// # Errors
    /// As [`document::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DocumentError> {
        let kind = document::kind_of(bytes, BackupRecord::KIND)?;
        if kind == AbandonedDocument::KIND {
            document::decode(bytes).map(Self::Abandoned)
        } else {
            document::decode(bytes).map(|record| Self::Backup(Box::new(record)))
        }
    }

    /// The backup that this document speaks of.
    #[must_use]
    pub fn backup_id(&self) -> &BackupId {
        match self {
            Self::Backup(record) => &record.backup_id,
            Self::Abandoned(document) => &document.backup_id,
        }
    }
}

/// What a backup consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// Everything; needs no other backup.
    Full,
}

impl fmt::Display for BackupKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.pad("full"),
        }
    }
}

/// The commit document: a backup exists when it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupRecord {
    /// The backup.
    pub backup_id: BackupId,
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// Whose backup.
    pub cluster: ClusterName,
    /// Whose backup, as PostgreSQL says.
    pub system_identifier: SystemIdentifier,
    /// By which a writer recognises its own document after a lost reply.
    pub write_token: RandomId,
    /// What it consists of.
    pub backup_kind: BackupKind,
    /// Backups whose packs it names; empty for a full backup.
    pub parents: Vec<BackupId>,
    /// PostgreSQL's major version.
    pub pg_version: u16,
    /// `server_version_num`.
    pub pg_version_num: u32,
    /// The length of a whole segment.
    pub wal_segment_size: WalSegmentSize,
    /// `block_size`, in bytes.
    pub block_size: u32,
    /// Whether the cluster's pages carry checksums.
    pub data_checksums: bool,
    /// Where the backup was taken.
    pub host: String,
    /// Whether the server was in recovery.
    pub from_standby: bool,
    /// `backup_label`'s LABEL.
    pub label: String,
    /// What the person said of it.
    pub annotations: BTreeMap<String, String>,
    /// By the server's clock.
    pub started_at: Timestamp,
    /// By the server's clock: a commit whose time is later stands behind `stop_lsn`.
    pub stopped_at: Timestamp,
    /// Where recovery begins.
    pub start_lsn: Lsn,
    /// Where the cluster becomes consistent.
    pub stop_lsn: Lsn,
    /// The checkpoint of `backup_label`.
    pub checkpoint_lsn: Lsn,
    /// The timeline on which the backup ended.
    pub timeline: TimelineId,
    /// The WAL without which the backup cannot be restored, as the manifest has it: newest timeline first.
    pub wal_ranges: Vec<WalRange>,
    /// Which transactions were running after the backup had ended.
    pub snapshot: Option<Snapshot>,
    /// Settings that recovery needs at least.
    pub control: ControlSettings,
    /// Tablespaces, without the two built-in ones.
    pub tablespaces: Vec<Tablespace>,
    /// Bytes of content.
    pub cluster_size: u64,
    /// Bytes of packs and shards.
    pub stored_size: u64,
    /// Number of files.
    pub files: u64,
    /// The objects that hold the contents; extents name them by index.
    pub packs: Vec<PackRef>,
    /// The shards of the file map.
    pub file_map: Vec<ShardRef>,
    /// Blocks whose checksum did not fit, the first 1000 of them.
    pub damaged: Vec<DamagedBlock>,
    /// How many there are in all.
    pub damaged_blocks: u64,
    /// Configuration files outside PGDATA, by their paths on the server.
    pub extras: Vec<String>,
    /// The names behind OIDs, shortly after the backup had ended; `None` where an older version took the backup or the server could not be
    /// asked. No restore needs them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<NamesRef>,
}

/// The names behind OIDs as the commit document names them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamesRef {
    /// The objects that hold them.
    pub shards: Vec<ShardRef>,
    /// Databases without names of relations, or without all of them: the first 1000 of them.
    pub unread_databases: Vec<UnreadDatabase>,
    /// How many there are in all.
    pub unread: u64,
}

/// A database whose relations' names could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadDatabase {
    /// Its OID.
    pub oid: u32,
    /// Its name.
    pub name: Name,
    /// Why not.
    pub reason: String,
}

/// A range of WAL on one timeline; `end` is exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first byte.
    pub start: Lsn,
    /// Behind the last byte.
    pub end: Lsn,
}

/// Transactions as `pg_current_snapshot()` shows them, by their 64-bit ids. An id below `xmax` that is not in `in_progress`
/// had ended; of a standby, whose snapshots list none, that is only known below `xmin`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The oldest that was running.
    pub xmin: u64,
    /// The first that had not begun.
    pub xmax: u64,
    /// Those that were running between the two.
    pub in_progress: Vec<u64>,
}

/// Settings of the server that recovery requires at least (xlogrecovery.c, `CheckRequiredParameterValues`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// `wal_level`.
    pub wal_level: String,
}

/// A tablespace of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tablespace {
    /// Its OID: the link's name in `pg_tblspc`.
    pub oid: u32,
    /// Where it stands on the server.
    pub path: String,
    /// Bytes of content.
    pub size: u64,
}

/// A pack as the commit document names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackRef {
    /// In whose folder it stands.
    pub backup: BackupId,
    /// Its number there.
    pub number: u32,
    /// Stored bytes.
    pub size: u64,
    /// The digest of its tail.
    pub table: Sha256Digest,
}

/// A shard of the file map as the commit document names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRef {
    /// Its number.
    pub number: u32,
    /// Stored bytes.
    pub size: u64,
    /// The digest of its tail.
    pub table: Sha256Digest,
    /// How many entries it holds.
    pub entries: u64,
}

/// A block whose checksum did not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedBlock {
    /// The file, below PGDATA.
    pub path: String,
    /// The block's number in its relation fork.
    pub block: u32,
    /// What was found.
    pub reason: String,
}

/// Consecutive segments of one timeline, by number; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment's number.
    pub first: u64,
    /// The last segment's number.
    pub last: u64,
}

/// More WAL than any backup needs: 64 TiB at 16 MiB a segment.
const MAX_NEEDED_SEGMENTS: u64 = 1 << 22;

impl BackupRecord {
    /// How long the backup took.
    #[must_use]
    pub fn duration(&self) -> SignedDuration {
        self.stopped_at.duration_since(self.started_at)
    }

    /// How many bytes of the cluster one stored byte stands for; `None` where nothing is stored.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        (self.stored_size > 0).then(|| self.cluster_size as f64 / self.stored_size as f64)
    }

    /// The WAL without which this backup cannot be restored, oldest first.
    ///
    /// `end` of a range is exclusive: a range that ends on a segment's edge does not need the segment that begins there. Where the backup
    /// crossed a fork, the segment of the fork is needed on the newer timeline alone: it repeats the parent's bytes, and the parent's own
    /// copy may exist as a `.partial` only.
    #[must_use]
    pub fn needed_ranges(&self, size: WalSegmentSize) -> Vec<SegmentRange> {
        let mut ranges: Vec<SegmentRange> = self
            .wal_ranges
            .iter()
            .map(|range| SegmentRange {
                timeline: range.timeline,
                first: range.start.0 / size.bytes(),
                last: range.end.0.saturating_sub(1).max(range.start.0) / size.bytes(),
            })
            .collect();
        ranges.sort_by_key(|range| range.timeline);
        let mut newer_begins = u64::MAX;
        for range in ranges.iter_mut().rev() {
            let begins = range.first;
            if newer_begins <= range.last {
                // An empty range: taken out below.
                (range.first, range.last) = match newer_begins.checked_sub(1) {
                    Some(last) => (range.first, last),
                    None => (1, 0),
                };
            }
            newer_begins = newer_begins.min(begins);
        }
        ranges.retain(|range| range.first <= range.last);
        ranges
    }

    /// [`Self::needed_ranges`] segment by segment.
    #[must_use]
    pub fn needed_segments(&self, size: WalSegmentSize) -> Vec<SegmentName> {
        self.needed_ranges(size)
            .into_iter()
            .flat_map(|range| {
                (range.first..=range.last)
                    .map(move |number| SegmentName::from_number(range.timeline, number, size))
            })
            .collect()
    }
}

impl Document for BackupRecord {
    const KIND: &'static str = "commit";

    fn validate(&self) -> Result<(), String> {
        if self.start_lsn > self.stop_lsn {
            return Err(format!(
                "it ends at {} before it begins at {}",
                self.stop_lsn, self.start_lsn
            ));
        }
        if !self
            .wal_ranges
            .iter()
            .any(|range| range.timeline == self.timeline)
        {
            return Err(format!(
                "it names no WAL range on timeline {}, on which it ended",
                self.timeline
            ));
        }
        let mut needed = 0_u64;
        for range in &self.wal_ranges {
            if range.start > range.end {
                return Err(format!(
                    "a WAL range ends at {} before it begins at {}",
                    range.end, range.start
                ));
            }
            needed = needed
                .saturating_add((range.end.0 - range.start.0) / self.wal_segment_size.bytes())
                .saturating_add(1);
        }
        if needed > MAX_NEEDED_SEGMENTS {
            return Err(format!("it says that it needs {needed} segments of WAL"));
        }
        let mut sum = 0_u64;
        for size in self
            .packs
            .iter()
            .map(|pack| pack.size)
            .chain(self.file_map.iter().map(|shard| shard.size))
            .chain(
                self.names
                    .iter()
                    .flat_map(|names| names.shards.iter().map(|shard| shard.size)),
            )
        {
            sum = sum.checked_add(size).ok_or("its packs' sizes overflow")?;
        }
        Ok(())
    }
}
