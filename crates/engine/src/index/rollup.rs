//! Roll-ups: reading them, and writing those that are missing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::index::Summary;
use walden_model::{
    Block, Catalog, ClusterName, HeadKind, IdentityDocument, Level, MAX_ROLLUP, RollUp, RollUps,
    SegmentRange,
};

use super::walk::Direction;
use super::{Indexes, LANES, unless_unusable};
use crate::catalog;
use crate::repository::{Repository, RepositoryError, Trouble};

/// Objects that are read at most to write roll-ups once; what is left, the next backup takes up.
const MOST_READ: u64 = 16_384;

/// zstd's level: they are written once and read often.
const ZSTD_LEVEL: i32 = 3;

/// What writing roll-ups came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollUpReport {
    /// Written.
    pub written: u64,
    /// Still missing, because one run reads only so many objects.
    pub left: u64,
}

/// The roll-ups that may be believed. Each repository's are of the segments as they stand there.
#[derive(Debug, Clone)]
pub struct KnownRollUps {
    /// Of any repository.
    pub(super) all: RollUps,
    /// By the names of the repositories.
    of: Vec<(String, RollUps)>,
}

impl Indexes<'_> {
    /// Those that may be believed.
    pub(super) async fn roll_ups(&self) -> Result<&KnownRollUps, RepositoryError> {
        let listing = async {
            let mut of = Vec::new();
            for repository in self.archive.repositories() {
                let listed = match self.listed(repository).await {
                    // Without them everything is read from the segments of those that answer.
                    Err(e) if self.archive.has_several() && e.trouble() == Trouble::Outage => {
                        continue;
                    }
                    listed => listed?,
                };
                let name = repository.name();
                let known = RollUps::new(listed, self.catalog.wal_in(name));
                of.push((name.to_owned(), known));
            }
            let all = RollUps::of_any(of.iter().map(|(_, known)| known));
            Ok(KnownRollUps { all, of })
        };
        self.roll_ups.get_or_try_init(|| listing).await
    }

    /// Those that a repository has.
    pub(super) async fn listed(
        &self,
        repository: &Repository,
    ) -> Result<BTreeSet<Block>, RepositoryError> {
        let size = self.catalog.segment_size;
        let listed = stream::iter(self.catalog.wal.keys().copied())
            .map(|timeline| async move {
                let prefix = self.keys.rollup_prefix(timeline);
                repository.list(&prefix).await
            })
            .buffered(LANES);
        let listed: Vec<_> = listed.try_collect().await?;
        let keys = listed.iter().flatten();
        Ok(keys
            .filter_map(|object| self.keys.parse_rollup(object.key.as_str(), size))
            .collect())
    }

    /// A block's roll-up; `None` where it is missing, damaged, or not of the segments that are archived beside it.
    pub(super) async fn roll_up(&self, block: Block) -> Result<Option<RollUp>, RepositoryError> {
        let key = self.keys.rollup(&block, self.catalog.segment_size);
        let expected = self.expected(HeadKind::RollUp, &key);
        let known = self.roll_ups().await?;
        for repository in self.archive.repositories() {
            let mut of = known.of.iter();
            let of = of.find(|(name, _)| name == repository.name());
            let Some(stored) = of.and_then(|(_, known)| known.stored(block)) else {
                continue;
            };
            let read = repository.read_small(&key, expected.clone(), MAX_ROLLUP);
            let content = match read.await {
                // Larger than any that was written.
                Err(RepositoryError::Sink { .. }) => None,
                // The segments say the same, wherever they are.
                Err(e) if self.archive.has_several() && e.trouble() == Trouble::Outage => None,
                read => unless_unusable(read)?,
            };
            let read = content.and_then(|content| RollUp::decode(&content, block));
            if let Some(roll_up) = read.filter(|roll_up| roll_up.stored == stored) {
                return Ok(Some(roll_up));
            }
        }
        Ok(None)
    }

    async fn write(&self, block: Block, parts: Vec<Summary>) -> Result<bool, RepositoryError> {
        let stored = self
            .catalog
            .wal
            .get(&block.timeline)
            .map_or(0, |wal| wal.stored_bytes(block.segments()));
        let roll_up = RollUp {
            block,
            stored,
            parts,
        };
        let Some(content) = roll_up
            .encode()
            .ok()
            .filter(|content| content.len() <= MAX_ROLLUP)
        else {
            return Ok(false);
        };
        let key = self.keys.rollup(&block, self.catalog.segment_size);
        let put = self
            .archive
            .first()
            .put_small(
                &key,
                self.expected(HeadKind::RollUp, &key),
                content,
                ZSTD_LEVEL,
            )
            .await;
        match put {
            // Another backup's, or a damaged one.
            Err(e) if e.is_already_exists() => Ok(false),
            put => put.map(|()| true),
        }
    }
}

/// Writes the roll-ups that a system identifier's archive lacks, as [`write_roll_ups`].
///
/// # Errors
/// As [`write_roll_ups`].
pub async fn roll_up(
    repository: &Repository,
    cluster: &ClusterName,
    identity: &IdentityDocument,
) -> Result<RollUpReport, RepositoryError> {
    // A plain one would tell what an encrypted archive hides.
    repository.recipients(identity)?;
    let catalog = catalog::load_wal(repository, cluster, identity).await?;
    write_roll_ups(repository, &catalog).await
}

/// Writes the roll-ups that the catalog's whole runs of segments lack, the newest first. A host that cannot open the segments writes none: what
/// it cannot read would be lost to those who can.
///
/// # Errors
/// The repository cannot be asked, or does not take one. Those written before are good.
pub async fn write_roll_ups(
    repository: &Repository,
    catalog: &Catalog,
) -> Result<RollUpReport, RepositoryError> {
    let mut listed = Indexes::new(repository, catalog).listed(repository).await?;
    let mut report = RollUpReport::default();
    let mut read = 0;
    for level in [Level::One, Level::Two] {
        // Anew, for the coarser ones are made of those that were written just now.
        let indexes = Indexes::new(repository, catalog);
        for block in missing(catalog, level, &listed) {
            if repository.is_locked() {
                return Ok(report);
            }
            read += level.segments() / level.part();
            if read > MOST_READ {
                report.left += 1;
                continue;
            }
            let parts = match level {
                Level::One => indexes.parts(block).await?,
                Level::Two => indexes.merged(block).await?,
            };
            let Some(parts) = parts else { continue };
            if indexes.write(block, parts).await? {
                report.written += 1;
                listed.insert(block);
            }
        }
    }
    Ok(report)
}

/// The blocks of this level that lack a roll-up and can have one, the newest first: every segment is there, and the next one, too, into
/// which the last record may go on; of the coarser level, every finer roll-up.
fn missing(catalog: &Catalog, level: Level, listed: &BTreeSet<Block>) -> Vec<Block> {
    let mut missing = Vec::new();
    for (timeline, wal) in catalog.wal.iter().rev() {
        for run in wal.runs().into_iter().rev() {
            let Some(last) = run.end().checked_sub(1) else {
                continue;
            };
            let range = SegmentRange {
                timeline: *timeline,
                first: *run.start(),
                last,
            };
            if range.first > range.last {
                continue;
            }
            let has_parts = |block: &Block| match level {
                Level::One => true,
                Level::Two => {
                    Block::within(block.range(), Level::One).all(|part| listed.contains(&part))
                }
            };
            let blocks = Block::within(range, level).rev();
            missing.extend(blocks.filter(|block| !listed.contains(block) && has_parts(block)));
        }
    }
    missing
}

impl Indexes<'_> {
    /// The summaries of a block's segments; `None` where some cannot be opened.
    async fn parts(&self, block: Block) -> Result<Option<Vec<Summary>>, RepositoryError> {
        let range = block.range();
        let mut with_next = range;
        with_next.last = with_next.last.saturating_add(1);
        let route = self.route(vec![with_next]);
        let summaries = self.walk(route, vec![range], None, Direction::Forward);
        self.unopened.store(false, Ordering::Relaxed);
        let parts = summaries.try_collect().await?;
        Ok((!self.unopened.load(Ordering::Relaxed)).then_some(parts))
    }

    /// The summaries of a coarser block's finer roll-ups.
    async fn merged(&self, block: Block) -> Result<Option<Vec<Summary>>, RepositoryError> {
        let parts = stream::iter(Block::within(block.range(), Level::One))
            .map(|part| async move {
                let roll_up = self.roll_up(part).await?;
                Ok::<_, RepositoryError>(roll_up.and_then(|roll_up| roll_up.summary()))
            })
            .buffered(LANES);
        let parts: Vec<Option<Summary>> = parts.try_collect().await?;
        Ok(parts.into_iter().collect())
    }
}
