//! From a catalog and a target to a plan: which backup, which WAL, which settings. Pure, so that a dry run and the restore are one.

use walden_pg::history::TimelineSpan;
use walden_pg::{SegmentName, TimelineId};

use crate::catalog::Catalog;
use crate::choice::{Choice, choose};
use crate::keys::BackupId;
use crate::note::Note;
use crate::records::BackupRecord;
use crate::resolve::{Ending, RecordSpan};
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

/// Settings that keep a copy away from the original; a server that takes the original's place does without them. All count from the next
/// start on (guc_tables.c, `PGC_POSTMASTER`), but for `synchronous_standby_names`.
pub const GUARDS: [(&str, &str); 3] = [
    // Its WAL would get mixed into the original's.
    ("archive_mode", "off"),
    // Its subscriptions would take the changes for which the original's wait (logical/launcher.c, `ApplyLauncherRegister`).
    ("max_logical_replication_workers", "0"),
    // Its commits would wait for the original's standbys.
    ("synchronous_standby_names", ""),
];

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
    /// Whether the copy takes the original's place.
    pub take_over: bool,
    /// What the person must know.
    pub notes: Vec<Note>,
    /// Where recovery ends; `None` where names are all that is known of the WAL.
    pub ending: Option<Ending>,
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
        Self::build_to(catalog, target, options, None)
    }

    /// Plans a restore to the record at which recovery stops, if that is known ([`crate::resolve`]).
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_to(
        catalog: &Catalog,
        target: &RecoveryTarget,
        options: &PlanOptions,
        place: Option<RecordSpan>,
    ) -> Result<Self, Unreachable> {
        let choice = choose(catalog, target, options.backup.as_ref(), place)?;
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
        let newer = newer_timelines(catalog, target, choice.timeline);
        // `latest` is what a standby looks for anew when the archive's timeline ends (xlogrecovery.c, `rescanLatestTimeLine`). It follows
        // whatever has the highest number, also what does not descend from the backup: then the server would not start.
        let follows = options.standby
            && target.kind == TargetKind::Latest
            && target.timeline == TargetTimeline::Latest
            && newer.is_empty();
        let timeline = if follows {
            "latest".to_owned()
        } else {
            choice.timeline.to_string()
        };
        // PostgreSQL reads ahead of what it replays (xlogprefetcher.c, from version 15 on), and would ask for what is missing behind the
        // target before it gets there.
        let reads_singly = choice.gap_behind && choice.backup.pg_version >= 15;
        Ok(Self {
            backup: choice.backup.clone(),
            target: target.clone(),
            timeline: choice.timeline,
            lineage: choice.lineage.clone(),
            wal,
            restore_size: choice.backup.cluster_size,
            stored_size: choice.backup.stored_size,
            settings: settings(&target.kind, target, timeline, options, reads_singly),
            signal: if options.standby {
                Signal::Standby
            } else {
                Signal::Recovery
            },
            take_over: options.take_over,
            notes: notes(newer, follows, target, options, choice, place.is_some()),
            ending: None,
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
    timeline: String,
    options: &PlanOptions,
    reads_singly: bool,
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
    let mut settings = vec![
        ("restore_command", options.restore_command.clone()),
        // These would remove from the archive, or announce, what is the original's to remove or announce.
        ("archive_cleanup_command", String::new()),
        ("recovery_end_command", String::new()),
        // Without it a pause at the target is a shutdown (xlogrecovery.c, `PerformWalRecovery`).
        ("hot_standby", "on".to_owned()),
    ];
    if reads_singly {
        settings.push(("recovery_prefetch", "off".to_owned()));
    }
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
    settings.push(("recovery_target_timeline", timeline));
    settings.push(("recovery_target_action", target.action.to_string()));
    if !options.standby {
        settings.push(("recovery_min_apply_delay", "0".to_owned()));
        settings.push(("primary_conninfo", String::new()));
        settings.push(("primary_slot_name", String::new()));
    }
    if !options.take_over {
        settings.extend(GUARDS.map(|(name, value)| (name, value.to_owned())));
    }
    settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Timelines that nobody named and that a restore along this one passes by.
fn newer_timelines(
    catalog: &Catalog,
    target: &RecoveryTarget,
    timeline: TimelineId,
) -> Vec<TimelineId> {
    catalog
        .timelines()
        .into_iter()
        .filter(|other| *other > timeline && target.timeline == TargetTimeline::Latest)
        .collect()
}

fn notes(
    newer: Vec<TimelineId>,
    follows: bool,
    target: &RecoveryTarget,
    options: &PlanOptions,
    choice: Choice<'_>,
    is_placed: bool,
) -> Vec<Note> {
    let backup = choice.backup;
    let mut notes = choice.notes;
    if !newer.is_empty() {
        notes.push(Note::OtherTimelines(newer));
    }
    let by_names = matches!(
        target.kind,
        TargetKind::Time(_) | TargetKind::Xid(_) | TargetKind::Name(_)
    );
    if by_names && !is_placed {
        notes.push(Note::TargetNotProven(target.kind.clone()));
    }
    if backup.damaged_blocks > 0 {
        notes.push(Note::DamagedBlocks(backup.damaged_blocks));
    }
    notes.push(match (&target.kind, options.standby) {
        (TargetKind::Latest, true) => Note::StaysStandby { follows },
        (TargetKind::Latest, false) => Note::OpensAtEnd,
        _ => Note::AtTarget(target.action),
    });
    if options.take_over {
        notes.push(Note::ArchivingOn {
            configuration: main_configuration(&backup.extras).map(str::to_owned),
        });
    } else {
        notes.extend([Note::ArchivingOff, Note::SubscriptionsOff, Note::OtherJobs]);
    }
    notes.push(Note::NewTablespaces {
        take_over: options.take_over,
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

/// The server's own `postgresql.conf` among configuration files from outside PGDATA, where exactly one has that name.
#[must_use]
pub fn main_configuration(extras: &[String]) -> Option<&str> {
    let mut named = extras
        .iter()
        .filter(|path| path.ends_with("/postgresql.conf"));
    let first = named.next()?;
    named.next().is_none().then_some(first)
}
