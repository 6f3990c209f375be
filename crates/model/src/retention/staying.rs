//! What must stay, when expiry looks again before it removes.

use std::collections::BTreeSet;

use walden_pg::WalSegmentSize;

use super::{KeptWal, NeededPacks, OpenBackup};
use crate::keys::BackupId;
use crate::records::BackupRecord;

/// What those need that stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staying {
    /// Of the packs.
    pub packs: NeededPacks,
    /// Of the WAL.
    pub wal: KeptWal,
}

impl Staying {
    /// `planned` is the plan's WAL. Of all that are committed now, whoever else says that they go, only this run's own `going` need nothing:
    /// another run may have been killed before it spared one that was pinned.
    #[must_use]
    pub fn new<'a>(
        planned: &KeptWal,
        committed: impl IntoIterator<Item = &'a BackupRecord>,
        going: &BTreeSet<BackupId>,
        running: &[OpenBackup],
        size: WalSegmentSize,
    ) -> Self {
        let committed = committed.into_iter();
        let staying: Vec<&BackupRecord> = committed
            .filter(|record| !going.contains(&record.backup_id))
            .collect();
        let mut wal = planned.clone();
        for open in running {
            wal.hold(open.wal_from, size);
        }
        for record in &staying {
            wal.keep(record);
        }
        Self {
            packs: NeededPacks::of(staying, running),
            wal,
        }
    }
}
