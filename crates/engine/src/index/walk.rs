//! What consecutive segments say, in order and with as few requests as roll-ups allow.

use std::sync::Arc;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt, future};
use walden_model::index::{Crossing, SegmentIndex, Summary, crossing};
use walden_model::{Block, Level, Piece, RollUps, SegmentRange};
use walden_pg::{SegmentName, WalSegmentSize};

use super::{Indexes, LANES};
use crate::repository::RepositoryError;

/// Segments behind its own into which one record is followed by the indexes alone.
pub(super) const MOST_FOLLOWED: usize = 64;

/// Summaries, or why they end early.
pub type Summaries<'a> = BoxStream<'a, Result<Summary, RepositoryError>>;

/// Consecutive segments along a path, on which a record may go on from one into the next.
#[derive(Debug)]
pub(super) struct Route {
    ranges: Vec<SegmentRange>,
    size: WalSegmentSize,
}

impl Route {
    pub(super) fn name(&self, number: u64) -> Option<SegmentName> {
        let range = self
            .ranges
            .iter()
            .find(|range| (range.first..=range.last).contains(&number))?;
        Some(SegmentName::from_number(range.timeline, number, self.size))
    }

    /// The names of the segments behind this one.
    pub(super) fn behind(&self, number: u64) -> impl Iterator<Item = SegmentName> {
        (1..)
            .map_while(move |next| number.checked_add(next))
            .map_while(|number| self.name(number))
    }

    /// The route without its last `count` segments, and these.
    pub(super) fn split(&self, count: u64) -> (Vec<SegmentRange>, Vec<SegmentRange>) {
        let last = self.ranges.last().map_or(0, |range| range.last);
        match last.checked_sub(count) {
            Some(early) => (self.part(0, early), self.part(early + 1, last)),
            None => (Vec::new(), self.ranges.clone()),
        }
    }

    /// Whether the route goes on behind this segment on another timeline, or not at all.
    fn turns_behind(&self, number: u64) -> bool {
        self.ranges.iter().any(|range| range.last == number)
    }

    /// How to read a range of the route. A roll-up may tell of a record that goes on behind its last segment on the same timeline: where the
    /// route does not lead there, it says too much.
    fn pieces(
        &self,
        roll_ups: &RollUps,
        range: SegmentRange,
        coarsest: Option<Level>,
    ) -> Vec<Piece> {
        let before = range.last.checked_sub(1);
        match before.filter(|_| self.turns_behind(range.last)) {
            None => roll_ups.pieces(range, coarsest),
            Some(last) => {
                let mut pieces = match range.first <= last {
                    true => roll_ups.pieces(SegmentRange { last, ..range }, coarsest),
                    false => Vec::new(),
                };
                let first = range.last;
                pieces.push(Piece::Segments(SegmentRange { first, ..range }));
                pieces
            }
        }
    }

    /// The part of the route that leads through these segments.
    fn part(&self, first: u64, last: u64) -> Vec<SegmentRange> {
        let cut = self.ranges.iter().map(|range| SegmentRange {
            timeline: range.timeline,
            first: range.first.max(first),
            last: range.last.min(last),
        });
        cut.filter(|range| range.first <= range.last).collect()
    }
}

/// In which order to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Back,
}

enum Step {
    RollUp(Block),
    Segment(u64, SegmentName),
}

#[expect(
    clippy::large_enum_variant,
    reason = "few are held at a time, and most are of the large kind"
)]
enum Fetched {
    RollUp(Summary),
    /// One that cannot be used.
    NoRollUp(Block),
    Tail(u64, Option<SegmentIndex>),
}

impl Indexes<'_> {
    /// What these consecutive segments say, in WAL order, in summaries of 65,536, 256 and single segments, as roll-ups have it. Each holds
    /// the record, too, that begins in its last segment and goes on in the next of `ranges`: nothing is lost at their edges. Of segments
    /// that it names as unread, [`Self::detail`] tells more.
    pub fn summaries(&self, ranges: Vec<SegmentRange>) -> Summaries<'_> {
        let route = self.route(ranges);
        let all = route.ranges.clone();
        self.walk(route, all, Some(Level::Two), Direction::Forward)
    }

    /// As [`Self::summaries`], the last first.
    pub fn summaries_back(&self, ranges: Vec<SegmentRange>) -> Summaries<'_> {
        let route = self.route(ranges);
        let all = route.ranges.clone();
        self.walk(route, all, Some(Level::Two), Direction::Back)
    }

    /// A closer look at a summary of more than one segment that came from these `ranges`: the next finer ones, in WAL order.
    pub fn within(&self, ranges: Vec<SegmentRange>, summary: &Summary) -> Summaries<'_> {
        self.closer(self.route(ranges), summary, Direction::Forward)
    }

    pub(super) fn route(&self, ranges: Vec<SegmentRange>) -> Arc<Route> {
        Arc::new(Route {
            ranges,
            size: self.catalog.segment_size,
        })
    }

    pub(super) fn closer(
        &self,
        route: Arc<Route>,
        summary: &Summary,
        direction: Direction,
    ) -> Summaries<'_> {
        let part = route.part(summary.first, summary.last);
        let finer = (summary.last - summary.first >= Level::One.segments()).then_some(Level::One);
        self.walk(route, part, finer, direction)
    }

    /// The summaries of `part` of the route, up to a level of roll-ups.
    pub(super) fn walk(
        &self,
        route: Arc<Route>,
        part: Vec<SegmentRange>,
        coarsest: Option<Level>,
        direction: Direction,
    ) -> Summaries<'_> {
        let reaches = |range: &SegmentRange| range.last - range.first + 1 >= Level::One.segments();
        let coarsest = coarsest.filter(|_| part.iter().any(reaches));
        let way = route.clone();
        let fetched = async move {
            let pieces = match coarsest {
                None => part.into_iter().map(Piece::Segments).collect(),
                Some(_) => {
                    let roll_ups = &self.roll_ups().await?.all;
                    let pieces = part
                        .into_iter()
                        .flat_map(|range| way.pieces(roll_ups, range, coarsest));
                    pieces.collect()
                }
            };
            Ok(self.fetched(pieces, direction))
        };
        let fetched = stream::once(fetched).try_flatten().boxed();
        let walk = Walk {
            indexes: self,
            route,
            fetched,
            neighbour: None,
            ready: None,
        };
        stream::try_unfold(walk, move |mut walk| async move {
            let next = match direction {
                Direction::Forward => walk.forward().await?,
                Direction::Back => walk.back().await?,
            };
            Ok(next.map(|summary| (summary, walk)))
        })
        .boxed()
    }

    fn fetched(
        &self,
        pieces: Vec<Piece>,
        direction: Direction,
    ) -> BoxStream<'_, Result<Fetched, RepositoryError>> {
        stream::iter(self.steps(pieces, direction))
            .map(move |step| self.fetch(step, direction))
            .buffered(LANES)
            .map(move |fetched| match fetched {
                Ok(Fetched::NoRollUp(block)) => {
                    let known = self.roll_ups.get();
                    let finer = known.map_or_else(
                        || vec![Piece::Segments(block.range())],
                        |known| known.all.pieces(block.range(), block.level.finer()),
                    );
                    self.fetched(finer, direction).left_stream()
                }
                other => stream::once(future::ready(other)).right_stream(),
            })
            .flatten()
            .boxed()
    }

    fn steps(
        &self,
        mut pieces: Vec<Piece>,
        direction: Direction,
    ) -> impl Iterator<Item = Step> + Send + use<> {
        let size = self.catalog.segment_size;
        if direction == Direction::Back {
            pieces.reverse();
        }
        pieces.into_iter().flat_map(move |piece| {
            let (roll_up, range) = match piece {
                Piece::RollUp(block) => (Some(Step::RollUp(block)), None),
                Piece::Segments(range) => (None, Some(range)),
            };
            let segments = range.into_iter().flat_map(move |range| {
                let count = range.last - range.first;
                (0..=count).map(move |at| {
                    let number = match direction {
                        Direction::Forward => range.first + at,
                        Direction::Back => range.last - at,
                    };
                    let name = SegmentName::from_number(range.timeline, number, size);
                    Step::Segment(number, name)
                })
            });
            roll_up.into_iter().chain(segments)
        })
    }

    async fn fetch(&self, step: Step, direction: Direction) -> Result<Fetched, RepositoryError> {
        match step {
            Step::Segment(number, name) if self.is_sealed(name.timeline, number, direction) => {
                Ok(Fetched::Tail(number, None))
            }
            Step::RollUp(block)
                if self.is_sealed(block.timeline, block.range().first, direction) =>
            {
                Ok(Fetched::NoRollUp(block))
            }
            Step::Segment(number, name) => Ok(Fetched::Tail(number, self.segment(name).await?)),
            Step::RollUp(block) => {
                let roll_up = self.roll_up(block).await?;
                let summary = roll_up.and_then(|roll_up| roll_up.summary());
                Ok(summary.map_or(Fetched::NoRollUp(block), Fetched::RollUp))
            }
        }
    }

    /// The summary of one segment, with the record that goes on in the next. `next`: that one's index, if it was read.
    pub(super) async fn close(
        &self,
        route: &Route,
        number: u64,
        index: Option<SegmentIndex>,
        next: Option<Option<SegmentIndex>>,
    ) -> Result<Summary, RepositoryError> {
        let Some(mut index) = index else {
            return Ok(Summary::unread(number));
        };
        let mut known = next;
        let mut following: Vec<SegmentIndex> = Vec::new();
        let (mut untold, mut broken) = (false, false);
        if index.tail.is_some() {
            // Where the archive ends the record never becomes whole.
            for name in route.behind(number) {
                let next = match known.take() {
                    Some(next) => next,
                    None => self.segment(name).await?,
                };
                let Some(next) = next else {
                    untold = true;
                    break;
                };
                following.push(next);
                let following: Vec<_> = following.iter().collect();
                match crossing(&index, &following) {
                    Crossing::GoesOn if following.len() < MOST_FOLLOWED => {}
                    Crossing::GoesOn | Crossing::NeedsSegments => {
                        untold = true;
                        break;
                    }
                    said => {
                        broken = said == Crossing::Damaged;
                        index.absorb(&said);
                        break;
                    }
                }
            }
        }
        let mut summary = Summary::of(number, &index);
        if untold && summary.unread.is_empty() {
            summary.unread.push(number);
        }
        if broken && summary.breaks.is_empty() {
            summary.breaks.push(number);
        }
        Ok(summary)
    }
}

/// Makes summaries of what is fetched.
struct Walk<'a> {
    indexes: &'a Indexes<'a>,
    route: Arc<Route>,
    fetched: BoxStream<'a, Result<Fetched, RepositoryError>>,
    /// Forward: the segment whose record may go on in the one that comes. Back: the one that was read before.
    neighbour: Option<(u64, Option<SegmentIndex>)>,
    /// What was read and comes after the neighbour.
    ready: Option<Summary>,
}

impl Walk<'_> {
    async fn forward(&mut self) -> Result<Option<Summary>, RepositoryError> {
        if let Some(summary) = self.ready.take() {
            return Ok(Some(summary));
        }
        loop {
            let fetched = self.fetched.next().await.transpose()?;
            let held = self.neighbour.take();
            let next = match fetched {
                Some(Fetched::Tail(number, index)) => {
                    let before = held.as_ref().map(|(held, _)| *held);
                    let follows = before.and_then(|before| before.checked_add(1)) == Some(number);
                    let next = follows.then(|| index.clone());
                    self.neighbour = Some((number, index));
                    next
                }
                Some(Fetched::RollUp(summary)) => {
                    if held.is_none() {
                        return Ok(Some(summary));
                    }
                    self.ready = Some(summary);
                    None
                }
                Some(Fetched::NoRollUp(_)) => None,
                None if held.is_none() => return Ok(None),
                None => None,
            };
            if let Some((number, index)) = held {
                let closed = self.indexes.close(&self.route, number, index, next).await?;
                return Ok(Some(closed));
            }
        }
    }

    async fn back(&mut self) -> Result<Option<Summary>, RepositoryError> {
        let later = self.neighbour.take();
        match self.fetched.next().await.transpose()? {
            Some(Fetched::Tail(number, index)) => {
                let follows =
                    |later: &u64| number.checked_add(1).is_some_and(|next| next == *later);
                let next = later.and_then(|(later, index)| follows(&later).then_some(index));
                self.neighbour = Some((number, index.clone()));
                let closed = self.indexes.close(&self.route, number, index, next).await?;
                Ok(Some(closed))
            }
            Some(Fetched::RollUp(summary)) => Ok(Some(summary)),
            Some(Fetched::NoRollUp(_)) | None => Ok(None),
        }
    }
}
