//! Windows: from which backup, and through which segments, each timeline can be restored.

use jiff::Timestamp;
use walden_pg::{Lsn, SegmentName, TimelineId};

use crate::catalog::{Catalog, MissingHistory};
use crate::coverage::Gap;
use crate::keys::BackupId;
use crate::records::{BackupRecord, SegmentRange};

/// An unbroken range of moments to which a timeline can be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineWindow {
    /// The timeline to restore to.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from: WindowStart,
    /// The backups from which its moments are restored, that of [`Self::from`] first.
    pub backups: Vec<BackupId>,
    /// The first segment that is read.
    pub first_segment: SegmentName,
    /// The last segment of the unbroken run.
    pub last_segment: SegmentName,
    /// How many there are from the first to the last.
    pub segments: u64,
    /// The same segments, each on the timeline on which recovery finds it.
    pub ranges: Vec<SegmentRange>,
    /// What is missing behind it, where later segments are there, or that are in conflict. A later backup may open the next window.
    pub gap: Option<Gap>,
}

/// The first moment that can be restored: a backup's consistency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowStart {
    /// The backup.
    pub backup: BackupId,
    /// The timeline on which it ended: this one, or one that it comes from.
    pub timeline: TimelineId,
    /// [`BackupRecord::stop_lsn`].
    pub lsn: Lsn,
    /// [`BackupRecord::stopped_at`].
    pub at: Timestamp,
}

impl Catalog {
    /// The timelines that have WAL, in order.
    pub fn timelines_with_wal(&self) -> impl DoubleEndedIterator<Item = TimelineId> {
        self.wal
            .iter()
            .filter(|(_, wal)| !wal.segments.is_empty())
            .map(|(timeline, _)| *timeline)
    }

    /// The windows of a timeline, oldest first. Only backups that are whole open any. What ends before the timeline was left behind by its
    /// parent is its parent's window.
    ///
    /// # Errors
    /// As [`Catalog::lineage`].
    pub fn windows(&self, timeline: TimelineId) -> Result<Vec<TimelineWindow>, MissingHistory> {
        let path = self.path(timeline)?;
        let begins = path
            .spans()
            .last()
            .map_or(0, |span| path.number_of(span.begin));
        let usable = |record: &&BackupRecord| {
            path.leads_through(record)
                && !self.missing_packs.contains_key(&record.backup_id)
                && path.missing_for(record).is_none()
        };
        let mut windows: Vec<(u64, TimelineWindow)> = Vec::new();
        for record in self.ordered_backups().into_iter().filter(usable) {
            let first = path.first_segment(record);
            // A run is walked through once, however many backups stand in it.
            let open = windows.last_mut().filter(|(last, window)| {
                let opens = window.ranges.first().map(|range| range.first);
                opens.is_some_and(|opens| (opens..=*last).contains(&first))
            });
            if let Some((_, window)) = open {
                window.backups.push(record.backup_id.clone());
                continue;
            }
            let Some(last) = path.unbroken_until(first).filter(|last| *last >= begins) else {
                continue;
            };
            let window = TimelineWindow {
                timeline,
                from: WindowStart {
                    backup: record.backup_id.clone(),
                    timeline: record.timeline,
                    lsn: record.stop_lsn,
                    at: record.stopped_at,
                },
                backups: vec![record.backup_id.clone()],
                first_segment: path.name(first),
                last_segment: path.name(last),
                segments: last - first + 1,
                ranges: path.ranges(first, last).collect(),
                gap: path.gap_from(first),
            };
            windows.push((last, window));
        }
        Ok(windows.into_iter().map(|(_, window)| window).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{backup, catalog, id, lsn, time};

    fn shown(windows: &[TimelineWindow]) -> Vec<String> {
        let gap = |gap: &Gap| format!(", gap {gap}");
        windows
            .iter()
            .map(|window| {
                format!(
                    "{} from {} on {}: {} to {}, {} of them{}",
                    window.backups.len(),
                    window.from.lsn,
                    window.from.timeline,
                    window.first_segment,
                    window.last_segment,
                    window.segments,
                    window.gap.as_ref().map(gap).unwrap_or_default()
                )
            })
            .collect()
    }

    #[test]
    fn a_gap_splits_windows_and_a_later_backup_opens_the_next() {
        let mut catalog = catalog(&[(1, &[2, 3, 4, 5, 8, 9, 10])], &[]);
        catalog.backups = vec![
            backup(1, 1, 210, 250),
            backup(2, 1, 310, 350),
            backup(3, 1, 910, 950),
        ];
        let windows = catalog.windows(TimelineId(1)).unwrap();
        assert_eq!(
            shown(&windows),
            [
                "2 from 0/280000 on 1: 000000010000000000000002 to 000000010000000000000005, 4 of them, \
                 gap 000000010000000000000006 to 000000010000000000000007",
                "1 from 0/980000 on 1: 000000010000000000000009 to 00000001000000000000000A, 2 of them",
            ]
        );
        let first = &windows[0];
        assert_eq!(
            (&first.from.backup, first.from.lsn, first.from.at),
            (&id(1), lsn(250), time(250))
        );
        assert_eq!(first.backups, [id(1), id(2)]);
    }

    #[test]
    fn backups_that_are_not_whole_open_no_window() {
        let mut catalog = catalog(&[(1, &[3, 4, 5])], &[]);
        catalog.backups = vec![
            backup(1, 1, 210, 250),
            backup(2, 1, 310, 350),
            backup(3, 1, 410, 450),
        ];
        catalog
            .missing_packs
            .insert(id(2), vec!["a pack".to_owned()]);
        assert_eq!(
            shown(&catalog.windows(TimelineId(1)).unwrap()),
            [
                "1 from 0/480000 on 1: 000000010000000000000004 to 000000010000000000000005, 2 of them"
            ],
            "the first lacks its segment, the second a pack"
        );
    }

    #[test]
    fn a_timeline_begins_with_its_parents_backup_and_each_has_its_own_end() {
        let mut catalog = catalog(
            &[(1, &[2, 3, 4, 5, 6]), (2, &[4, 5]), (3, &[9])],
            &[(2, 1, 450), (3, 1, 950)],
        );
        catalog.backups = vec![backup(1, 1, 210, 250)];
        assert_eq!(
            shown(&catalog.windows(TimelineId(1)).unwrap()),
            [
                "1 from 0/280000 on 1: 000000010000000000000002 to 000000010000000000000006, 5 of them"
            ]
        );
        let second = catalog.windows(TimelineId(2)).unwrap();
        assert_eq!(
            shown(&second),
            [
                "1 from 0/280000 on 1: 000000010000000000000002 to 000000020000000000000005, 4 of them"
            ]
        );
        let timelines: Vec<u32> = second[0]
            .ranges
            .iter()
            .map(|range| range.timeline.0)
            .collect();
        assert_eq!(timelines, [1, 2]);
        assert_eq!(
            shown(&catalog.windows(TimelineId(3)).unwrap()),
            Vec::<String>::new(),
            "the way to timeline 3 is broken before it begins"
        );
    }
}
