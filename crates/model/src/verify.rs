//! What a verify looks for and finds: where each key belongs, which WAL is missing that backups need, and findings as data.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Serialize, Serializer};
use walden_pg::{SegmentName, SystemIdentifier, TimelineId, WalSegmentSize};

use crate::catalog::{Catalog, MissingHistory};
use crate::coverage::Gap;
use crate::keys::{BackupId, EventName, SystemKeys, WalName, parse_wal_key};
use crate::path::WalPath;
use crate::records::BackupRecord;

/// Findings that are kept; more are counted.
const MOST_FINDINGS: usize = 10_000;
/// Backups that one finding names.
const MOST_BACKUPS: usize = 100;

/// What a finding means, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// What is stored is not what was stored once, or is not there.
    Damage,
    /// WAL that backups need, or that would carry them on, is not there.
    Gap,
    /// It could not be looked at.
    Outage,
    /// It was looked at, and could not be proven.
    Unproven,
    /// No fault, but a person should know.
    Note,
}

impl Severity {
    /// All, the worst first.
    pub const ALL: [Self; 5] = [
        Self::Damage,
        Self::Gap,
        Self::Outage,
        Self::Unproven,
        Self::Note,
    ];
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Damage => "damage",
            Self::Gap => "gap",
            Self::Outage => "outage",
            Self::Unproven => "unproven",
            Self::Note => "note",
        })
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $severity:ident;)*) => {
        /// What was found. The text of each is stable: programs may rely on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FindingKind {
            $($(#[$doc])* $name,)*
        }

        impl FindingKind {
            /// All there are.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its stable text.
            #[must_use]
            pub fn id(self) -> &'static str {
                match self { $(Self::$name => $id,)* }
            }

            /// What it means.
            #[must_use]
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    /// A registration, or the root document.
    RegistrationDamaged = "registration-damaged", Damage;
    /// A commit document.
    CommitDamaged = "commit-damaged", Damage;
    /// A pack or shard that a backup needs is not there, or has another size.
    PackMissing = "pack-missing", Damage;
    /// A pack.
    PackDamaged = "pack-damaged", Damage;
    /// A file map.
    FileMapDamaged = "file-map-damaged", Damage;
    /// Files of a backup whose bytes are not theirs.
    FilesDamaged = "files-damaged", Damage;
    /// The file map and PostgreSQL's manifest do not agree.
    ManifestMismatch = "manifest-mismatch", Damage;
    /// A WAL segment.
    SegmentDamaged = "segment-damaged", Damage;
    /// A timeline's history file.
    HistoryDamaged = "history-damaged", Damage;
    /// Another WAL file: a partial segment, a backup history file, one in quarantine.
    WalFileDamaged = "wal-file-damaged", Damage;
    /// Names behind OIDs.
    NamesDamaged = "names-damaged", Damage;
    /// A roll-up: derived.
    RollUpDamaged = "roll-up-damaged", Damage;
    /// Another document.
    DocumentDamaged = "document-damaged", Damage;
    /// Segments that are missing.
    SegmentsMissing = "segments-missing", Gap;
    /// Segments of which another file was set aside.
    SegmentsInConflict = "segments-in-conflict", Gap;
    /// A segment that was damaged, or not finished, before it was archived.
    SegmentBroken = "segment-broken", Gap;
    /// A timeline's history file that is missing, or in conflict.
    HistoryMissing = "history-missing", Gap;
    /// The repository, or an object, could not be read.
    Unreachable = "unreachable", Outage;
    /// It was listed, and then it was gone.
    Vanished = "vanished", Outage;
    /// The backup that was asked for is not there.
    BackupUnknown = "backup-unknown", Outage;
    /// Encrypted, or written by a newer Walden.
    NotReadable = "not-readable", Unproven;
    /// A backup without a commit document, in which something was stored lately.
    BackupRunning = "backup-running", Note;
    /// A backup without a commit document that nobody goes on with.
    BackupAbandoned = "backup-abandoned", Note;
    /// Blocks were damaged on the server when the backup was taken.
    BlocksDamaged = "blocks-damaged", Note;
    /// There is WAL, and no backup.
    NoBackup = "no-backup", Note;
    /// An object that no reader looks at.
    Stray = "stray", Note;
}

impl Serialize for FindingKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

/// The backups that something takes away, or ends the windows of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    /// They cannot be restored; at most 100.
    pub lost: BTreeSet<BackupId>,
    /// They cannot be restored to what lies behind; at most 100.
    pub shortened: BTreeSet<BackupId>,
}

impl Affected {
    /// One backup that is lost.
    #[must_use]
    pub fn lost(id: &BackupId) -> Self {
        Self {
            lost: [id.clone()].into(),
            ..Self::default()
        }
    }

    fn add(&mut self, other: Self) {
        self.lost.extend(other.lost);
        self.shortened.extend(other.shortened);
        let lost = &self.lost;
        self.shortened.retain(|id| !lost.contains(id));
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// Whose; `None` of what all system identifiers share.
    pub system: Option<SystemIdentifier>,
    /// A key, a backup's id, or the name of a segment or of several.
    pub subject: String,
    /// What is wrong, in words.
    pub what: String,
    /// Which backups that concerns.
    pub affected: Affected,
    /// What to do, in words.
    pub remedy: String,
}

/// What was found: sorted, counted, and bounded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    list: Vec<Finding>,
    counts: [u64; Severity::ALL.len()],
    lost: BTreeSet<BackupId>,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, mut finding: Finding) {
        if let Some(count) = self.counts.get_mut(finding.kind.severity() as usize) {
            *count += 1;
        }
        if self.lost.len() < 1000 {
            self.lost.extend(finding.affected.lost.iter().cloned());
        }
        for ids in [&mut finding.affected.lost, &mut finding.affected.shortened] {
            if let Some(behind) = ids.iter().nth(MOST_BACKUPS).cloned() {
                ids.split_off(&behind);
            }
        }
        if self.list.len() < MOST_FINDINGS {
            self.list.push(finding);
        }
    }

    /// How many of this severity there are, kept or not.
    #[must_use]
    pub fn count(&self, severity: Severity) -> u64 {
        self.counts.get(severity as usize).copied().unwrap_or(0)
    }

    /// The worst severity; `None` where nothing but notes was found.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        let faults = Severity::ALL
            .into_iter()
            .filter(|severity| *severity != Severity::Note);
        faults
            .into_iter()
            .find(|severity| self.count(*severity) > 0)
    }

    /// How many are not kept.
    #[must_use]
    pub fn omitted(&self) -> u64 {
        let all: u64 = self.counts.iter().sum();
        all.saturating_sub(self.list.len() as u64)
    }

    /// Backups that cannot be restored, by what was found; the first 1000.
    #[must_use]
    pub fn lost_backups(&self) -> Vec<BackupId> {
        self.lost.iter().take(1000).cloned().collect()
    }

    /// Those that are kept, the worst first.
    #[must_use]
    pub fn sorted(&self) -> Vec<&Finding> {
        let mut sorted: Vec<&Finding> = self.list.iter().collect();
        let order = |finding: &&Finding| finding.kind;
        sorted.sort_by(|a, b| {
            let severity = a.kind.severity().cmp(&b.kind.severity());
            severity
                .then_with(|| order(a).cmp(&order(b)))
                .then_with(|| a.subject.cmp(&b.subject))
        });
        sorted
    }
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// An archived WAL file.
    Wal(WalName),
    /// A commit document, or the mark of a backup that never ended.
    Commit(BackupId),
    /// A backup's first document.
    Started(BackupId),
    /// A pack.
    Pack(BackupId, u32),
    /// A shard of a file map.
    FileMap(BackupId, u32),
    /// A shard of names.
    Names(BackupId, u32),
    /// A WAL file that was set aside.
    Quarantine,
    /// A roll-up.
    RollUp,
    /// An event.
    Event(EventName),
    /// In a folder that this version knows, and does not look into.
    Reserved,
    /// Nothing that this version knows.
    Stray,
}

impl SystemKeys {
    /// What stands under `key`, which is from the repository's root and begins with [`Self::prefix`].
    #[must_use]
    pub fn stored(&self, key: &str, size: WalSegmentSize) -> Stored {
        let known = || {
            if let Some(below) = key.strip_prefix(&self.wal_prefix()) {
                return parse_wal_key(below).map(Stored::Wal);
            }
            if let Some(id) = self.parse_commit(key) {
                return Some(Stored::Commit(id));
            }
            if let Some(id) = self.parse_backup(key) {
                return self.of_backup(key, id);
            }
            if let Some(name) = self.parse_event(key) {
                return Some(Stored::Event(name));
            }
            let rest = key.strip_prefix(&self.prefix())?;
            match rest.split_once('/')?.0 {
                "quarantine" => self.parse_quarantine(key).map(|_| Stored::Quarantine),
                // Another version's roll-ups have keys of their own.
                "rollup" => Some(match self.parse_rollup(key, size) {
                    Some(_) => Stored::RollUp,
                    None => Stored::Reserved,
                }),
                "claims" | "retired" | "partial" => Some(Stored::Reserved),
                _ => None,
            }
        };
        known().unwrap_or(Stored::Stray)
    }

    fn of_backup(&self, key: &str, id: BackupId) -> Option<Stored> {
        if key == self.started(&id) {
            return Some(Stored::Started(id));
        }
        let number = key.rsplit('/').next()?.strip_suffix(".zst")?;
        let number = u32::from_str_radix(number, 16).ok()?;
        if key == self.pack(&id, number) {
            return Some(Stored::Pack(id, number));
        }
        if key == self.file_map(&id, number) {
            return Some(Stored::FileMap(id, number));
        }
        (key == self.names(&id, number)).then_some(Stored::Names(id, number))
    }
}

/// A gap, and whom it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundGap {
    /// What is missing.
    pub gap: Gap,
    /// Which backups that concerns.
    pub affected: Affected,
}

/// Which WAL is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaps {
    /// On the way from some backup to the end of some timeline, in order.
    pub gaps: Vec<FoundGap>,
    /// Timelines with WAL, or with a backup, of which nobody knows where they come from.
    pub histories: Vec<MissingHistory>,
}

impl Catalog {
    /// The WAL that is missing between the oldest backup's start and the end of each timeline: what backups need themselves, what their
    /// windows lack, and what a parent lacks below a fork. Before the oldest backup nothing can be missed.
    #[must_use]
    pub fn gaps(&self) -> Gaps {
        let mut found: BTreeMap<(SegmentName, SegmentName), FoundGap> = BTreeMap::new();
        let mut histories = Vec::new();
        for timeline in self.timelines() {
            let path = match self.path(timeline) {
                Ok(path) => path,
                Err(missing) => {
                    histories.push(missing);
                    continue;
                }
            };
            let backups: Vec<_> = self
                .backups
                .iter()
                .filter(|backup| path.leads_through(backup))
                .collect();
            let starts = backups.iter().map(|backup| path.first_segment(backup));
            let mut from = starts.min();
            while let Some(gap) = from.and_then(|from| path.gap_from(from)) {
                let number = |name: SegmentName| name.number(self.segment_size);
                let (Some(first), Some(last)) = (number(gap.first), number(gap.last)) else {
                    break;
                };
                add(&mut found, gap, affected(&path, &backups, first, last));
                from = last.checked_add(1);
            }
            // What a backup needs and the archive ends before is no hole, and missing all the same.
            for backup in backups.iter().filter(|b| b.timeline == timeline) {
                let Some(missing) = path.missing_for(backup) else {
                    continue;
                };
                let id = &backup.backup_id;
                if found.values().any(|one| one.affected.lost.contains(id)) {
                    continue;
                }
                let gap = missing.gap.unwrap_or(Gap {
                    timeline: missing.name.timeline,
                    first: missing.name,
                    last: missing.name,
                    conflict: None,
                    broken: None,
                });
                add(&mut found, gap, Affected::lost(id));
            }
        }
        Gaps {
            gaps: found.into_values().collect(),
            histories,
        }
    }

    /// Which backups an archived segment concerns that turns out to be damaged.
    #[must_use]
    pub fn affected_by(&self, name: SegmentName) -> Affected {
        let mut all = Affected::default();
        let Some(number) = name.number(self.segment_size) else {
            return all;
        };
        let paths = self
            .timelines()
            .into_iter()
            .filter_map(|t| self.path(t).ok());
        for path in paths.filter(|path| path.name(number) == name) {
            let backups = self.backups.iter().filter(|b| path.leads_through(b));
            all.add(affected(
                &path,
                &backups.collect::<Vec<_>>(),
                number,
                number,
            ));
        }
        all
    }

    /// The backups that stand on, or come to, this timeline.
    #[must_use]
    pub fn affected_by_history(&self, timeline: TimelineId) -> Affected {
        let on = |record: &&BackupRecord| record.timeline >= timeline;
        let lost = self.backups.iter().filter(on);
        Affected {
            lost: lost.map(|record| record.backup_id.clone()).collect(),
            shortened: BTreeSet::new(),
        }
    }
}

fn add(found: &mut BTreeMap<(SegmentName, SegmentName), FoundGap>, gap: Gap, affected: Affected) {
    let one = found.entry((gap.first, gap.last));
    let one = one.or_insert_with(|| FoundGap {
        gap,
        affected: Affected::default(),
    });
    one.affected.add(affected);
}

/// Whom it concerns that the segments from `first` to `last` of the way are of no use.
fn affected(path: &WalPath<'_>, backups: &[&BackupRecord], first: u64, last: u64) -> Affected {
    let mut all = Affected::default();
    for backup in backups {
        let needed = path.first_segment(backup)..=path.number_of(WalPath::last_byte(backup));
        if first <= *needed.end() && *needed.start() <= last {
            all.lost.insert(backup.backup_id.clone());
        } else if *needed.end() < first {
            all.shortened.insert(backup.backup_id.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests;
