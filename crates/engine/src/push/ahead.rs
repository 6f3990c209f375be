//! The file that PostgreSQL asks to archive, and the next ones that it has ready.

use std::future::ready;
use std::pin::pin;
use std::time::{Instant, SystemTime};

use futures::future::{Either, join_all, select};
use futures::{StreamExt, stream};
use walden_pg::WalFileName;

use super::destination::Destination;
use super::job::{Job, Way};
use super::mark::Marks;
use super::{PushError, PushOutcome, PushReport, PushRequest};
use crate::host;
use crate::pipeline::Compressors;

/// How many compressors there are, and how many files beside the one that was asked for. The bound is for memory, on machines of many
/// cores: zstd takes some 4 MiB for a frame up to level 6, and up to 18 above.
fn workers(level: i32) -> usize {
    host::cores().min(if level > 6 { 4 } else { 8 })
}

/// Frames under way of a file beside the one that was asked for: enough that reading, compressing and writing go on at once.
const DEPTH: usize = 2;

pub(super) async fn push(job: Job<'_>, begun: Instant) -> Result<PushReport, PushError> {
    let request = job.request;
    let file = job.source.file;
    let to: Vec<_> = request.repositories.iter().map(Destination::new).collect();
    let way = |level| {
        let workers = workers(level);
        Way {
            compressors: Compressors::start(level, workers),
            depth: workers + 1,
        }
    };
    let marks = match Marks::beside(&request.path, file) {
        Some(marks) if request.ahead.files > 0 && !request.quarantine => marks,
        _ => {
            return job.run(&to, &way(request.level), 0).await;
        }
    };
    if let Some(mark) = marks.read(file) {
        let now = job.statement(&to).await;
        // Gone before PostgreSQL knows: should it not hear of it, it asks again, and the file is compared with its object.
        marks.remove(file);
        match now.map_err(|e| job.failed(e))? {
            Some((key, statement)) if statement.as_bytes() == mark => {
                return Ok(job.report(key, PushOutcome::TakenAlong));
            }
            _ => tracing::debug!("{file} has a mark that does not hold"),
        }
    }
    let next = next_files(&marks, file);
    let backlog = next.len() > request.ahead.files;
    let level = request.ahead.backlog_level.filter(|_| backlog);
    let level = level.unwrap_or(request.level);
    let way = way(level);
    let batch = Batch {
        request,
        to: &to,
        marks: &marks,
        way: Way {
            depth: DEPTH,
            ..way.clone()
        },
    };

    let mut taken_along = 0;
    let first = pin!(job.run(&to, &way, 0));
    let mut report = {
        let others = pin!(async {
            let mut taken = pin!(
                stream::iter(next.into_iter().take(request.ahead.files).zip(1..))
                    .take_while(|_| ready(begun.elapsed() < request.ahead.time))
                    .map(|(file, place)| batch.take_along(file, place))
                    .buffered(workers(level))
            );
            // One that could not be taken along ends the batch: those behind it would leave a gap in the archive.
            while let Some(true) = taken.next().await {
                taken_along += 1;
            }
        });
        match select(first, others).await {
            Either::Left((report, others)) => {
                let report = report?;
                let left = (request.ahead.time * 4).saturating_sub(begun.elapsed());
                let _ = tokio::time::timeout(left, others).await;
                report
            }
            Either::Right((_, first)) => first.await?,
        }
    };
    report.taken_along = taken_along;
    Ok(report)
}

/// What PostgreSQL has ready beside the file that it asks for. Empty where marks cannot be kept.
fn next_files(marks: &Marks, asked_for: WalFileName) -> Vec<WalFileName> {
    let ready = marks.ready().and_then(|ready| {
        marks.prepare(&ready)?;
        Ok(ready)
    });
    match ready {
        Ok(mut files) => {
            files.retain(|file| *file != asked_for);
            files
        }
        Err(error) => {
            tracing::warn!(%error, "nothing but {asked_for} is archived by this call: its pg_wal cannot be looked through for more");
            Vec::new()
        }
    }
}

struct Batch<'a> {
    request: &'a PushRequest,
    to: &'a [Destination<'a>],
    marks: &'a Marks,
    way: Way,
}

impl Batch<'_> {
    /// Stores and marks a file. False where it did not, for whatever reason: the file's own call will say.
    async fn take_along(&self, file: WalFileName, place: usize) -> bool {
        match self.try_take_along(file, place).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "{file} was not taken along"
                );
                false
            }
        }
    }

    async fn try_take_along(&self, file: WalFileName, place: usize) -> Result<bool, PushError> {
        let job = Job::open(self.request, self.marks.path_of(file)).await?;
        if !job.source.stamp.is_settled(SystemTime::now()) {
            return Ok(false);
        }
        if let Some(mark) = self.marks.read(file)
            && let Ok(Some((_, statement))) = job.statement(self.to).await
            && statement.as_bytes() == mark
        {
            let turns = self.to.iter().map(|destination| async move {
                if destination.turn(place).await {
                    destination.stands(place);
                }
            });
            join_all(turns).await;
            return Ok(true);
        }
        let report = job.run(self.to, &self.way, place).await?;
        if let Some(warning) = &report.warning {
            tracing::warn!("{file}: {warning}");
        }
        for lacking in &report.lacking {
            tracing::warn!("{lacking}");
        }
        if report.outcome == PushOutcome::SetAside {
            return Ok(false);
        }
        let statement = job.statement(self.to).await;
        let statement = statement.map_err(|e| job.failed(e))?;
        let Some((_, statement)) = statement.filter(|_| job.source.is_unchanged()) else {
            return Ok(false);
        };
        let written = self.marks.write(file, &statement);
        if let Err(error) = &written {
            tracing::warn!(%error, "{file} is archived, and cannot be marked so");
        }
        Ok(written.is_ok())
    }
}
