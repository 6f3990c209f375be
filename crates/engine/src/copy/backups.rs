//! Backups on their way: what a commit document names, then the document.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::copy::{Action, Content, Named, action, folders, named};
use walden_model::{BackupId, BackupRecord, CommitDocument, HeadKind, WalName};
use walden_pg::SegmentName;

use super::object::Outcome;
use super::{ClusterCopy, CopyError, FindingKind, System};
use crate::catalog::whole_text;
use crate::repository::Repository;

/// Keys that a finding names.
const NAMED: usize = 3;

/// Objects of one listing, by key.
type Sizes = HashMap<String, u64>;

impl System<'_> {
    /// Backups that have a commit document, and nothing of others: one that runs comes with the next copy, once it is whole.
    pub(super) async fn backups(&self, report: &mut ClusterCopy) -> Result<(), CopyError> {
        let prefix = self.keys.commits_prefix();
        let from = self.pair.from.list(&prefix).await;
        let from = from.map_err(|e| self.pair.reading(e))?;
        let there = self.there(&prefix).await?;
        for object in from {
            let key = object.key.as_str();
            match self.keys.parse_commit(key) {
                Some(id) => {
                    let committed = there.get(key).copied();
                    self.backup(&id, object.size, committed, report).await?;
                }
                None => report.unknown(key.to_owned()),
            }
        }
        Ok(())
    }

    async fn backup(
        &self,
        id: &BackupId,
        size: u64,
        committed: Option<u64>,
        report: &mut ClusterCopy,
    ) -> Result<(), CopyError> {
        let key = self.keys.commit(id);
        let bytes = match self.pair.from.document_bytes(&key).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(e) => return Err(self.pair.reading(e)),
        };
        let record = match CommitDocument::decode(&bytes) {
            Ok(CommitDocument::Backup(record)) => record,
            // Says that there is no such backup.
            Ok(CommitDocument::Abandoned(_)) => return Ok(()),
            Err(e) => {
                report.finding(FindingKind::Damaged, key, whole_text(&e));
                return Ok(());
            }
        };
        if record.backup_id != *id || record.archive_id != self.identity.archive_id {
            let why = "the document belongs elsewhere: another backup or archive stands in it";
            report.finding(FindingKind::Damaged, key, why.to_owned());
            return Ok(());
        }
        let missing = self.contents(&record, report).await?;
        match action(Content::Document, size, committed, self.pair.thorough) {
            Action::Nothing => report.there += 1,
            Action::Compare => {
                let outcome = self.pair.compare(&key, Content::Document).await?;
                report.add(Content::Document, &key, outcome);
            }
            Action::Copy => match self.lacking(&record, missing).await? {
                Some(why) => report.finding(FindingKind::Incomplete, key, why),
                None => {
                    let outcome = match self.pair.dry_run {
                        true => Outcome::Copied(size),
                        false => self.pair.document(&key).await?,
                    };
                    if let Outcome::Copied(_) = outcome {
                        report.backups.push(id.clone());
                    }
                    report.add(Content::Document, &key, outcome);
                }
            },
        }
        Ok(())
    }

    /// Copies what a commit document names, and gives the keys of what is not there afterwards.
    async fn contents(
        &self,
        record: &BackupRecord,
        report: &mut ClusterCopy,
    ) -> Result<Vec<String>, CopyError> {
        let mut there = Sizes::new();
        for folder in folders(record, &self.keys) {
            there.extend(self.there(&folder).await?);
        }
        let started = self.keys.started(&record.backup_id);
        if !there.contains_key(&started) && !self.pair.dry_run {
            let outcome = self.pair.document(&started).await?;
            report.add(Content::Document, &started, outcome);
        }
        let mut done = stream::iter(named(record, &self.keys))
            .map(|object| async {
                let there = there.get(&object.key).copied();
                let outcome = self.content(&object, there).await?;
                Ok::<_, CopyError>((object, outcome))
            })
            .buffer_unordered(self.pair.jobs);
        let mut missing = Vec::new();
        while let Some((object, outcome)) = done.try_next().await? {
            // Without names a backup is as good as any other.
            if !outcome.is_there() && object.kind != HeadKind::Names {
                missing.push(object.key.clone());
            }
            report.add(Content::Framed(object.kind), &object.key, outcome);
        }
        Ok(missing)
    }

    async fn content(&self, object: &Named, there: Option<u64>) -> Result<Outcome, CopyError> {
        let Named {
            key,
            size,
            table,
            kind,
        } = object;
        let content = Content::Framed(*kind);
        match action(content, *size, there, self.pair.thorough) {
            Action::Nothing => Ok(Outcome::There),
            Action::Compare => self.pair.compare(key, content).await,
            Action::Copy if self.pair.dry_run => Ok(Outcome::Copied(*size)),
            Action::Copy => {
                let archive_id = self.identity.archive_id;
                let table = Some(*table);
                self.pair.framed(key, *kind, archive_id, *size, table).await
            }
        }
    }

    /// What keeps a backup from being whole in the other repository, in words.
    async fn lacking(
        &self,
        record: &BackupRecord,
        mut missing: Vec<String>,
    ) -> Result<Option<String>, CopyError> {
        let size = self.identity.wal_segment_size;
        for range in record.needed_ranges(size) {
            let mut log: Option<(u32, Sizes)> = None;
            for number in range.first..=range.last {
                let segment = SegmentName::from_number(range.timeline, number, size);
                let sizes = match log.take() {
                    Some((of, sizes)) if of == segment.log => sizes,
                    _ => {
                        let prefix = self.keys.wal_log_prefix(range.timeline, segment.log);
                        self.there_or_coming(&prefix).await?
                    }
                };
                let key = self.keys.wal(&WalName::Segment(segment));
                if !sizes.contains_key(&key) {
                    missing.push(key);
                }
                log = Some((segment.log, sizes));
            }
        }
        let Some(first) = missing
            .get(..missing.len().min(NAMED))
            .filter(|f| !f.is_empty())
        else {
            return Ok(None);
        };
        let more = match missing.len() - first.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Ok(Some(format!(
            "{} does not have {}{more}, without which the backup cannot be restored",
            self.pair.to.name(),
            first.join(", ")
        )))
    }

    /// What stands below a prefix in the other repository.
    async fn there(&self, prefix: &str) -> Result<Sizes, CopyError> {
        let objects = sizes(self.pair.to, prefix).await;
        objects.map_err(|e| self.pair.writing(e))
    }

    /// … or would, had this been no dry run.
    async fn there_or_coming(&self, prefix: &str) -> Result<Sizes, CopyError> {
        let mut there = self.there(prefix).await?;
        if self.pair.dry_run {
            let coming = sizes(self.pair.from, prefix).await;
            there.extend(coming.map_err(|e| self.pair.reading(e))?);
        }
        Ok(there)
    }
}

async fn sizes(
    repository: &Repository,
    prefix: &str,
) -> Result<Sizes, crate::repository::RepositoryError> {
    let objects = repository.list(prefix).await?;
    Ok(objects
        .into_iter()
        .map(|object| (object.key.as_str().to_owned(), object.size))
        .collect())
}
