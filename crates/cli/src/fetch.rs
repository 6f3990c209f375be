//! `walden-wal-fetch`, PostgreSQL's `restore_command`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use walden_engine::fetch::{FetchRequest, Ready, Verdict, fetch};

use crate::command::{Place, print_clap, run};
use crate::config::StandbyOnOutage;
use crate::exit::fetch as exit;
use crate::problem::Problem;
use crate::{logging, prefetch, render};

/// Brings one WAL file back from the repository, for PostgreSQL's restore_command.
#[derive(Debug, Parser)]
#[command(name = "walden-wal-fetch", version, after_help = NOTES, color = clap::ColorChoice::Never)]
pub struct FetchArguments {
    #[command(flatten)]
    place: Place,
    /// The data directory, where it is neither the working directory nor above the destination
    #[arg(long, value_name = "DIR")]
    pgdata: Option<PathBuf>,
    /// For the process that fetches ahead
    #[arg(long, value_name = "BYTES", hide = true)]
    segment_size: Option<u64>,
    /// The WAL file's name, as PostgreSQL gives it for %f
    name: String,
    /// Where to put it, as PostgreSQL gives it for %p
    destination: PathBuf,
}

const NOTES: &str = "\
  restore_command = 'walden-wal-fetch %f %p'

Exit codes:
  0    the file is there, whole and verified
  1    every repository proved that it has neither this file nor a later one; a
       standby is told this also while one that may have it does not answer
  200  a repository that may have the file does not answer
  201  what is stored is damaged
  202  the file is missing although later ones are there
  203  the command line or the configuration is wrong
  204  this machine failed, or Walden has a defect
PostgreSQL ends recovery at 1, and stops at 200 and above.";

/// The program; gives its exit code.
pub fn program(given: &[OsString], variable: Option<OsString>) -> u8 {
    let alone = given.len() == 2;
    let arguments = match FetchArguments::try_parse_from(given) {
        Ok(arguments) => arguments,
        // PostgreSQL passes a name and a destination, and would take 0 for "restored": --help between them is a slip.
        Err(e) if print_clap(&e) && alone => return exit::RESTORED,
        Err(_) => return exit::USAGE,
    };
    match restore(arguments, variable, given) {
        Ok(()) => exit::RESTORED,
        Err((problem, code)) => {
            if let Some(problem) = problem {
                problem.print();
            }
            code
        }
    }
}

fn restore(
    arguments: FetchArguments,
    variable: Option<OsString>,
    given: &[OsString],
) -> Result<(), (Option<Problem>, u8)> {
    let begun = Instant::now();
    let settings = arguments
        .place
        .settings(variable)
        .map_err(|e| (Some(Problem::from(e)), exit::USAGE))?;
    logging::start(settings.log_level);
    let request = FetchRequest {
        repositories: settings.repositories,
        cluster: settings.cluster,
        name: arguments.name,
        destination: arguments.destination,
        // Not the configuration's: on the machine of a restore that may be another cluster's, or none.
        pgdata: arguments.pgdata,
        retry_for: settings.fetch_retry_for,
        stop_standby: settings.standby_on_outage == StandbyOnOutage::Stop,
    };
    if prefetch::is_asked_for(given) {
        if let Some(segment_size) = arguments.segment_size {
            prefetch::fill(request, segment_size, settings.fetch_ahead);
        }
        return Ok(());
    }
    let ready = Some(settings.fetch_ahead)
        .filter(|ahead| *ahead > 0)
        .and_then(|_| Ready::of(&request));
    let taken = ready.as_ref().and_then(|ready| ready.take(&request));
    let fetched = match taken {
        Some(report) => Ok(report),
        None => {
            run(fetch(&request)).map_err(|error| (Some(Problem::failure(error)), exit::INTERNAL))?
        }
    };
    match fetched {
        Ok(report) => {
            tracing::info!(
                "{} restored: {}, {} ms, from \"{}\"{}",
                report.file,
                render::size(report.size),
                begun.elapsed().as_millis(),
                report.repository,
                if report.prefetched { ", prefetched" } else { "" }
            );
            if !report.prefetched
                && let Some(ready) = ready
                && !ready.fetched(&report)
            {
                prefetch::start(given, report.size);
            }
            Ok(())
        }
        // PostgreSQL asks for files that do not exist as a matter of course, and says itself what it concludes.
        Err(failure) if failure.verdict() == Verdict::Absent => {
            tracing::debug!(error = &failure as &dyn std::error::Error);
            Err((None, exit::ABSENT))
        }
        Err(failure) if failure.standby_may_ask_again() => Err((
            Some(Problem::failure(failure).with_hint(
                "to stop the standby instead of letting it ask again, set \"fetch: { standby_on_outage: stop }\"",
            )),
            exit::ABSENT,
        )),
        Err(failure) => {
            let code = exit::of(failure.verdict());
            Err((Some(Problem::failure(failure)), code))
        }
    }
}
