//! The proof that the WAL a backup needs is in the repository.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use walden_model::{BackupRecord, SystemKeys, WalName};
use walden_pg::{TimelineId, WalFileName};
use walden_store::StoreErrorKind;

use super::server::{Server, ServerFacts};
use super::{BackupError, BackupRequest};
use crate::catalog;
use crate::progress::Progress;
use crate::repository::Repository;

/// How often the repository is asked.
const LOOK: Duration = Duration::from_millis(500);
/// How often a person is told what is waited for.
const TELL: Duration = Duration::from_secs(10);

/// Without its timeline's history a backup cannot be restored, and a cluster that was promoted before it began to archive
/// never hands that over by itself: so it is asked for before hours are spent. One that was promoted just now is given a moment.
pub(super) async fn check_history(
    repository: &Repository,
    keys: &SystemKeys,
    facts: &ServerFacts,
) -> Result<(), BackupError> {
    if facts.timeline <= TimelineId(1) {
        return Ok(());
    }
    let name = WalName::History(facts.timeline);
    let key = repository.key(&keys.wal(&name))?;
    let begun = Instant::now();
    loop {
        match repository.store().head(&key).await {
            Err(e) if e.kind() == StoreErrorKind::NotFound && begun.elapsed() < TELL => {
                tokio::time::sleep(LOOK).await;
            }
            Err(e) if e.kind() == StoreErrorKind::NotFound => {
                return Err(BackupError::HistoryMissing {
                    file: name.file(),
                    data_directory: facts.data_directory.clone(),
                });
            }
            other => return Ok(other.map(|_| ()).map_err(|e| repository.failed(e))?),
        }
    }
}

/// Who hears what is waited for, and in which of several repositories.
pub(super) struct Told<'a> {
    pub progress: &'a dyn Progress,
    pub repository: Option<&'a str>,
}

/// Waits until every segment from the backup's start to its end is in the repository, and the history of its timeline; gives
/// up after the request's `wal_timeout`.
pub(super) async fn prove(
    repository: &Repository,
    keys: &SystemKeys,
    record: &BackupRecord,
    request: &BackupRequest,
    told: Told<'_>,
) -> Result<(), BackupError> {
    let history = (record.timeline > TimelineId(1)).then_some(WalName::History(record.timeline));
    let segments = record
        .needed_segments(record.wal_segment_size)
        .into_iter()
        .map(WalName::Segment);
    let mut missing: VecDeque<WalName> = history.into_iter().chain(segments).collect();
    let begun = Instant::now();
    let (mut last_told, mut switched) = (begun, false);
    loop {
        while let Some(name) = missing.front() {
            match repository
                .store()
                .head(&repository.key(&keys.wal(name))?)
                .await
            {
                Ok(_) => missing.pop_front(),
                Err(e) if e.kind() == StoreErrorKind::NotFound => break,
                Err(e) => return Err(repository.failed(e).into()),
            };
        }
        let Some(name) = missing.front() else {
            return check_conflicts(repository, keys, record).await;
        };
        let first = name.file();
        if begun.elapsed() > request.wal_timeout {
            return Err(BackupError::WalMissing {
                first,
                count: missing.len(),
                waited: request.wal_timeout,
                standby: record.from_standby,
            });
        }
        if record.from_standby && !switched && missing.len() == 1 {
            switched = true;
            end_segment_on_primary(request, told.progress).await;
        }
        if last_told.elapsed() > TELL {
            last_told = Instant::now();
            told.progress.message(&waiting_line(
                told.repository,
                &first,
                missing.len(),
                begun.elapsed(),
                request.wal_timeout,
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether what is archived under the segments' names is this cluster's. Where another server's file was there first, this one's was set
/// aside, and nothing can be recovered with the other's.
async fn check_conflicts(
    repository: &Repository,
    keys: &SystemKeys,
    record: &BackupRecord,
) -> Result<(), BackupError> {
    let conflicts = catalog::quarantined(repository, keys, record.archive_id).await?;
    let needed = record.needed_segments(record.wal_segment_size);
    match needed
        .into_iter()
        .find(|segment| conflicts.contains(segment))
    {
        Some(segment) => Err(BackupError::WalInConflict { segment }),
        None => Ok(()),
    }
}

/// The last segment that a standby's backup needs may be one that an idle primary never finishes.
async fn end_segment_on_primary(request: &BackupRequest, progress: &dyn Progress) {
    let Some(primary) = &request.primary_connection else {
        progress.message(
            "the backup needs the segment that the primary is writing; an idle primary may take long to finish it. \
             Run pg_switch_wal() there, or set primary_connection so that Walden does",
        );
        return;
    };
    let switched = async { Server::connect(primary).await?.switch_wal().await };
    if let Err(error) = switched.await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot run pg_switch_wal() on the primary"
        );
        progress.message(
            "cannot run pg_switch_wal() on the primary; waiting for it to finish its segment",
        );
    }
}

fn waiting_line(
    repository: Option<&str>,
    first: &WalFileName,
    count: usize,
    waited: Duration,
    bound: Duration,
) -> String {
    format!(
        "waiting for {first}{} to be archived{}, {} s of at most {} s",
        if count > 1 {
            format!(" and {} more", count - 1)
        } else {
            String::new()
        },
        repository
            .map(|name| format!(" in repository \"{name}\""))
            .unwrap_or_default(),
        waited.as_secs(),
        bound.as_secs()
    )
}
