//! The last commit of an unbroken run of segments.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use walden_model::index::{End, Summary};
use walden_model::{Level, SegmentRange};
use walden_pg::Lsn;

use super::walk::{Direction, Route};
use super::{Indexes, unless_unusable};
use crate::repository::RepositoryError;

/// Segments without an index that are read in full, at most, to find one commit.
const MOST_READ: usize = 8;

/// Segments at the end of a run that are looked into before roll-ups are asked for.
const LATE: u64 = 16;

/// The last commit of a run of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastCommit {
    /// This one.
    Known(End),
    /// No transaction committed in it.
    None,
    /// Segments without an index stand before it is found, too many to be read, or damaged ones.
    Unknown,
}

impl LastCommit {
    /// The commit, if it is known and there is one.
    #[must_use]
    pub fn known(self) -> Option<End> {
        match self {
            Self::Known(end) => Some(end),
            Self::None | Self::Unknown => None,
        }
    }
}

/// Where a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunEnd {
    /// The last commit in it.
    pub commit: LastCommit,
    /// Behind the last whole record; `None` where that is not known.
    pub wal_end: Option<Lsn>,
}

impl Indexes<'_> {
    /// Where these consecutive segments end: a record that goes on behind the last of them does not count.
    ///
    /// # Errors
    /// The repository cannot be asked.
    pub async fn run_end(&self, ranges: Vec<SegmentRange>) -> Result<RunEnd, RepositoryError> {
        let route = self.route(ranges);
        let mut search = Search {
            indexes: self,
            route: route.clone(),
            unread: MOST_READ,
            wal_end: None,
        };
        // Mostly the last segments tell, and roll-ups need not even be listed.
        let (early, late) = route.split(LATE);
        let mut commit = search.look(late, None).await?;
        if commit == LastCommit::None {
            commit = search.look(early, Some(Level::Two)).await?;
        }
        Ok(RunEnd {
            commit,
            wal_end: search.wal_end.flatten(),
        })
    }
}

struct Search<'a> {
    indexes: &'a Indexes<'a>,
    route: Arc<Route>,
    /// Segments that may still be read in full.
    unread: usize,
    /// Told by the very last segment, and by no other.
    wal_end: Option<Option<Lsn>>,
}

impl Search<'_> {
    async fn look(
        &mut self,
        part: Vec<SegmentRange>,
        coarsest: Option<Level>,
    ) -> Result<LastCommit, RepositoryError> {
        let route = self.route.clone();
        let mut summaries = self.indexes.walk(route, part, coarsest, Direction::Back);
        while let Some(summary) = summaries.try_next().await? {
            match self.last_of(summary).await? {
                LastCommit::None => {}
                found => return Ok(found),
            }
        }
        Ok(LastCommit::None)
    }

    fn last_of(&mut self, summary: Summary) -> BoxFuture<'_, Result<LastCommit, RepositoryError>> {
        async move {
            let told = summary.ends.as_ref().and_then(|ends| ends.last_commit);
            let size = self.indexes.catalog.segment_size.bytes();
            let unread = summary.unread.iter().max();
            if unread.is_none_or(|unread| told.is_some_and(|end| end.lsn.0 / size > *unread)) {
                self.wal_end.get_or_insert(summary.end_lsn);
                return Ok(told.map_or(LastCommit::None, LastCommit::Known));
            }
            if summary.first < summary.last {
                let mut closer = self
                    .indexes
                    .closer(self.route.clone(), &summary, Direction::Back);
                while let Some(finer) = closer.try_next().await? {
                    match self.last_of(finer).await? {
                        LastCommit::None => {}
                        found => return Ok(found),
                    }
                }
                return Ok(LastCommit::None);
            }
            self.read(summary.first).await
        }
        .boxed()
    }

    /// Reads a segment in full.
    async fn read(&mut self, number: u64) -> Result<LastCommit, RepositoryError> {
        let left = self.unread.checked_sub(1);
        let (Some(left), Some(name)) = (left, self.route.name(number)) else {
            return Ok(LastCommit::Unknown);
        };
        self.unread = left;
        let following: Vec<_> = self
            .route
            .behind(number)
            .take(super::walk::MOST_FOLLOWED)
            .collect();
        let detail = self.indexes.detail(name, following).await;
        let Some(detail) = unless_unusable(detail)? else {
            return Ok(LastCommit::Unknown);
        };
        self.wal_end.get_or_insert(detail.index.end_lsn);
        let last = detail.index.ends.and_then(|ends| ends.last_commit);
        Ok(last.map_or(LastCommit::None, LastCommit::Known))
    }
}
