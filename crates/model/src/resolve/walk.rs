//! One walk through the WAL that a backup opens, over what segments say instead of over their records.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use jiff::Timestamp;
use walden_pg::Lsn;

use crate::index::{
    End, Moment, MomentKind, Outcome, RestorePoint, SegmentDetail, StopReason, Summary, full_xid,
};
use crate::target::{RecoveryTarget, TargetKind};

/// What a walk looks for: the moments at which recovery to a target may stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sought {
    /// The first commit or abort that is later, or not earlier.
    Time { time: Timestamp, inclusive: bool },
    /// The end of this transaction, or of the one that it is a part of.
    Xid(u64),
    /// Every restore point of this name.
    Name(String),
}

impl Sought {
    /// `None` of targets that need no index to be placed.
    pub(super) fn of(target: &RecoveryTarget) -> Option<Self> {
        match &target.kind {
            TargetKind::Time(time) => Some(Self::Time {
                time: *time,
                inclusive: target.inclusive,
            }),
            TargetKind::Xid(xid) => Some(Self::Xid(*xid)),
            TargetKind::Name(name) => Some(Self::Name(name.clone())),
            TargetKind::Latest | TargetKind::Immediate | TargetKind::Lsn(_) => None,
        }
    }

    fn may_lie_in(&self, summary: &Summary) -> bool {
        match self {
            Self::Time { time, inclusive } => summary
                .ends
                .as_ref()
                .is_some_and(|ends| is_beyond(ends.max_time, *time, *inclusive)),
            Self::Xid(xid) => summary.ends.as_ref().is_some_and(|ends| {
                let low = *xid as u32;
                ends.xids.contains(low) || ends.subxids.is_some_and(|range| range.contains(low))
            }),
            Self::Name(name) => {
                summary.more_points || summary.restore_points.iter().any(|p| p.name == *name)
            }
        }
    }

    fn is_at(&self, moment: &Moment) -> bool {
        match (self, &moment.what) {
            (Self::Time { time, inclusive }, MomentKind::End { time: ended, .. }) => {
                is_beyond(*ended, *time, *inclusive)
            }
            // PostgreSQL cuts the id off and compares 32 bits (xlogrecovery.c, `check_recovery_target_xid`).
            (Self::Xid(sought), MomentKind::End { xid, subxids, .. }) => {
                let low = *sought as u32;
                *xid == low || subxids.contains(&low)
            }
            (Self::Name(sought), MomentKind::RestorePoint { name, .. }) => name == sought,
            _ => false,
        }
    }

    /// Whether what is there at a time of which `near` is a full id shares only the lower 32 bits with the transaction that is sought.
    fn is_of_another_epoch(&self, near: Option<u64>) -> bool {
        match (self, near) {
            (Self::Xid(sought), Some(near)) if *sought > u64::from(u32::MAX) => {
                full_xid(near, *sought as u32) != *sought
            }
            _ => false,
        }
    }
}

/// Whether a recovery to `time` stops before an end at `ended` (`recoveryStopsBefore`).
fn is_beyond(ended: Timestamp, time: Timestamp, inclusive: bool) -> bool {
    if inclusive {
        ended > time
    } else {
        ended >= time
    }
}

/// Why a walk cannot tell where recovery stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opaque {
    /// What this segment says did not fit into memory, or is of a version that this program does not know.
    Unreadable(u64),
    /// WAL ends in the middle of this segment, and there are later ones, to which recovery does not get.
    Broken(u64),
}

/// A walk: takes what segments say, in the order of their numbers, and remembers where recovery stops and what it replays until then.
#[derive(Debug, Clone)]
pub struct Walk {
    sought: Option<Sought>,
    /// Records that begin before it are not replayed.
    from: Lsn,
    /// Records that begin here or later are not replayed.
    until: Lsn,
    first: u64,
    last: u64,
    segment_size: u64,
    pub(super) found: Vec<Moment>,
    /// PostgreSQL would stop at a transaction of another epoch: the one that is sought is not reached on this way.
    namesake: bool,
    pub(super) commits: u64,
    pub(super) last_commit: Option<End>,
    end_lsn: Option<Lsn>,
    /// A full transaction id of about the time of the last segment; before the first, of that of the backup.
    pub(super) next_xid: Option<u64>,
    pub(super) opaque: Option<Opaque>,
    /// Restore points that were passed, whatever their names, where one is looked for: the last of them.
    pub(super) points: VecDeque<RestorePoint>,
}

impl Walk {
    /// Restore points of one kind that are remembered.
    const MOST_POINTS: usize = 10;

    pub(super) fn new(
        sought: Option<Sought>,
        from: Lsn,
        until: Lsn,
        segments: (u64, u64),
        segment_size: u64,
    ) -> Self {
        Self {
            sought,
            from,
            until,
            first: segments.0,
            last: segments.1,
            segment_size,
            found: Vec::new(),
            namesake: false,
            commits: 0,
            last_commit: None,
            end_lsn: None,
            next_xid: None,
            opaque: None,
            points: VecDeque::new(),
        }
    }

    /// The first segment of the way.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The last segment of the way.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Whether these segments must be looked into; of a single one, whether it must be read. Else [`Walk::pass`] says all that matters.
    #[must_use]
    pub fn looks_into(&self, summary: &Summary) -> bool {
        let begins = |number: u64| number.saturating_mul(self.segment_size);
        let behind = begins(summary.last.saturating_add(1));
        // Where replay begins or ends within, a summary says too much.
        let cut = |at: Lsn| begins(summary.first) < at.0 && at.0 < behind;
        cut(self.from)
            || cut(self.until)
            || !summary.unread.is_empty()
            || self.sought.as_ref().is_some_and(|s| s.may_lie_in(summary))
    }

    /// Takes what segments say together that need not be looked into.
    pub fn pass(&mut self, summary: &Summary) {
        if let Some(ends) = &summary.ends {
            self.commits = self.commits.saturating_add(ends.commits);
            self.last_commit = ends.last_commit.or(self.last_commit);
        }
        self.remember(&summary.restore_points);
        self.end_lsn = summary.end_lsn.or(self.end_lsn);
        self.next_xid = summary.next_xid.or(self.next_xid);
    }

    /// Takes all that one segment says. Breaks where the walk is over.
    pub fn read(&mut self, number: u64, detail: &SegmentDetail) -> ControlFlow<()> {
        for moment in &detail.moments {
            if moment.lsn < self.from {
                continue;
            }
            if moment.lsn >= self.until {
                return ControlFlow::Break(());
            }
            let sought = self.sought.as_ref().filter(|s| s.is_at(moment));
            self.namesake |= sought.is_some_and(|s| s.is_of_another_epoch(self.next_xid));
            if sought.is_some() && !self.namesake {
                self.found.push(moment.clone());
                // A name is no target if it is there twice.
                let enough = match self.sought {
                    Some(Sought::Name(_)) => Self::MOST_POINTS,
                    _ => 1,
                };
                if self.found.len() >= enough {
                    return ControlFlow::Break(());
                }
            }
            if let Some(end) = end_of(moment)
                && end.kind == Outcome::Commit
            {
                self.commits += 1;
                self.last_commit = Some(end);
            }
        }
        self.remember(&detail.index.restore_points);
        self.end_lsn = detail.index.end_lsn.or(self.end_lsn);
        self.next_xid = detail.index.next_xid.or(self.next_xid);
        self.opaque = match detail.index.stopped.map(|stopped| stopped.why) {
            _ if detail.index.incomplete => Some(Opaque::Unreadable(number)),
            Some(StopReason::UnknownVersion) => Some(Opaque::Unreadable(number)),
            Some(StopReason::Damaged | StopReason::EndOfWal) if number < self.last => {
                Some(Opaque::Broken(number))
            }
            _ => None,
        };
        match self.opaque {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }

    fn remember(&mut self, points: &[RestorePoint]) {
        if matches!(self.sought, Some(Sought::Name(_))) {
            let surplus = points.len().saturating_sub(Self::MOST_POINTS);
            self.points.extend(points.iter().skip(surplus).cloned());
            let surplus = self.points.len().saturating_sub(Self::MOST_POINTS);
            self.points.drain(..surplus);
        }
    }

    /// Why the walk cannot tell where recovery stops, where it cannot.
    #[must_use]
    pub fn opaque(&self) -> Option<Opaque> {
        self.opaque
    }

    /// Behind the last record that was passed.
    #[must_use]
    pub fn end_lsn(&self) -> Option<Lsn> {
        self.end_lsn
    }
}

/// The commit or abort that a moment is.
pub(super) fn end_of(moment: &Moment) -> Option<End> {
    match &moment.what {
        MomentKind::End {
            kind, xid, time, ..
        } => Some(End {
            kind: *kind,
            xid: *xid,
            lsn: moment.lsn,
            end_lsn: moment.end_lsn,
            time: *time,
        }),
        MomentKind::RestorePoint { .. } => None,
    }
}
