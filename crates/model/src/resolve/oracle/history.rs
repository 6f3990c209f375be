//! Small random histories: records of a cluster, its backups, and what of them is archived.

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::Index;
use walden_pg::{Lsn, TimelineId};

use crate::catalog::Catalog;
use crate::index::Outcome;
use crate::records::{Snapshot, WalRange};
use crate::resolve::RecordSpan;
use crate::sample::{self, SEGMENT, backup};

/// Where the ids of a history begin: in the first epoch, shortly before it ends, and shortly before a later one does.
pub const FIRST_XIDS: [u64; 3] = [700, (1 << 32) - 60, (7 << 32) - 60];
pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Other,
    Checkpoint,
    End {
        outcome: Outcome,
        /// The transaction; of COMMIT PREPARED and ROLLBACK PREPARED the one that was prepared, by another that has no id.
        xid: u64,
        subxids: Vec<u64>,
        prepared: bool,
    },
    Point(&'static str),
}

#[derive(Debug, Clone)]
pub struct Record {
    pub span: RecordSpan,
    /// By a clock that jumps.
    pub time: Timestamp,
    pub kind: Kind,
    /// Transactions as a snapshot behind this record shows them.
    running: Vec<u64>,
    pub next_xid: u64,
}

/// What a record is made from: length, skipped rest of the segment, kind, clock's error in seconds, choices.
type Seed = (u64, bool, u8, i64, Index, u8);

fn seeds(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Seed>> {
    let seed = (
        prop_oneof![6 => 100..SEGMENT / 6, 1 => SEGMENT / 2..SEGMENT * 2],
        proptest::bool::weighted(0.05),
        0..14_u8,
        prop_oneof![3 => Just(0_i64), 1 => -40..40_i64],
        any::<Index>(),
        any::<u8>(),
    );
    proptest::collection::vec(seed, count)
}

/// A transaction that is under way.
#[derive(Debug, Clone)]
struct Running {
    /// The first of them is the top's.
    ids: Vec<u64>,
    prepared: bool,
}

#[derive(Debug, Clone)]
struct Clocks {
    at: u64,
    seconds: i64,
    next_xid: u64,
    running: Vec<Running>,
}

impl Clocks {
    fn record(&mut self, (length, skip, kind, error, which, more): Seed) -> Record {
        if skip {
            self.at = self.at.next_multiple_of(SEGMENT) + 40;
        }
        let span = RecordSpan {
            lsn: Lsn(self.at),
            end_lsn: Lsn(self.at + length),
        };
        self.at += length;
        self.seconds += 10;
        let subs = if more % 3 == 0 {
            u64::from(more % 5)
        } else {
            0
        };
        self.running.push(Running {
            ids: (self.next_xid..=self.next_xid + subs).collect(),
            prepared: false,
        });
        self.next_xid += 1 + subs;
        let mut end = |outcome| {
            let Running { ids, prepared } = self.running.remove(which.index(self.running.len()));
            Kind::End {
                outcome,
                xid: ids[0],
                subxids: ids[1..].to_vec(),
                prepared,
            }
        };
        let kind = match kind {
            0..=4 => end(Outcome::Commit),
            5..=6 => end(Outcome::Abort),
            7 => {
                // A subtransaction alone, if one is under way.
                let running = which.index(self.running.len());
                let running = &mut self.running[running];
                match running.ids.len() {
                    2.. if !running.prepared => Kind::End {
                        outcome: Outcome::Abort,
                        xid: running.ids.remove(1),
                        subxids: vec![],
                        prepared: false,
                    },
                    _ => Kind::Other,
                }
            }
            8 => Kind::Point(NAMES[usize::from(more) % NAMES.len()]),
            9 => Kind::Checkpoint,
            10..=11 => {
                let running = which.index(self.running.len());
                self.running[running].prepared = true;
                Kind::Other
            }
            _ => Kind::Other,
        };
        Record {
            span,
            time: sample::time(self.seconds + error),
            kind,
            running: self.running.iter().map(|running| running.ids[0]).collect(),
            next_xid: self.next_xid,
        }
    }
}

/// One history, or two of which the second left the first.
#[derive(Debug, Clone)]
pub struct World {
    pub catalog: Catalog,
    pub lines: BTreeMap<TimelineId, Vec<Record>>,
    pub fork: Option<Lsn>,
    pub first_xid: u64,
    /// How summaries are merged, and which segments have no index.
    pub blocks: Vec<u64>,
    pub unread: Vec<u64>,
}

prop_compose! {
    pub fn worlds()(
        first_xid in proptest::sample::select(&FIRST_XIDS),
        first in seeds(20..70),
        second in proptest::option::of((any::<Index>(), seeds(3..30))),
        backups in proptest::collection::vec((any::<Index>(), 1..6_usize, any::<bool>(), -15..15_i64, 0..3_usize), 1..5),
        holes in proptest::collection::vec((any::<bool>(), 0..20_u64), 0..2),
        cut in 0..2_u64,
        blocks in proptest::collection::vec(1..6_u64, 40),
        unread in proptest::collection::vec(0..20_u64, 0..4),
    ) -> World {
        let mut clocks = Clocks { at: 2 * SEGMENT + 40, seconds: 0, next_xid: first_xid, running: vec![] };
        let mut states = vec![];
        let mut line: Vec<Record> = first.into_iter().map(|seed| {
            let record = clocks.record(seed);
            states.push(clocks.clone());
            record
        }).collect();
        let mut lines = BTreeMap::new();
        let mut fork = None;
        let mut forks = vec![];
        let mut newer = None;
        if let Some((at, seeds)) = second {
            let at = at.index(line.len());
            let mut clocks = states[at].clone();
            let lsn = line[at].span.end_lsn;
            fork = Some(lsn);
            // What ran is gone, but for what was prepared.
            clocks.running.retain(|running| running.prepared);
            let own: Vec<Record> = seeds.into_iter().map(|seed| clocks.record(seed)).collect();
            newer = Some((at, own));
            forks.push(lsn);
        }
        // A backup ends with a record of its own.
        let mut records = vec![];
        for (number, (at, length, on_newer, error, late)) in (1_u32..).zip(backups) {
            let (timeline, own): (u32, &mut [Record]) = match &mut newer {
                Some((_, own)) if on_newer && own.len() > length => (2, own),
                _ => (1, &mut line),
            };
            let start = at.index(own.len() - length);
            let stop = start + length;
            // Its transaction then never ends, in this history.
            own[stop].kind = Kind::Other;
            let snapshot = &own[(stop + late).min(own.len() - 1)];
            let timeline = TimelineId(timeline);
            let mut record = backup(number, timeline.0, 0, 0);
            record.start_lsn = own[start].span.lsn;
            record.stop_lsn = own[stop].span.end_lsn;
            record.stopped_at = own[stop].time.checked_add(jiff::SignedDuration::from_secs(error.max(0))).unwrap();
            record.started_at = own[start].time;
            record.snapshot = Some(Snapshot {
                xmin: snapshot.running.iter().min().copied().unwrap_or(snapshot.next_xid),
                xmax: snapshot.next_xid,
                in_progress: snapshot.running.to_vec(),
            });
            record.wal_ranges = vec![WalRange { timeline, start: record.start_lsn, end: record.stop_lsn }];
            records.push(record);
        }
        if let Some((at, own)) = newer {
            let branch = line[..=at].iter().cloned().chain(own).collect();
            lines.insert(TimelineId(2), branch);
        }
        lines.insert(TimelineId(1), line);
        let segments = |timeline: u32, cut: u64| -> Vec<u64> {
            let line = &lines[&TimelineId(timeline)];
            let from = if timeline == 1 { 2 } else { fork.unwrap().0 / SEGMENT };
            let last = (line.last().unwrap().span.end_lsn.0 - 1) / SEGMENT;
            let hole = |number: &u64| holes.contains(&(timeline == 2, number - 2)) && *number != from && *number < last;
            (from..=last.saturating_sub(cut).max(from)).filter(|number| !hole(number)).collect()
        };
        let mut wal = vec![(1, segments(1, cut))];
        if fork.is_some() {
            wal.push((2, segments(2, cut)));
        }
        let borrowed: Vec<(u32, &[u64])> = wal.iter().map(|(timeline, segments)| (*timeline, segments.as_slice())).collect();
        let mut catalog = sample::catalog(&borrowed, &[]);
        if let Some(fork) = fork {
            let entry = walden_pg::history::HistoryEntry { timeline: TimelineId(1), switch: fork, reason: String::new() };
            let history = walden_pg::history::TimelineHistory { timeline: TimelineId(2), entries: vec![entry] };
            catalog.histories.insert(TimelineId(2), history);
        }
        catalog.backups = records;
        World { catalog, lines, fork, first_xid, blocks, unread }
    }
}
