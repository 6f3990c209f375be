//! Roll-ups: what 256 or 65,536 consecutive segments of a timeline say, in one object (docs/FORMAT.md, "Roll-ups"). Derived from the
//! segments' indexes: one that is missing, damaged or of another version only costs time.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use walden_pg::{SegmentName, TimelineId, WalSegmentSize};

use crate::coverage::TimelineWal;
use crate::index::Summary;
use crate::records::SegmentRange;

/// The version of the roll-ups that this program writes. It stands in their keys: one of another version is as good as none.
pub const ROLLUP_VERSION: u32 = 1;

/// Bytes of content that a roll-up has at most; a larger one is neither written nor read.
pub const MAX_ROLLUP: usize = 32 << 20;

/// Parts of a roll-up.
const PARTS: u64 = 256;

/// How much a roll-up holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// 256 segments, one summary for each.
    One,
    /// 65,536 segments, one summary for each 256.
    Two,
}

impl Level {
    /// Both, the coarser first.
    pub const COARSEST_FIRST: [Self; 2] = [Self::Two, Self::One];

    /// As it stands in keys.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// The level of this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::COARSEST_FIRST
            .into_iter()
            .find(|level| level.number() == number)
    }

    /// How many segments a roll-up of this level speaks of.
    #[must_use]
    pub fn segments(self) -> u64 {
        PARTS * self.part()
    }

    /// How many segments each of its summaries speaks of.
    #[must_use]
    pub fn part(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Two => PARTS,
        }
    }

    /// The next finer level.
    #[must_use]
    pub fn finer(self) -> Option<Self> {
        match self {
            Self::One => None,
            Self::Two => Some(Self::One),
        }
    }
}

/// The segments of one roll-up: as many as its level says, of one timeline, from a multiple of that on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// The level.
    pub level: Level,
    /// The timeline.
    pub timeline: TimelineId,
    /// The first segment's number.
    pub first: u64,
}

impl Block {
    /// The block of the roll-up whose key names this level and this first segment; `None` where no block begins with it.
    #[must_use]
    pub fn named(level: Level, first: SegmentName, size: WalSegmentSize) -> Option<Self> {
        let number = first.number(size)?;
        number.is_multiple_of(level.segments()).then_some(Self {
            level,
            timeline: first.timeline,
            first: number,
        })
    }

    /// The segments' numbers.
    #[must_use]
    pub fn segments(&self) -> RangeInclusive<u64> {
        self.first..=self.first.saturating_add(self.level.segments() - 1)
    }

    /// The same, with their timeline.
    #[must_use]
    pub fn range(&self) -> SegmentRange {
        let segments = self.segments();
        SegmentRange {
            timeline: self.timeline,
            first: *segments.start(),
            last: *segments.end(),
        }
    }

    /// The first segment's name.
    #[must_use]
    pub fn name(&self, size: WalSegmentSize) -> SegmentName {
        SegmentName::from_number(self.timeline, self.first, size)
    }

    /// The whole blocks of a level within a range.
    pub fn within(range: SegmentRange, level: Level) -> impl DoubleEndedIterator<Item = Self> {
        let width = level.segments();
        let first = range.first.div_ceil(width);
        let end = range.last.saturating_add(1) / width;
        (first..end).map(move |block| Self {
            level,
            timeline: range.timeline,
            first: block * width,
        })
    }
}

/// A roll-up's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollUp {
    /// Whose segments.
    pub block: Block,
    /// Stored bytes of these segments together: others under the same names would hardly have as many.
    pub stored: u64,
    /// What they say, in order. The record that begins in the last of them and goes on in the next segment counts.
    pub parts: Vec<Summary>,
}

/// The first line of a roll-up; the others are its summaries.
#[derive(Serialize, Deserialize)]
struct Lead {
    version: u32,
    level: u32,
    timeline: TimelineId,
    first: u64,
    stored: u64,
}

impl RollUp {
    /// The content's lines, each with its end.
    ///
    /// # Errors
    /// What JSON cannot hold; no roll-up has such values.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let lead = Lead {
            version: ROLLUP_VERSION,
            level: self.block.level.number(),
            timeline: self.block.timeline,
            first: self.block.first,
            stored: self.stored,
        };
        let mut content = serde_json::to_vec(&lead)?;
        content.push(b'\n');
        for part in &self.parts {
            serde_json::to_writer(&mut content, part)?;
            content.push(b'\n');
        }
        Ok(content)
    }

    /// Reads the content of this block's roll-up; `None` where it is anything else, or does not add up.
    #[must_use]
    pub fn decode(content: &[u8], block: Block) -> Option<Self> {
        let mut lines = content.strip_suffix(b"\n")?.split(|byte| *byte == b'\n');
        let lead: Lead = serde_json::from_slice(lines.next()?).ok()?;
        let fits = lead.version == ROLLUP_VERSION
            && Level::from_number(lead.level) == Some(block.level)
            && lead.timeline == block.timeline
            && lead.first == block.first;
        if !fits {
            return None;
        }
        let mut parts: Vec<Summary> = Vec::new();
        let mut next = block.first;
        for line in lines {
            let part: Summary = serde_json::from_slice(line).ok()?;
            let segments = part.last.checked_sub(part.first)?.checked_add(1)?;
            if part.first != next || segments != block.level.part() || !part.unread_fits() {
                return None;
            }
            next = part.last.checked_add(1)?;
            parts.push(part);
        }
        (next.checked_sub(block.first)? == block.level.segments()).then_some(Self {
            block,
            stored: lead.stored,
            parts,
        })
    }

    /// All parts in one.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        let (first, rest) = self.parts.split_first()?;
        Some(
            rest.iter()
                .fold(first.clone(), |whole, part| whole.merge(part)),
        )
    }
}

impl Summary {
    /// Whether the segments it names as unread are its own.
    fn unread_fits(&self) -> bool {
        self.unread
            .iter()
            .chain(&self.breaks)
            .all(|number| (self.first..=self.last).contains(number))
    }
}

/// The roll-ups that may be believed: the listing has them, and every segment of which they speak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RollUps {
    /// Stored bytes of their segments, by block.
    known: BTreeMap<Block, u64>,
}

impl RollUps {
    /// Those among `listed` whose segments are all archived, and none of them in conflict.
    #[must_use]
    pub fn new(
        listed: impl IntoIterator<Item = Block>,
        wal: &BTreeMap<TimelineId, TimelineWal>,
    ) -> Self {
        let runs: BTreeMap<TimelineId, Vec<RangeInclusive<u64>>> = wal
            .iter()
            .map(|(timeline, wal)| (*timeline, wal.runs()))
            .collect();
        let known = listed.into_iter().filter_map(|block| {
            let runs = runs.get(&block.timeline)?;
            let segments = block.segments();
            let at = runs.partition_point(|run| run.end() < segments.end());
            let whole = runs.get(at)?.contains(segments.start());
            let stored = wal.get(&block.timeline)?.stored_bytes(segments);
            whole.then_some((block, stored))
        });
        Self {
            known: known.collect(),
        }
    }

    /// Those that any of several repositories has.
    #[must_use]
    pub fn of_any<'a>(repositories: impl IntoIterator<Item = &'a Self>) -> Self {
        let known = repositories.into_iter().flat_map(|one| &one.known);
        Self {
            known: known.map(|(block, stored)| (*block, *stored)).collect(),
        }
    }

    /// Stored bytes of the block's segments, if it has a roll-up.
    #[must_use]
    pub fn stored(&self, block: Block) -> Option<u64> {
        self.known.get(&block).copied()
    }

    /// How to read what these segments say with the fewest objects: roll-ups up to `coarsest` where there are any, and the rest one by one.
    #[must_use]
    pub fn pieces(&self, range: SegmentRange, coarsest: Option<Level>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        self.push_pieces(range, coarsest, &mut pieces);
        pieces
    }

    fn push_pieces(&self, range: SegmentRange, level: Option<Level>, pieces: &mut Vec<Piece>) {
        let Some(level) = level else {
            match pieces.last_mut() {
                Some(Piece::Segments(last))
                    if last.timeline == range.timeline
                        && last.last.checked_add(1) == Some(range.first) =>
                {
                    last.last = range.last;
                }
                _ => pieces.push(Piece::Segments(range)),
            }
            return;
        };
        let mut next = range.first;
        for block in Block::within(range, level).filter(|block| self.known.contains_key(block)) {
            if next < block.first {
                let before = SegmentRange {
                    first: next,
                    last: block.first - 1,
                    ..range
                };
                self.push_pieces(before, level.finer(), pieces);
            }
            pieces.push(Piece::RollUp(block));
            match block.segments().end().checked_add(1) {
                Some(behind) => next = behind,
                None => return,
            }
        }
        if next <= range.last {
            let rest = SegmentRange {
                first: next,
                ..range
            };
            self.push_pieces(rest, level.finer(), pieces);
        }
    }
}

/// What is read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// A roll-up.
    RollUp(Block),
    /// Segments, each by itself.
    Segments(SegmentRange),
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;

    const ONE: TimelineId = TimelineId(1);

    fn range(first: u64, last: u64) -> SegmentRange {
        SegmentRange {
            timeline: ONE,
            first,
            last,
        }
    }

    fn block(level: Level, first: u64) -> Block {
        Block {
            level,
            timeline: ONE,
            first,
        }
    }

    fn wal(runs: &[RangeInclusive<u64>]) -> BTreeMap<TimelineId, TimelineWal> {
        let segments = runs.iter().cloned().flatten().map(|number| (number, 10));
        let wal = TimelineWal {
            segments: segments.collect(),
            ..TimelineWal::default()
        };
        [(ONE, wal)].into()
    }

    fn roll_up(first: u64) -> RollUp {
        RollUp {
            block: block(Level::One, first),
            stored: 2560,
            parts: (first..first + 256).map(Summary::unread).collect(),
        }
    }

    #[test]
    fn a_roll_up_reads_as_it_was_written_and_only_as_its_own_block() {
        let written = roll_up(512);
        let content = written.encode().unwrap();
        assert_eq!(
            RollUp::decode(&content, written.block),
            Some(written.clone())
        );
        for other in [
            block(Level::One, 256),
            block(Level::Two, 0),
            Block {
                timeline: TimelineId(2),
                ..written.block
            },
        ] {
            assert_eq!(
                RollUp::decode(&content, other),
                None,
                "expected {other:?} to be refused"
            );
        }
        let whole = written.summary().unwrap();
        assert_eq!((whole.first, whole.last), (512, 767));
        assert_eq!(whole.unread.len(), 256);
    }

    #[test]
    fn a_roll_up_that_does_not_add_up_is_none() {
        let whole = roll_up(0);
        let mut short = whole.clone();
        short.parts.pop();
        let mut double = whole.clone();
        double.parts[7] = double.parts[6].clone();
        let mut foreign = whole.clone();
        foreign.parts[3].unread = vec![4000];
        for wrong in [short, double, foreign] {
            let content = wrong.encode().unwrap();
            assert_eq!(RollUp::decode(&content, whole.block), None);
        }
        let newer = String::from_utf8(whole.encode().unwrap())
            .unwrap()
            .replacen("\"version\":1", "\"version\":2", 1);
        assert_eq!(RollUp::decode(newer.as_bytes(), whole.block), None);
    }

    #[test]
    fn a_roll_up_is_believed_only_where_all_its_segments_are_archived() {
        let listed = [
            block(Level::One, 0),
            block(Level::One, 256),
            block(Level::One, 512),
        ];
        let mut archived = wal(&[10..=600]);
        assert_eq!(
            RollUps::new(listed, &archived).known,
            [(listed[1], 2560)].into(),
            "the first begins below what is kept, the last is not whole"
        );
        archived.get_mut(&ONE).unwrap().conflicts.insert(300);
        assert_eq!(RollUps::new(listed, &archived), RollUps::default());
    }

    #[test]
    fn the_coarsest_pieces_are_taken() {
        let listed = [
            block(Level::Two, 65_536),
            block(Level::One, 65_536),
            block(Level::One, 65_280),
            block(Level::One, 131_072),
        ];
        let known = RollUps::new(listed, &wal(&[0..=140_000]));
        assert_eq!(
            known.pieces(range(65_000, 131_400), Some(Level::Two)),
            [
                Piece::Segments(range(65_000, 65_279)),
                Piece::RollUp(listed[2]),
                Piece::RollUp(listed[0]),
                Piece::RollUp(listed[3]),
                Piece::Segments(range(131_328, 131_400)),
            ]
        );
        assert_eq!(
            known.pieces(range(65_536, 131_071), Some(Level::One)),
            [
                Piece::RollUp(listed[1]),
                Piece::Segments(range(65_792, 131_071))
            ]
        );
    }

    proptest! {
        #[test]
        fn pieces_are_the_range_without_hole_or_overlap(
            first in 0..200_000_u64,
            length in 0..200_000_u64,
            blocks in prop::collection::btree_set((any::<bool>(), 0..1600_u64), 0..40),
        ) {
            let listed: Vec<Block> = blocks
                .into_iter()
                .map(|(two, at)| match two {
                    true => block(Level::Two, at % 7 * 65_536),
                    false => block(Level::One, at * 256),
                })
                .collect();
            let known = RollUps { known: listed.iter().map(|block| (*block, 0)).collect() };
            let asked = range(first, first + length);
            let mut next = first;
            for piece in known.pieces(asked, Some(Level::Two)) {
                let covered = match piece {
                    Piece::RollUp(block) => {
                        prop_assert!(listed.contains(&block), "{block:?} is not listed");
                        block.range()
                    }
                    Piece::Segments(range) => range,
                };
                prop_assert_eq!(covered.first, next);
                prop_assert!(covered.last >= covered.first);
                next = covered.last + 1;
            }
            prop_assert_eq!(next, asked.last + 1);
        }
    }
}
