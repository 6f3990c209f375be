//! The names of the repository's objects (`docs/FORMAT.md`, "Keys"): the only place that spells them.

mod event;

use std::fmt;
use std::str::FromStr;

pub use self::event::{BadEventId, EventId, EventName};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use walden_pg::{SegmentName, SystemIdentifier, TimelineId, WalFileName, WalSegmentSize};

use crate::digest::{Sha256Digest, ShortDigest, parse_text};
use crate::rollup::{Block, Level, ROLLUP_VERSION};

mod removal;

pub use removal::{BackupObject, RetiredKey};

/// The key of the repository's root document.
pub const ROOT_KEY: &str = "walden.json";

/// The folder of registrations below a cluster, and therefore no cluster's name.
const IDENTITY: &str = "identity";

/// A cluster's name: `[a-z0-9][a-z0-9-]{0,62}`, and not `identity`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that cannot name a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a cluster: use 1 to 63 lower-case letters, digits and hyphens, \
     beginning with a letter or digit, and not the reserved word \"identity\""
)]
pub struct BadClusterName(String);

impl FromStr for ClusterName {
    type Err = BadClusterName;

    fn from_str(text: &str) -> Result<Self, BadClusterName> {
        let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fits = (1..=63).contains(&text.len())
            && text.chars().all(letters)
            && !text.starts_with('-')
            && text != IDENTITY;
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadClusterName(text.chars().take(100).collect()))
        }
    }
}

/// A backup's id, `20261122T175007Z-0badcafe`. A label: it orders nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(String);

impl BackupId {
    /// The id of a backup that begins at `at`; `random` keeps two of one second apart.
    #[must_use]
    pub fn new(at: Timestamp, random: u32) -> Self {
        Self(stamp(at, random))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is not a backup's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a backup's id (they look like 20261122T175007Z-0badcafe; `walden list-backups` shows them)"
)]
pub struct BadBackupId(String);

impl FromStr for BackupId {
    type Err = BadBackupId;

    fn from_str(text: &str) -> Result<Self, BadBackupId> {
        if is_stamp(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadBackupId(text.chars().take(100).collect()))
        }
    }
}

/// A second, and random digits that keep two of that second apart: the text of backups' and events' ids.
fn stamp(at: Timestamp, random: u32) -> String {
    // A clock before 1970 is wrong anyway, and years before 0 would not print as four digits.
    let at = at.max(Timestamp::UNIX_EPOCH);
    format!("{}-{random:08x}", at.strftime("%Y%m%dT%H%M%SZ"))
}

fn is_stamp(text: &str) -> bool {
    const PATTERN: &[u8; 25] = b"ddddddddTddddddZ-xxxxxxxx";
    let fits = |(byte, pattern): (u8, &u8)| match pattern {
        b'd' => byte.is_ascii_digit(),
        b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        literal => byte == *literal,
    };
    text.len() == PATTERN.len() && text.bytes().zip(PATTERN).all(fits)
}

macro_rules! text_impls {
    ($($name:ty),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parse_text(deserializer)
            }
        }
    )*};
}
text_impls!(ClusterName, BackupId);

/// A WAL file as the repository names it: PostgreSQL's name, and for a partial segment a piece of its content's digest,
/// because two promoted standbys archive different bytes under one `.partial` name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalName {
    /// A whole segment.
    Segment(SegmentName),
    /// The unfinished last segment of a timeline that was left by promotion.
    Partial {
        /// The segment of which this is a part.
        segment: SegmentName,
        /// The beginning of the content's SHA-256.
        digest: ShortDigest,
    },
    /// A timeline's history file.
    History(TimelineId),
    /// A backup history file.
    Backup {
        /// The segment in which the backup begins.
        segment: SegmentName,
        /// Where in it, in bytes.
        offset: u32,
    },
}

impl WalName {
    /// The name under which a file of this content is stored.
    #[must_use]
    pub fn new(file: WalFileName, content: &Sha256Digest) -> Self {
        match file {
            WalFileName::Segment(segment) => Self::Segment(segment),
            WalFileName::Partial(segment) => Self::Partial {
                segment,
                digest: content.short(),
            },
            WalFileName::History(timeline) => Self::History(timeline),
            WalFileName::Backup { segment, offset } => Self::Backup { segment, offset },
        }
    }

    /// The one name under which this file can stand, whatever its content; `None` for a partial segment, which may stand
    /// several times.
    #[must_use]
    pub fn of_file(file: WalFileName) -> Option<Self> {
        match file {
            WalFileName::Segment(segment) => Some(Self::Segment(segment)),
            WalFileName::Partial(_) => None,
            WalFileName::History(timeline) => Some(Self::History(timeline)),
            WalFileName::Backup { segment, offset } => Some(Self::Backup { segment, offset }),
        }
    }

    /// PostgreSQL's name of the file.
    #[must_use]
    pub fn file(&self) -> WalFileName {
        match *self {
            Self::Segment(segment) => WalFileName::Segment(segment),
            Self::Partial { segment, .. } => WalFileName::Partial(segment),
            Self::History(timeline) => WalFileName::History(timeline),
            Self::Backup { segment, offset } => WalFileName::Backup { segment, offset },
        }
    }

    /// The key below the system's `wal/` folder.
    fn below_wal(&self) -> String {
        let within = |segment: &SegmentName, rest: String| {
            format!(
                "{}/{:08X}/{segment}{rest}.zst",
                segment.timeline.hex(),
                segment.log
            )
        };
        match self {
            Self::Segment(segment) => within(segment, String::new()),
            Self::Partial { segment, digest } => within(segment, format!(".partial.{digest}")),
            Self::History(timeline) => format!("{}.history.zst", timeline.hex()),
            Self::Backup { segment, offset } => within(segment, format!(".{offset:08X}.backup")),
        }
    }
}

/// What `key`, the part of a key below a system's `wal/` folder ([`SystemKeys::wal_prefix`]), names. `None` for keys that this
/// version does not know, and for files that stand in another timeline's or log's folder: readers ignore both.
#[must_use]
pub fn parse_wal_key(key: &str) -> Option<WalName> {
    let base = key.rsplit('/').next()?.strip_suffix(".zst")?;
    let name = match base.split_once(".partial.") {
        Some((segment, digest)) => {
            let WalFileName::Segment(segment) = segment.parse().ok()? else {
                return None;
            };
            WalName::Partial {
                segment,
                digest: ShortDigest::from_hex(digest)?,
            }
        }
        None => WalName::of_file(base.parse().ok()?)?,
    };
    (name.below_wal() == key).then_some(name)
}

/// The keys of one system identifier's objects, all from the repository's root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SystemKeys {
    /// The cluster.
    pub cluster: ClusterName,
    /// Which of the cluster's system identifiers.
    pub system: SystemIdentifier,
}

impl SystemKeys {
    fn under(&self, rest: fmt::Arguments<'_>) -> String {
        format!("{}/{}/{rest}", self.cluster, self.system)
    }

    /// Everything.
    #[must_use]
    pub fn prefix(&self) -> String {
        self.under(format_args!(""))
    }

    /// A WAL file.
    #[must_use]
    pub fn wal(&self, name: &WalName) -> String {
        self.under(format_args!("wal/{}", name.below_wal()))
    }

    /// Everything in the WAL folder.
    #[must_use]
    pub fn wal_prefix(&self) -> String {
        self.under(format_args!("wal/"))
    }

    /// One timeline's segments, without its history file.
    #[must_use]
    pub fn wal_timeline_prefix(&self, timeline: TimelineId) -> String {
        self.under(format_args!("wal/{}/", timeline.hex()))
    }

    /// One timeline's segments of one log: 4 GiB of WAL.
    #[must_use]
    pub fn wal_log_prefix(&self, timeline: TimelineId, log: u32) -> String {
        self.under(format_args!("wal/{}/{log:08X}/", timeline.hex()))
    }

    /// A backup's commit document.
    #[must_use]
    pub fn commit(&self, id: &BackupId) -> String {
        self.under(format_args!("commits/{id}.json"))
    }

    /// Every commit document.
    #[must_use]
    pub fn commits_prefix(&self) -> String {
        self.under(format_args!("commits/"))
    }

    /// The id of a commit document's key from the repository's root, `None` where the key is not one.
    #[must_use]
    pub fn parse_commit(&self, key: &str) -> Option<BackupId> {
        key.strip_prefix(&self.commits_prefix())?
            .strip_suffix(".json")?
            .parse()
            .ok()
    }

    /// The document that a backup writes before anything else.
    #[must_use]
    pub fn started(&self, id: &BackupId) -> String {
        self.under(format_args!("backups/{id}/started.json"))
    }

    /// Every backup's folder.
    #[must_use]
    pub fn backups_prefix(&self) -> String {
        self.under(format_args!("backups/"))
    }

    /// One backup's folder.
    #[must_use]
    pub fn backup_prefix(&self, id: &BackupId) -> String {
        self.under(format_args!("backups/{id}/"))
    }

    /// The backup in whose folder this key, from the repository's root, stands.
    #[must_use]
    pub fn parse_backup(&self, key: &str) -> Option<BackupId> {
        key.strip_prefix(&self.backups_prefix())?
            .split_once('/')?
            .0
            .parse()
            .ok()
    }

    /// A pack of file contents.
    #[must_use]
    pub fn pack(&self, id: &BackupId, number: u32) -> String {
        self.under(format_args!("backups/{id}/packs/{number:08x}.zst"))
    }

    /// A shard of the file map.
    #[must_use]
    pub fn file_map(&self, id: &BackupId, number: u32) -> String {
        self.under(format_args!("backups/{id}/files/{number:08x}.zst"))
    }

    /// A shard of the names behind OIDs.
    #[must_use]
    pub fn names(&self, id: &BackupId, number: u32) -> String {
        self.under(format_args!("backups/{id}/names/{number:08x}.zst"))
    }

    /// A roll-up.
    #[must_use]
    pub fn rollup(&self, block: &Block, size: WalSegmentSize) -> String {
        let level = block.level.number();
        let prefix = self.rollup_prefix(block.timeline);
        format!("{prefix}{level}/{}.zst", block.name(size))
    }

    /// Roll-ups of every version.
    #[must_use]
    pub fn rollups_prefix(&self) -> String {
        self.under(format_args!("rollup/"))
    }

    /// One timeline's roll-ups of the version that this program knows.
    #[must_use]
    pub fn rollup_prefix(&self, timeline: TimelineId) -> String {
        self.under(format_args!("rollup/{ROLLUP_VERSION}/{}/", timeline.hex()))
    }

    /// The block whose roll-up has this key, from the repository's root; `None` where the key is not one.
    #[must_use]
    pub fn parse_rollup(&self, key: &str, size: WalSegmentSize) -> Option<Block> {
        let mut parts = key.rsplitn(3, '/');
        let first: SegmentName = parts.next()?.strip_suffix(".zst")?.parse().ok()?;
        let level = Level::from_number(parts.next()?.parse().ok()?)?;
        let block = Block::named(level, first, size)?;
        (self.rollup(&block, size) == key).then_some(block)
    }

    /// A WAL file that a person set aside.
    #[must_use]
    pub fn quarantine(&self, file: &WalFileName, content: &Sha256Digest) -> String {
        self.under(format_args!("quarantine/{file}.{}.zst", content.short()))
    }

    /// Every WAL file that a person set aside.
    #[must_use]
    pub fn quarantine_prefix(&self) -> String {
        self.under(format_args!("quarantine/"))
    }

    /// The file and the digest of its content that this key, from the repository's root, names; `None` where the key is not one.
    #[must_use]
    pub fn parse_quarantine(&self, key: &str) -> Option<(WalFileName, ShortDigest)> {
        let (file, digest) = key
            .strip_prefix(&self.quarantine_prefix())?
            .strip_suffix(".zst")?
            .rsplit_once('.')?;
        Some((file.parse().ok()?, ShortDigest::from_hex(digest)?))
    }
}

/// The registration of a system identifier.
#[must_use]
pub fn identity(cluster: &ClusterName, system: SystemIdentifier) -> String {
    format!("{cluster}/{IDENTITY}/{system}.json")
}

/// Every registration of a cluster.
#[must_use]
pub fn identity_prefix(cluster: &ClusterName) -> String {
    format!("{cluster}/{IDENTITY}/")
}

/// The system identifier of a registration's key from the repository's root, `None` where the key is not one.
#[must_use]
pub fn parse_identity(cluster: &ClusterName, key: &str) -> Option<SystemIdentifier> {
    key.strip_prefix(&identity_prefix(cluster))?
        .strip_suffix(".json")?
        .parse()
        .ok()
}

/// A key without its cluster: what stands in a framed object's head, so that a cluster can be renamed by moving its folder.
#[must_use]
pub fn below_cluster(key: &str) -> &str {
    key.split_once('/').map_or(key, |(_, below)| below)
}

#[cfg(test)]
mod tests;
