//! `walden`: arguments to requests, reports to text.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Parser;
use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use walden_engine::backup::{self, BackupReport, BackupRequest};
use walden_engine::init::{InitReport, InitRequest, init};
use walden_engine::list::{ListRequest, list};
use walden_engine::windows::windows;

use crate::arguments::{
    Arguments, BackupArguments, CheckpointMode, Command, InitArguments, ListArguments,
    WindowsArguments,
};
use crate::command::{print_clap, run};
use crate::config::{LogLevel, Settings};
use crate::exit::common;
use crate::problem::Problem;
use crate::{
    conflicts, copy, expire, find, logging, progress, push_missing, render, restore, verify, wal,
};

/// Damaged blocks that are named on standard error; the commit document names more.
const DAMAGED_SHOWN: usize = 10;

/// The program; gives its exit code. `executable` is its own path: the other two programs are beside it.
pub fn program(
    arguments: impl IntoIterator<Item = OsString>,
    variable: Option<OsString>,
    executable: std::io::Result<PathBuf>,
) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(e) if print_clap(&e) => return common::OK,
        Err(_) => return common::USAGE,
    };
    carry_out(arguments, variable, executable).unwrap_or_else(|problem| {
        problem.print();
        problem.exit()
    })
}

fn carry_out(
    arguments: Arguments,
    variable: Option<OsString>,
    executable: std::io::Result<PathBuf>,
) -> Result<u8, Problem> {
    let named = arguments.place.cluster.is_some();
    let settings = match arguments.command {
        Command::Copy(_) => arguments.place.settings_of_any(variable)?,
        _ => arguments.place.settings(variable)?,
    };
    logging::start(more(
        arguments.log_level.unwrap_or(settings.log_level),
        arguments.verbose,
    ));
    match arguments.command {
        Command::Init(arguments) => run_init(settings, arguments),
        Command::Backup(arguments) => run_backup(settings, arguments),
        Command::ListBackups(arguments) => run_list(settings, &arguments),
        Command::Windows(arguments) => run_windows(settings, &arguments),
        Command::Find(arguments) => find::run(settings, *arguments),
        Command::Restore(arguments) => restore::run(settings, *arguments, executable),
        Command::Verify(arguments) => verify::run(&settings, &arguments),
        Command::Copy(arguments) => copy::run(settings, named, &arguments),
        Command::PushMissing(arguments) => push_missing::run(settings, arguments),
        Command::Conflicts(arguments) => conflicts::run(settings, arguments),
        Command::Expire(arguments) => expire::run_expire(settings, &arguments),
        Command::Pin(arguments) => expire::run_pin(settings, &arguments),
        Command::Unpin(arguments) => expire::run_unpin(settings, &arguments),
        Command::Wal(command) => wal::run(settings, command),
    }
}

/// Each `-v` is one level more.
fn more(level: LogLevel, steps: u8) -> LogLevel {
    (0..steps).fold(level, |level, _| match level {
        LogLevel::Error => LogLevel::Warn,
        LogLevel::Warn => LogLevel::Info,
        LogLevel::Info => LogLevel::Debug,
        LogLevel::Debug | LogLevel::Trace => LogLevel::Trace,
    })
}

/// Runs a verb to its end.
pub(crate) fn call<T, E>(verb: impl Future<Output = Result<T, E>>) -> Result<T, Problem>
where
    E: std::error::Error + Send + Sync + 'static,
{
    run(verb)
        .map_err(Problem::failure)?
        .map_err(Problem::failure)
}

/// Writes a result.
pub(crate) fn print(text: &str) -> Result<(), Problem> {
    let mut stdout = std::io::stdout().lock();
    let all = stdout.write_all(text.as_bytes());
    written(all.and_then(|()| stdout.flush()))
}

/// What became of a result on its way to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn written(written: std::io::Result<()>) -> Result<(), Problem> {
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Problem::failure(Unwritten(e))),
        _ => Ok(()),
    }
}

/// A person or a service manager ended the backup.
#[derive(Debug, thiserror::Error)]
#[error(
    "interrupted; what was stored so far is an unfinished backup, which cannot be mistaken for a whole one"
)]
struct Interrupted(#[source] Option<std::io::Error>);

/// The result could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct Unwritten(#[source] std::io::Error);

/// A setting that this verb cannot do without.
pub(crate) fn needed<T>(
    value: Option<T>,
    settings: &Settings,
    key: &str,
    option: &str,
) -> Result<T, Problem> {
    let Settings { file, cluster, .. } = settings;
    value.ok_or_else(|| {
        Problem::usage(format!(
            "{} says no {key} for cluster {cluster}",
            file.display()
        ))
        .with_hint(format!("set clusters.{cluster}.{key}{option}"))
    })
}

fn run_init(settings: Settings, arguments: InitArguments) -> Result<u8, Problem> {
    let pgdata = arguments.pgdata.or_else(|| settings.pgdata.clone());
    let request = InitRequest {
        pgdata: needed(pgdata, &settings, "pgdata", ", or give --pgdata")?,
        repositories: settings.repositories.clone(),
        only: arguments.repository,
        cluster: settings.cluster.clone(),
        new_system_identifier: arguments.new_system_identifier,
    };
    let report = call(init(&request))?;
    print(&init_text(&report))?;
    incomplete(report.failed.into_iter().map(|failed| Lacking {
        what: "is not ready for the cluster",
        repository: failed.name,
        required: failed.required,
        why: failed.why.into(),
    }))?;
    Ok(common::OK)
}

/// A repository that did not get what others have.
#[derive(Debug, thiserror::Error)]
#[error("repository \"{repository}\"{} {what}", if *required { "" } else { ", which is not required," })]
struct Lacking {
    what: &'static str,
    repository: String,
    required: bool,
    #[source]
    why: Box<dyn std::error::Error + Send + Sync>,
}

/// Warns of those that are not required; the last of the others is the error, and any further one is told before.
fn incomplete(lacking: impl Iterator<Item = Lacking>) -> Result<(), Problem> {
    let mut failed: Option<Problem> = None;
    for lacking in lacking {
        if lacking.required {
            let before = failed.replace(Problem::failure(lacking));
            before.inspect(Problem::print);
        } else {
            tracing::warn!(error = &lacking as &dyn std::error::Error);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn init_text(report: &InitReport) -> String {
    let identity = &report.identity;
    let mut text = String::new();
    for repository in &report.repositories {
        let _ = writeln!(
            text,
            "repository {} in {} {}; its id is {}",
            repository.name,
            repository.place,
            if repository.made {
                "was made"
            } else {
                "was there already"
            },
            repository.id,
        );
    }
    let new = report.repositories.iter().filter(|known| known.registered);
    let new: Vec<_> = new.map(|known| known.name.as_str()).collect();
    let _ = writeln!(
        text,
        "cluster {} {}: system identifier {}, PostgreSQL {}, WAL segments of {}",
        identity.cluster,
        match new.len() {
            0 => "was registered already".to_owned(),
            all if all == report.repositories.len() => "was registered".to_owned(),
            _ => format!("was registered in {}", new.join(", ")),
        },
        identity.system_identifier,
        identity.pg_version,
        identity.wal_segment_size,
    );
    text
}

fn run_backup(settings: Settings, arguments: BackupArguments) -> Result<u8, Problem> {
    let request = BackupRequest {
        connection: needed(settings.connection.clone(), &settings, "connection", "")?,
        repositories: settings.repositories,
        cluster: settings.cluster,
        primary_connection: settings.primary_connection,
        pg_bin_dir: settings.pg_bin_dir,
        spool_dir: settings.spool_dir,
        checkpoint: match arguments.checkpoint {
            CheckpointMode::Fast => backup::CheckpointMode::Fast,
            CheckpointMode::Spread => backup::CheckpointMode::Spread,
        },
        max_rate: arguments.max_rate.map(|rate| rate.to_string()),
        label: arguments.label,
        annotations: arguments
            .annotate
            .into_iter()
            .map(|a| (a.key, a.value))
            .collect(),
        level: settings.compression_level,
        wal_timeout: arguments
            .wal_timeout
            .map_or(settings.backup_wal_timeout, |span| span.0),
    };
    let progress = progress::on_standard_error();
    // Left by the way of an error, the backup ends pg_basebackup and empties its spool folder.
    let interrupted = async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted,
            _ = terminate.recv() => Ok(()),
        }
    };
    let report = run(async {
        tokio::select! {
            taken = backup::backup(&request, progress) => taken.map_err(Problem::failure),
            signal = interrupted => Err(Problem::failure(Interrupted(signal.err()))),
        }
    })
    .map_err(Problem::failure)??;
    let _ = std::io::stderr()
        .lock()
        .write_all(backup_warnings(&report).as_bytes());
    if arguments.json {
        print(&render::backup_json(&report).map_err(Problem::failure)?)?;
    } else {
        print(&backup_text(&report))?;
    }
    let damaged = report.record.damaged_blocks > 0;
    incomplete(report.lacking.into_iter().map(lacking_backup))?;
    Ok(if damaged {
        common::DAMAGED_BLOCKS
    } else {
        common::OK
    })
}

fn lacking_backup(lacking: backup::Lacking) -> Lacking {
    Lacking {
        what: "lacks the backup",
        repository: lacking.repository,
        required: lacking.required,
        why: lacking.why.into(),
    }
}

fn backup_text(report: &BackupReport) -> String {
    let record = &report.record;
    let took = record.duration().try_into().unwrap_or_default();
    format!(
        "backup {} was taken{}: {} in {}, {} stored{}; WAL from {} to {} on timeline {}\n",
        record.backup_id,
        if report.committed.len() + report.lacking.len() > 1 {
            format!(" into {}", report.committed.join(", "))
        } else {
            String::new()
        },
        render::size(record.cluster_size),
        render::span(took),
        render::size(record.stored_size),
        record
            .ratio()
            .map(|ratio| format!(" ({ratio:.1} times smaller)"))
            .unwrap_or_default(),
        record.start_lsn,
        record.stop_lsn,
        record.timeline,
    )
}

fn backup_warnings(report: &BackupReport) -> String {
    let mut text = String::new();
    for warning in &report.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let record = &report.record;
    if record.damaged_blocks > 0 {
        let _ = writeln!(
            text,
            "warning: {} blocks of the cluster are damaged; the backup is kept, with them as they are",
            record.damaged_blocks
        );
        for block in record.damaged.iter().take(DAMAGED_SHOWN) {
            let _ = writeln!(
                text,
                "         {} block {}: {}",
                block.path, block.block, block.reason
            );
        }
        if record.damaged_blocks > DAMAGED_SHOWN as u64 {
            text.push_str("         walden list-backups --json names more\n");
        }
    }
    text
}

fn run_list(settings: Settings, arguments: &ListArguments) -> Result<u8, Problem> {
    let request = ListRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
    };
    let listing = call(list(&request))?;
    let page = if arguments.json {
        render::backups_json(&listing, Timestamp::now()).map_err(Problem::failure)?
    } else {
        render::backups_table(&listing, Timestamp::now())
    };
    print(&page)?;
    Ok(common::OK)
}

fn run_windows(settings: Settings, arguments: &WindowsArguments) -> Result<u8, Problem> {
    let request = ListRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
    };
    let windows = call(windows(&request))?;
    let page = if arguments.json {
        render::windows_json(&windows, Timestamp::now()).map_err(Problem::failure)?
    } else {
        render::windows_table(&windows, Timestamp::now())
    };
    print(&page)?;
    Ok(common::OK)
}

#[cfg(test)]
mod tests {
    use walden_model::DamagedBlock;

    use super::*;
    use crate::render::samples;

    #[test]
    fn a_backup_is_told_in_one_line() {
        let report = BackupReport {
            record: samples::record(),
            committed: vec!["here".to_owned()],
            lacking: vec![],
            warnings: vec![],
        };
        assert_eq!(
            backup_text(&report),
            "backup 20261122T175007Z-0badcafe was taken: 4196 MB in 2.5s, 547 MB stored (7.7 times smaller); \
             WAL from 0/3000028 to 0/3000120 on timeline 1\n"
        );
        assert_eq!(backup_warnings(&report), "", "nothing to warn of");
    }

    #[test]
    fn of_several_repositories_those_are_told_that_have_the_backup() {
        let report = samples::taken();
        let text = backup_text(&report);
        assert!(
            text.starts_with("backup 20261122T175007Z-0badcafe was taken into here: 4196 MB"),
            "{text}"
        );
        let lacking = report.lacking.into_iter().map(lacking_backup);
        assert_eq!(
            incomplete(lacking).expect_err("one is required").render(),
            "error: repository \"there\" lacks the backup\ncause: the backup's manifest names no WAL\n"
        );
    }

    #[test]
    fn damaged_blocks_are_named_up_to_a_number() {
        let mut record = samples::record();
        record.damaged_blocks = 11;
        record.damaged = (0..11)
            .map(|block| DamagedBlock {
                path: "base/5/1259".to_owned(),
                block,
                reason: "the checksum does not fit".to_owned(),
            })
            .collect();
        let text = backup_warnings(&BackupReport {
            record,
            committed: vec!["here".to_owned()],
            lacking: vec![],
            warnings: vec!["no snapshot was to be had".to_owned()],
        });
        assert!(
            text.starts_with(
                "warning: no snapshot was to be had\n\
                 warning: 11 blocks of the cluster are damaged; the backup is kept, with them as they are\n         \
                 base/5/1259 block 0: the checksum does not fit\n"
            ),
            "the first lines: {text}"
        );
        assert_eq!(
            text.lines().count(),
            13,
            "two warnings, ten blocks and a line that says where more are named: {text}"
        );
    }

    #[test]
    fn each_v_is_one_level_more() {
        assert_eq!(more(LogLevel::Warn, 0), LogLevel::Warn);
        assert_eq!(more(LogLevel::Warn, 2), LogLevel::Debug);
        assert_eq!(more(LogLevel::Info, 9), LogLevel::Trace);
    }
}
