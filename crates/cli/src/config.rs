//! The configuration file: found, read, and turned from what it says into what it means.

mod duration;
mod encryption;
mod error;
mod raw;
mod retention;
mod s3;
mod secrets;

use std::fs::{File, Metadata};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use duration::{BadSpan, Span};
pub use error::ConfigError;
pub use raw::{LogLevel, StandbyOnOutage};
use raw::{RawConfig, RawRepository};
use walden_engine::encryption::AgeKeys;
use walden_engine::repository::{Place, RepositorySettings};
use walden_model::ClusterName;
use walden_model::retention::RetentionPolicy;

/// Where the configuration is looked for when neither `--config` nor `$WALDEN_CONFIG` names it.
pub const DEFAULT_FILE: &str = "/etc/walden/walden.yaml";

/// The environment's variable that names the configuration file.
pub const VARIABLE: &str = "WALDEN_CONFIG";

/// What the configuration means for one cluster, every default filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The file that this was read from, absolute: a restored `restore_command` names it.
    pub file: PathBuf,
    /// The key of a secret that stands in the file itself, be it this cluster's or another's.
    pub secret: Option<String>,
    /// The cluster's name in the repository.
    pub cluster: ClusterName,
    /// Every cluster's name, in the order of the file, for what goes over all of them.
    pub clusters: Vec<ClusterName>,
    /// `clusters.NAME.pgdata`: the cluster's data directory.
    pub pgdata: Option<PathBuf>,
    /// `clusters.NAME.connection`: a libpq connection string for backups.
    pub connection: Option<String>,
    /// `clusters.NAME.primary_connection`: the primary of a standby that backups are taken from.
    pub primary_connection: Option<String>,
    /// `clusters.NAME.pg_bin_dir`: where pg_basebackup is; else it is looked for on the path.
    pub pg_bin_dir: Option<PathBuf>,
    /// `clusters.NAME.spool_dir`: where a backup of a cluster with tablespaces passes through.
    pub spool_dir: Option<PathBuf>,
    /// Every repository, in the order in which they are read from; at least one is required.
    pub repositories: Vec<RepositorySettings>,
    /// `compression.level`: zstd's, 1 to 19.
    pub compression_level: i32,
    /// `push.deadline`: how long one push may take.
    pub push_deadline: Duration,
    /// `push.ahead`: how many of the next ready files one push takes along, 0 to 64.
    pub push_ahead: usize,
    /// `push.backlog_level`: zstd's level, -7 to 19, while more than `push.ahead` files wait.
    pub push_backlog_level: Option<i32>,
    /// `push.optional_wait`: how long a push waits for a repository that is not required once the others have a file.
    pub push_optional_wait: Duration,
    /// `fetch.retry_for`: how long one fetch tries again while a repository does not answer.
    pub fetch_retry_for: Duration,
    /// `fetch.ahead`: how many segments lie ready before PostgreSQL asks for them; 0 for none.
    pub fetch_ahead: usize,
    /// `fetch.standby_on_outage`.
    pub standby_on_outage: StandbyOnOutage,
    /// `backup.wal_timeout`: how long a backup waits for its WAL to be archived.
    pub backup_wal_timeout: Duration,
    /// `clusters.NAME.retention`, else `retention`: what `walden expire` keeps.
    pub retention: RetentionPolicy,
    /// `expire.abandoned_after`: how long nothing may have come of a backup without a commit document until it is taken for dead.
    pub expire_abandoned_after: Duration,
    /// `log_level`.
    pub log_level: LogLevel,
}

/// Chooses the file: `--config`, else a non-empty `$WALDEN_CONFIG`, else [`DEFAULT_FILE`].
pub fn locate(option: Option<&Path>, variable: Option<std::ffi::OsString>) -> PathBuf {
    option
        .map(Path::to_path_buf)
        .or_else(|| {
            variable
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        })
        .unwrap_or_else(|| PathBuf::from(DEFAULT_FILE))
}

/// Reads the file and resolves it for the cluster that `--cluster` names, or the only one there is.
pub fn load(file: &Path, cluster: Option<&str>) -> Result<Settings, ConfigError> {
    let file = std::path::absolute(file).map_err(|source| ConfigError::Unreadable {
        file: file.to_owned(),
        source,
    })?;
    let read = || -> std::io::Result<(String, Metadata)> {
        let mut opened = File::open(&file)?;
        let mut text = String::new();
        opened.read_to_string(&mut text)?;
        Ok((text, opened.metadata()?))
    };
    match read() {
        Ok((text, metadata)) => {
            let settings = resolve(&file, &text, cluster)?;
            secrets::guard(&settings, &metadata)?;
            Ok(settings)
        }
        Err(source) => Err(ConfigError::Unreadable { file, source }),
    }
}

/// What `text`, read from `file`, means for a cluster.
pub fn resolve(file: &Path, text: &str, cluster: Option<&str>) -> Result<Settings, ConfigError> {
    let raw: RawConfig = if text.trim().is_empty() {
        return Err(ConfigError::Missing {
            file: file.to_owned(),
            key: "clusters".to_owned(),
        });
    } else {
        serde_yaml::from_str(text).map_err(|e| ConfigError::from_yaml(file, text, &e))?
    };

    let mut clusters = raw.clusters.map(|clusters| clusters.0).unwrap_or_default();
    let known = || {
        clusters
            .iter()
            .map(|(name, _)| name.to_string())
            .collect::<Vec<_>>()
    };
    let chosen = match cluster {
        _ if clusters.is_empty() => {
            return Err(ConfigError::Missing {
                file: file.to_owned(),
                key: "clusters".to_owned(),
            });
        }
        Some(wanted) => clusters
            .iter()
            .position(|(name, _)| name.to_string() == wanted)
            .ok_or_else(|| ConfigError::NoSuchCluster {
                file: file.to_owned(),
                wanted: wanted.to_owned(),
                known: known(),
            })?,
        None if clusters.len() > 1 => {
            return Err(ConfigError::WhichCluster {
                file: file.to_owned(),
                known: known(),
            });
        }
        None => 0,
    };
    let names = clusters.iter().map(|(name, _)| name.clone()).collect();
    let secret = secrets::in_clusters(&clusters);
    let (name, cluster) = clusters.swap_remove(chosen);
    let path = |path: Option<raw::Text<raw::AbsolutePath>>| path.map(|path| path.0.0);
    let keys = raw.encryption.resolve();
    let keys = keys.map_err(|message| ConfigError::Invalid {
        file: file.to_owned(),
        line: None,
        message,
    })?;
    let repositories = resolve_repositories(file, raw.repositories.unwrap_or_default(), &keys)?;
    if repositories.is_empty() {
        return Err(ConfigError::Missing {
            file: file.to_owned(),
            key: "repositories".to_owned(),
        });
    }
    Ok(Settings {
        file: file.to_owned(),
        secret,
        cluster: name,
        clusters: names,
        pgdata: path(cluster.pgdata),
        connection: cluster.connection,
        primary_connection: cluster.primary_connection,
        pg_bin_dir: path(cluster.pg_bin_dir),
        spool_dir: path(cluster.spool_dir),
        repositories,
        compression_level: raw.compression.level.0.0,
        push_deadline: raw.push.deadline.0.0,
        push_ahead: raw.push.ahead.0.0,
        push_backlog_level: raw.push.backlog_level.0.0,
        push_optional_wait: raw.push.optional_wait.0.0,
        fetch_retry_for: raw.fetch.retry_for.0.0,
        fetch_ahead: raw.fetch.ahead.0.0,
        standby_on_outage: raw.fetch.standby_on_outage,
        backup_wal_timeout: raw.backup.wal_timeout.0.0,
        retention: cluster
            .retention
            .or(raw.retention)
            .unwrap_or_default()
            .resolve(),
        expire_abandoned_after: raw.expire.abandoned_after.0.0,
        log_level: raw.log_level,
    })
}

/// In the order of the file, in which they are read from.
fn resolve_repositories(
    file: &Path,
    raw: Vec<RawRepository>,
    keys: &AgeKeys,
) -> Result<Vec<RepositorySettings>, ConfigError> {
    let mut repositories: Vec<RepositorySettings> = Vec::new();
    for (raw, at) in raw.into_iter().zip(0..) {
        let new = resolve_repository(file, raw, at, keys)?;
        for known in &repositories {
            if known.name == new.name {
                return Err(ConfigError::SameName {
                    file: file.to_owned(),
                    name: new.name,
                });
            }
            // One store under two names would count as two copies.
            if known.place.to_string() == new.place.to_string() {
                return Err(ConfigError::SamePlace {
                    file: file.to_owned(),
                    names: [known.name.clone(), new.name],
                    place: new.place.to_string(),
                });
            }
        }
        repositories.push(new);
    }
    if !repositories.is_empty() && !repositories.iter().any(|known| known.required) {
        return Err(ConfigError::NoneRequired {
            file: file.to_owned(),
        });
    }
    Ok(repositories)
}

/// `at` is its place in the list, for whoever has to find it.
fn resolve_repository(
    file: &Path,
    repository: RawRepository,
    at: usize,
    keys: &AgeKeys,
) -> Result<RepositorySettings, ConfigError> {
    let missing = |key| ConfigError::Missing {
        file: file.to_owned(),
        key: format!("repositories[{at}].{key}"),
    };
    let name = repository.name.ok_or_else(|| missing("name"))?;
    let place = match (repository.path, repository.s3) {
        (Some(path), None) => Place::Folder(path.0.0),
        (None, Some(s3)) => {
            let s3 = s3.resolve(at).map_err(|e| ConfigError::Invalid {
                file: file.to_owned(),
                line: None,
                message: e.to_string(),
            })?;
            Place::Bucket(Box::new(s3))
        }
        (None, None) => return Err(missing("path")),
        (Some(_), Some(_)) => {
            return Err(ConfigError::TwoPlaces {
                file: file.to_owned(),
                name,
            });
        }
    };
    Ok(RepositorySettings {
        name,
        place,
        id: repository.id.map(|id| id.0),
        required: repository.required.unwrap_or(true),
        keys: keys.clone(),
    })
}

#[cfg(test)]
mod tests;
