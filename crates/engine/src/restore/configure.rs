//! What a restored data directory gets beyond the backup's own files, and what is taken from it. All of it before `pg_control`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walden_model::{ControlSettings, RecoveryPlan, Signal};
use walden_pg::{conf, tablespace_map};

use super::RestoreError;
use super::contents::{ContentError, write_error};
use super::index::FileIndex;
use super::places::Places;

const AUTO_CONF: &str = "postgresql.auto.conf";
const TABLESPACE_MAP: &str = "tablespace_map";
/// What tells PostgreSQL to recover, or that it runs: never the backup's, only the plan's.
const SIGNALS: [&str; 4] = [
    "standby.signal",
    "recovery.signal",
    "postmaster.pid",
    "postmaster.opts",
];
/// Settings of an earlier life that would lead recovery, beside those that the plan sets.
const STALE: [&str; 3] = [
    "restore_command",
    "recovery_end_command",
    "archive_cleanup_command",
];
/// Most bytes of a file that is read to be changed.
const MAX_TEXT: u64 = 16 << 20;

/// Makes the directory ready to recover as the plan says. Returns the files that Walden added.
pub(super) fn configure(
    plan: &RecoveryPlan,
    places: &Places,
    index: &FileIndex,
) -> Result<Vec<PathBuf>, RestoreError> {
    let mut added = Vec::new();
    for name in SIGNALS {
        let path = places.data.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(write_error(&path)(e).into());
            }
            _ => {}
        }
    }
    rewrite_tablespace_map(places)?;
    let path = places.data.join(AUTO_CONF);
    let old = read(&path)?.unwrap_or_default();
    replace(&path, &auto_conf(plan, &old)?)?;
    let signal = places.data.join(plan.signal.file_name());
    replace(&signal, b"")?;
    added.push(signal);
    add_missing_configuration(plan, places, index, &mut added)?;
    Ok(added)
}

/// At its first start PostgreSQL makes the links in `pg_tblspc` anew, from this file: left as it is, it would lead a mapped tablespace
/// back to the original's (xlogrecovery.c, `read_tablespace_map`).
fn rewrite_tablespace_map(places: &Places) -> Result<(), RestoreError> {
    use std::os::unix::ffi::OsStrExt;
    let path = places.data.join(TABLESPACE_MAP);
    let Some(old) = read(&path)? else {
        return Ok(());
    };
    let mut map = tablespace_map::parse(&old).map_err(RestoreError::TablespaceMap)?;
    for (oid, target) in &mut map {
        let place = places.tablespaces.iter().find(|place| place.oid == *oid);
        let place = place.ok_or(RestoreError::StrangeTablespace(*oid))?;
        *target = place.target.as_os_str().as_bytes().to_vec();
    }
    let new = tablespace_map::write(&map);
    if new == old {
        Ok(())
    } else {
        Ok(replace(&path, &new)?)
    }
}

fn auto_conf(plan: &RecoveryPlan, old: &[u8]) -> Result<Vec<u8>, RestoreError> {
    let mut names: Vec<&str> = plan
        .settings
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.extend(STALE);
    let mut prefixes = vec!["recovery_target"];
    if plan.signal == Signal::Recovery {
        // A copy that is no standby must not stream from the server that the backup's standby followed.
        prefixes.push("primary_");
    }
    let mut text = conf::without_settings(old, &names, &prefixes);
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    let mut ours = format!(
        "# Written by walden restore, from backup {}. They count while {} is there. Take them out after recovery, each with\n\
         #   ALTER SYSTEM RESET restore_command;\n\
         # and so on, then reload; archive_mode needs a restart.\n",
        plan.backup.backup_id,
        plan.signal.file_name()
    );
    for (name, value) in &plan.settings {
        let value = conf::quote(value).map_err(RestoreError::Setting)?;
        ours.push_str(&format!("{name} = {value}\n"));
    }
    text.extend_from_slice(ours.as_bytes());
    Ok(text)
}

/// Where the server kept its configuration elsewhere, as Debian does, `pg_ctl start -D` needs one in PGDATA.
fn add_missing_configuration(
    plan: &RecoveryPlan,
    places: &Places,
    index: &FileIndex,
    added: &mut Vec<PathBuf>,
) -> Result<(), RestoreError> {
    let main = places.data.join("postgresql.conf");
    if !main.exists() {
        replace(
            &main,
            minimal_conf(&plan.backup.control, places, index).as_bytes(),
        )?;
        added.push(main);
    }
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        let path = places.data.join(name);
        let suffix = format!("/{name}").into_bytes();
        let extra = index
            .files()
            .find(|file| file.extra && file.path.ends_with(&suffix));
        if let (false, Some(extra)) = (path.exists(), extra)
            && let Some(text) = read(&places.resolve(extra.path, true))?
        {
            replace(&path, &text)?;
            added.push(path);
        }
    }
    Ok(())
}

fn minimal_conf(needed: &ControlSettings, places: &Places, index: &FileIndex) -> String {
    let mut text = String::from(
        "# Written by walden restore: the server kept its configuration outside the data directory. These are the settings that\n\
         # recovery needs at least. The originals lie in\n",
    );
    for extra in index.files().filter(|file| file.extra) {
        let path = places.resolve(extra.path, true);
        // A line feed in a path would end the comment.
        text.push_str(&format!(
            "#   {}\n",
            path.display().to_string().escape_debug()
        ));
    }
    let rows = [
        ("max_connections", needed.max_connections),
        ("max_worker_processes", needed.max_worker_processes),
        ("max_wal_senders", needed.max_wal_senders),
        (
            "max_prepared_transactions",
            needed.max_prepared_transactions,
        ),
        (
            "max_locks_per_transaction",
            needed.max_locks_per_transaction,
        ),
    ];
    for (name, value) in rows {
        text.push_str(&format!("{name} = {value}\n"));
    }
    text
}

/// A small file's bytes; `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, RestoreError> {
    let size = match fs::symlink_metadata(path) {
        Ok(meta) => meta.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(RestoreError::ReadBack {
                path: path.to_path_buf(),
                source,
            });
        }
    };
    if size > MAX_TEXT {
        return Err(RestoreError::TooLong {
            path: path.to_path_buf(),
            size,
        });
    }
    fs::read(path)
        .map(Some)
        .map_err(|source| RestoreError::ReadBack {
            path: path.to_path_buf(),
            source,
        })
}

/// In place, so that a file of the backup keeps its mode. No reader can see the half of it: the cluster cannot be started yet.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ContentError> {
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .map_err(write_error(path))
}
