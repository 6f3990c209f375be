//! `walden restore`: a plan, then a data directory from which PostgreSQL recovers to the target.

mod configure;
pub(crate) mod contents;
mod error;
mod index;
pub(crate) mod map;
mod original;
mod places;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walden_model::{
    BackupId, ClusterName, IdentityDocument, Note, PlanOptions, RecoveryPlan, RecoveryTarget,
    SystemKeys,
};
use walden_pg::SystemIdentifier;

pub use contents::ContentError;
pub use error::RestoreError;
pub use map::FileMapError;
pub use places::{PlaceError, Places, TablespacePlace};

use contents::{Contents, write_error};
use index::FileIndex;

use crate::archive::{Archive, OutRepository};
use crate::catalog::{self, SystemCatalog};
use crate::host;
use crate::index::{Indexes, mark_breaks};
use crate::list;
use crate::progress::Progress;
use crate::repository::RepositorySettings;
use crate::resolve;

/// What to restore, and where to.
#[derive(Debug, Clone)]
pub struct RestoreRequest {
    /// The repositories, in the order in which they are asked.
    pub repositories: Vec<RepositorySettings>,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// Which of the cluster's system identifiers; else the one that was registered last.
    pub system: Option<SystemIdentifier>,
    /// Where recovery shall end.
    pub target: RecoveryTarget,
    /// The backup to begin with; else the newest that can reach the target.
    pub backup: Option<BackupId>,
    /// PGDATA: absent or empty.
    pub target_directory: PathBuf,
    /// The original's PGDATA, if it is on this host: what it has is not to be touched.
    pub original: Option<PathBuf>,
    /// `--tablespace-map OLD=NEW`.
    pub tablespace_map: Vec<(PathBuf, PathBuf)>,
    /// A folder of its own for `pg_wal`: an absolute path, absent or empty.
    pub waldir: Option<PathBuf>,
    /// Whether the copy shall be a standby.
    pub standby: bool,
    /// Whether the copy is the new primary: then it archives.
    pub take_over: bool,
    /// `restore_command`, with absolute paths, ready to be written.
    pub restore_command: String,
    /// Packs that are read at the same time.
    pub workers: usize,
}

/// A restore that can be done: everything was looked at, and nothing written.
#[derive(Debug)]
pub struct PlannedRestore {
    /// Which backup, which WAL, which settings.
    pub plan: RecoveryPlan,
    /// The system identifier's registration.
    pub identity: IdentityDocument,
    /// The cluster's earlier system identifiers, where the request names none.
    pub other_systems: Vec<SystemIdentifier>,
    /// Where everything goes.
    pub places: Places,
    /// Whether this is root, to whom PostgreSQL's files must not belong: PostgreSQL refuses to run as root.
    pub as_root: bool,
    /// The repositories that hold all of the backup, where several are configured. Others help out.
    pub whole_in: Vec<String>,
    archive: Archive,
    keys: SystemKeys,
    index: Arc<FileIndex>,
    workers: usize,
}

impl PlannedRestore {
    /// Where the configuration files that the server kept outside PGDATA will lie, if there are any.
    pub fn extras(&self) -> Option<&Path> {
        self.has_extras().then_some(self.places.extras.as_path())
    }

    /// Repositories that were not read: what they alone hold is not in the plan.
    pub fn out(&self) -> &[OutRepository] {
        self.archive.out()
    }

    fn has_extras(&self) -> bool {
        self.index.files().any(|file| file.extra)
    }
}

/// A data directory that is ready to be started.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// The backup.
    pub backup: BackupId,
    /// PGDATA.
    pub directory: PathBuf,
    /// Files that were restored and proven.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where configuration files from outside PGDATA lie.
    pub extras: Option<PathBuf>,
    /// Files that are not the backup's.
    pub added: Vec<PathBuf>,
    /// What only the restored files could tell.
    pub notes: Vec<Note>,
    /// How many packs each repository gave, by its name.
    pub served: BTreeMap<String, u64>,
    /// Whether several repositories are configured.
    pub several: bool,
}

/// Plans a restore and proves that it can be begun: the target can be reached, the file map is whole, and the places are free and
/// large enough. Writes nothing.
pub async fn plan(request: &RestoreRequest) -> Result<PlannedRestore, RestoreError> {
    let archive = Archive::open(&request.repositories).await?;
    let mut systems = catalog::load(&archive, &request.cluster, request.system).await?;
    let registered: Vec<_> = systems
        .iter()
        .map(|system| system.identity.system_identifier)
        .collect();
    let Some(SystemCatalog {
        identity,
        mut catalog,
        archive,
    }) = systems.pop()
    else {
        return Err(catalog::CatalogError::NoCluster {
            name: archive.first().name().to_owned(),
            cluster: request.cluster.clone(),
        }
        .into());
    };
    let options = PlanOptions {
        backup: request.backup.clone(),
        standby: request.standby,
        take_over: request.take_over,
        restore_command: request.restore_command.clone(),
    };
    let roll_ups = mark_breaks(&archive, &mut catalog).await?;
    let indexes = Indexes::new(&archive, &catalog).knowing(roll_ups);
    let plan = resolve::plan(&indexes, &catalog, &request.target, &options).await;
    let plan = plan.map_err(|e| RestoreError::unplanned(e, archive.out()))?;
    let places = Places::new(
        &request.target_directory,
        request.waldir.as_deref(),
        &plan.backup.tablespaces,
        &request.tablespace_map,
    )?;
    places.check_free(!plan.backup.extras.is_empty())?;
    if !plan.take_over {
        original::check_tablespaces(&plan.backup, &catalog, request.original.as_deref())?;
    }
    let keys = SystemKeys {
        cluster: request.cluster.clone(),
        system: identity.system_identifier,
    };
    // What is not committed in a repository may be there in part, and whatever it gives is proven: it helps out.
    let id = &plan.backup.backup_id;
    let whole_in = list::whole_in(&archive, &catalog, id);
    let archive = archive.preferring(&catalog.repositories_of(id));
    let index = FileIndex::read(&archive, &keys, &plan.backup).await?;
    places.check_space(&index)?;
    Ok(PlannedRestore {
        other_systems: registered
            .into_iter()
            .filter(|system| *system != identity.system_identifier)
            .collect(),
        plan,
        identity,
        places,
        as_root: rustix::process::geteuid().is_root(),
        whole_in,
        archive,
        keys,
        index: Arc::new(index),
        workers: request.workers,
    })
}

/// Carries out a plan. After an error the directory is unusable, and PostgreSQL cannot start from it.
pub async fn restore(
    planned: PlannedRestore,
    progress: Arc<dyn Progress>,
) -> Result<RestoreReport, RestoreError> {
    // The plan may be minutes old: a person had to confirm it.
    planned.places.check_free(planned.has_extras())?;
    let directory = planned.places.data.clone();
    carry_out(planned, progress)
        .await
        .map_err(|source| RestoreError::Unusable {
            directory,
            source: Box::new(source),
        })
}

/// The order is what a crash or a power cut cannot hurt: up to the last step there is no `global/pg_control`, without which PostgreSQL does
/// not start. Only what is on the disk for good stands before it.
async fn carry_out(
    planned: PlannedRestore,
    progress: Arc<dyn Progress>,
) -> Result<RestoreReport, RestoreError> {
    let extras = planned.extras().map(Path::to_path_buf);
    let PlannedRestore {
        plan,
        places,
        archive,
        keys,
        index,
        workers,
        ..
    } = planned;
    let places = Arc::new(places);

    // A crash leaves empty directories.
    progress.phase("directories", None);
    let with_extras = extras.is_some();
    let roots = blocking({
        let (places, index) = (places.clone(), index.clone());
        move || make_directories(&places, &index, with_extras)
    })
    .await?;

    // A crash leaves some of the files, in part.
    progress.phase("files", Some(index.data_size()));
    let contents = Arc::new(Contents::new(
        index.clone(),
        places.clone(),
        progress.clone(),
    ));
    let served = contents
        .write_packs(&archive, &keys, &plan.backup, workers)
        .await?;

    // A crash leaves all files, perhaps with the settings of the backup's time: still without pg_control.
    progress.phase("checksums and configuration", None);
    let (control, configured) = blocking({
        let (places, index, plan) = (places.clone(), index.clone(), plan.clone());
        move || {
            let control = contents.finish()?;
            let configured = configure::configure(&plan, &places, &index)?;
            Ok((control, configured))
        }
    })
    .await?;

    // From here on a crash loses none of them.
    progress.phase("making it durable", None);
    let data = places.data.clone();
    let control_mode = index
        .control()
        .and_then(|(number, _)| index.file(number as usize))
        .map_or(0o600, |f| f.mode);
    blocking(move || {
        sync(&roots)?;
        // The last step: the directory becomes a cluster, in one moment.
        place_control(&data, &control, control_mode)
    })
    .await?;
    Ok(RestoreReport {
        backup: plan.backup.backup_id,
        directory: places.data.clone(),
        files: index.len() as u64,
        bytes: index
            .files()
            .fold(0, |sum, file| sum.saturating_add(file.size)),
        extras,
        added: configured.added,
        notes: configured.notes,
        served,
        several: archive.is_one_of_several(),
    })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RestoreError> + Send + 'static,
) -> Result<T, RestoreError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(RestoreError::Internal)?
}

/// Makes every directory, and the links to those outside PGDATA. Returns the open roots.
fn make_directories(
    places: &Places,
    index: &FileIndex,
    with_extras: bool,
) -> Result<Vec<(PathBuf, File)>, RestoreError> {
    // PostgreSQL allows PGDATA two modes (`PG_DIR_MODE_OWNER` and `PG_DIR_MODE_GROUP` in common/file_perm.h), and a cluster's directories all
    // have the same.
    let group = index
        .directories
        .iter()
        .any(|d| d.path.as_ref() == b"global" && d.mode & 0o050 == 0o050);
    let mode = if group { 0o750 } else { 0o700 };
    let mut roots = Vec::new();
    for root in places.roots(with_extras) {
        make_directory(root, mode)?;
        roots.push((
            root.to_path_buf(),
            File::open(root).map_err(write_error(root))?,
        ));
    }
    for directory in &index.directories {
        make_directory(
            &places.resolve(&directory.path, false),
            directory.mode & 0o777 | 0o700,
        )?;
    }
    if let Some(wal) = &places.wal {
        link(wal, &places.data.join("pg_wal"))?;
    }
    make_directory(&places.resolve(b"pg_wal", false), mode)?;
    make_directory(&places.resolve(b"pg_wal/archive_status", false), mode)?;
    for tablespace in &places.tablespaces {
        make_directory(&places.data.join("pg_tblspc"), mode)?;
        link(
            &tablespace.target,
            &places
                .data
                .join("pg_tblspc")
                .join(tablespace.oid.to_string()),
        )?;
    }
    Ok(roots)
}

/// The mode is set apart, for the umask does not count here.
fn make_directory(path: &Path, mode: u32) -> Result<(), ContentError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| fs::set_permissions(path, PermissionsExt::from_mode(mode)))
        .map_err(write_error(path))
}

fn link(target: &Path, at: &Path) -> Result<(), ContentError> {
    symlink(target, at).map_err(write_error(at))
}

/// Flushes whole file systems, once each. A million files, one fsync after the other, would each wait for the journal. Linux reports
/// write-back errors to syncfs (since 5.8) on handles that were open before, and the roots have been open since before the first byte.
fn sync(roots: &[(PathBuf, File)]) -> Result<(), RestoreError> {
    let mut seen = BTreeSet::new();
    for (path, root) in roots {
        let device = root.metadata().map_err(write_error(path))?.dev();
        if seen.insert(device) {
            rustix::fs::syncfs(root).map_err(|e| write_error(path)(e.into()))?;
        }
    }
    Ok(())
}

/// Writes the control file under another name and renames it: it is there whole and durable, or not at all.
fn place_control(data: &Path, control: &[u8], mode: u32) -> Result<(), RestoreError> {
    let path = data.join(host::CONTROL);
    let growing = data.join("global/pg_control.walden");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&growing)?;
        file.write_all(control)?;
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&growing, &path)?;
        File::open(data.join("global"))?.sync_all()
    };
    Ok(write().map_err(write_error(&path))?)
}
