//! Which packs stay.

use std::collections::{BTreeMap, BTreeSet};

use super::OpenBackup;
use crate::keys::BackupId;
use crate::records::BackupRecord;

/// The packs that somebody needs, of backups that are removed or abandoned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NeededPacks {
    named: BTreeMap<BackupId, BTreeSet<u32>>,
    whole: BTreeSet<BackupId>,
    all: bool,
}

impl NeededPacks {
    /// What committed backups name, and all of those on which running ones may lean.
    pub fn of<'a>(
        committed: impl IntoIterator<Item = &'a BackupRecord>,
        running: impl IntoIterator<Item = &'a OpenBackup>,
    ) -> Self {
        let mut needed = Self::default();
        for record in committed {
            for pack in &record.packs {
                let named = needed.named.entry(pack.backup.clone()).or_default();
                named.insert(pack.number);
            }
        }
        for open in running {
            needed.whole.insert(open.id.clone());
            match &open.parents {
                Some(parents) => needed.whole.extend(parents.iter().cloned()),
                None => needed.all = true,
            }
        }
        needed
    }

    /// Whether somebody needs this pack.
    #[must_use]
    pub fn needs(&self, backup: &BackupId, number: u32) -> bool {
        self.all
            || self.whole.contains(backup)
            || self
                .named
                .get(backup)
                .is_some_and(|numbers| numbers.contains(&number))
    }
}
