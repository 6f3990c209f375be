//! Segments that recovery does not get past, although they are archived.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::index::{SegmentIndex, StopReason};
use walden_model::{Break, Catalog, Level, SegmentRange};
use walden_pg::{Lsn, SegmentName, TimelineId};

use super::walk::Direction;
use super::{Indexes, KnownRollUps, LANES};
use crate::archive::Archive;
use crate::repository::RepositoryError;

/// Parts of runs that are looked through at the same time.
const PARTS: usize = 4;

/// Finds the segments that were damaged, or not finished, before they were archived, and says so in the catalog: then windows and plans do
/// not lead past them. Only those matter that some backup may need. Of segments without an index nobody knows. Gives the roll-ups that were
/// listed for it ([`Indexes::knowing`]).
///
/// # Errors
/// The repository cannot be asked.
pub async fn mark_breaks(
    archive: impl Into<Archive>,
    catalog: &mut Catalog,
) -> Result<Option<KnownRollUps>, RepositoryError> {
    let indexes = Indexes::new(archive, catalog);
    let found = indexes.breaks().await?;
    let roll_ups = indexes.roll_ups.into_inner();
    for (timeline, number, found) in found {
        let wal = catalog.wal.entry(timeline).or_default();
        wal.breaks.insert(number, found);
    }
    Ok(roll_ups)
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
        let needed = runs.filter(|run| run.first <= run.last);
        let parts: Vec<_> = needed
            .flat_map(|run| parts(run).into_iter().map(move |part| (run, part)))
            .collect();
        let found = stream::iter(parts)
            .map(|(run, part)| self.breaks_in(run, part))
            .buffered(PARTS);
        let found: Vec<_> = found.try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn breaks_in(
        &self,
        run: SegmentRange,
        part: SegmentRange,
    ) -> Result<Vec<(TimelineId, u64, Break)>, RepositoryError> {
        let route = self.route(vec![run]);
        let summaries = self.walk(route, vec![part], Some(Level::Two), Direction::Forward);
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

/// A run, cut where its roll-ups become coarser and finer, so that tails and roll-ups are read at the same time.
fn parts(run: SegmentRange) -> Vec<SegmentRange> {
    let behind = run.last.saturating_add(1);
    let widths = [Level::One.segments(), Level::Two.segments()];
    let cuts = widths.iter().flat_map(|width| {
        let first = run.first.checked_next_multiple_of(*width);
        [first.unwrap_or(behind), behind / width * width]
    });
    let inner = cuts.filter(|cut| (run.first + 1..behind).contains(cut));
    let cuts: BTreeSet<u64> = inner.chain([run.first, behind]).collect();
    let ends = cuts.iter().skip(1);
    let pairs = cuts.iter().zip(ends);
    pairs
        .map(|(first, behind)| SegmentRange {
            timeline: run.timeline,
            first: *first,
            last: behind - 1,
        })
        .collect()
}

fn stopped(index: &SegmentIndex) -> Option<(Lsn, StopReason)> {
    let stopped = index.stopped?;
    let breaks = matches!(stopped.why, StopReason::Damaged | StopReason::EndOfWal);
    breaks.then_some((stopped.at, stopped.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(first: u64, last: u64) -> Vec<(u64, u64)> {
        let timeline = TimelineId(1);
        let parts = parts(SegmentRange {
            timeline,
            first,
            last,
        });
        parts.iter().map(|part| (part.first, part.last)).collect()
    }

    #[test]
    fn parts_are_the_whole_run_cut_at_the_edges_of_roll_ups() {
        assert_eq!(cut(7, 7), [(7, 7)]);
        assert_eq!(cut(0, 255), [(0, 255)]);
        assert_eq!(cut(2, 700), [(2, 255), (256, 511), (512, 700)]);
        assert_eq!(
            cut(2, 200_000),
            [
                (2, 255),
                (256, 65_535),
                (65_536, 196_607),
                (196_608, 199_935),
                (199_936, 200_000)
            ]
        );
    }
}
