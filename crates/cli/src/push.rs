//! `walden-wal-push`, PostgreSQL's `archive_command`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use walden_engine::push::{Ahead, PushOutcome, PushReport, PushRequest, push};

use crate::command::{Place, print_clap, run};
use crate::config::Span;
use crate::exit::common;
use crate::problem::Problem;
use crate::{logging, render};

/// Stores one WAL file in every repository, for PostgreSQL's archive_command.
#[derive(Debug, Parser)]
#[command(name = "walden-wal-push", version, after_help = NOTES, color = clap::ColorChoice::Never)]
pub struct PushArguments {
    #[command(flatten)]
    place: Place,
    /// The data directory, where it is neither the working directory nor above the file
    #[arg(long, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// Set the file aside in the repository instead of archiving it, where another of its name is archived
    #[arg(long)]
    quarantine: bool,
    /// The WAL file, as PostgreSQL gives it for %p
    path: PathBuf,
}

const NOTES: &str = "\
  archive_command = 'walden-wal-push %p'

Exit codes:
  0  the file is stored durably in every required repository
  1  it is not, and PostgreSQL will try again
  2  the command line or the configuration is wrong";

/// A panic, which has said more.
#[derive(Debug, thiserror::Error)]
#[error("the push broke off inside Walden; please report this")]
struct BrokenOff(#[source] tokio::task::JoinError);

/// The push took longer than `push.deadline`.
#[derive(Debug, thiserror::Error)]
#[error("{} was not archived within {}", path.display(), Span(*limit))]
struct OutOfTime {
    path: PathBuf,
    limit: Duration,
}

/// The program; gives its exit code.
pub fn program(arguments: impl IntoIterator<Item = OsString>, variable: Option<OsString>) -> u8 {
    let arguments = match PushArguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(e) if print_clap(&e) => return common::OK,
        Err(_) => return common::USAGE,
    };
    match archive(arguments, variable) {
        Ok(()) => common::OK,
        Err(problem) => {
            problem.print();
            problem.exit()
        }
    }
}

fn archive(arguments: PushArguments, variable: Option<OsString>) -> Result<(), Problem> {
    let settings = arguments.place.settings(variable)?;
    logging::start(settings.log_level);
    // Who waits for the store has to say of what before the time is up.
    let patience = settings.push_deadline * 4 / 5;
    let several = settings.repositories.len() > 1;
    let request = PushRequest {
        repositories: settings
            .repositories
            .into_iter()
            .map(|repository| repository.within(patience))
            .collect(),
        cluster: settings.cluster,
        path: arguments.path,
        pgdata: arguments.pgdata,
        level: settings.compression_level,
        quarantine: arguments.quarantine,
        optional_wait: settings.push_optional_wait,
        ahead: Ahead {
            files: settings.push_ahead,
            backlog_level: settings.push_backlog_level,
            time: settings.push_deadline / 5,
        },
    };
    let (path, limit) = (request.path.clone(), settings.push_deadline);
    let begun = Instant::now();
    let pushed = run(async move {
        // A task of its own, on another thread: the clock is looked at even while a call of the push blocks.
        let push = tokio::spawn(async move { push(&request).await });
        tokio::time::timeout(limit, push).await
    });
    let report = match pushed {
        Ok(Ok(Ok(report))) => report.map_err(Problem::failure)?,
        Ok(Ok(Err(broken))) => return Err(Problem::failure(BrokenOff(broken))),
        Ok(Err(_elapsed)) => {
            return Err(Problem::failure(OutOfTime { path, limit }).with_hint(
                "PostgreSQL tries again; look whether the repository answers, or set push.deadline higher",
            ));
        }
        Err(error) => return Err(Problem::failure(error)),
    };
    log(&report, several, begun.elapsed());
    Ok(())
}

fn log(report: &PushReport, several: bool, took: Duration) {
    let what = match report.outcome {
        PushOutcome::Stored => "archived",
        PushOutcome::AlreadyThere => "archived already, with the same bytes",
        PushOutcome::TakenAlong => "archived already, by an earlier call",
        PushOutcome::SetAside => "set aside already: another file of this name is archived",
    };
    tracing::info!(
        "{} {what}{}: {}, {} stored, {} ms",
        report.file,
        if several && !report.stored_in.is_empty() {
            format!(" in {}", report.stored_in.join(", "))
        } else {
            String::new()
        },
        render::size(report.size),
        render::size(report.stored),
        took.as_millis()
    );
    for lacking in &report.lacking {
        tracing::warn!("{lacking}");
    }
    if report.taken_along > 0 {
        tracing::info!("{} more files archived with it", report.taken_along);
    }
    if let Some(warning) = &report.warning {
        tracing::warn!("{}: {warning}", report.file);
    }
}
