//! Keys that those who remove need.

use super::{BackupId, SystemKeys};
use crate::records::RandomId;

/// What a key below `retired/` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetiredKey {
    /// A backup that is being removed, and by whom.
    Backup(BackupId, RandomId),
    /// A removal of WAL.
    Wal(RandomId),
}

/// An object in a backup's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupObject {
    /// `started.json`.
    Started,
    /// A pack.
    Pack(u32),
    /// A shard of the file map.
    FileMap(u32),
    /// A shard of the names.
    Names(u32),
}

impl SystemKeys {
    /// A document that says that a backup is being removed; `random` tells those who remove at the same time apart.
    #[must_use]
    pub fn retired(&self, id: &BackupId, random: &RandomId) -> String {
        self.under(format_args!("retired/{id}/{random}.json"))
    }

    /// Every document that says so of one backup.
    #[must_use]
    pub fn retired_backup_prefix(&self, id: &BackupId) -> String {
        self.under(format_args!("retired/{id}/"))
    }

    /// A document that says that WAL is being removed.
    #[must_use]
    pub fn retired_wal(&self, random: &RandomId) -> String {
        self.under(format_args!("retired/wal/{random}.json"))
    }

    /// Everything that is being removed.
    #[must_use]
    pub fn retired_prefix(&self) -> String {
        self.under(format_args!("retired/"))
    }

    /// What this key, from the repository's root, says is being removed; `None` where the key is not one.
    #[must_use]
    pub fn parse_retired(&self, key: &str) -> Option<RetiredKey> {
        let name = key
            .strip_prefix(&self.retired_prefix())?
            .strip_suffix(".json")?;
        let (what, random) = name.split_once('/')?;
        let random = random.parse().ok()?;
        if what == "wal" {
            return Some(RetiredKey::Wal(random));
        }
        Some(RetiredKey::Backup(what.parse().ok()?, random))
    }

    /// The object of which backup this key, from the repository's root, names; `None` where this version does not know it.
    #[must_use]
    pub fn parse_backup_object(&self, key: &str) -> Option<(BackupId, BackupObject)> {
        let id = self.parse_backup(key)?;
        let rest = key.strip_prefix(&self.backup_prefix(&id))?;
        let object = match rest.split_once('/') {
            None if rest == "started.json" => BackupObject::Started,
            None => return None,
            Some((folder, file)) => {
                let number = u32::from_str_radix(file.strip_suffix(".zst")?, 16).ok()?;
                match folder {
                    "packs" => BackupObject::Pack(number),
                    "files" => BackupObject::FileMap(number),
                    "names" => BackupObject::Names(number),
                    _ => return None,
                }
            }
        };
        let named = match object {
            BackupObject::Started => self.started(&id),
            BackupObject::Pack(number) => self.pack(&id, number),
            BackupObject::FileMap(number) => self.file_map(&id, number),
            BackupObject::Names(number) => self.names(&id, number),
        };
        (named == key).then_some((id, object))
    }
}

#[cfg(test)]
mod tests {
    use walden_pg::SystemIdentifier;

    use super::*;

    #[test]
    fn what_is_not_understood_has_no_name() {
        let keys = SystemKeys {
            cluster: "main".parse().unwrap(),
            system: SystemIdentifier(7),
        };
        let id: BackupId = "20261122T175007Z-0badcafe".parse().unwrap();
        let random = RandomId([3; 16]);
        for (key, expected) in [
            (
                keys.retired(&id, &random),
                Some(RetiredKey::Backup(id.clone(), random)),
            ),
            (keys.retired_wal(&random), Some(RetiredKey::Wal(random))),
            (format!("{}{id}.json", keys.retired_prefix()), None),
        ] {
            assert_eq!(keys.parse_retired(&key), expected, "{key}");
        }
        for (key, expected) in [
            (keys.started(&id), Some(BackupObject::Started)),
            (keys.pack(&id, 0x1f), Some(BackupObject::Pack(0x1f))),
            (keys.file_map(&id, 2), Some(BackupObject::FileMap(2))),
            (keys.names(&id, 0), Some(BackupObject::Names(0))),
            (format!("{}packs/1f.zst", keys.backup_prefix(&id)), None),
            (
                format!("{}packs/0000001F.zst", keys.backup_prefix(&id)),
                None,
            ),
            (
                format!("{}later/00000000.zst", keys.backup_prefix(&id)),
                None,
            ),
        ] {
            let object = keys.parse_backup_object(&key);
            assert_eq!(object, expected.map(|object| (id.clone(), object)), "{key}");
        }
    }
}
