//! Retention: which backups are kept, by which rule, and how much WAL they promise. What nothing keeps goes.
//!
//! A backup that the count, the days or the window keeps promises every moment from its end on. The oldest of those sets the *floor*: the
//! segment in which it begins. Nothing from the floor on goes, neither WAL of any timeline nor a backup. A backup below the floor, kept by
//! a pin or for its day, week, month or year, promises itself alone: of its WAL the segments stay that it needs to become consistent.

mod build;
mod documents;
mod events;
mod packs;
mod staying;
mod verdict;
mod wal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::{SignedDuration, Timestamp};
use walden_pg::{Lsn, TimelineId};

use crate::catalog::Catalog;
use crate::keys::BackupId;
use crate::records::SegmentRange;

pub use documents::{RetiredDocument, RetiredWalDocument, Retirement, RetirementConflict};
pub use events::{Expired, Pinned, Pins, Unpinned};
pub use packs::NeededPacks;
pub use staying::Staying;
pub use verdict::Verdict;
pub use wal::KeptWal;

/// What is kept. A backup stays if any rule keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// So many of the newest good backups.
    pub full: Option<u32>,
    /// Good backups that ended within so many days.
    pub days: Option<u32>,
    /// Every moment of this time stays restorable.
    pub window: Option<SignedDuration>,
    /// The last good backup of each of so many days (UTC) that have one.
    pub daily: Option<u32>,
    /// Of so many ISO weeks.
    pub weekly: Option<u32>,
    /// Of so many months.
    pub monthly: Option<u32>,
    /// Of so many years.
    pub yearly: Option<u32>,
    /// So many of the newest good backups stay whatever the rest says; at least 1.
    pub minimum: u32,
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self {
            full: None,
            days: None,
            window: None,
            daily: None,
            weekly: None,
            monthly: None,
            yearly: None,
            minimum: 1,
        }
    }
}

impl RetentionPolicy {
    /// Whether no rule says what is kept; `minimum` is none, it only limits the others.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self
            == Self {
                minimum: self.minimum,
                ..Self::default()
            }
    }
}

/// Until when a pin holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// Up to this time.
    Until(Timestamp),
    /// Until it is taken out.
    Forever,
}

impl Pin {
    /// Whether it holds at this time.
    #[must_use]
    pub fn holds(self, at: Timestamp) -> bool {
        match self {
            Self::Until(until) => at < until,
            Self::Forever => true,
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Until(until) => write!(f, "until {until}"),
            Self::Forever => f.write_str("forever"),
        }
    }
}

/// A backup that has begun and has no commit document, as expiry sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBackup {
    /// The backup.
    pub id: BackupId,
    /// When its newest object was stored, by the store's clock.
    pub newest: Timestamp,
    /// No WAL before this is needed; `None` where its `started.json` does not say.
    pub wal_from: Option<Lsn>,
    /// Backups whose packs it may name; `None` where its `started.json` cannot be read.
    pub parents: Option<Vec<BackupId>>,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone)]
pub struct ExpireFacts<'a> {
    /// What the repository holds.
    pub catalog: &'a Catalog,
    /// What the configuration says.
    pub policy: &'a RetentionPolicy,
    /// What people pinned.
    pub pins: &'a BTreeMap<BackupId, Pin>,
    /// Backups that the last verify that looked at them found whole.
    pub proven: &'a BTreeSet<BackupId>,
    /// Backups that it found damaged.
    pub damaged: &'a BTreeSet<BackupId>,
    /// Backups without a commit document.
    pub open: &'a [OpenBackup],
    /// This machine's clock.
    pub now: Timestamp,
    /// The store's, or any time before it.
    pub store_now: Timestamp,
    /// An open backup whose newest object is older than this does not run any more.
    pub abandoned_after: SignedDuration,
}

impl ExpireFacts<'_> {
    fn is_pinned(&self, id: &BackupId, at: Timestamp) -> bool {
        self.pins.get(id).is_some_and(|pin| pin.holds(at))
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// One of the newest that stay whatever the rest says.
    Minimum,
    /// One of the newest, by count.
    Full,
    /// It ended within the days.
    Days,
    /// It ended within the window.
    Window,
    /// The window begins behind it.
    WindowStart,
    /// It is as young as one that promises a window, by the servers' clocks, though on another timeline.
    Younger,
    /// It begins behind the oldest backup that promises a window.
    Within,
    /// The last of its day.
    Daily,
    /// The last of its week.
    Weekly,
    /// The last of its month.
    Monthly,
    /// The last of its year.
    Yearly,
    /// A person pinned it.
    Pinned,
    /// The newest that verify has proven, while none of the others is.
    Proven,
    /// By its server's clock it has not ended yet.
    Future,
    /// Where its timeline comes from is unknown.
    UnknownTimeline,
    /// WAL that it needs is in conflict, and nobody has said yet whose it is.
    Undecided,
}

impl Reason {
    /// Its word in `--json`, and for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Minimum => "minimum",
            Self::Full => "full",
            Self::Days => "days",
            Self::Window => "window",
            Self::WindowStart => "window-start",
            Self::Younger => "younger",
            Self::Within => "within",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
            Self::Pinned => "pinned",
            Self::Proven => "proven",
            Self::Future => "future",
            Self::UnknownTimeline => "unknown-timeline",
            Self::Undecided => "undecided",
        }
    }

    /// Whether a backup that this keeps promises every moment from its end on, and not itself alone.
    fn promises_window(self) -> bool {
        matches!(
            self,
            Self::Minimum
                | Self::Full
                | Self::Days
                | Self::Window
                | Self::WindowStart
                | Self::Younger
                | Self::Within
        )
    }
}

/// A backup that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The backup.
    pub backup: BackupId,
    /// Why.
    pub reasons: BTreeSet<Reason>,
    /// Whether its packs, and the WAL that it needs, are all there.
    pub good: bool,
}

impl Kept {
    /// Whether every moment from its end on stays restorable, as far as WAL was archived; else only its own end.
    #[must_use]
    pub fn promises_window(&self) -> bool {
        self.reasons.iter().any(|reason| reason.promises_window())
    }
}

/// What an expiry will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpirePlan {
    /// Backups that stay, oldest first in WAL order.
    pub kept: Vec<Kept>,
    /// Backups that go, in the same order.
    pub removed: Vec<BackupId>,
    /// Backups that an earlier expiry began to remove.
    pub begun: BTreeSet<BackupId>,
    /// Open backups that do not run any more.
    pub abandoned: Vec<BackupId>,
    /// Open backups that run.
    pub running: Vec<BackupId>,
    /// Which WAL stays.
    pub kept_wal: KeptWal,
    /// Archived segments that go.
    pub wal: Vec<SegmentRange>,
    /// Their stored bytes.
    pub wal_bytes: u64,
}

impl ExpirePlan {
    /// Whether nothing goes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty()
            && self.begun.is_empty()
            && self.abandoned.is_empty()
            && self.wal.is_empty()
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotExpire {
    /// Nothing is configured.
    #[error(
        "nothing says how long backups are kept, so nothing goes: set retention, for instance to {{ window: 7d }} or {{ full: 3 }}"
    )]
    NoPolicy,
    /// None of the backups is good.
    #[error(
        "none of the {0} backups is good (its objects and the WAL it needs all there, and not found damaged by walden verify), so nothing \
         goes: see walden list-backups, and take a new backup"
    )]
    NoGoodBackup(usize),
    /// Something cannot be read that may say what must stay.
    #[error(
        "{key} cannot be read, and it may say what must stay, so nothing goes ({why}): put it back from a copy of the repository, or move it away"
    )]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A timeline has WAL, and nobody can say of which backups it lives.
    #[error(
        "where timeline {timeline} comes from is unknown, and it may need any backup of an older one, so nothing goes: {key} is missing, damaged, or \
         in conflict; if it is damaged move it away, archive it with walden-wal-push on a server that has been on that timeline, and settle a \
         conflict with walden conflicts"
    )]
    UnknownOrigin {
        /// The timeline.
        timeline: TimelineId,
        /// Its history file's key.
        key: String,
    },
}

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod race;
#[cfg(test)]
mod tests;
