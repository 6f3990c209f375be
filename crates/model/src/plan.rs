//! From a catalog and a target to a plan: which backup, which WAL, which settings. Pure, so that a dry run and the restore are one.

use walden_pg::history::TimelineSpan;
use walden_pg::{SegmentName, TimelineId};

use crate::catalog::Catalog;
use crate::choice::{Choice, choose};
use crate::keys::BackupId;
use crate::note::Note;
use crate::records::BackupRecord;
use crate::target::{RecoveryTarget, TargetKind, TargetTimeline, postgres_time};
use crate::unreachable::Unreachable;

/// What a restore is told apart from its target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// The backup to restore; else the newest that can reach the target.
    pub backup: Option<BackupId>,
    /// Whether the copy shall be a standby.
    pub standby: bool,
    /// Whether the copy is the new primary: then it archives.
    pub take_over: bool,
    /// `restore_command`, ready to be written.
    pub restore_command: String,
}

/// Consecutive segments of one timeline; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalRun {
    /// The timeline on which PostgreSQL finds them.
    pub timeline: TimelineId,
    /// The first.
    pub first: SegmentName,
    /// The last.
    pub last: SegmentName,
    /// How many.
    pub count: u64,
    /// Their stored bytes.
    pub stored_bytes: u64,
}

/// The file that makes PostgreSQL recover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `recovery.signal`: targeted recovery.
    Recovery,
    /// `standby.signal`: a standby.
    Standby,
}

impl Signal {
    /// The file's name in PGDATA.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Recovery => "recovery.signal",
            Self::Standby => "standby.signal",
        }
    }
}

/// What a restore will do.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveryPlan {
    /// The backup.
    pub backup: BackupRecord,
    /// What was asked for.
    pub target: RecoveryTarget,
    /// The timeline along which recovery goes, resolved.
    pub timeline: TimelineId,
    /// That timeline and its parents, oldest first.
    pub lineage: Vec<TimelineSpan>,
    /// The WAL that recovery reads, in order: to the target where its LSN is known, else as far as it may have to.
    pub wal: Vec<WalRun>,
    /// Bytes that the restore writes.
    pub restore_size: u64,
    /// Bytes of packs and shards that it reads; WAL comes on top, while PostgreSQL recovers.
    pub stored_size: u64,
    /// Settings for `postgresql.auto.conf`, in the order in which they must stand; the values are not quoted.
    pub settings: Vec<(String, String)>,
    /// The signal file.
    pub signal: Signal,
    /// What the person must know.
    pub notes: Vec<Note>,
}

impl RecoveryPlan {
    /// Plans a restore.
    ///
    /// # Errors
    /// Whatever cannot be reached as far as names and LSNs tell, with the nearest target that can.
    pub fn build(
        catalog: &Catalog,
        target: &RecoveryTarget,
        options: &PlanOptions,
    ) -> Result<Self, Unreachable> {
        let choice = choose(catalog, target, options.backup.as_ref())?;
        let wal = choice
            .wal
            .iter()
            .map(|range| WalRun {
                timeline: range.timeline,
                first: SegmentName::from_number(range.timeline, range.first, catalog.segment_size),
                last: SegmentName::from_number(range.timeline, range.last, catalog.segment_size),
                count: range.last - range.first + 1,
                stored_bytes: catalog
                    .wal
                    .get(&range.timeline)
                    .map_or(0, |wal| wal.stored_bytes(range.first..=range.last)),
            })
            .collect();
        Ok(Self {
            backup: choice.backup.clone(),
            target: target.clone(),
            timeline: choice.timeline,
            lineage: choice.lineage.clone(),
            wal,
            restore_size: choice.backup.cluster_size,
            stored_size: choice.backup.stored_size,
            settings: settings(&target.kind, target, choice.timeline, options),
            signal: if options.standby {
                Signal::Standby
            } else {
                Signal::Recovery
            },
            notes: notes(catalog, target, options, choice),
        })
    }

    /// Stored bytes of the WAL in the plan.
    #[must_use]
    pub fn wal_stored_bytes(&self) -> u64 {
        self.wal
            .iter()
            .fold(0, |sum, run| sum.saturating_add(run.stored_bytes))
    }
}

/// PostgreSQL allows one kind of target, and an empty setting of another kind behind it takes the target back
/// (xlogrecovery.c, `assign_recovery_target` and its kin): so the empty ones come first.
fn settings(
    kind: &TargetKind,
    target: &RecoveryTarget,
    timeline: TimelineId,
    options: &PlanOptions,
) -> Vec<(String, String)> {
    const KINDS: [&str; 5] = [
        "recovery_target",
        "recovery_target_time",
        "recovery_target_lsn",
        "recovery_target_xid",
        "recovery_target_name",
    ];
    let chosen = match kind {
        TargetKind::Latest => None,
        TargetKind::Immediate => Some(("recovery_target", "immediate".to_owned())),
        TargetKind::Time(time) => Some(("recovery_target_time", postgres_time(*time))),
        TargetKind::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        TargetKind::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
        TargetKind::Name(name) => Some(("recovery_target_name", name.clone())),
    };
    let mut settings = vec![("restore_command", options.restore_command.clone())];
    let other = |name: &&str| chosen.as_ref().is_none_or(|(chosen, _)| chosen != name);
    settings.extend(
        KINDS
            .into_iter()
            .filter(other)
            .map(|name| (name, String::new())),
    );
    settings.extend(chosen.clone());
    settings.push((
        "recovery_target_inclusive",
        if target.inclusive { "on" } else { "off" }.to_owned(),
    ));
    settings.push(("recovery_target_timeline", timeline.to_string()));
    settings.push(("recovery_target_action", target.action.to_string()));
    if !options.take_over {
        settings.push(("archive_mode", "off".to_owned()));
    }
    if !options.standby {
        settings.push(("primary_conninfo", String::new()));
        settings.push(("primary_slot_name", String::new()));
    }
    settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn notes(
    catalog: &Catalog,
    target: &RecoveryTarget,
    options: &PlanOptions,
    choice: Choice<'_>,
) -> Vec<Note> {
    let backup = choice.backup;
    let mut notes = choice.notes;
    let others: Vec<TimelineId> = catalog
        .timelines()
        .into_iter()
        .filter(|timeline| *timeline > choice.timeline && target.timeline == TargetTimeline::Latest)
        .collect();
    if !others.is_empty() {
        notes.push(Note::OtherTimelines(others));
    }
    if matches!(
        target.kind,
        TargetKind::Time(_) | TargetKind::Xid(_) | TargetKind::Name(_)
    ) {
        notes.push(Note::TargetNotProven(target.kind.clone()));
    }
    if backup.damaged_blocks > 0 {
        notes.push(Note::DamagedBlocks(backup.damaged_blocks));
    }
    notes.push(match (&target.kind, options.standby) {
        (TargetKind::Latest, true) => Note::StaysStandby,
        (TargetKind::Latest, false) => Note::OpensAtEnd,
        _ => Note::AtTarget(target.action),
    });
    notes.push(if options.take_over {
        Note::ArchivingOn
    } else {
        Note::ArchivingOff
    });
    notes.extend([Note::ResetSettings, Note::UnloggedTables, Note::SlotsLost]);
    notes.push(Note::MustFit {
        pg_version: backup.pg_version,
    });
    if !backup.extras.is_empty() {
        notes.push(Note::Extras(backup.extras.clone()));
    }
    notes.push(Note::ParametersNeeded(backup.control.clone()));
    notes
}
