//! What the repository holds of one system identifier, and what follows from that alone.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walden_pg::history::{TimelineHistory, TimelineSpan};
use walden_pg::{Lsn, SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};

use crate::coverage::{Gap, TimelineWal};
use crate::keys::{BackupId, ClusterName, SystemKeys, WalName};
use crate::path::WalPath;
use crate::records::{BackupRecord, RandomId};
use crate::union::Holding;

/// Timelines begin here; the first has no parents and no history file.
const FIRST_TIMELINE: TimelineId = TimelineId(1);

/// Everything that listing the repository, and reading its commit documents and history files, tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalog {
    /// The cluster.
    pub cluster: ClusterName,
    /// Which of its system identifiers.
    pub system_identifier: SystemIdentifier,
    /// The registration's archive id.
    pub archive_id: RandomId,
    /// The length of a whole segment.
    pub segment_size: WalSegmentSize,
    /// The backups that exist, in any order.
    pub backups: Vec<BackupRecord>,
    /// Backups that have begun and have no commit document.
    pub unfinished: Vec<UnfinishedBackup>,
    /// Backups that are being removed: they are none any more, whatever is still there of them.
    pub retiring: BTreeSet<BackupId>,
    /// Documents and history files that cannot be read.
    pub damaged_documents: Vec<DamagedDocument>,
    /// Segments by timeline.
    pub wal: BTreeMap<TimelineId, TimelineWal>,
    /// History files by timeline.
    pub histories: BTreeMap<TimelineId, TimelineHistory>,
    /// Timelines of whose history file another was set aside: what is archived may be another server's.
    pub disputed_histories: BTreeSet<TimelineId>,
    /// Partial segments.
    pub partials: Vec<SegmentName>,
    /// When the newest segment of each timeline was written, by its writer's clock.
    pub newest_archived_at: BTreeMap<TimelineId, Timestamp>,
    /// Keys of packs and shards that a commit document names, and that the listing lacks or has with another size.
    pub missing_packs: BTreeMap<BackupId, Vec<String>>,
    /// What each repository holds of it, where several are read as one archive; else empty.
    pub holdings: Vec<Holding>,
}

/// A backup that has begun and has no commit document: it may be running, or have been killed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedBackup {
    /// The backup.
    pub id: BackupId,
    /// When it began, by `host`'s clock.
    pub started_at: Timestamp,
    /// Where.
    pub host: String,
}

/// An object that cannot be read as what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedDocument {
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub why: String,
}

/// A timeline's history file is not in the repository, or cannot be believed, so nobody knows where the timeline comes from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the history file {}.history is {}, so the way to timeline {timeline} is unknown: {}, or choose another timeline with \
     --target-timeline",
    timeline.hex(),
    trouble.what(),
    trouble.way_out(*timeline)
)]
pub struct MissingHistory {
    /// The timeline.
    pub timeline: TimelineId,
    /// What is wrong with the file.
    pub trouble: HistoryTrouble,
}

/// Why a history file does not tell where its timeline comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HistoryTrouble {
    /// It is not in the repository.
    Absent,
    /// It cannot be read; the key.
    Damaged(String),
    /// Another file of its name was set aside.
    InConflict,
}

impl HistoryTrouble {
    fn what(&self) -> &'static str {
        match self {
            Self::Absent => "not in the repository",
            Self::Damaged(_) => "damaged in the repository",
            Self::InConflict => {
                "in conflict (another file of that name was set aside in quarantine)"
            }
        }
    }

    fn way_out(&self, timeline: TimelineId) -> String {
        let push = format!(
            "archive it, on a server that has been on this timeline, with walden-wal-push PGDATA/pg_wal/{}.history",
            timeline.hex()
        );
        match self {
            Self::Absent => push,
            Self::Damaged(key) => format!("move {key} out of the repository and {push}"),
            Self::InConflict => {
                "take a new backup, from whose end on everything can be restored".to_owned()
            }
        }
    }
}

/// What a backup opens: the unbroken WAL from its start, along the newest timeline that descends from its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// That timeline.
    pub timeline: TimelineId,
    /// The end of the last segment of the unbroken run; the backup's start where not even the first is there.
    pub until: Lsn,
    /// That segment.
    pub last_segment: Option<SegmentName>,
    /// The segments that are missing behind it, where later ones are there, or that are in conflict.
    pub first_gap: Option<Gap>,
    /// Whether the WAL is there without which the backup cannot be restored at all.
    pub whole: bool,
}

impl Catalog {
    /// A catalog of an archive that holds nothing yet.
    #[must_use]
    pub fn empty(
        cluster: ClusterName,
        system_identifier: SystemIdentifier,
        archive_id: RandomId,
        segment_size: WalSegmentSize,
    ) -> Self {
        Self {
            cluster,
            system_identifier,
            archive_id,
            segment_size,
            backups: Vec::new(),
            unfinished: Vec::new(),
            retiring: BTreeSet::new(),
            damaged_documents: Vec::new(),
            wal: BTreeMap::new(),
            histories: BTreeMap::new(),
            disputed_histories: BTreeSet::new(),
            partials: Vec::new(),
            newest_archived_at: BTreeMap::new(),
            missing_packs: BTreeMap::new(),
            holdings: Vec::new(),
        }
    }

    /// The backup of this id.
    #[must_use]
    pub fn backup(&self, id: &BackupId) -> Option<&BackupRecord> {
        self.backups.iter().find(|record| record.backup_id == *id)
    }

    /// Every backup, oldest first: by timeline and stop LSN, which is WAL order along every ancestry, for a timeline's number is
    /// above its parents'.
    #[must_use]
    pub fn ordered_backups(&self) -> Vec<&BackupRecord> {
        let mut backups: Vec<_> = self.backups.iter().collect();
        backups.sort_by_key(|record| (record.timeline, record.stop_lsn, &record.backup_id));
        backups
    }

    /// Every timeline that a history file, a segment or a backup speaks of.
    #[must_use]
    pub fn timelines(&self) -> BTreeSet<TimelineId> {
        let with_wal = self
            .wal
            .iter()
            .filter(|(_, wal)| !wal.segments.is_empty())
            .map(|(timeline, _)| *timeline);
        let with_history = self.histories.keys().copied();
        let with_backup = self.backups.iter().map(|record| record.timeline);
        with_wal.chain(with_history).chain(with_backup).collect()
    }

    /// The timelines from the first to this one, with the range of WAL that belongs to each. A timeline whose history file is in conflict
    /// is the only one on its way: what is archived under its own number, and a backup of it, does not depend on where it comes from.
    ///
    /// # Errors
    /// A timeline other than the first whose history file is not in the repository.
    pub fn lineage(&self, timeline: TimelineId) -> Result<Vec<TimelineSpan>, MissingHistory> {
        let alone = timeline == FIRST_TIMELINE || self.disputed_histories.contains(&timeline);
        match self.histories.get(&timeline) {
            _ if alone => Ok(vec![TimelineSpan {
                timeline,
                begin: Lsn::INVALID,
                end: None,
            }]),
            Some(history) => Ok(history.lineage()),
            None => Err(self.missing_history(timeline)),
        }
    }

    /// The way to a timeline, segment by segment.
    ///
    /// # Errors
    /// As [`Self::lineage`].
    pub fn path(&self, timeline: TimelineId) -> Result<WalPath<'_>, MissingHistory> {
        WalPath::new(self, timeline)
    }

    fn missing_history(&self, timeline: TimelineId) -> MissingHistory {
        let keys = SystemKeys {
            cluster: self.cluster.clone(),
            system: self.system_identifier,
        };
        let key = keys.wal(&WalName::History(timeline));
        let mut documents = self.damaged_documents.iter();
        let trouble = if self.disputed_histories.contains(&timeline) {
            HistoryTrouble::InConflict
        } else if documents.any(|document| document.key == key) {
            HistoryTrouble::Damaged(key)
        } else {
            HistoryTrouble::Absent
        };
        MissingHistory { timeline, trouble }
    }

    /// Whether there is a history file of this timeline that cannot be read, or of which another was set aside.
    pub(crate) fn has_unread_history(&self, timeline: TimelineId) -> bool {
        !matches!(
            self.missing_history(timeline).trouble,
            HistoryTrouble::Absent
        )
    }

    /// Proves that no newer timeline could have been meant with "the newest that descends from it".
    ///
    /// # Errors
    /// A newer timeline has WAL, and where it comes from is unknown.
    pub(crate) fn prove_newest(&self, timeline: TimelineId) -> Result<(), MissingHistory> {
        let unknown = self.wal.keys().rev().find(|newer| {
            let known =
                self.histories.contains_key(newer) && !self.disputed_histories.contains(newer);
            **newer > timeline && self.has_wal(**newer) && !known
        });
        unknown.map_or(Ok(()), |newer| Err(self.missing_history(*newer)))
    }

    /// Every segment that is archived and in conflict ([`TimelineWal::conflicts`]), in order.
    #[must_use]
    pub fn conflicts(&self) -> Vec<SegmentName> {
        let all = self.wal.iter().flat_map(|(timeline, wal)| {
            let name =
                |number: &u64| SegmentName::from_number(*timeline, *number, self.segment_size);
            wal.conflicts.iter().map(name)
        });
        all.collect()
    }

    /// The newest timeline with archived WAL that descends from `timeline` and left it at `at` or later; `timeline` itself where
    /// there is none. PostgreSQL's `latest` (timeline.c, `findNewestTimeLine`) is the newest of all, and an error where that does not
    /// descend. A timeline without WAL is left out because recovery towards it would run on along its parent, past the fork.
    #[must_use]
    pub fn newest_descendant(&self, timeline: TimelineId, at: Lsn) -> TimelineId {
        let descends = |history: &TimelineHistory| {
            history
                .lineage()
                .iter()
                .any(|span| span.timeline == timeline && span.end.is_some_and(|end| at <= end))
        };
        self.histories
            .iter()
            .rev()
            .find(|(candidate, history)| {
                **candidate > timeline
                    && descends(history)
                    && self.has_wal(**candidate)
                    && !self.disputed_histories.contains(candidate)
            })
            .map_or(timeline, |(candidate, _)| *candidate)
    }

    pub(crate) fn has_wal(&self, timeline: TimelineId) -> bool {
        self.wal
            .get(&timeline)
            .is_some_and(|wal| !wal.segments.is_empty())
    }

    /// What a backup opens.
    ///
    /// # Errors
    /// The way to the backup's timeline, or to a newer one that may descend from it, is unknown.
    pub fn window(&self, backup: &BackupRecord) -> Result<Window, MissingHistory> {
        let timeline = self.newest_descendant(backup.timeline, backup.stop_lsn);
        self.prove_newest(timeline)?;
        let path = WalPath::new(self, timeline)?;
        let first = path.first_segment(backup);
        let last = path.unbroken_until(first);
        let next = last.map_or(first, |last| last.saturating_add(1));
        let first_gap = path.gap_from(first);
        Ok(Window {
            timeline,
            until: match (&first_gap, last) {
                (
                    Some(Gap {
                        broken: Some(broken),
                        ..
                    }),
                    _,
                ) => broken.at,
                (_, Some(_)) => path.start_of(next),
                (_, None) => backup.start_lsn,
            },
            last_segment: last.map(|last| path.name(last)),
            first_gap,
            whole: path.missing_for(backup).is_none(),
        })
    }
}
