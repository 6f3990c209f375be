//! Servers made up, of which everything is known.

use proptest::prelude::*;
use walden_pg::history::HistoryEntry;
use walden_pg::{SystemIdentifier, WalSegmentSize};

use super::*;
use crate::coverage::TimelineWal;
use crate::records::RandomId;

const SIZE: u64 = 1 << 20;
const SYSTEM: SystemIdentifier = SystemIdentifier(7_000_000_000_000_000_001);

fn size() -> WalSegmentSize {
    WalSegmentSize::new(SIZE).unwrap()
}

fn name(timeline: u32, number: u64) -> SegmentName {
    SegmentName::from_number(TimelineId(timeline), number, size())
}

fn page(timeline: u32, address: u64) -> Option<LongPageHeader> {
    Some(LongPageHeader {
        magic: 0xD116,
        info: 2,
        timeline: TimelineId(timeline),
        page_address: Lsn(address),
        remaining: 0,
        system_identifier: SYSTEM,
        segment_size: SIZE as u32,
        block_size: 8192,
    })
}

fn catalog() -> Catalog {
    let cluster = "main".parse().unwrap();
    Catalog::empty(cluster, SYSTEM, RandomId([1; 16]), size())
}

fn history(timeline: u32, forks: &[u64]) -> TimelineHistory {
    let entries = (1..timeline).zip(forks);
    TimelineHistory {
        timeline: TimelineId(timeline),
        entries: entries
            .map(|(parent, fork)| HistoryEntry {
                timeline: TimelineId(parent),
                switch: Lsn(*fork),
                reason: "no recovery target specified".to_owned(),
            })
            .collect(),
    }
}

/// A server that was promoted at each of the forks and has written up to `end`.
#[derive(Debug)]
struct Server {
    forks: Vec<u64>,
    end: u64,
    local: LocalWal,
}

impl Server {
    fn new(forks: Vec<u64>, end: u64, control: u32) -> Self {
        let mut server = Self {
            local: LocalWal {
                timeline: TimelineId(control),
                files: BTreeMap::new(),
                histories: BTreeMap::new(),
            },
            forks,
            end,
        };
        for timeline in 1..=server.timeline() {
            let (begin, end) = server.span(timeline);
            for number in begin / SIZE..=end / SIZE {
                server.put(timeline, number, server.owner(number * SIZE), number * SIZE);
            }
            if timeline > 1 {
                let history = history(timeline, &server.forks);
                let timeline = history.timeline;
                server
                    .local
                    .files
                    .insert(WalFileName::History(timeline), None);
                server.local.histories.insert(timeline, history);
            }
        }
        server
    }

    fn timeline(&self) -> u32 {
        self.forks.len() as u32 + 1
    }

    fn span(&self, timeline: u32) -> (u64, u64) {
        let at = timeline as usize - 1;
        let begin = at
            .checked_sub(1)
            .map_or(3 * SIZE, |before| self.forks[before]);
        (begin, self.forks.get(at).copied().unwrap_or(self.end))
    }

    /// The timeline that an address belongs to.
    fn owner(&self, address: u64) -> u32 {
        1 + self.forks.iter().filter(|fork| **fork <= address).count() as u32
    }

    fn put(&mut self, timeline: u32, number: u64, owner: u32, address: u64) {
        let file = WalFileName::Segment(name(timeline, number));
        self.local.files.insert(file, page(owner, address));
    }

    /// The segments that will never change.
    fn finished(&self) -> BTreeSet<SegmentName> {
        (1..=self.timeline())
            .flat_map(|timeline| {
                let (begin, end) = self.span(timeline);
                (begin / SIZE..end / SIZE).map(move |number| name(timeline, number))
            })
            .collect()
    }
}

fn server() -> impl Strategy<Value = Server> {
    let step = prop_oneof![Just(SIZE), 1..4 * SIZE];
    let steps = prop::collection::vec(step, 1..5);
    (steps, any::<prop::sample::Index>()).prop_map(|(steps, control)| {
        let mut at = 5 * SIZE;
        let mut ends: Vec<u64> = steps
            .into_iter()
            .map(|step| {
                at += step;
                at
            })
            .collect();
        let end = ends.pop().unwrap();
        let control = control.index(ends.len() + 1) as u32 + 1;
        Server::new(ends, end, control)
    })
}

fn missing(plan: &UnarchivedPlan) -> BTreeSet<SegmentName> {
    let missing = plan.files.iter().filter(|(_, fate)| *fate == Fate::Missing);
    missing
        .filter_map(|(file, _)| match file {
            WalFileName::Segment(name) => Some(*name),
            _ => None,
        })
        .collect()
}

proptest! {
    #[test]
    fn what_is_finished_and_not_archived_is_missing_and_nothing_else(
        mut server in server(),
        archived in prop::collection::vec(any::<bool>(), 40),
        removed in prop::collection::vec(any::<bool>(), 40),
        recycled in 0_u64..4,
    ) {
        let timeline = server.timeline();
        let newest = server.end / SIZE;
        // Recycled under later names: of earlier addresses, of the parent under the same number, and without any page.
        for ahead in 1..=recycled {
            let number = newest + ahead;
            server.put(timeline, number, timeline, (number - 2) * SIZE);
            if timeline > 1 {
                server.put(timeline, number + 1, timeline - 1, (number + 1) * SIZE);
            }
        }
        server.local.files.insert(WalFileName::Segment(name(timeline, newest + 9)), None);
        // What a parent wrote behind the fork, and a timeline of somebody else's.
        if timeline > 1 {
            let (begin, _) = server.span(timeline);
            server.put(timeline - 1, begin / SIZE + 1, timeline - 1, (begin / SIZE + 1) * SIZE);
        }
        server.put(timeline + 1, newest, timeline, newest * SIZE);

        let finished = server.finished();
        let mut expected = BTreeSet::new();
        let mut catalog = catalog();
        for ((segment, archived), removed) in finished.iter().zip(archived).zip(removed) {
            let file = WalFileName::Segment(*segment);
            if archived {
                let wal: &mut TimelineWal = catalog.wal.entry(segment.timeline).or_default();
                wal.segments.insert(segment.number(size()).unwrap(), 100);
            }
            if removed {
                server.local.files.remove(&file);
            } else if !archived {
                expected.insert(*segment);
            }
        }
        let plan = UnarchivedPlan::build(&server.local, &catalog).unwrap();
        prop_assert_eq!(plan.timeline, TimelineId(timeline));
        prop_assert_eq!(missing(&plan), expected.clone());
        // Every finished segment behind the first that is known is archived, here, or in a gap.
        let known = |segment: &SegmentName| expected.contains(segment) || catalog.wal.get(&segment.timeline)
            .is_some_and(|wal| wal.segments.contains_key(&segment.number(size()).unwrap()));
        let mut behind: Vec<_> = finished.iter().collect();
        behind.sort_by_key(|segment| segment.number(size()));
        let lost: Vec<SegmentName> = behind.iter().skip_while(|segment| !known(segment))
            .filter(|segment| !known(segment)).map(|segment| **segment).collect();
        let told: Vec<SegmentName> = plan.gaps.iter()
            .flat_map(|gap| (gap.first..=gap.last).map(|number| name(gap.timeline.0, number))).collect();
        prop_assert_eq!(told, lost);
    }
}

fn fates(plan: &UnarchivedPlan) -> Vec<(String, Fate)> {
    let fates = plan.files.iter();
    fates
        .map(|(file, fate)| (file.to_string(), *fate))
        .collect()
}

#[test]
fn nothing_is_added_where_two_servers_have_written() {
    let server = Server::new(vec![], 10 * SIZE + 5, 1);
    let mut catalog = catalog();
    // Segments 3 to 9 are finished. 3, 5 and 8 are archived, 8 by another server.
    let wal = catalog.wal.entry(TimelineId(1)).or_default();
    wal.segments = [3, 5, 8].map(|number| (number, 100)).into();
    let plan = UnarchivedPlan::build(&server.local, &catalog).unwrap();
    let conflict = WalFileName::Segment(name(1, 8));
    let compared = plan
        .to_compare()
        .map(|file| match file == conflict {
            true => (file, Compared::Different),
            false => (file, Compared::Same),
        })
        .collect();
    let withheld = Fate::Withheld { because: conflict };
    let expected = [
        (3, Fate::Archived),
        (4, Fate::Missing),
        (5, Fate::Archived),
        (6, withheld),
        (7, withheld),
        (8, Fate::Conflict),
        (9, withheld),
        (10, Fate::Unfinished),
    ];
    assert_eq!(
        fates(&plan.compared(&compared)),
        expected.map(|(number, fate)| (name(1, number).to_string(), fate)),
        "what both have in common at last is 5, and 8 differs: 6 and 7 may be of either"
    );
}

#[test]
fn a_history_in_conflict_withholds_its_timeline() {
    let server = Server::new(vec![6 * SIZE + 7], 9 * SIZE, 2);
    let mut catalog = catalog();
    let theirs = history(2, &[7 * SIZE]);
    catalog.histories.insert(TimelineId(2), theirs);
    let plan = UnarchivedPlan::build(&server.local, &catalog).unwrap();
    let file = WalFileName::History(TimelineId(2));
    let plan = plan.compared(&[(file, Compared::Different)].into());
    let numbers: Vec<_> = missing(&plan).into_iter().collect();
    assert_eq!(
        numbers,
        [3, 4, 5].map(|number| name(1, number)),
        "of timeline 2 nothing is pushed: the archived one is another server's"
    );
}

#[test]
fn without_its_history_nobody_knows_the_way_to_a_timeline() {
    let mut server = Server::new(vec![6 * SIZE + 7], 9 * SIZE, 2);
    server.local.histories.clear();
    assert_eq!(
        UnarchivedPlan::build(&server.local, &catalog()),
        Err(UnknownTimeline(TimelineId(2)))
    );
    let mut catalog = catalog();
    let archived = history(2, &server.forks);
    catalog.histories.insert(TimelineId(2), archived);
    let plan = UnarchivedPlan::build(&server.local, &catalog).unwrap();
    assert_eq!(
        missing(&plan),
        server.finished(),
        "the archive knows it, too"
    );
}
