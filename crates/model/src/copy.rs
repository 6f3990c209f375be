//! Making one repository hold what another holds: what each key is, when its turn comes, and what is done about it.
//!
//! An object is only ever put where nothing stands. What a reader would draw conclusions from comes after what those conclusions rest on: a
//! commit document after all that it names, WAL after the news that some of it is in dispute.

use std::collections::BTreeSet;

use walden_pg::WalSegmentSize;

use crate::digest::Sha256Digest;
use crate::framed::HeadKind;
use crate::keys::{self, SystemKeys};
use crate::records::BackupRecord;

/// What is copied by listing a folder. The order is that of a copy; backups come between WAL and roll-ups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// WAL files that were set aside: before WAL, which would look undisputed without them.
    Quarantine,
    /// What was done and decided: before backups, so that one that is pinned never stands there without its pin.
    Events,
    /// WAL files. Byte order is that of WAL within a timeline, and has a timeline's history file before its segments.
    Wal,
    /// Roll-ups: derived, so they come last, and never count as a conflict.
    RollUps,
}

impl Stage {
    /// Before backups, in order.
    pub const BEFORE_BACKUPS: [Self; 3] = [Self::Quarantine, Self::Events, Self::Wal];

    /// The folder.
    #[must_use]
    pub fn prefix(self, keys: &SystemKeys) -> String {
        match self {
            Self::Quarantine => keys.quarantine_prefix(),
            Self::Events => keys.events_prefix(),
            Self::Wal => keys.wal_prefix(),
            Self::RollUps => keys.rollups_prefix(),
        }
    }

    /// What a key below [`Stage::prefix`] is.
    #[must_use]
    pub fn class(self, keys: &SystemKeys, size: WalSegmentSize, key: &str) -> Class {
        let wal = |known| match known {
            true => Class::Object(Content::WAL),
            false => Class::Unknown,
        };
        match self {
            Self::Quarantine => wal(keys.parse_quarantine(key).is_some()),
            Self::Wal => {
                let below = key.strip_prefix(&self.prefix(keys));
                wal(below.and_then(keys::parse_wal_key).is_some())
            }
            Self::Events => match keys.parse_event(key) {
                Some(event) if OWN_EVENTS.contains(&event.kind.as_str()) => Class::Own,
                Some(_) => Class::Object(Content::Document),
                None => Class::Unknown,
            },
            Self::RollUps => match keys.parse_rollup(key, size) {
                Some(_) => Class::Object(Content::Framed(HeadKind::RollUp)),
                // Another version's are derived, too.
                None => Class::Own,
            },
        }
    }
}

/// Kinds of events that say what was found, or removed, in one repository: they mean nothing in another.
const OWN_EVENTS: [&str; 2] = ["verified", "expired"];

/// What a key is to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// An object that is copied.
    Object(Content),
    /// The repository's own affair.
    Own,
    /// Nothing that this version knows.
    Unknown,
}

/// How an object is checked on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// JSON with a line that holds its digest.
    Document,
    /// Frames between a head and a tail.
    Framed(HeadKind),
}

impl Content {
    const WAL: Self = Self::Framed(HeadKind::Wal);
}

/// What is done about a key that is there to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing stands there.
    Copy,
    /// It is there.
    Nothing,
    /// Something stands there, and may be something else.
    Compare,
}

/// Decides by sizes. The same size is taken for the same object, unless `thorough`: then each is looked at.
#[must_use]
pub fn action(content: Content, from: u64, to: Option<u64>, thorough: bool) -> Action {
    match to {
        None => Action::Copy,
        // Each repository's own backups roll up, so the bytes may differ.
        Some(_) if content == Content::Framed(HeadKind::RollUp) => Action::Nothing,
        Some(to) if to == from && !thorough => Action::Nothing,
        Some(_) => Action::Compare,
    }
}

/// A framed object that a commit document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// From the repository's root.
    pub key: String,
    /// Stored bytes.
    pub size: u64,
    /// The digest of its tail.
    pub table: Sha256Digest,
    /// What it holds.
    pub kind: HeadKind,
}

/// Every framed object without which a backup is not whole, in the order in which they are copied; the names behind OIDs last, of which no
/// restore has need.
pub fn named<'a>(
    record: &'a BackupRecord,
    keys: &'a SystemKeys,
) -> impl Iterator<Item = Named> + 'a {
    let packs = record.packs.iter().map(|pack| Named {
        key: keys.pack(&pack.backup, pack.number),
        size: pack.size,
        table: pack.table,
        kind: HeadKind::Pack,
    });
    let shards = record.file_map.iter().map(|shard| Named {
        key: keys.file_map(&record.backup_id, shard.number),
        size: shard.size,
        table: shard.table,
        kind: HeadKind::FileMap,
    });
    let names = record.names.iter().flat_map(|names| &names.shards);
    let names = names.map(|shard| Named {
        key: keys.names(&record.backup_id, shard.number),
        size: shard.size,
        table: shard.table,
        kind: HeadKind::Names,
    });
    packs.chain(shards).chain(names)
}

/// The folders of a backup's objects: its own, and those of backups whose packs it names.
#[must_use]
pub fn folders(record: &BackupRecord, keys: &SystemKeys) -> BTreeSet<String> {
    let others = record.packs.iter().map(|pack| &pack.backup);
    let ids: BTreeSet<_> = others.chain([&record.backup_id]).collect();
    ids.into_iter().map(|id| keys.backup_prefix(id)).collect()
}

/// Whether two commit documents are one backup's: written by the same backup, into two repositories.
#[must_use]
pub fn same_backup(one: &BackupRecord, other: &BackupRecord) -> bool {
    one.backup_id == other.backup_id
        && one.archive_id == other.archive_id
        && one.packs == other.packs
        && one.file_map == other.file_map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walden_pg::SystemIdentifier;

    use super::*;
    use crate::digest::Sha256Digest;
    use crate::keys::WalName;

    const CONTENTS: [Content; 3] = [
        Content::Document,
        Content::WAL,
        Content::Framed(HeadKind::RollUp),
    ];

    fn keys() -> SystemKeys {
        SystemKeys {
            cluster: "main".parse().unwrap(),
            system: SystemIdentifier(7),
        }
    }

    #[test]
    fn keys_of_other_versions_are_not_taken_for_ours() {
        let size = WalSegmentSize::DEFAULT;
        let stored = |name: &str| {
            let name = WalName::new(name.parse().unwrap(), &Sha256Digest::of(b"x"));
            keys().wal(&name)
        };
        for name in [
            "00000002.history",
            "000000020000000000000003",
            "000000020000000000000003.partial",
            "000000020000000000000003.00000028.backup",
        ] {
            assert_eq!(
                Stage::Wal.class(&keys(), size, &stored(name)),
                Class::Object(Content::WAL),
                "{name} is WAL"
            );
        }
        for (stage, key) in [
            (Stage::Wal, "main/7/wal/notes.txt"),
            (Stage::Wal, "main/7/commits/x.json"),
            (Stage::Quarantine, "main/7/quarantine/x.zst"),
            (Stage::Events, "main/7/events/x.zst"),
        ] {
            assert_eq!(
                stage.class(&keys(), size, key),
                Class::Unknown,
                "{key} is unknown"
            );
        }
    }

    #[test]
    fn what_is_said_of_one_repository_is_not_carried_into_another() {
        let size = WalSegmentSize::DEFAULT;
        let event = |kind: &str| {
            let key = format!("main/7/events/20261123T013000Z-0badcafe.{kind}.json");
            Stage::Events.class(&keys(), size, &key)
        };
        assert_eq!(event("verified"), Class::Own, "only that one was verified");
        assert_eq!(event("pinned"), Class::Object(Content::Document));
        assert_eq!(
            event("of-a-later-version"),
            Class::Object(Content::Document),
            "documents of every kind can be checked"
        );
        let later = "main/7/rollup/2/00000001/1/000000010000000000000100.zst";
        assert_eq!(Stage::RollUps.class(&keys(), size, later), Class::Own);
    }

    #[test]
    fn a_history_file_sorts_before_its_timeline_and_behind_its_parent() {
        let key = |name: &str| {
            let name = WalName::new(name.parse().unwrap(), &Sha256Digest::of(b"x"));
            keys().wal(&name)
        };
        let (parent, history, child) = (
            key("00000001FFFFFFFF000000FF"),
            key("00000002.history"),
            key("000000020000000000000003"),
        );
        assert!(parent < history && history < child, "{history}");
    }

    proptest! {
        #[test]
        fn nothing_that_stands_is_ever_written_over(
            content in prop::sample::select(CONTENTS.to_vec()), from: u64, to: Option<u64>, thorough: bool,
        ) {
            let action = action(content, from, to, thorough);
            prop_assert_eq!(action == Action::Copy, to.is_none());
            let derived = content == CONTENTS[2];
            prop_assert_eq!(action == Action::Compare, !derived && to.is_some_and(|to| thorough || to != from));
        }
    }
}
