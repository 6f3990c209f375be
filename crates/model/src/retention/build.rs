//! From facts to a plan.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use walden_pg::TimelineId;

use super::{CannotExpire, ExpireFacts, ExpirePlan, Kept, KeptWal, OpenBackup, Reason};
use crate::catalog::Catalog;
use crate::keys::{BackupId, SystemKeys, WalName};
use crate::records::{BackupRecord, SegmentRange};

/// A backup with what the rules ask.
struct Candidate<'a> {
    record: &'a BackupRecord,
    good: bool,
    /// Never before an earlier backup's, and never after now: a clock that jumped back makes nothing older.
    ended: Timestamp,
    reasons: BTreeSet<Reason>,
}

impl Candidate<'_> {
    fn is_future(&self, now: Timestamp) -> bool {
        self.record.stopped_at > now
    }

    fn promises_window(&self) -> bool {
        self.reasons.iter().any(|reason| reason.promises_window())
    }

    fn first_segment(&self) -> u64 {
        needed(self.record).0
    }
}

/// The numbers of the first and the last segment that a backup needs, on whichever timelines.
pub(super) fn needed(record: &BackupRecord) -> (u64, u64) {
    let size = record.wal_segment_size.bytes();
    let last_byte = |end: u64, start: u64| end.saturating_sub(1).max(start);
    let mut first = record.start_lsn.0;
    let mut last = last_byte(record.stop_lsn.0, record.start_lsn.0);
    for range in &record.wal_ranges {
        first = first.min(range.start.0);
        last = last.max(last_byte(range.end.0, range.start.0));
    }
    (first / size, last / size)
}

fn keys(catalog: &Catalog) -> SystemKeys {
    SystemKeys {
        cluster: catalog.cluster.clone(),
        system: catalog.system_identifier,
    }
}

/// A damaged commit document may name any pack and any WAL.
fn readable(facts: &ExpireFacts<'_>) -> Result<(), CannotExpire> {
    let keys = keys(facts.catalog);
    let mut damaged = facts.catalog.damaged_documents.iter();
    match damaged.find(|document| keys.parse_commit(&document.key).is_some()) {
        Some(document) => Err(CannotExpire::Unreadable {
            key: document.key.clone(),
            why: document.why.clone(),
        }),
        None => Ok(()),
    }
}

impl ExpirePlan {
    /// Plans an expiry.
    ///
    /// # Errors
    /// No rule is configured, no backup is good, or a commit document cannot be read.
    pub fn build(facts: &ExpireFacts<'_>) -> Result<Self, CannotExpire> {
        if facts.policy.is_empty() {
            return Err(CannotExpire::NoPolicy);
        }
        readable(facts)?;
        let catalog = facts.catalog;
        // Where a timeline with WAL comes from says what it needs of others.
        catalog
            .prove_newest(TimelineId(1))
            .map_err(|missing| CannotExpire::UnknownOrigin {
                timeline: missing.timeline,
                key: keys(catalog).wal(&WalName::History(missing.timeline)),
            })?;
        let mut candidates = candidates(facts);
        if candidates.iter().all(|candidate| !candidate.good) {
            let backups = catalog.backups.len() + catalog.retiring.len();
            if backups > 0 {
                return Err(CannotExpire::NoGoodBackup(backups));
            }
        }
        let reference = reference(&candidates, facts.now);
        by_count(&mut candidates, facts);
        by_time(&mut candidates, facts, reference);
        by_period(&mut candidates, facts);
        singly(&mut candidates, facts, reference);
        let floor = close(&mut candidates, facts.now);

        // Whichever clock runs ahead, the other one lets no backup look silent.
        let store_now = facts.store_now.min(facts.now);
        let (abandoned, running): (Vec<&OpenBackup>, Vec<&OpenBackup>) = facts
            .open
            .iter()
            .partition(|open| store_now.duration_since(open.newest) > facts.abandoned_after);
        let mut kept_wal = KeptWal::new(floor.unwrap_or(0), catalog);
        for open in &running {
            kept_wal.hold(open.wal_from, catalog.segment_size);
        }
        let (kept, removed): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|candidate| !candidate.reasons.is_empty());
        for candidate in &kept {
            kept_wal.keep(candidate.record);
        }
        let wal = removed_segments(facts, &kept_wal);
        let wal_bytes = wal.iter().fold(0, |sum: u64, range| {
            let stored = catalog.wal.get(&range.timeline);
            sum.saturating_add(
                stored.map_or(0, |stored| stored.stored_bytes(range.first..=range.last)),
            )
        });
        let ids = |open: Vec<&OpenBackup>| open.iter().map(|open| open.id.clone()).collect();
        Ok(Self {
            kept: kept
                .into_iter()
                .map(|candidate| Kept {
                    backup: candidate.record.backup_id.clone(),
                    reasons: candidate.reasons,
                    good: candidate.good,
                })
                .collect(),
            removed: removed
                .into_iter()
                .map(|candidate| candidate.record.backup_id.clone())
                .collect(),
            begun: catalog
                .retiring
                .iter()
                .filter(|id| !facts.is_pinned(id, reference))
                .cloned()
                .collect(),
            abandoned: ids(abandoned),
            running: ids(running),
            kept_wal,
            wal,
            wal_bytes,
        })
    }
}

fn candidates<'a>(facts: &ExpireFacts<'a>) -> Vec<Candidate<'a>> {
    let catalog = facts.catalog;
    let settled = settled(catalog);
    let mut ended = Timestamp::MIN;
    let mut all = Vec::new();
    for record in catalog.ordered_backups() {
        let id = &record.backup_id;
        let has_wal = has_own_wal(catalog, record);
        let has_packs = !catalog.missing_packs.contains_key(id);
        let good = has_packs && has_wal && !facts.damaged.contains(id);
        // Whoever verifies it meanwhile calls it lost for the same reason, so that says nothing.
        let undecided = has_packs
            && !has_wal
            && settled
                .as_ref()
                .is_some_and(|settled| has_own_wal(settled, record));
        let unknown = catalog.lineage(record.timeline).is_err();
        if good {
            ended = ended.max(record.stopped_at.min(facts.now));
        }
        let reasons = [
            unknown.then_some(Reason::UnknownTimeline),
            undecided.then_some(Reason::Undecided),
        ];
        all.push(Candidate {
            record,
            good,
            ended,
            reasons: reasons.into_iter().flatten().collect(),
        });
    }
    all
}

/// Along whichever timeline: one that left it may have the segment of the fork where its own has none.
fn has_own_wal(catalog: &Catalog, record: &BackupRecord) -> bool {
    let leads = |timeline| {
        let path = catalog.path(timeline);
        path.is_ok_and(|path| path.leads_through(record) && path.missing_for(record).is_none())
    };
    catalog.timelines().into_iter().any(leads)
}

/// The catalog as it is if every conflict is settled for what is archived; `None` where there is none.
fn settled(catalog: &Catalog) -> Option<Catalog> {
    let in_conflict = catalog.wal.values().any(|wal| !wal.conflicts.is_empty());
    (in_conflict || !catalog.disputed_histories.is_empty()).then(|| {
        let mut settled = catalog.clone();
        settled.disputed_histories.clear();
        for wal in settled.wal.values_mut() {
            wal.conflicts.clear();
        }
        settled
    })
}

fn good<'c, 'a>(
    candidates: &'c mut [Candidate<'a>],
) -> impl DoubleEndedIterator<Item = &'c mut Candidate<'a>> {
    candidates.iter_mut().filter(|candidate| candidate.good)
}

/// The newest of all, and the newest from which each timeline is reached that lives: the newest one, for which until it has a backup of its
/// own only those of before the fork do; and every other one on which something was archived since the last ended that is just not counted,
/// for a clone that was promoted is not what production goes on.
fn by_count(candidates: &mut [Candidate<'_>], facts: &ExpireFacts<'_>) {
    let catalog = facts.catalog;
    let newest = catalog.timelines_with_wal().next_back();
    let counts = [
        (Some(facts.policy.minimum.max(1)), Reason::Minimum),
        (facts.policy.full, Reason::Full),
    ];
    for (count, reason) in counts {
        let count = count.map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX - 1));
        let mut since = Timestamp::MAX;
        for (place, candidate) in good(candidates).rev().enumerate().take(count + 1) {
            since = since.min(candidate.ended);
            if place < count {
                candidate.reasons.insert(reason);
            }
        }
        let lives = |timeline: &TimelineId| {
            let archived = catalog.newest_archived_at.get(timeline);
            Some(*timeline) == newest || archived.is_none_or(|at| *at >= since)
        };
        for timeline in catalog.timelines_with_wal().filter(lives) {
            let Ok(way) = catalog.path(timeline) else {
                continue;
            };
            let leads = |candidate: &&mut Candidate<'_>| way.leads_through(candidate.record);
            for candidate in good(candidates).rev().filter(leads).take(count) {
                candidate.reasons.insert(reason);
            }
        }
    }
}

/// Time is counted back from the newest good backup, or from now if that is earlier: where backups have stopped, and where this machine's
/// clock runs ahead, nothing grows old.
fn reference(candidates: &[Candidate<'_>], now: Timestamp) -> Timestamp {
    let newest = candidates.iter().rev().find(|candidate| candidate.good);
    newest.map_or(now, |newest| newest.record.stopped_at.min(now))
}

fn before(time: Timestamp, span: SignedDuration) -> Timestamp {
    time.checked_sub(span).unwrap_or(Timestamp::MIN)
}

fn by_time(candidates: &mut [Candidate<'_>], facts: &ExpireFacts<'_>, reference: Timestamp) {
    if let Some(days) = facts.policy.days {
        let since = before(reference, SignedDuration::from_hours(24 * i64::from(days)));
        for candidate in good(candidates).filter(|candidate| candidate.ended >= since) {
            candidate.reasons.insert(Reason::Days);
        }
    }
    let Some(window) = facts.policy.window else {
        return;
    };
    let begins = before(reference, window);
    for candidate in good(candidates).filter(|candidate| candidate.ended > begins) {
        candidate.reasons.insert(Reason::Window);
    }
    // The first moments of the window are restored from a backup before it, along each timeline that has moments in it.
    for timeline in facts.catalog.timelines() {
        let archived = facts.catalog.newest_archived_at.get(&timeline);
        if archived.is_some_and(|at| *at < begins) {
            continue;
        }
        let Ok(path) = facts.catalog.path(timeline) else {
            continue;
        };
        let start = good(candidates)
            .rev()
            .find(|candidate| candidate.ended <= begins && path.leads_through(candidate.record));
        if let Some(start) = start {
            start.reasons.insert(Reason::WindowStart);
        }
    }
}

/// The period in which a day lies.
type Period = fn(Date) -> (i16, i16);

/// Grandfather, father, son: the last good backup of each period. What comes from the future by its clock takes no period's place.
fn by_period(candidates: &mut [Candidate<'_>], facts: &ExpireFacts<'_>) {
    let policy = facts.policy;
    let rules: [(Option<u32>, Reason, Period); 4] = [
        (policy.daily, Reason::Daily, |date| {
            (date.year(), date.day_of_year())
        }),
        (policy.weekly, Reason::Weekly, |date| {
            let week = date.iso_week_date();
            (week.year(), i16::from(week.week()))
        }),
        (policy.monthly, Reason::Monthly, |date| {
            (date.year(), i16::from(date.month()))
        }),
        (policy.yearly, Reason::Yearly, |date| (date.year(), 0)),
    ];
    for (count, reason, period) in rules {
        let count = usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut last = BTreeMap::new();
        for candidate in good(candidates).filter(|candidate| !candidate.is_future(facts.now)) {
            let date = candidate.record.stopped_at.to_zoned(TimeZone::UTC).date();
            // In WAL order: the last one stays.
            last.insert(period(date), candidate);
        }
        for candidate in last.into_values().rev().take(count) {
            candidate.reasons.insert(reason);
        }
    }
}

/// What concerns one backup alone.
fn singly(candidates: &mut [Candidate<'_>], facts: &ExpireFacts<'_>, reference: Timestamp) {
    for candidate in candidates.iter_mut() {
        if facts.is_pinned(&candidate.record.backup_id, reference) {
            candidate.reasons.insert(Reason::Pinned);
        }
        if candidate.good && candidate.is_future(facts.now) {
            candidate.reasons.insert(Reason::Future);
        }
    }
    let proven = |candidate: &Candidate<'_>| {
        candidate.good && facts.proven.contains(&candidate.record.backup_id)
    };
    let has_proven = |candidate: &Candidate<'_>| !candidate.reasons.is_empty() && proven(candidate);
    if !candidates.iter().any(has_proven)
        && let Some(newest) = candidates
            .iter_mut()
            .rev()
            .find(|candidate| proven(candidate))
    {
        newest.reasons.insert(Reason::Proven);
    }
}

/// Keeps what is not older than the oldest backup that promises a window, and gives the floor: the segment in which that begins. LSNs of
/// timelines that have gone apart say nothing of each other, and neither do the clocks of two servers; so either is enough to stay.
fn close(candidates: &mut [Candidate<'_>], now: Timestamp) -> Option<u64> {
    let promising = candidates
        .iter()
        .filter(|candidate| candidate.promises_window());
    let oldest = promising
        .map(|candidate| candidate.record.stopped_at.min(now))
        .min()?;
    // One from the future whose timeline went on is an old one with a wrong clock.
    let last: BTreeMap<TimelineId, BackupId> = good(candidates)
        .map(|candidate| {
            (
                candidate.record.timeline,
                candidate.record.backup_id.clone(),
            )
        })
        .collect();
    for candidate in good(candidates).filter(|candidate| !candidate.promises_window()) {
        let record = candidate.record;
        let believed =
            !candidate.is_future(now) || last.get(&record.timeline) == Some(&record.backup_id);
        if believed && record.stopped_at.min(now) >= oldest {
            candidate.reasons.insert(Reason::Younger);
        }
    }
    let promising = candidates
        .iter()
        .filter(|candidate| candidate.promises_window());
    let floor = promising.map(Candidate::first_segment).min()?;
    for candidate in candidates.iter_mut() {
        if !candidate.promises_window() && candidate.first_segment() >= floor {
            candidate.reasons.insert(Reason::Within);
        }
    }
    Some(floor)
}

fn removed_segments(facts: &ExpireFacts<'_>, kept: &KeptWal) -> Vec<SegmentRange> {
    let mut removed: Vec<SegmentRange> = Vec::new();
    for (timeline, wal) in &facts.catalog.wal {
        for number in wal
            .segments
            .range(..kept.floor())
            .map(|(number, _)| *number)
        {
            if kept.keeps(*timeline, number) {
                continue;
            }
            match removed.last_mut() {
                Some(run) if run.timeline == *timeline && run.last + 1 == number => {
                    run.last = number;
                }
                _ => removed.push(SegmentRange {
                    timeline: *timeline,
                    first: number,
                    last: number,
                }),
            }
        }
    }
    removed
}
