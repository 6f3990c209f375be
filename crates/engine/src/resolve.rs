//! Planning a recovery by the commit index: `walden_model::resolve` decides, and here is fetched what it asks for.

use futures::TryStreamExt;
use walden_model::resolve::{Around, Ending, Hunt, RecordSpan, Stop, Walk, no_record};
use walden_model::{
    Catalog, PlanOptions, RecoveryPlan, RecoveryTarget, SegmentRange, TargetKind, Unreachable,
    WalPath,
};
use walden_pg::{Lsn, SegmentName};

use crate::index::{Indexes, unless_unusable};
use crate::repository::RepositoryError;

/// Segments without an index that are read in full, at most, for one plan.
const MOST_UNREAD: usize = 64;

/// Segments behind its own into which a record is followed.
const MOST_FOLLOWED: u64 = 64;

/// Why a recovery is not planned.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The repository cannot be asked.
    #[error("the commit index cannot be read")]
    Repository(#[from] RepositoryError),
    /// The target cannot be reached.
    #[error(transparent)]
    Unreachable(#[from] Box<Unreachable>),
}

impl From<Unreachable> for ResolveError {
    fn from(error: Unreachable) -> Self {
        Self::Unreachable(Box::new(error))
    }
}

/// Plans a recovery. Where the index tells where it ends, the plan does; else it is planned by names.
///
/// # Errors
/// The target cannot be reached, or the repository cannot be asked.
pub async fn plan(
    indexes: &Indexes<'_>,
    catalog: &Catalog,
    target: &RecoveryTarget,
    options: &PlanOptions,
) -> Result<RecoveryPlan, ResolveError> {
    let mut resolver = Resolver {
        indexes,
        catalog,
        target,
        options,
        unread: MOST_UNREAD,
    };
    match target.kind {
        TargetKind::Lsn(lsn) => resolver.plan_lsn(lsn).await,
        TargetKind::Latest | TargetKind::Immediate => {
            let plan = RecoveryPlan::build(catalog, target, options)?;
            let stop = match target.kind {
                TargetKind::Immediate => Some(Stop::Consistent(plan.backup.stop_lsn)),
                _ => None,
            };
            resolver.with_ending(plan, stop).await
        }
        TargetKind::Time(_) | TargetKind::Xid(_) | TargetKind::Name(_) => resolver.hunt().await,
    }
}

struct Resolver<'a> {
    indexes: &'a Indexes<'a>,
    catalog: &'a Catalog,
    target: &'a RecoveryTarget,
    options: &'a PlanOptions,
    /// Segments without an index that may still be read.
    unread: usize,
}

/// How a walk went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// To its end.
    Clear,
    /// Something on the way cannot be seen.
    Blind,
}

impl<'a> Resolver<'a> {
    fn by_names(&self) -> Result<RecoveryPlan, ResolveError> {
        Ok(RecoveryPlan::build(
            self.catalog,
            self.target,
            self.options,
        )?)
    }

    async fn hunt(mut self) -> Result<RecoveryPlan, ResolveError> {
        let Some(mut hunt) = Hunt::new(self.catalog, self.target, self.options)? else {
            return self.by_names();
        };
        while let Some(mut walk) = hunt.next_walk() {
            let ranges = hunt.path().ranges(walk.first(), walk.last()).collect();
            if self.go(&mut walk, ranges).await? == Sight::Blind {
                return self.by_names();
            }
            hunt.take(walk)?;
        }
        let stop = hunt.stop()?;
        let options = PlanOptions {
            backup: hunt.backup().cloned(),
            ..self.options.clone()
        };
        let mut plan = RecoveryPlan::build_to(self.catalog, self.target, &options, stop.record())?;
        match hunt.ending(&plan, stop) {
            // What was read on the way is not read again.
            Some(ending) => {
                plan.end_with(Some(ending));
                Ok(plan)
            }
            None => self.with_ending(plan, Some(stop)).await,
        }
    }

    async fn plan_lsn(mut self, lsn: Lsn) -> Result<RecoveryPlan, ResolveError> {
        let by_names = self.by_names()?;
        match self.record_from(&by_names, lsn).await? {
            Around::Record(record) => {
                let stop = Stop::at(record, &self.target.kind, self.target.inclusive);
                self.plan_stop(stop).await
            }
            Around::None { end } | Around::EndOfWal { end } => {
                let plan = self.with_ending(by_names, None).await?;
                let last = plan.ending.and_then(|ending| ending.last_commit);
                Err(no_record(
                    self.catalog,
                    self.target,
                    self.options,
                    &plan,
                    end.unwrap_or(lsn),
                    last,
                )
                .into())
            }
            Around::Broken => {
                let path = self.path(&by_names)?;
                let run_end = path.gap_from(path.first_segment(&by_names.backup));
                let broken = run_end.and_then(|gap| gap.broken);
                // The first record at or behind it is the one that cannot be read.
                if broken.is_some_and(|broken| path.number_of(broken.at) == path.number_of(lsn)) {
                    let options = self.options;
                    let end = broken.map_or(lsn, |broken| broken.at);
                    let refused =
                        no_record(self.catalog, self.target, options, &by_names, end, None);
                    return Err(refused.into());
                }
                Ok(by_names)
            }
        }
    }

    /// The first record at or behind an LSN on the plan's way, as far as that is unbroken.
    async fn record_from(&self, plan: &RecoveryPlan, lsn: Lsn) -> Result<Around, ResolveError> {
        let path = self.path(plan)?;
        let first = path.number_of(lsn);
        let last = path
            .unbroken_until(path.first_segment(&plan.backup))
            .unwrap_or(first);
        let mut seen = None;
        for number in (first..=last).take(MOST_UNREAD) {
            let around = self.indexes.record_from(path.name(number), lsn).await;
            match unless_unusable(around)? {
                Some(Around::None { end }) => seen = end.or(seen),
                Some(Around::Record(record)) if path.number_of(last_byte(record)) > last => {
                    return Ok(Around::EndOfWal {
                        end: Some(record.lsn),
                    });
                }
                Some(Around::EndOfWal { .. }) if number < last => return Ok(Around::Broken),
                Some(Around::EndOfWal { end }) => {
                    return Ok(Around::EndOfWal { end: end.or(seen) });
                }
                Some(found) => return Ok(found),
                None => return Ok(Around::Broken),
            }
        }
        Ok(Around::None { end: seen })
    }

    async fn plan_stop(mut self, stop: Stop) -> Result<RecoveryPlan, ResolveError> {
        let plan = RecoveryPlan::build_to(self.catalog, self.target, self.options, stop.record())?;
        self.with_ending(plan, Some(stop)).await
    }

    /// The plan with its ending, where all of the way can be seen. Without a stop the archived WAL ends it.
    async fn with_ending(
        &mut self,
        mut plan: RecoveryPlan,
        stop: Option<Stop>,
    ) -> Result<RecoveryPlan, ResolveError> {
        let mut walk = plan.walk(self.catalog, stop.map(|stop| stop.limit()))?;
        let ranges = plan.ranges(self.catalog, walk.last());
        if self.go(&mut walk, ranges).await? == Sight::Clear {
            let end = walk.end_lsn().unwrap_or(plan.backup.stop_lsn);
            plan.end_with(Ending::of(stop.unwrap_or(Stop::EndOfWal(end)), &walk));
        }
        Ok(plan)
    }

    /// Goes along these segments and lets `walk` see them.
    async fn go(
        &mut self,
        walk: &mut Walk,
        ranges: Vec<SegmentRange>,
    ) -> Result<Sight, RepositoryError> {
        let names = Names {
            catalog: self.catalog,
            ranges: ranges.clone(),
        };
        let mut open = vec![self.indexes.summaries(ranges.clone())];
        while let Some(summaries) = open.last_mut() {
            let Some(summary) = summaries.try_next().await? else {
                open.pop();
                continue;
            };
            if !walk.looks_into(&summary) {
                walk.pass(&summary);
                continue;
            }
            if summary.unread.len() > self.unread {
                return Ok(Sight::Blind);
            }
            if summary.first < summary.last {
                open.push(self.indexes.within(ranges.clone(), &summary));
                continue;
            }
            self.unread -= summary.unread.len();
            let number = summary.first;
            let Some(name) = names.of(number) else {
                return Ok(Sight::Blind);
            };
            let detail = self.indexes.detail(name, names.behind(number)).await;
            let Some(detail) = unless_unusable(detail)? else {
                return Ok(Sight::Blind);
            };
            if walk.read(number, &detail).is_break() {
                break;
            }
        }
        Ok(match walk.opaque() {
            Some(_) => Sight::Blind,
            None => Sight::Clear,
        })
    }

    fn path(&self, plan: &RecoveryPlan) -> Result<WalPath<'a>, Unreachable> {
        Ok(self.catalog.path(plan.timeline)?)
    }
}

fn last_byte(record: RecordSpan) -> Lsn {
    Lsn(record.end_lsn.0.saturating_sub(1))
}

/// The names of the segments of some ranges.
struct Names<'a> {
    catalog: &'a Catalog,
    ranges: Vec<SegmentRange>,
}

impl Names<'_> {
    fn of(&self, number: u64) -> Option<SegmentName> {
        let mut ranges = self.ranges.iter();
        let range = ranges.find(|range| (range.first..=range.last).contains(&number))?;
        let size = self.catalog.segment_size;
        Some(SegmentName::from_number(range.timeline, number, size))
    }

    /// The segments in which a record goes on that begins in this one.
    fn behind(&self, number: u64) -> Vec<SegmentName> {
        let behind = (1..=MOST_FOLLOWED).map_while(|next| number.checked_add(next));
        behind.map_while(|number| self.of(number)).collect()
    }
}
