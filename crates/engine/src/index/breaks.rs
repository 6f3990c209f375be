//! Segments that recovery does not get past, although they are archived.

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::index::{SegmentIndex, StopReason};
use walden_model::{Break, Catalog, SegmentRange};
use walden_pg::{Lsn, SegmentName, TimelineId};

use super::{Indexes, LANES};
use crate::repository::{Repository, RepositoryError};

/// Runs that are looked through at the same time.
const RUNS: usize = 4;

/// Finds the segments that were damaged, or not finished, before they were archived, and says so in the catalog: then windows and plans do
/// not lead past them. Only those matter that some backup may need. Of segments without an index nobody knows.
///
/// # Errors
/// The repository cannot be asked.
pub async fn mark_breaks(
    repository: &Repository,
    catalog: &mut Catalog,
) -> Result<(), RepositoryError> {
    let found = Indexes::new(repository, catalog).breaks().await?;
    for (timeline, number, found) in found {
        let wal = catalog.wal.entry(timeline).or_default();
        wal.breaks.insert(number, found);
    }
    Ok(())
}

impl Indexes<'_> {
    async fn breaks(&self) -> Result<Vec<(TimelineId, u64, Break)>, RepositoryError> {
        let backups = self.catalog.backups.iter();
        let starts = backups.flat_map(|backup| {
            let ranges = backup.wal_ranges.iter().map(|range| range.start);
            ranges.chain([backup.start_lsn])
        });
        let Some(earliest) = starts.min() else {
            return Ok(Vec::new());
        };
        let earliest = earliest.0 / self.catalog.segment_size.bytes();
        let runs = self.catalog.wal.iter().flat_map(|(timeline, wal)| {
            wal.runs().into_iter().map(|run| SegmentRange {
                timeline: *timeline,
                first: earliest.max(*run.start()),
                last: *run.end(),
            })
        });
        let needed: Vec<_> = runs.filter(|run| run.first <= run.last).collect();
        let found = stream::iter(needed)
            .map(|run| self.breaks_in(run))
            .buffered(RUNS);
        let found: Vec<_> = found.try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn breaks_in(
        &self,
        run: SegmentRange,
    ) -> Result<Vec<(TimelineId, u64, Break)>, RepositoryError> {
        let summaries = self.summaries(vec![run]);
        let named = summaries
            .map_ok(|summary| stream::iter(summary.breaks.into_iter().map(Ok)))
            .try_flatten();
        let found = named
            .map_ok(|number| self.break_in(run, number))
            .try_buffered(LANES);
        found
            .try_filter_map(|found| async move { Ok(found) })
            .try_collect()
            .await
    }

    /// A roll-up is not believed where it costs windows: the segment itself must say so.
    async fn break_in(
        &self,
        run: SegmentRange,
        number: u64,
    ) -> Result<Option<(TimelineId, u64, Break)>, RepositoryError> {
        let size = self.catalog.segment_size;
        let name = SegmentName::from_number(run.timeline, number, size);
        let Some(index) = self.segment(name).await? else {
            return Ok(None);
        };
        let found = match stopped(&index) {
            Some(found) => Some(found),
            None => {
                let route = self.route(vec![run]);
                let tail = index.tail.as_ref().and_then(|tail| tail.lsn);
                let closed = self.close(&route, number, Some(index.clone()), None);
                let is_broken = !closed.await?.breaks.is_empty();
                tail.filter(|_| is_broken)
                    .map(|at| (at, StopReason::Damaged))
            }
        };
        Ok(found.map(|(at, why)| {
            let commit = index.ends.as_ref().and_then(|ends| ends.last_commit);
            let first = index.first_lsn.filter(|_| index.records > 0);
            let reaches = commit.map(|commit| commit.lsn).or(first);
            (run.timeline, number, Break { at, why, reaches })
        }))
    }
}

fn stopped(index: &SegmentIndex) -> Option<(Lsn, StopReason)> {
    let stopped = index.stopped?;
    let breaks = matches!(stopped.why, StopReason::Damaged | StopReason::EndOfWal);
    breaks.then_some((stopped.at, stopped.why))
}
