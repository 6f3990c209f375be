//! What a restored data directory gets beyond the backup's own files, and what is taken from it. All of it before `pg_control`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use walden_model::{ControlSettings, GUARDS, Note, RecoveryPlan, Signal, main_configuration};
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
/// How a server archives (guc_tables.c).
const ARCHIVING: [&str; 3] = ["archive_mode", "archive_command", "archive_library"];
/// Most bytes of a file that is read to be changed.
const MAX_TEXT: u64 = 16 << 20;

/// What was done beyond the plan's own words.
#[derive(Debug, Default)]
pub(super) struct Configured {
    /// Files that Walden added.
    pub added: Vec<PathBuf>,
    /// What only the files themselves could tell.
    pub notes: Vec<Note>,
}

/// Makes the directory ready to recover as the plan says.
pub(super) fn configure(
    plan: &RecoveryPlan,
    places: &Places,
    index: &FileIndex,
) -> Result<Configured, RestoreError> {
    let mut done = Configured::default();
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
    let auto_conf = auto_conf(plan, &old)?;
    replace(&path, &auto_conf)?;
    let signal = places.data.join(plan.signal.file_name());
    replace(&signal, b"")?;
    done.added.push(signal);
    add_missing_configuration(plan, places, index, &auto_conf, &mut done)?;
    Ok(done)
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
    let names: Vec<&str> = plan
        .settings
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let mut prefixes = vec!["recovery_target"];
    if plan.signal == Signal::Recovery {
        // A copy that is no standby must not stream from the server that the backup's standby followed.
        prefixes.push("primary_");
    }
    let mut text = conf::without_settings(old, &names, &prefixes);
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    let (guards, recovery): (Vec<_>, Vec<_>) = plan
        .settings
        .iter()
        .partition(|(name, _)| GUARDS.iter().any(|(guard, _)| guard == name));
    let signal = plan.signal.file_name();
    let mut ours = format!(
        "# Written by walden restore, from backup {}.\n\
         # For recovery, while {signal} is there. When recovery has ended, this line in psql takes it out:\n{}",
        plan.backup.backup_id,
        resetting(&recovery)
    );
    ours.push_str(&lines(&recovery)?);
    if !guards.is_empty() {
        ours.push_str(
            "# These keep a copy away from the original. Only where it has taken the original's place, this line in psql takes them out,\n\
             # and then a restart:\n",
        );
        ours.push_str(&resetting(&guards));
        ours.push_str(&lines(&guards)?);
    }
    text.extend_from_slice(ours.as_bytes());
    Ok(text)
}

/// A comment that holds what a person is to paste into psql: ALTER SYSTEM takes one setting, and must not stand in a transaction.
fn resetting(settings: &[&(String, String)]) -> String {
    let names: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
    format!(
        "#   SELECT 'ALTER SYSTEM RESET ' || name FROM unnest('{{{}}}'::text[]) AS name \\gexec\n",
        names.join(",")
    )
}

fn lines(settings: &[&(String, String)]) -> Result<String, RestoreError> {
    let mut text = String::new();
    for (name, value) in settings {
        let value = conf::quote(value).map_err(RestoreError::Setting)?;
        text.push_str(&format!("{name} = {value}\n"));
    }
    Ok(text)
}

/// Where the server kept its configuration elsewhere, as Debian does, `pg_ctl start -D` needs one in PGDATA.
fn add_missing_configuration(
    plan: &RecoveryPlan,
    places: &Places,
    index: &FileIndex,
    auto_conf: &[u8],
    done: &mut Configured,
) -> Result<(), RestoreError> {
    let main = places.data.join("postgresql.conf");
    if !main.exists() {
        let mut text = minimal_conf(&plan.backup.control, places, index);
        if plan.take_over {
            text.push_str(&archiving(plan, places)?);
            done.notes.push(how_it_archives(&text, auto_conf));
        }
        replace(&main, text.as_bytes())?;
        done.added.push(main);
    } else if let Some(text) = read(&main)?
        && let Some(directory) = last(&conf::settings(&text), "data_directory")
        && Path::new(directory) != places.data
    {
        done.notes.push(Note::LeadsElsewhere {
            directory: directory.to_owned(),
        });
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
            done.added.push(path);
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

/// The lines with which a new primary archives as the server did, from the server's own file; empty where nobody knows that file.
fn archiving(plan: &RecoveryPlan, places: &Places) -> Result<String, RestoreError> {
    let Some(original) = main_configuration(&plan.backup.extras) else {
        return Ok(String::new());
    };
    let Some(text) = read(&places.resolve(original.as_bytes(), true))? else {
        return Ok(String::new());
    };
    let found = conf::settings(&text);
    let mut ours = format!(
        "# How to archive, from {}; what that file includes was not read.\n",
        original.escape_debug()
    );
    for name in ARCHIVING {
        // A value that cannot be written is missed below, and then told.
        if let Some(Ok(value)) = last(&found, name).map(conf::quote) {
            ours.push_str(&format!("{name} = {value}\n"));
        }
    }
    Ok(ours)
}

/// What the server will do that reads these two files, the second one last.
fn how_it_archives(main: &str, auto_conf: &[u8]) -> Note {
    let mut settings = conf::settings(main.as_bytes());
    settings.extend(conf::settings(auto_conf));
    let value = |name| last(&settings, name).filter(|value| !value.is_empty());
    // guc_tables.c, `archive_mode_options`.
    let on = value("archive_mode").is_some_and(|mode| {
        !["off", "false", "no", "0"].contains(&mode.to_ascii_lowercase().as_str())
    });
    match value("archive_library").or(value("archive_command")) {
        Some(command) if on => Note::ArchivesWith {
            command: command.to_owned(),
        },
        _ => Note::ArchivesNotYet,
    }
}

/// Of two settings of one name the server takes the last.
fn last<'a>(settings: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = settings.iter().rev().find(|(found, _)| found == name);
    found.map(|(_, value)| value.as_str())
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
