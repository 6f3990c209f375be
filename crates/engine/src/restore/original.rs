//! What of the original cluster stands on this host, and would be written to by a copy that recovers here.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walden_model::{BackupRecord, Catalog};

use super::places::PlaceError;
use crate::host;

/// Refuses a restore whose recovery may make a tablespace where the original has its own.
///
/// Replay of CREATE TABLESPACE takes the path of the record, and with it whatever is in there already (commands/tablespace.c,
/// `create_tablespace_directories`): two servers would then write the same files. Names do not tell where in the WAL a tablespace was
/// made, so one that was made behind the target is refused too.
pub(super) fn check_tablespaces(
    backup: &BackupRecord,
    catalog: &Catalog,
    original: Option<&Path>,
) -> Result<(), PlaceError> {
    let mut new: BTreeMap<u32, PathBuf> = catalog
        .backups
        .iter()
        .filter(|later| later.stop_lsn > backup.stop_lsn)
        .flat_map(|later| &later.tablespaces)
        .map(|tablespace| (tablespace.oid, PathBuf::from(&tablespace.path)))
        .collect();
    // A control file that cannot be read is no proof that the directory is another cluster's.
    let same = |pgdata: &&Path| {
        let found = host::system_identifier(pgdata).ok();
        found.is_none_or(|system| system == backup.system_identifier)
    };
    if let Some(pgdata) = original.filter(same) {
        new.extend(linked(pgdata)?);
    }
    for tablespace in &backup.tablespaces {
        new.remove(&tablespace.oid);
    }
    match new.into_iter().find(|(_, place)| is_used(place)) {
        None => Ok(()),
        Some((oid, place)) => Err(PlaceError::NewTablespace {
            oid,
            place,
            backup: backup.backup_id.clone(),
        }),
    }
}

/// The tablespaces to which a data directory's links lead.
fn linked(pgdata: &Path) -> Result<Vec<(u32, PathBuf)>, PlaceError> {
    let folder = pgdata.join("pg_tblspc");
    let look = |source| PlaceError::Look {
        path: folder.clone(),
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        // Who may not read the original's directory owns none of its tablespaces, and recovery could not begin to use one.
        Err(e) if is_absent(&e) || e.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(look(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(look)?;
        let oid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        // One without a place of its own lies in PGDATA (`allow_in_place_tablespaces`), and so does its copy.
        if let (Some(oid), Ok(place)) = (oid, fs::read_link(entry.path())) {
            found.push((oid, place));
        }
    }
    Ok(found)
}

/// Whether anything may be there. An empty directory is what recovery needs, and harms nobody.
fn is_used(place: &Path) -> bool {
    match fs::read_dir(place) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) => !is_absent(&e),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}
