//! Commits and aborts, counted.

use super::{End, Ends, Outcome, XidRange};

impl Ends {
    fn of(end: &End, subxids: &[u32]) -> Self {
        let commit = end.kind == Outcome::Commit;
        Self {
            commits: commit.into(),
            aborts: (!commit).into(),
            first: *end,
            last: *end,
            last_commit: commit.then_some(*end),
            min_time: end.time,
            max_time: end.time,
            xids: XidRange::of(end.xid),
            subxids: subxids.iter().fold(None, |range, xid| {
                XidRange::joined(range, Some(XidRange::of(*xid)))
            }),
        }
    }

    /// Counts an end that comes after those that were counted.
    pub(super) fn note(ends: &mut Option<Self>, end: &End, subxids: &[u32]) {
        let one = Self::of(end, subxids);
        match ends {
            Some(ends) => ends.append(&one),
            None => *ends = Some(one),
        }
    }

    /// Counts ends that come after those that were counted.
    pub(super) fn append(&mut self, next: &Self) {
        self.commits = self.commits.saturating_add(next.commits);
        self.aborts = self.aborts.saturating_add(next.aborts);
        self.last = next.last;
        self.last_commit = next.last_commit.or(self.last_commit);
        self.min_time = self.min_time.min(next.min_time);
        self.max_time = self.max_time.max(next.max_time);
        self.xids.cover(&next.xids);
        self.subxids = XidRange::joined(self.subxids, next.subxids);
    }

    /// Both, the second after the first.
    pub(super) fn joined(first: Option<&Self>, next: Option<&Self>) -> Option<Self> {
        match (first, next) {
            (Some(first), Some(next)) => {
                let mut both = first.clone();
                both.append(next);
                Some(both)
            }
            (one, other) => one.or(other).cloned(),
        }
    }
}
