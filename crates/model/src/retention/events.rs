//! The events of retention.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walden_pg::Lsn;

use super::Pin;
use crate::event::EventBody;
use crate::keys::{BackupId, EventId};

/// A person pinned a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// The backup.
    pub backup_id: BackupId,
    /// Until when; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Earlier pins of the backup, in whose place this one is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaces: Vec<EventId>,
}

impl EventBody for Pinned {
    const EVENT: &'static str = "pinned";
}

/// A person took pins out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpinned {
    /// The backup.
    pub backup_id: BackupId,
    /// The pins.
    pub pins: Vec<EventId>,
}

impl EventBody for Unpinned {
    const EVENT: &'static str = "unpinned";
}

/// Something was about to be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// Backups.
    pub backups: Vec<BackupId>,
    /// Backups that never ended.
    pub abandoned: Vec<BackupId>,
    /// Where the WAL begins that stays on every timeline; before it, only what kept backups need.
    pub wal_before: Lsn,
    /// Segments that were to go.
    pub segments: u64,
    /// Their stored bytes.
    pub wal_bytes: u64,
}

impl EventBody for Expired {
    const EVENT: &'static str = "expired";
}

/// The pins that were not taken out. Which is later does not matter, so no clock does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    standing: BTreeMap<BackupId, BTreeMap<EventId, Pin>>,
}

impl Pins {
    /// Those of these events.
    #[must_use]
    pub fn of(pinned: &[(EventId, Pinned)], unpinned: &[Unpinned]) -> Self {
        let replaced = pinned.iter().flat_map(|(_, pin)| &pin.replaces);
        let taken_out = unpinned.iter().flat_map(|unpinned| &unpinned.pins);
        let gone: BTreeSet<&EventId> = replaced.chain(taken_out).collect();
        let mut pins = Self::default();
        for (id, event) in pinned.iter().filter(|(id, _)| !gone.contains(id)) {
            let pin = event.until.map_or(Pin::Forever, Pin::Until);
            let of_backup = pins.standing.entry(event.backup_id.clone()).or_default();
            of_backup.insert(id.clone(), pin);
        }
        pins
    }

    /// Until when a backup is pinned, whether that has passed or not.
    #[must_use]
    pub fn of_backup(&self, id: &BackupId) -> Option<Pin> {
        let standing = self.standing.get(id)?.values();
        standing.copied().max_by_key(|pin| match pin {
            Pin::Until(until) => (false, *until),
            Pin::Forever => (true, Timestamp::MAX),
        })
    }

    /// The events that pin a backup.
    #[must_use]
    pub fn events(&self, id: &BackupId) -> Vec<EventId> {
        let standing = self.standing.get(id).into_iter().flatten();
        standing.map(|(id, _)| id.clone()).collect()
    }

    /// Every backup with its pin.
    #[must_use]
    pub fn all(&self) -> BTreeMap<BackupId, Pin> {
        let ids = self.standing.keys();
        ids.filter_map(|id| Some((id.clone(), self.of_backup(id)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{id, time};

    fn event(number: u32) -> EventId {
        EventId::new(time(0), number)
    }

    fn pinned(number: u32, backup: u32, until: Option<i64>, replaces: &[u32]) -> (EventId, Pinned) {
        let pin = Pinned {
            backup_id: id(backup),
            until: until.map(time),
            replaces: replaces.iter().copied().map(event).collect(),
        };
        (event(number), pin)
    }

    #[test]
    fn a_pin_stands_until_an_event_names_it() {
        let mut events = vec![pinned(1, 1, Some(50), &[]), pinned(2, 1, Some(20), &[])];
        let now = |events: &[(EventId, Pinned)], out: &[Unpinned]| {
            Pins::of(events, out).of_backup(&id(1))
        };
        assert_eq!(
            now(&events, &[]),
            Some(Pin::Until(time(50))),
            "of two the longer"
        );
        events.push(pinned(3, 1, Some(10), &[1, 2]));
        assert_eq!(
            now(&events, &[]),
            Some(Pin::Until(time(10))),
            "it is in their place"
        );
        events.push(pinned(4, 1, None, &[]));
        assert_eq!(now(&events, &[]), Some(Pin::Forever));
        let out = Unpinned {
            backup_id: id(1),
            pins: vec![event(4), event(3)],
        };
        assert_eq!(now(&events, std::slice::from_ref(&out)), None);
        assert_eq!(Pins::of(&events, &[]).events(&id(1)), [event(3), event(4)]);
        assert_eq!(Pins::of(&events, &[out]).all(), BTreeMap::new());
    }
}
