//! The process that a fetch leaves behind, to fetch what PostgreSQL will ask for next.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use walden_engine::fetch::{FetchRequest, PrefetchRequest};
use walden_engine::host;
use walden_pg::WalSegmentSize;

use crate::command::run;

/// By this name in place of its own a fetch knows that it is this process: no restore_command becomes one by a slip.
const NAME: &str = "walden-wal-prefetch";

/// Its exit code, however it ends. A server that is process 1 of a container inherits this process, and takes any exit but 0 and 1 for a
/// crash of its own (PostgreSQL: postmaster/postmaster.c, `CleanupBackend`).
pub const EXIT: u8 = 0;

/// Whether these are the arguments of such a process, the program's name first.
pub fn is_asked_for(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|name| name == NAME)
}

/// Starts it, with the arguments of the fetch that has just been served. Where that is impossible, the next fetches do without.
pub(crate) fn start(given: &[OsString], segment_size: u64) {
    let started = std::env::current_exe().and_then(|program| {
        Command::new(program)
            .arg0(NAME)
            .arg("--segment-size")
            .arg(segment_size.to_string())
            .args(given.iter().skip(1))
            // PostgreSQL's logging collector runs until nobody holds its pipe.
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    });
    if let Err(error) = started {
        tracing::debug!(%error, "nothing is fetched ahead");
    }
}

/// It itself. Nobody is there to hear of a failure, and the fetch that asks for the segment meets it again.
pub(crate) fn fill(served: FetchRequest, segment_size: u64, ahead: usize) {
    let Ok(segment_size) = WalSegmentSize::new(segment_size) else {
        return;
    };
    let request = PrefetchRequest {
        served,
        segment_size,
        ahead,
    };
    if let Err(error) = host::detach() {
        tracing::debug!(%error, "inherited descriptors cannot be closed");
        return;
    }
    match run(walden_engine::fetch::prefetch(&request)) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = &error as &dyn std::error::Error),
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error),
    }
}
