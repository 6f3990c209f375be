//! `walden push-missing`: archives from a server's `pg_wal` what nobody archived, after a failover above all. A standby marks as done what
//! it has received, so what its dead primary had not archived yet it never archives itself (PostgreSQL: walreceiver.c, `XLogArchiveForceDone`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use walden_model::unarchived::{Compared, Fate, LocalWal, UnarchivedPlan, UnknownTimeline};
use walden_model::{Catalog, ClusterName, SegmentRange, Sha256Digest, SystemKeys, WalName};
use walden_pg::control::{ControlFile, ControlFileError};
use walden_pg::history::TimelineHistory;
use walden_pg::{LongPageHeader, SystemIdentifier, TimelineId, WalFileName, WalSegmentSize};

use crate::catalog::{self, MAX_HISTORY};
use crate::codec::keyed;
use crate::host;
use crate::push::{self, Ahead, PushError, PushReport, PushRequest};
use crate::repository::{End, Repository, RepositoryError, RepositorySettings, Trouble};

/// Files that are compared at the same time.
const LANES: usize = 4;
/// How often a control file is read that does not fit its checksum: a running server writes it in place.
const CONTROL_TRIES: u32 = 10;

/// Whose WAL to archive, and where.
#[derive(Debug, Clone)]
pub struct PushMissingRequest {
    /// The repositories: each is given what it lacks.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in them.
    pub cluster: ClusterName,
    /// The server's data directory; it may run or not.
    pub pgdata: PathBuf,
    /// zstd's level.
    pub level: i32,
    /// Push nothing.
    pub dry_run: bool,
}

/// What became of a server's WAL in one repository.
#[derive(Debug)]
pub struct PushMissingReport {
    /// The repository.
    pub repository: String,
    /// Whether WAL counts as archived only once it is there.
    pub required: bool,
    /// What became of it; or why that cannot be told, and nothing was pushed there.
    pub told: Result<Told, PushMissingError>,
}

/// What became of each file.
#[derive(Debug)]
pub struct Told {
    /// Whose it is.
    pub system: SystemIdentifier,
    /// The server's timeline.
    pub timeline: TimelineId,
    /// Its length of a segment.
    pub segment_size: WalSegmentSize,
    /// Histories first, then by name.
    pub files: Vec<ToldFile>,
    /// Segments on the way to the server's newest one that are neither archived nor in its `pg_wal`.
    pub gaps: Vec<SegmentRange>,
}

/// A file of `pg_wal`.
#[derive(Debug)]
pub struct ToldFile {
    /// Its name.
    pub file: WalFileName,
    /// What was to become of it.
    pub fate: Fate,
    /// What became of it, if it was pushed; or why it was not.
    pub pushed: Option<Result<PushReport, PushError>>,
}

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushMissingError {
    /// The data directory cannot be read.
    #[error("cannot read {}; is it in the data directory, and may this user read it?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control file cannot be read.
    #[error("cannot use {}", path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ControlFileError,
    },
    /// The server's segments are of another size than the archive's.
    #[error(
        "{} says that WAL segments have {found} bytes, but the cluster is registered with {registered}", path.display()
    )]
    SegmentSize {
        /// The control file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What is registered.
        registered: WalSegmentSize,
    },
    /// Where the server's timeline comes from is not known.
    #[error("cannot tell what {} holds", pg_wal.display())]
    Timeline {
        /// The server's folder.
        pg_wal: PathBuf,
        /// Why.
        #[source]
        source: UnknownTimeline,
    },
    /// A file cannot be compared with the archived one.
    #[error("cannot tell what the archive has already")]
    Compare(#[source] Box<PushError>),
    /// The repository's own error.
    #[error("cannot tell what the archive lacks")]
    Repository(#[from] RepositoryError),
}

/// Pushes what each repository lacks of a server's `pg_wal`, or says what it would push. What failed in one of them is told, and keeps nothing
/// from the others.
///
/// # Errors
/// The data directory's control file cannot be read.
pub async fn push_missing(
    request: &PushMissingRequest,
) -> Result<Vec<PushMissingReport>, PushMissingError> {
    let control = control(&request.pgdata).await?;
    let mut reports = Vec::new();
    for settings in &request.repositories {
        reports.push(PushMissingReport {
            repository: settings.name.clone(),
            required: settings.required,
            told: push_into(request, settings, &control).await,
        });
    }
    Ok(reports)
}

async fn push_into(
    request: &PushMissingRequest,
    settings: &RepositorySettings,
    control: &ControlFile,
) -> Result<Told, PushMissingError> {
    let repository = Repository::open(settings).await?;
    repository.root().await?;
    let system = control.system_identifier;
    let identity = repository.registration(&request.cluster, system).await?;
    let segment_size = identity.wal_segment_size;
    if u64::from(control.wal_segment_size) != segment_size.bytes() {
        return Err(PushMissingError::SegmentSize {
            path: request.pgdata.join(host::CONTROL),
            found: control.wal_segment_size,
            registered: segment_size,
        });
    }
    let pg_wal = request.pgdata.join("pg_wal");
    // Before the archive is listed: what is finished now may be archived by then, and not the other way round.
    let local = look(&pg_wal, control, segment_size)?;
    let catalog = catalog::load_wal(&repository, &request.cluster, &identity).await?;
    let plan = UnarchivedPlan::build(&local, &catalog);
    let plan = plan.map_err(|source| PushMissingError::Timeline {
        pg_wal: pg_wal.clone(),
        source,
    })?;
    let compared: BTreeMap<WalFileName, Compared> = stream::iter(plan.to_compare())
        .map(|file| {
            let (repository, catalog, path) =
                (&repository, &catalog, pg_wal.join(file.to_string()));
            async move {
                let compared = compare(repository, catalog, file, &path).await?;
                Ok::<_, PushMissingError>(compared.map(|compared| (file, compared)))
            }
        })
        .buffered(LANES)
        .try_filter_map(|compared| std::future::ready(Ok(compared)))
        .try_collect()
        .await?;
    let plan = plan.compared(&compared);
    let mut files = Vec::new();
    for (file, fate) in plan.files {
        let pushed = match fate {
            // What stands against it, the push says.
            Fate::Missing | Fate::Conflict | Fate::Unreadable if !request.dry_run => {
                let path = pg_wal.join(file.to_string());
                Some(push::push(&one(request, settings, path)).await)
            }
            _ => None,
        };
        files.push(ToldFile { file, fate, pushed });
    }
    Ok(Told {
        system,
        timeline: plan.timeline,
        segment_size,
        files,
        gaps: plan.gaps,
    })
}

fn one(request: &PushMissingRequest, settings: &RepositorySettings, path: PathBuf) -> PushRequest {
    PushRequest {
        // Alone, so that its failure is the push's.
        repositories: vec![RepositorySettings {
            required: true,
            ..settings.clone()
        }],
        cluster: request.cluster.clone(),
        path,
        pgdata: Some(request.pgdata.clone()),
        level: request.level,
        quarantine: false,
        optional_wait: Duration::ZERO,
        ahead: Ahead {
            files: 0,
            backlog_level: None,
            time: Duration::ZERO,
        },
    }
}

/// The control file. One that does not fit its checksum may have been read while it was written.
async fn control(pgdata: &Path) -> Result<ControlFile, PushMissingError> {
    let path = pgdata.join(host::CONTROL);
    let mut tries = 0;
    loop {
        tries += 1;
        let bytes = fs::read(&path);
        let bytes = bytes.map_err(|source| PushMissingError::Read {
            path: path.clone(),
            source,
        })?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok(control),
            Err(ControlFileError::Checksum { .. }) if tries < CONTROL_TRIES => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(source) => return Err(PushMissingError::Control { path, source }),
        }
    }
}

/// Looks at the names and first pages of a `pg_wal`.
fn look(
    pg_wal: &Path,
    control: &ControlFile,
    size: WalSegmentSize,
) -> Result<LocalWal, PushMissingError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| PushMissingError::Read { path, source }
    };
    let mut local = LocalWal {
        timeline: control
            .checkpoint_timeline
            .max(control.min_recovery_timeline),
        files: BTreeMap::new(),
        histories: BTreeMap::new(),
    };
    for entry in fs::read_dir(pg_wal).map_err(failed(pg_wal))? {
        let entry = entry.map_err(failed(pg_wal))?;
        let name = entry.file_name();
        let Some(Ok(file)) = name.to_str().map(str::parse::<WalFileName>) else {
            continue;
        };
        let path = entry.path();
        let looked = match file {
            WalFileName::Segment(_) | WalFileName::Partial(_) => first_page(&path, size),
            WalFileName::History(timeline) => history(timeline, &path).map(|history| {
                if let Some(history) = history {
                    local.histories.insert(timeline, history);
                }
                None
            }),
            WalFileName::Backup { .. } => Ok(None),
        };
        match looked {
            Ok(page) => {
                local.files.insert(file, page);
            }
            // The server has removed or renamed it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(&path)(e)),
        }
    }
    Ok(local)
}

/// A segment's first page header; `None` where it has none, or is no whole segment.
fn first_page(path: &Path, size: WalSegmentSize) -> io::Result<Option<LongPageHeader>> {
    let file = File::open(path)?;
    if file.metadata()?.len() != size.bytes() {
        return Ok(None);
    }
    let mut first = [0; LongPageHeader::LENGTH];
    file.read_exact_at(&mut first, 0)?;
    Ok(LongPageHeader::parse(&first).ok())
}

/// A history file; `None` where it is none.
fn history(timeline: TimelineId, path: &Path) -> io::Result<Option<TimelineHistory>> {
    if fs::metadata(path)?.len() > MAX_HISTORY as u64 {
        return Ok(None);
    }
    Ok(TimelineHistory::parse(timeline, &fs::read(path)?).ok())
}

/// Holds a file against the digest of what is archived under its name; `None` where the server has removed or recycled it meanwhile.
pub(crate) async fn compare(
    repository: &Repository,
    catalog: &Catalog,
    file: WalFileName,
    path: &Path,
) -> Result<Option<Compared>, PushMissingError> {
    let digest = match push::digest(path).await {
        Ok(digest) => digest,
        Err(PushError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(PushError::Changed { .. } | PushError::Mismatch { .. }) => return Ok(None),
        Err(e) => return Err(PushMissingError::Compare(Box::new(e))),
    };
    let keys = SystemKeys {
        cluster: catalog.cluster.clone(),
        system: catalog.system_identifier,
    };
    let ours = keyed(catalog.archive_id, &digest);
    let named = match repository.keys().encrypts() {
        true => Sha256Digest(ours.0),
        false => digest,
    };
    let key = keys.wal(&WalName::new(file, &named));
    Ok(Some(match repository.read_end(&key).await {
        Ok((_, End::Tail(read))) if read.tail.sha256 == Some(digest) => Compared::Same,
        Ok((_, End::Seal(seal))) if seal.content_hmac == Some(ours) => Compared::Same,
        Ok(_) => Compared::Different,
        Err(e) => match e.trouble() {
            Trouble::Absent => Compared::Absent,
            Trouble::Damage | Trouble::Configuration => Compared::Unreadable,
            Trouble::Outage | Trouble::Local => return Err(e.into()),
        },
    }))
}
