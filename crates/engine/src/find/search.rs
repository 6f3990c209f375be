//! The walk over the archive: which segments are looked into, and which names are asked for.

use std::collections::{BTreeMap, VecDeque};

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use walden_model::incident::{Gathering, Judge, Limits, Transaction};
use walden_model::index::{
    Crossing, Ends, RestorePoint, SegmentIndex, StopReason, crossing, full_xid,
};
use walden_model::names::{Names, Wanted};
use walden_model::{BackupRecord, Catalog, Gap, SegmentRange, SystemKeys, WalPath};
use walden_pg::{Lsn, SegmentName, TimelineId};

use super::way::back;
use super::{FindReport, FindRequest, Finding, Points, What};
use crate::archive::Archive;
use crate::index::Indexes;
use crate::names;
use crate::repository::{RepositoryError, Trouble};

/// Requests under way at the same time.
const LANES: usize = 16;
/// Findings that a report holds.
const MOST_FINDINGS: usize = 10_000;
/// Transactions that wait for names.
const MOST_SUSPECTS: usize = 2_048;
/// Segments that are named as unreadable.
const MOST_UNREADABLE: usize = 100;
/// Segments before the asked time that are looked into, for transactions that began there. What one that is longer did before lies outside:
/// its rows are told as at least so many anyway.
const LOOK_BACK: u64 = 256;
/// Segments into which one record is followed.
const MOST_FOLLOWED: usize = 64;

pub(super) struct Search<'a> {
    request: &'a FindRequest,
    archive: &'a Archive,
    catalog: &'a Catalog,
    /// The same, with what recovery does not get past.
    passable: &'a Catalog,
    path: &'a WalPath<'a>,
    timeline: TimelineId,
    indexes: Indexes<'a>,
    limits: Limits,
    gathering: Gathering,
    suspects: Vec<Transaction>,
    /// Backups with names, oldest first.
    named: Vec<&'a BackupRecord>,
    next_xid: Option<u64>,
    report: FindReport,
}

/// A run of segments without a gap.
type Run = Vec<SegmentRange>;

impl<'a> Search<'a> {
    pub(super) fn new(
        request: &'a FindRequest,
        archive: &'a Archive,
        catalog: &'a Catalog,
        passable: &'a Catalog,
        path: &'a WalPath<'a>,
        timeline: TimelineId,
    ) -> Self {
        let sought = &request.sought;
        let named: Vec<_> = catalog
            .ordered_backups()
            .into_iter()
            .filter(|backup| backup.names.is_some() && on_the_way(path, backup))
            .collect();
        let rows = [sought.deleted_more_than, sought.updated_more_than];
        Self {
            request,
            archive,
            catalog,
            passable,
            path,
            timeline,
            indexes: Indexes::new(archive, catalog),
            limits: Limits {
                dropped: sought.dropped,
                truncated: sought.truncated,
                deleted: sought.deleted_more_than,
                updated: sought.updated_more_than,
            },
            gathering: Gathering::new(rows.into_iter().flatten().min().unwrap_or(u64::MAX)),
            suspects: Vec::new(),
            report: FindReport {
                cluster: request.cluster.clone(),
                system: catalog.system_identifier,
                timeline,
                searched: None,
                findings: Vec::new(),
                more: false,
                gaps: Vec::new(),
                unreadable: Vec::new(),
                nameless: named.is_empty(),
                out: archive.out().to_vec(),
            },
            named,
            next_xid: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<FindReport, RepositoryError> {
        let (runs, gaps) = self.runs();
        let runs = self.narrowed(runs).await?;
        let numbers = |run: &Run| Some((run.first()?.first, run.last()?.last));
        let bounds: Vec<(u64, u64)> = runs.iter().filter_map(numbers).collect();
        if let (Some((first, _)), Some((_, last))) = (bounds.first(), bounds.last()) {
            let end = self.path.start_of(last.saturating_add(1));
            self.report.searched = Some((self.path.start_of(*first), end));
            let between = |gap: &Gap| {
                let number = gap.first.number(self.catalog.segment_size);
                number.is_some_and(|number| (*first..=last.saturating_add(1)).contains(&number))
            };
            self.report.gaps = gaps.into_iter().filter(between).collect();
        }
        for run in runs {
            self.search(run).await?;
        }
        self.judge().await?;
        self.report.more |= self.gathering.forgot();
        self.report.findings.sort_by_key(|finding| finding.lsn);
        Ok(self.report)
    }

    /// The archived segments along the way, and what is missing between them.
    fn runs(&self) -> (Vec<Run>, Vec<Gap>) {
        let (mut runs, mut gaps) = (Vec::new(), Vec::new());
        let mut next = 0;
        loop {
            if let Some(last) = self.path.unbroken_until(next) {
                runs.push(self.path.ranges(next, last).collect::<Run>());
                next = last.saturating_add(1);
            }
            let Some(gap) = self.path.gap_from(next) else {
                break;
            };
            let behind = gap.last.number(self.catalog.segment_size);
            let Some(behind) = behind.and_then(|last| last.checked_add(1)) else {
                break;
            };
            if !runs.is_empty() {
                gaps.push(gap);
            }
            if behind <= next {
                break;
            }
            next = behind;
        }
        (runs, gaps)
    }

    /// The parts of the runs in which something of the asked time may stand. Times are not in WAL order, so a summary decides by its earliest and latest.
    async fn narrowed(&self, runs: Vec<Run>) -> Result<Vec<Run>, RepositoryError> {
        let Some((from, to)) = self.request.between else {
            return Ok(runs);
        };
        let mut narrowed = Vec::new();
        for run in runs {
            let mut bounds: Option<(u64, u64)> = None;
            let mut summaries = self.indexes.summaries(run.clone());
            while let Some(summary) = summaries.try_next().await? {
                let overlaps = |ends: &Ends| ends.max_time >= from && ends.min_time <= to;
                let points = &summary.restore_points;
                let matters = summary.ends.as_ref().is_some_and(overlaps)
                    || !summary.unread.is_empty()
                    || summary.more_points
                    || points.iter().any(|point| (from..=to).contains(&point.time));
                if matters {
                    let first = bounds.map_or(summary.first, |(first, _)| first);
                    bounds = Some((first, summary.last));
                }
            }
            let Some((first, last)) = bounds else {
                continue;
            };
            let begin = run.first().map_or(first, |range| range.first);
            let first = first.saturating_sub(LOOK_BACK).max(begin);
            narrowed.push(self.path.ranges(first, last).collect());
        }
        Ok(narrowed)
    }

    /// Looks into a run, all segments of it in WAL order. Their tails are read some ahead.
    async fn search(&mut self, run: Run) -> Result<(), RepositoryError> {
        let size = self.catalog.segment_size;
        let names: Vec<_> = run
            .iter()
            .flat_map(|range| {
                let timeline = range.timeline;
                (range.first..=range.last)
                    .map(move |number| SegmentName::from_number(timeline, number, size))
            })
            .collect();
        let indexes = Indexes::new(self.archive, self.catalog);
        let mut tails: BoxStream<'_, Result<(SegmentName, Option<SegmentIndex>), RepositoryError>> =
            stream::iter(names)
                .map(|name| {
                    let indexes = &indexes;
                    async move { Ok((name, indexes.segment(name).await?)) }
                })
                .buffered(LANES)
                .boxed();
        let mut ahead: VecDeque<(SegmentName, Option<SegmentIndex>)> = VecDeque::new();
        loop {
            let (name, index) = match ahead.pop_front() {
                Some(held) => held,
                None => match tails.try_next().await? {
                    Some(tail) => tail,
                    None => return Ok(()),
                },
            };
            if self.report.more {
                return Ok(());
            }
            let crossed = match &index {
                Some(index) if index.tail.is_some() => {
                    let mut crossed = Crossing::GoesOn;
                    for following in 1..=MOST_FOLLOWED {
                        if ahead.len() < following {
                            match tails.try_next().await? {
                                Some(tail) => ahead.push_back(tail),
                                None => break,
                            }
                        }
                        let indexes: Option<Vec<&SegmentIndex>> = ahead
                            .iter()
                            .take(following)
                            .map(|(_, index)| index.as_ref())
                            .collect();
                        crossed = match indexes {
                            Some(indexes) => crossing(index, &indexes),
                            None => Crossing::NeedsSegments,
                        };
                        if crossed != Crossing::GoesOn {
                            break;
                        }
                    }
                    crossed
                }
                _ => Crossing::None,
            };
            let following: Vec<_> = ahead.iter().map(|(name, _)| *name).collect();
            self.take(name, index, &crossed, following).await?;
        }
    }

    /// Takes one segment's facts: from its index, or from its records where the index does not have all.
    async fn take(
        &mut self,
        name: SegmentName,
        index: Option<SegmentIndex>,
        crossed: &Crossing,
        following: Vec<SegmentName>,
    ) -> Result<(), RepositoryError> {
        let whole = index.filter(|index| {
            let untold = matches!(crossed, Crossing::NeedsSegments);
            let many = |left: u64, limit: Option<u64>| limit.is_some_and(|limit| left > limit);
            let left = &index.left_out;
            let left_out =
                many(left.deleted, self.limits.deleted) || many(left.updated, self.limits.updated);
            !index.incomplete && !untold && !left_out
        });
        let committed = match whole {
            Some(mut index) => {
                index.absorb(crossed);
                self.note(name, &index);
                let ended = index.ends.as_ref().map(|ends| {
                    let ranges = [Some(ends.xids), ends.subxids];
                    ranges.into_iter().flatten().collect::<Vec<_>>()
                });
                let mut committed = self.gathering.segment(index);
                if ended.is_some_and(|ended| self.gathering.awaits(&ended))
                    && let Some(detail) = self.detail(name, following).await?
                {
                    committed.extend(self.gathering.ends(&detail.moments));
                }
                committed
            }
            None => match self.detail(name, following).await? {
                Some(detail) => {
                    self.note(name, &detail.index);
                    let mut committed = self.gathering.segment(detail.index);
                    committed.extend(self.gathering.ends(&detail.moments));
                    committed
                }
                None => Vec::new(),
            },
        };
        for transaction in committed {
            let in_time = self
                .request
                .between
                .is_none_or(|(from, to)| (from..=to).contains(&transaction.commit.time));
            if in_time && self.limits.suspect(&transaction) {
                self.suspects.push(transaction);
            }
        }
        if self.suspects.len() >= MOST_SUSPECTS {
            self.judge().await?;
        }
        Ok(())
    }

    async fn detail(
        &mut self,
        name: SegmentName,
        following: Vec<SegmentName>,
    ) -> Result<Option<walden_model::index::SegmentDetail>, RepositoryError> {
        match self.indexes.detail(name, following).await {
            Ok(detail) => Ok(Some(detail)),
            Err(e) => match e.trouble() {
                Trouble::Absent | Trouble::Damage | Trouble::Configuration => {
                    self.unreadable(name);
                    Ok(None)
                }
                Trouble::Outage | Trouble::Local => Err(e),
            },
        }
    }

    fn unreadable(&mut self, name: SegmentName) {
        let named = &mut self.report.unreadable;
        if named.len() < MOST_UNREADABLE && named.last() != Some(&name) {
            named.push(name);
        }
    }

    /// What a segment says beside its transactions.
    fn note(&mut self, name: SegmentName, index: &SegmentIndex) {
        self.next_xid = index.next_xid.or(self.next_xid);
        let broken = |why| matches!(why, StopReason::Damaged | StopReason::UnknownVersion);
        if index.incomplete || index.stopped.is_some_and(|stopped| broken(stopped.why)) {
            self.unreadable(name);
        }
        let wanted = |point: &&RestorePoint| {
            let named = match &self.request.sought.restore_points {
                None => false,
                Some(Points::All) => true,
                Some(Points::Named(name)) => point.name == *name,
            };
            let between = self.request.between;
            named && between.is_none_or(|(from, to)| (from..=to).contains(&point.time))
        };
        let points: Vec<_> = index
            .restore_points
            .iter()
            .filter(wanted)
            .cloned()
            .collect();
        for point in points {
            self.tell(point.time, None, point.lsn, What::RestorePoint(point.name));
        }
    }

    fn tell(&mut self, time: jiff::Timestamp, xid: Option<u32>, lsn: Lsn, what: What) {
        if self.report.findings.len() >= MOST_FINDINGS {
            self.report.more = true;
            return;
        }
        let full = |xid| match self.next_xid {
            Some(reference) => full_xid(reference, xid),
            None => xid.into(),
        };
        let xid = xid.map(full);
        let spans = self.path.spans().iter();
        let stands_on = spans.rev().find(|span| span.begin <= lsn);
        self.report.findings.push(Finding {
            time,
            xid,
            lsn,
            timeline: stands_on.map_or(self.timeline, |span| span.timeline),
            restore: back(self.request, self.passable, self.timeline, xid, lsn, &what),
            what,
        });
    }

    /// Judges the suspects, by the names of the backups around each.
    async fn judge(&mut self) -> Result<(), RepositoryError> {
        let suspects = std::mem::take(&mut self.suspects);
        let mut groups: BTreeMap<(Option<usize>, Option<usize>), Vec<Transaction>> =
            BTreeMap::new();
        for suspect in suspects {
            let around = self.around(&suspect);
            groups.entry(around).or_default().push(suspect);
        }
        let mut wanted: BTreeMap<usize, Wanted> = BTreeMap::new();
        for ((before, after), suspects) in &groups {
            for backup in before.iter().chain(after) {
                let wanted = wanted.entry(*backup).or_default();
                for suspect in suspects {
                    suspect.want(wanted);
                }
            }
        }
        let mut known: BTreeMap<usize, Names> = BTreeMap::new();
        for (backup, wanted) in wanted {
            if let Some(names) = self.names(backup, wanted).await? {
                known.insert(backup, names);
            }
        }
        for ((before, after), suspects) in groups {
            let judge = Judge {
                before: before.and_then(|backup| known.get(&backup)),
                after: after.and_then(|backup| known.get(&backup)),
                limits: self.limits,
            };
            for suspect in suspects {
                for incident in judge.incidents(&suspect) {
                    let (time, xid, lsn) = (incident.time, incident.xid, incident.lsn);
                    self.tell(time, Some(xid), lsn, What::Incident(incident));
                }
            }
        }
        Ok(())
    }

    /// The newest backup whose names are from before the transaction, and the oldest whose names are from after it.
    fn around(&self, transaction: &Transaction) -> (Option<usize>, Option<usize>) {
        let named = || self.named.iter().enumerate();
        let before = named().rfind(|(_, backup)| backup.stop_lsn <= transaction.first_lsn);
        let after = named().find(|(_, backup)| backup.start_lsn >= transaction.commit.end_lsn);
        (
            before.map(|(position, _)| position),
            after.map(|(position, _)| position),
        )
    }

    /// Names are a convenience: where they cannot be read, numbers are told.
    async fn names(&self, backup: usize, wanted: Wanted) -> Result<Option<Names>, RepositoryError> {
        let Some(record) = self.named.get(backup) else {
            return Ok(None);
        };
        let keys = SystemKeys {
            cluster: self.catalog.cluster.clone(),
            system: self.catalog.system_identifier,
        };
        match names::read(self.archive, &keys, record, wanted).await {
            Ok(names) => Ok(names),
            Err(e) => match e.trouble() {
                Trouble::Absent | Trouble::Damage | Trouble::Configuration => {
                    tracing::warn!(backup = %record.backup_id, "the backup's names cannot be read: {e}");
                    Ok(None)
                }
                Trouble::Outage | Trouble::Local => Err(e),
            },
        }
    }
}

/// Whether the way leads through the backup.
fn on_the_way(path: &WalPath<'_>, backup: &BackupRecord) -> bool {
    path.spans().iter().any(|span| {
        span.timeline == backup.timeline && span.end.is_none_or(|end| backup.stop_lsn <= end)
    })
}
