//! Secrets, in the configuration or in files that it names: who may read them.

use std::fs::Metadata;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use walden_engine::backup::holds_password;
use walden_engine::repository::{Place, S3Credentials};
use walden_model::ClusterName;

use super::raw::RawCluster;
use super::{ConfigError, Settings};

/// Bits of a mode that let everybody in. A group that may read is the administrator's choice, as with PostgreSQL's own keys
/// (be-secure-common.c, `check_ssl_key_file_permissions`).
const OTHERS: u32 = 0o007;

/// The key of the first secret that stands in the file itself.
pub(super) fn in_clusters(clusters: &[(ClusterName, RawCluster)]) -> Option<String> {
    clusters.iter().find_map(|(name, cluster)| {
        let connections = [
            ("connection", &cluster.connection),
            ("primary_connection", &cluster.primary_connection),
        ];
        let secret = connections
            .into_iter()
            .find(|(_, connection)| connection.as_deref().is_some_and(holds_password));
        secret.map(|(key, _)| format!("clusters.{name}.{key}"))
    })
}

/// Refuses secrets that every user of the machine may read or change.
pub(super) fn guard(settings: &Settings, file: &Metadata) -> Result<(), ConfigError> {
    if let Some(key) = &settings.secret
        && is_open(file)
    {
        return Err(ConfigError::Exposed {
            file: settings.file.clone(),
            what: format!("{key} has a password"),
        });
    }
    for repository in &settings.repositories {
        if let Place::Bucket(s3) = &repository.place
            && let S3Credentials::Chain {
                credentials_file: Some(file),
                ..
            } = &s3.credentials
        {
            guard_file(
                file,
                &format!(
                    "it is the credentials_file of repository {:?}",
                    repository.name
                ),
            )?;
        }
    }
    Ok(())
}

/// The same of a file that holds nothing but secrets. One that is not there is missed by whoever needs it.
pub(super) fn guard_file(file: &Path, what: &str) -> Result<(), ConfigError> {
    match std::fs::metadata(file) {
        Ok(metadata) if is_open(&metadata) => Err(ConfigError::Exposed {
            file: file.to_owned(),
            what: what.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn is_open(file: &Metadata) -> bool {
    file.permissions().mode() & OTHERS != 0
}
