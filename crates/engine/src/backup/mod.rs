//! `walden backup`: a base backup, taken with pg_basebackup and stored as it streams, in one pass and without a copy on disk.
//!
//! It is made once, and every piece goes to every repository; each is judged by itself (`targets.rs`). Order of what becomes durable in each: `started.json`; packs, as they fill; the file map; the commit document, once every file was held against
//! the manifest and the WAL was seen in the repository. Whatever ends the program before the last step leaves an unfinished backup, which
//! nobody takes for a whole one because its commit document is missing.

mod child;
mod content;
mod error;
mod files;
mod input;
mod names;
mod server;
mod shard;
mod spool;
mod stream;
mod targets;
mod wal;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use walden_model::{
    BackupId, BackupKind, BackupRecord, ClusterName, ControlSettings, DamagedBlock,
    IdentityDocument, RandomId, StartedDocument, SystemKeys, Tablespace, WalRange,
};
use walden_pg::{Lsn, WalSegmentSize};

pub use child::ChildError;
pub use error::BackupError;
pub use files::ManifestMismatch;
pub use server::{ServerError, holds_password};
pub use stream::{Extra, StreamError};

use crate::progress::Progress;
use crate::repository::{Repository, RepositorySettings};
use crate::side_by_side::side_by_side;
use crate::{catalog, host, index, pipeline, retired};
use child::BaseBackup;
use content::{ObjectWriter, Packs};
use input::Input;
use server::{Server, ServerFacts};
use spool::Spool;
use stream::{Doubt, Gauge, PageSettings, Streamed, Streamer};
use targets::Targets;

/// Most damaged blocks that a commit document names.
const MAX_DAMAGED: usize = 1000;

/// pg_basebackup's `--checkpoint`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointMode {
    /// At once.
    Fast,
    /// Gently, in minutes.
    Spread,
}

/// What to back up, and where to.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// The repositories, each of which is to have the backup.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in them.
    pub cluster: ClusterName,
    /// libpq connection string of the server: a primary or a standby.
    pub connection: String,
    /// Where `connection` is a standby: its primary, so that the last segment can be ended there.
    pub primary_connection: Option<String>,
    /// The folder of pg_basebackup.
    pub pg_bin_dir: Option<PathBuf>,
    /// Where tablespaces' tar files may grow; needed only for clusters with tablespaces.
    pub spool_dir: Option<PathBuf>,
    /// How the checkpoint is taken.
    pub checkpoint: CheckpointMode,
    /// pg_basebackup's `--max-rate`, in its words.
    pub max_rate: Option<String>,
    /// The label in `backup_label`.
    pub label: String,
    /// The person's notes.
    pub annotations: BTreeMap<String, String>,
    /// zstd's level.
    pub level: i32,
    /// How long WAL is waited for before the backup is given up.
    pub wal_timeout: Duration,
}

/// A backup that was committed, in one repository at least.
#[derive(Debug)]
pub struct BackupReport {
    /// The commit document, the same in each.
    pub record: BackupRecord,
    /// The repositories in which it is committed: those in which it and the WAL that it needs are whole.
    pub committed: Vec<String>,
    /// Those in which it is not.
    pub lacking: Vec<Lacking>,
    /// What could not be had, and does not keep the backup from being restored.
    pub warnings: Vec<String>,
}

/// A repository in which a backup is not committed.
#[derive(Debug)]
pub struct Lacking {
    /// Its name.
    pub repository: String,
    /// Whether a backup counts as taken only once it is there.
    pub required: bool,
    /// Why.
    pub why: BackupError,
}

/// How long a repository that is not required may still wait for WAL once the others have the backup.
const OPTIONAL_WAIT: Duration = Duration::from_secs(10);

/// Takes a base backup. A repository that fails on the way drops out, whether it is required or not: a backup that is whole in one is worth
/// having, and the others cannot be made good by throwing it away. `Ok` means: committed in one at least, and the WAL it needs is archived
/// there. Whoever asked has to look at what is lacking.
///
/// # Errors
/// Where it is committed nowhere.
pub async fn backup(
    request: &BackupRequest,
    progress: Arc<dyn Progress>,
) -> Result<BackupReport, BackupError> {
    let server = Server::connect(&request.connection).await?;
    let facts = server.facts().await?;
    facts.check_archiving()?;
    let keys = SystemKeys {
        cluster: request.cluster.clone(),
        system: facts.system,
    };
    let (targets, identity) = Targets::open(request, &keys, &facts).await?;
    let targets = Arc::new(targets);
    join_all(targets.whole().map(|target| sweep(&target.repository))).await;

    let started_at = server.clock().await?;
    let backup = BackupId::new(started_at, rand::random());
    let write_token = host::random_id();
    let spool = make_spool(request, &facts, &backup)?;
    let (extras, mut warnings) = server.extras(facts.major()).await;
    let started = StartedDocument {
        backup_id: backup.clone(),
        archive_id: identity.archive_id,
        started_at: Timestamp::now(),
        host: host::host_name(),
        pid: std::process::id(),
        parents: Vec::new(),
        wal_from: Some(facts.redo),
        write_token,
    };
    targets
        .put_document(&keys.started(&backup), &started)
        .await?;
    // Now that it stands, whoever removes sees it; what was being removed before is seen here.
    for target in targets.whole() {
        if let Err(e) = retired::check(&target.repository, &keys, &started).await {
            target.fail(e);
        }
    }
    targets.any()?;
    let writer = ObjectWriter {
        targets: targets.clone(),
        keys: keys.clone(),
        backup,
        archive_id: identity.archive_id,
    };
    let run = Run {
        request,
        server: &server,
        facts: &facts,
        progress: &progress,
    };
    let (streamed, packs) = run.stream(&writer, spool, extras).await?;
    // Hours may have gone by, and with them the connection.
    let server = Server::connect(&request.connection).await?;
    let run = Run {
        server: &server,
        ..run
    };
    let stopped_at = server.clock().await?;
    // Without it a target transaction cannot be placed before or after this backup; that is no reason to have none.
    let snapshot = server.snapshot().await.ok();
    if streamed.control.system_identifier != facts.system {
        return Err(BackupError::OtherSystem {
            found: streamed.control.system_identifier,
            expected: facts.system,
        });
    }
    let (damaged, damaged_blocks) = run.settle_doubts(&streamed).await;
    let mut record = run.record(&writer, &streamed, &packs, write_token)?;
    record.started_at = started_at;
    record.stopped_at = stopped_at.max(started_at);
    record.snapshot = snapshot;
    record.damaged = damaged;
    record.damaged_blocks = damaged_blocks;
    record.file_map = streamed
        .items
        .store(&writer, Arc::new(packs), request.level)
        .await?;
    progress.phase("names", None);
    record.names = names::store(&writer, &server, request, &mut warnings).await?;
    let names = record.names.iter().flat_map(|names| &names.shards);
    let shards = record.file_map.iter().chain(names);
    record.stored_size += shards.map(|shard| shard.size).sum::<u64>();
    progress.phase("waiting for the WAL that the backup needs", None);
    let several = targets.whole().count() > 1;
    let commits = targets.whole().map(|target| {
        let name = several.then(|| target.repository.name());
        let progress = wal::Told {
            progress: progress.as_ref(),
            repository: name,
        };
        let commit = commit(
            &target.repository,
            &keys,
            (&started, &record),
            request,
            progress,
        );
        (target.required, commit)
    });
    let commits: Vec<_> = commits.collect();
    let done = side_by_side(commits, &mut OPTIONAL_WAIT.clone()).await;
    let tried: Vec<_> = targets.whole().collect();
    for (target, committed) in tried.into_iter().zip(done) {
        match committed {
            Some(Ok(())) => {}
            Some(Err(e)) => target.fail(e),
            None => target.fail(BackupError::WalLate {
                waited: OPTIONAL_WAIT,
            }),
        }
    }
    targets.any()?;
    for target in targets.whole() {
        // Nobody else comes by as regularly. Without roll-ups everything works, only slower.
        if let Err(e) = index::roll_up(&target.repository, &request.cluster, &identity).await {
            warnings.push(format!(
                "the commit index could not be rolled up in repository \"{}\", which the next backup tries again: {}",
                target.repository.name(),
                catalog::whole_text(&e)
            ));
        }
    }
    let (committed, lacking) = targets.finish();
    Ok(BackupReport {
        record,
        committed,
        lacking,
        warnings,
    })
}

/// Commits the backup in one repository, once the WAL that it needs is there.
async fn commit(
    repository: &Repository,
    keys: &SystemKeys,
    (started, record): (&StartedDocument, &BackupRecord),
    request: &BackupRequest,
    progress: wal::Told<'_>,
) -> Result<(), BackupError> {
    wal::prove(repository, keys, record, request, progress).await?;
    retired::check(repository, keys, started).await?;
    // The commit point: before it there is no backup here, after it there is one.
    let key = keys.commit(&record.backup_id);
    Ok(repository.put_document(&key, record).await?)
}

fn check_segment_size(
    request: &BackupRequest,
    identity: &IdentityDocument,
    facts: &ServerFacts,
) -> Result<(), BackupError> {
    if identity.wal_segment_size.bytes() == facts.wal_segment_size {
        return Ok(());
    }
    Err(BackupError::SegmentSize {
        cluster: request.cluster.clone(),
        registered: identity.wal_segment_size,
        found: facts.wal_segment_size,
    })
}

/// Killed writers leave temporaries, and nobody else comes by as regularly. No write takes an hour; what cannot be removed only takes room.
async fn sweep(repository: &Repository) {
    let hour_ago = Timestamp::now() - SignedDuration::from_hours(1);
    match repository.store().sweep_unfinished(hour_ago).await {
        Ok(0) => {}
        Ok(count) => tracing::info!(
            count,
            "removed what killed writers had left in the repository"
        ),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot remove what killed writers left"
            );
        }
    }
}

fn make_spool(
    request: &BackupRequest,
    facts: &ServerFacts,
    backup: &BackupId,
) -> Result<Option<Spool>, BackupError> {
    if facts.tablespaces.is_empty() {
        return Ok(None);
    }
    let parent = request.spool_dir.as_ref().ok_or(BackupError::NoSpool {
        count: facts.tablespaces.len(),
    })?;
    let spool = Spool::create(parent, backup);
    spool.map(Some).map_err(|source| BackupError::Spool {
        path: parent.clone(),
        source,
    })
}

struct Run<'a> {
    request: &'a BackupRequest,
    server: &'a Server,
    facts: &'a ServerFacts,
    progress: &'a Arc<dyn Progress>,
}

impl Run<'_> {
    /// Runs pg_basebackup and stores what it sends.
    async fn stream(
        &self,
        writer: &ObjectWriter,
        spool: Option<Spool>,
        extras: Vec<Extra>,
    ) -> Result<(Streamed, Packs), BackupError> {
        let pages = PageSettings {
            checksums: self.facts.data_checksums,
            block_size: self.facts.block_size as usize,
            segment_blocks: self.facts.segment_blocks,
        };
        self.progress.phase("waiting for the checkpoint", None);
        let mut child = BaseBackup::start(
            self.request,
            self.server,
            self.facts.major(),
            spool.as_ref().map(Spool::path),
        )?;
        let gauge = Arc::new(Gauge::default());
        let (sink, frames) = pipeline::start(self.request.level, host::cores());
        let packing = tokio::spawn(content::store_packs(writer.clone(), frames));
        let streamer = Streamer::new(sink, pages, gauge.clone(), self.progress.clone());
        self.progress.phase("backup", Some(self.facts.size));
        let ended = Arc::new(AtomicBool::new(false));
        let input = Input::new(
            &mut child,
            spool.as_ref(),
            &self.facts.tablespaces,
            ended.clone(),
        );
        let reading = tokio::task::spawn_blocking({
            let gauge = gauge.clone();
            move || {
                input
                    .read(streamer, extras)
                    .inspect_err(|_| gauge.failed.store(true, Ordering::Relaxed))
            }
        });
        let watched = self.watch(&mut child, &gauge, &ended).await;
        let streamed = reading.await.map_err(BackupError::Internal)?;
        drop(spool);
        let packs = packing.await.map_err(BackupError::Internal)?;
        // The first cause is the best: packs that could not be stored break the stream, and that breaks pg_basebackup.
        let packs = packs?;
        match (watched, streamed) {
            (Err(e @ BackupError::ArchiverStuck { .. }), _) => Err(e),
            (_, Err(e @ (StreamError::Manifest(_) | StreamError::Understand { .. }))) => {
                Err(BackupError::Stream(e))
            }
            (Err(e), _) => Err(e),
            (Ok(()), Err(e)) => Err(BackupError::Stream(e)),
            (Ok(()), Ok(streamed)) => Ok((streamed, packs)),
        }
    }

    /// Waits for pg_basebackup's end. The server holds back the manifest until its archiver has archived the backup's WAL, without
    /// bound; here is the bound.
    async fn watch(
        &self,
        child: &mut BaseBackup,
        gauge: &Gauge,
        ended: &AtomicBool,
    ) -> Result<(), BackupError> {
        const TELL: Duration = Duration::from_secs(10);
        let mut waiting: Option<Instant> = None;
        let mut told = Instant::now();
        loop {
            if let Ok(result) = tokio::time::timeout(Duration::from_secs(1), child.wait()).await {
                ended.store(true, Ordering::Release);
                return Ok(result?);
            }
            if gauge.failed.load(Ordering::Relaxed) {
                // Into a folder it would go on writing for nobody.
                child.kill();
            }
            if !gauge.data_done.load(Ordering::Relaxed) {
                // pg_basebackup may hold the end of pg_control in its buffer until the wait is over.
                let asked = tokio::time::timeout(TELL, self.server.backups_wait()).await;
                if !matches!(asked, Ok(Ok(true))) {
                    waiting = None;
                    continue;
                }
            }
            let since = *waiting.get_or_insert_with(Instant::now);
            let late = since.elapsed() > self.request.wal_timeout;
            if !late && told.elapsed() < TELL {
                continue;
            }
            told = Instant::now();
            // A server that does not answer must not put off the end of our patience.
            let asked = tokio::time::timeout(TELL, self.server.archiver()).await;
            let archiver = asked.ok().and_then(Result::ok);
            let failing = archiver
                .as_ref()
                .and_then(|archiver| archiver.failing.clone());
            if late {
                child.kill();
                // Its error says nothing that we do not know better.
                let _ = child.wait().await;
                ended.store(true, Ordering::Release);
                return Err(BackupError::ArchiverStuck {
                    waited: since.elapsed(),
                    failing,
                });
            }
            let last = archiver
                .and_then(|archiver| archiver.last_archived)
                .unwrap_or_else(|| "none".to_owned());
            self.progress.message(&format!(
                "all files are stored; the server waits for its archiver, {} s of at most {} s (last archived: {last}{})",
                since.elapsed().as_secs(),
                self.request.wal_timeout.as_secs(),
                failing.map(|file| format!("; it fails on {file}")).unwrap_or_default()
            ));
        }
    }

    /// Tells damage from blocks that were just being written when they streamed by: those have changed since, and the WAL mends them.
    async fn settle_doubts(&self, streamed: &Streamed) -> (Vec<DamagedBlock>, u64) {
        let start = streamed.label.start;
        let mut damaged = Vec::new();
        let mut count = streamed.more_doubts;
        for doubt in streamed.doubts.iter().filter(|doubt| doubt.lsn < start) {
            let again = if damaged.len() < MAX_DAMAGED {
                self.look_again(doubt, start).await
            } else {
                Some(String::new())
            };
            let Some(reason) = again else { continue };
            count += 1;
            if damaged.len() < MAX_DAMAGED {
                let path = String::from_utf8_lossy(&doubt.path).into_owned();
                damaged.push(DamagedBlock {
                    path,
                    block: doubt.block,
                    reason,
                });
            }
        }
        (damaged, count)
    }

    /// `None`: the block is fine now, and was being written before; or its file was dropped since, and with it whatever it was.
    async fn look_again(&self, doubt: &Doubt, start: Lsn) -> Option<String> {
        use walden_pg::page::{PageVerdict, verify_page};
        let path = String::from_utf8_lossy(&doubt.path);
        let now = self
            .server
            .read_file(&path, doubt.offset, self.facts.block_size)
            .await;
        let said = format!(
            "checksum {:04X}, content has {:04X}, page LSN {}",
            doubt.stored, doubt.computed, doubt.lsn
        );
        match now {
            Ok(Some(page)) => match verify_page(&page, doubt.block) {
                PageVerdict::Mismatch { lsn, .. } if lsn < start => Some(said),
                _ => None,
            },
            Ok(None) => {
                tracing::info!(path = %path, block = doubt.block, said, "a block did not fit, of a file that was dropped meanwhile");
                None
            }
            Err(error) => {
                tracing::warn!(path = %path, error = &error as &dyn std::error::Error, "cannot look at the block again");
                Some(format!(
                    "{said}; it could not be read again, so it may have been in the middle of being written"
                ))
            }
        }
    }

    fn record(
        &self,
        writer: &ObjectWriter,
        streamed: &Streamed,
        packs: &Packs,
        write_token: RandomId,
    ) -> Result<BackupRecord, BackupError> {
        let (facts, control) = (self.facts, &streamed.control);
        let ranges = streamed.manifest.wal_ranges.iter();
        let wal_ranges: Vec<WalRange> = ranges
            .map(|range| WalRange {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
            })
            .collect();
        let last = wal_ranges
            .iter()
            .max_by_key(|range| range.end)
            .ok_or(BackupError::NoWalRange)?;
        let (stop_lsn, timeline) = (last.end, last.timeline);
        let (files, cluster_size) = streamed.items.totals(b"");
        let unknown = |e: walden_pg::ids::BadSegmentSize| ServerError::Nonsense {
            what: "wal_segment_size",
            value: e.0.to_string(),
        };
        Ok(BackupRecord {
            backup_id: writer.backup.clone(),
            archive_id: writer.archive_id,
            cluster: self.request.cluster.clone(),
            system_identifier: facts.system,
            write_token,
            backup_kind: BackupKind::Full,
            parents: Vec::new(),
            pg_version: facts.major(),
            pg_version_num: facts.version_num,
            wal_segment_size: WalSegmentSize::new(facts.wal_segment_size).map_err(unknown)?,
            block_size: facts.block_size,
            data_checksums: facts.data_checksums,
            host: host::host_name(),
            from_standby: facts.in_recovery,
            label: self.request.label.clone(),
            annotations: self.request.annotations.clone(),
            started_at: Timestamp::UNIX_EPOCH,
            stopped_at: Timestamp::UNIX_EPOCH,
            start_lsn: streamed.label.start,
            stop_lsn,
            checkpoint_lsn: streamed.label.checkpoint,
            timeline,
            wal_ranges,
            snapshot: None,
            control: ControlSettings {
                max_connections: control.max_connections,
                max_worker_processes: control.max_worker_processes,
                max_wal_senders: control.max_wal_senders,
                max_prepared_transactions: control.max_prepared_transactions,
                max_locks_per_transaction: control.max_locks_per_transaction,
                wal_level: facts.wal_level.clone(),
            },
            tablespaces: facts
                .tablespaces
                .iter()
                .map(|(oid, path)| Tablespace {
                    oid: *oid,
                    path: path.clone(),
                    size: streamed
                        .items
                        .totals(format!("pg_tblspc/{oid}/").as_bytes())
                        .1,
                })
                .collect(),
            cluster_size,
            stored_size: packs.stored_size(),
            files,
            packs: packs.refs.clone(),
            file_map: Vec::new(),
            damaged: Vec::new(),
            damaged_blocks: 0,
            extras: streamed.items.extras(),
            names: None,
        })
    }
}
