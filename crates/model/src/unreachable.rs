//! Why a target cannot be reached, and which can: the refusals of [`crate::plan::RecoveryPlan::build`].

use std::fmt;

use jiff::Timestamp;
use walden_pg::{Lsn, SegmentName, TimelineId};

use crate::catalog::MissingHistory;
use crate::coverage::Gap;
use crate::index::{End, RestorePoint};
use crate::keys::{BackupId, ClusterName};
use crate::records::BackupRecord;
use crate::target::{TargetKind, postgres_time};

/// A backup as a refusal names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The backup.
    pub id: BackupId,
    /// Its timeline.
    pub timeline: TimelineId,
    /// Where it ended.
    pub stop_lsn: Lsn,
    /// When it ended, by the server's clock.
    pub stopped_at: Timestamp,
}

impl From<&BackupRecord> for Candidate {
    fn from(record: &BackupRecord) -> Self {
        Self {
            id: record.backup_id.clone(),
            timeline: record.timeline,
            stop_lsn: record.stop_lsn,
            stopped_at: record.stopped_at,
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            timeline,
            stop_lsn,
            stopped_at,
        } = self;
        write!(
            f,
            "{id} (ended at {stop_lsn} on timeline {timeline}, {})",
            postgres_time(*stopped_at)
        )
    }
}

/// The nearest target that can be reached, as the options that ask for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The target.
    pub kind: TargetKind,
    /// The backup, where it has to be named.
    pub backup: Option<BackupId>,
    /// The timeline, where it has to be named.
    pub timeline: Option<TimelineId>,
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(timeline) = self.timeline {
            write!(f, " --target-timeline {timeline}")?;
        }
        if let Some(backup) = &self.backup {
            write!(f, " --backup {backup}")?;
        }
        Ok(())
    }
}

/// Why one backup cannot serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CannotReach {
    /// It ended behind the target, or the transaction had ended before it did.
    EndsAfterTarget,
    /// The chosen timeline does not lead through its end.
    NotOnTheWay {
        /// The chosen timeline.
        to: TimelineId,
    },
    /// Objects that its commit document names are not in the repository, or have another size.
    ObjectsMissing(Vec<String>),
    /// WAL without which it cannot be restored at all.
    OwnWalMissing(SegmentName),
    /// WAL without which it cannot be restored at all was archived broken, and cannot be replayed from this LSN on.
    OwnWalBroken(SegmentName, Lsn),
    /// WAL without which it cannot be restored at all is archived, and may be another server's.
    OwnWalInConflict(SegmentName),
}

impl fmt::Display for CannotReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndsAfterTarget => f.write_str(
                "it ended after the target: choose an older backup, or leave --backup out",
            ),
            Self::NotOnTheWay { to } => write!(
                f,
                "the way to timeline {to} does not lead through its end: leave --backup out, or choose --target-timeline current"
            ),
            Self::ObjectsMissing(keys) => {
                let first = keys.first().map_or("", String::as_str);
                write!(
                    f,
                    "{} of its objects are missing or have another size, the first is {first}: choose another backup",
                    keys.len()
                )
            }
            Self::OwnWalMissing(segment) => {
                write!(
                    f,
                    "the WAL segment {segment}, without which it never becomes consistent, is not in the repository: choose another backup"
                )
            }
            Self::OwnWalBroken(segment, at) => write!(
                f,
                "the WAL segment {segment}, without which it never becomes consistent, was broken at {at} before it was archived: choose \
                 another backup, or take a new one"
            ),
            Self::OwnWalInConflict(segment) => write!(
                f,
                "the WAL segment {segment}, without which it never becomes consistent, is in conflict: another file of that name was set \
                 aside in quarantine, and nobody can tell which is this cluster's: choose another backup, or take a new one"
            ),
        }
    }
}

/// Segments on the way to a target are missing, or in conflict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} on the way from backup {backup} to {target}: {gap}{}. What lies before can be reached, surely with {before}{}",
    trouble_text(gap),
    conflict_text(gap),
    behind_text(gap, behind.as_ref(), *may_lie_before)
)]
pub struct GapOnTheWay {
    /// What was asked for.
    pub target: TargetKind,
    /// The missing segments.
    pub gap: Gap,
    /// The newest backup that could lead to the target.
    pub backup: BackupId,
    /// What can be reached before the gap.
    pub before: Offer,
    /// The first backup that begins behind the gap: it covers everything from its end on.
    pub behind: Option<Candidate>,
    /// The target may lie before the gap, which names cannot tell; naming the backup tries.
    pub may_lie_before: bool,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// No backup has ended yet.
    #[error("cluster {cluster} has no backup in this repository{}: take one with `walden backup`", unfinished_text(*unfinished))]
    NoBackup {
        /// The cluster.
        cluster: ClusterName,
        /// How many have begun and not ended.
        unfinished: usize,
    },
    /// The target lies before the end of every backup.
    #[error(
        "{target} lies before the end of the earliest backup that could lead to it, {earliest}: the earliest target is \
         --target-immediate --backup {}", earliest.id
    )]
    BeforeFirstBackup {
        /// What was asked for.
        target: TargetKind,
        /// The earliest backup on the way.
        earliest: Candidate,
    },
    /// The target lies behind the last archived segment.
    #[error(
        "{lsn} on timeline {timeline} lies behind the archived WAL, which ends at {end}: choose {nearest}, or leave the target \
         out to restore all of it"
    )]
    BeyondEnd {
        /// What was asked for.
        lsn: Lsn,
        /// The timeline.
        timeline: TimelineId,
        /// The end of the last segment.
        end: Lsn,
        /// What can be reached.
        nearest: Offer,
    },
    /// The target lies after the moment when the last segment was archived, and recovery to a time ends in an error where no later
    /// commit follows.
    #[error(
        "{} is after the last WAL of timeline {timeline} was archived, at {}: leave the target out to restore everything that \
         is archived", postgres_time(*target), postgres_time(*last)
    )]
    AfterLastArchived {
        /// What was asked for.
        target: Timestamp,
        /// When the newest segment was written, by its writer's clock.
        last: Timestamp,
        /// The timeline.
        timeline: TimelineId,
    },
    /// Segments on the way are missing.
    #[error(transparent)]
    Gap(Box<GapOnTheWay>),
    /// Nothing is known of the timeline.
    #[error(
        "nothing of timeline {timeline} is in the repository: --target-timeline can be {}",
        list(known)
    )]
    UnknownTimeline {
        /// What was asked for.
        timeline: TimelineId,
        /// The timelines that are known.
        known: Vec<TimelineId>,
    },
    /// The timeline has a history file, and no WAL.
    #[error(
        "timeline {timeline} has no WAL in the repository yet, so recovery could only run along its parent: choose \
         another --target-timeline, one of {}",
        list(known)
    )]
    NoWalOnTimeline {
        /// What was asked for.
        timeline: TimelineId,
        /// The timelines that have WAL.
        known: Vec<TimelineId>,
    },
    /// The LSN exists, on other timelines.
    #[error(
        "{lsn} cannot be reached on timeline {timeline}, but with --target-timeline {}",
        list(reachable_on)
    )]
    NotOnTimeline {
        /// What was asked for.
        lsn: Lsn,
        /// Where it was looked for.
        timeline: TimelineId,
        /// Where it is.
        reachable_on: Vec<TimelineId>,
    },
    /// No backup stands on the way to the timeline.
    #[error(
        "no backup leads to timeline {timeline}; the backups are {}",
        list(backups)
    )]
    NoBackupOnTimeline {
        /// The timeline.
        timeline: TimelineId,
        /// Every backup.
        backups: Vec<Candidate>,
    },
    /// There is no such backup.
    #[error("there is no backup {asked}; --backup can be {}", list(known))]
    BackupNotFound {
        /// What was asked for.
        asked: BackupId,
        /// Every backup, newest first.
        known: Vec<Candidate>,
    },
    /// A backup that would have to serve cannot.
    #[error("backup {backup} cannot be restored to {target}: {why}")]
    BackupCannotReach {
        /// The backup.
        backup: BackupId,
        /// What was asked for.
        target: TargetKind,
        /// Why it cannot.
        why: CannotReach,
    },
    /// The way to a timeline is unknown.
    #[error(transparent)]
    MissingHistory(#[from] MissingHistory),
    /// No commit and no abort is later, without which recovery to a time ends in an error.
    #[error(
        "{} is not before any commit or abort in the archived WAL of timeline {timeline}{}: leave the target out to restore everything that \
         is archived", postgres_time(*target), last_text(last.as_ref())
    )]
    AfterLastCommit {
        /// What was asked for.
        target: Timestamp,
        /// The timeline.
        timeline: TimelineId,
        /// The last commit.
        last: Option<End>,
    },
    /// No record begins at this LSN or behind it.
    #[error(
        "{lsn} on timeline {timeline} lies behind the last record of the archived WAL, which ends at {end}{}: leave the target out to \
         restore all of it", last_text(last.as_ref())
    )]
    AfterLastRecord {
        /// What was asked for.
        lsn: Lsn,
        /// The timeline.
        timeline: TimelineId,
        /// Behind the last record.
        end: Lsn,
        /// The last commit.
        last: Option<End>,
    },
    /// The transaction aborted.
    #[error(
        "transaction {xid} did not commit: it aborted{} at {}, at {}. The state right after that is {nearest}",
        aborted_with(*xid, end), postgres_time(end.time), end.lsn
    )]
    TransactionAborted {
        /// What was asked for.
        xid: u64,
        /// Its abort, or that of the transaction of which it was a part.
        end: End,
        /// The state right after it.
        nearest: Offer,
    },
    /// The transaction is a part of another, and committed with it.
    #[error(
        "{xid} is a subtransaction of transaction {}, which committed at {} at {}, and recovery stops only at whole transactions: \
         choose {top}", end.xid, postgres_time(end.time), end.lsn
    )]
    Subtransaction {
        /// What was asked for.
        xid: u64,
        /// The end of the whole transaction.
        end: End,
        /// The whole transaction.
        top: Offer,
    },
    /// Nothing says that the transaction ended.
    #[error(
        "the archived WAL of timeline {timeline} does not say that transaction {xid} ended{}: it was under way or prepared when the WAL \
         ended, was cut off by a crash, wrote nothing, or there was none of that number. Leave the target out to restore everything that is \
         archived", last_text(last.as_ref())
    )]
    NeverEnded {
        /// What was asked for.
        xid: u64,
        /// The timeline.
        timeline: TimelineId,
        /// The last commit.
        last: Option<End>,
    },
    /// More than one restore point has the name, and PostgreSQL stops at the first that it meets.
    #[error(
        "more than one restore point is called {name:?}, and recovery would stop at the first that it meets: choose {}",
        points_text(points)
    )]
    AmbiguousRestorePoint {
        /// What was asked for.
        name: String,
        /// Those that can be reached, in WAL order, and how.
        points: Vec<(RestorePoint, Offer)>,
    },
    /// There is no restore point of that name.
    #[error(
        "no restore point {name:?} is in the archived WAL of timeline {timeline}{}; {}", missing_text(gap.as_deref()), known_text(known)
    )]
    UnknownRestorePoint {
        /// What was asked for.
        name: String,
        /// The timeline.
        timeline: TimelineId,
        /// The last ones that there are, newest first.
        known: Vec<RestorePoint>,
        /// Segments that are missing, in which it could be.
        gap: Option<Box<Gap>>,
    },
    /// Names cannot tell where the restore point is, and more than one backup could lead to it.
    #[error(
        "more than one backup could lead to the restore point {name:?}, and only the newest that ended before it does: choose with \
         --backup, newest first: {}",
        list(candidates)
    )]
    AmbiguousName {
        /// What was asked for.
        name: String,
        /// The backups, newest first.
        candidates: Vec<Candidate>,
    },
    /// No backup recorded which transactions were running.
    #[error(
        "no backup tells whether transaction {xid} had ended before it did: choose one that is older than the transaction with \
         --backup, newest first: {}",
        list(candidates)
    )]
    NoSnapshot {
        /// What was asked for.
        xid: u64,
        /// The backups, newest first.
        candidates: Vec<Candidate>,
    },
}

fn last_text(last: Option<&End>) -> String {
    match last {
        Some(End { xid, lsn, time, .. }) => format!(
            " (its last commit is that of transaction {xid}, {}, at {lsn})",
            postgres_time(*time)
        ),
        None => " (no commit stands behind the newest backup's start)".to_owned(),
    }
}

fn aborted_with(xid: u64, end: &End) -> String {
    if end.xid == xid as u32 {
        String::new()
    } else {
        format!(" as a part of transaction {}", end.xid)
    }
}

fn points_text(points: &[(RestorePoint, Offer)]) -> String {
    let of_time = |(point, offer): &(RestorePoint, Offer)| {
        format!("{offer} for that of {}", postgres_time(point.time))
    };
    list(&points.iter().map(of_time).collect::<Vec<_>>())
}

fn missing_text(gap: Option<&Gap>) -> String {
    gap.map_or(String::new(), |gap| {
        format!(" as far as it is there (WAL is missing: {gap})")
    })
}

fn known_text(known: &[RestorePoint]) -> String {
    if known.is_empty() {
        return "there is none at all".to_owned();
    }
    let text = |point: &RestorePoint| format!("{:?} ({})", point.name, postgres_time(point.time));
    let texts: Vec<String> = known.iter().map(text).collect();
    format!("the newest are {}", texts.join(", "))
}

fn unfinished_text(unfinished: usize) -> String {
    match unfinished {
        0 => String::new(),
        count => format!(" ({count} unfinished, which cannot be restored)"),
    }
}

fn trouble_text(gap: &Gap) -> &'static str {
    match gap.broken {
        Some(_) => "WAL is broken",
        None if gap.begins_in_conflict() => "WAL is in conflict",
        None => "WAL is missing",
    }
}

fn conflict_text(gap: &Gap) -> &'static str {
    match gap.conflict {
        None if gap.broken.is_some() => ", and PostgreSQL cannot replay what comes behind",
        Some(_) => {
            ": another file of that name was set aside there, and nobody can tell which of the two is this cluster's"
        }
        None => "",
    }
}

fn behind_text(gap: &Gap, behind: Option<&Candidate>, may_lie_before: bool) -> String {
    let mut text = String::new();
    if let Some(behind) = behind {
        text.push_str(&format!(
            "; what lies behind can be reached from {} on, with backup {behind}",
            behind.stop_lsn
        ));
    } else if gap.conflict.is_some() || gap.broken.is_some() {
        text.push_str(
            "; what lies behind can be reached once a new backup is taken, from its end on",
        );
    }
    if may_lie_before {
        text.push_str(
            "; if you know that the target lies before the gap, name the backup with --backup",
        );
    }
    text
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    match texts.split_last() {
        None => "none".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}
