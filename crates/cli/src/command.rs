//! What the three programs have in common on their command lines and on their way to an exit code.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind;

use crate::config::{self, ConfigError, Settings};

/// Which configuration, and which of its clusters.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// The configuration file [default: $WALDEN_CONFIG, else /etc/walden/walden.yaml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The cluster, where the configuration has more than one
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
}

impl Place {
    /// Reads what the configuration says of this cluster. `variable` is the environment's [`config::VARIABLE`].
    pub fn settings(&self, variable: Option<OsString>) -> Result<Settings, ConfigError> {
        config::load(
            &config::locate(self.config.as_deref(), variable),
            self.cluster.as_deref(),
        )
    }

    /// The same for verbs that go over all clusters unless one is named: where none is, the settings are the first one's.
    pub fn settings_of_any(&self, variable: Option<OsString>) -> Result<Settings, ConfigError> {
        let file = config::locate(self.config.as_deref(), variable);
        match config::load(&file, self.cluster.as_deref()) {
            Err(ConfigError::WhichCluster { known, .. }) => {
                config::load(&file, known.first().map(String::as_str))
            }
            other => other,
        }
    }
}

/// Whether anything panicked, on whatever thread.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// Runs the whole of a program. A panic on any thread, even one that nothing waits for, makes the exit code `on_panic`.
pub fn guarded(on_panic: u8, program: impl FnOnce() -> u8) -> ExitCode {
    ExitCode::from(guarded_code(on_panic, program))
}

fn guarded_code(on_panic: u8, program: impl FnOnce() -> u8) -> u8 {
    std::panic::set_hook(Box::new(|panic| {
        PANICKED.store(true, Ordering::SeqCst);
        let backtrace = std::backtrace::Backtrace::capture();
        let _ = write!(
            std::io::stderr().lock(),
            "error: Walden {} has a defect: {panic}\nhint: please report this, with these lines\n{}",
            env!("CARGO_PKG_VERSION"),
            match backtrace.status() {
                std::backtrace::BacktraceStatus::Captured => format!("{backtrace}\n"),
                _ => String::new(),
            }
        );
    }));
    let code = catch_unwind(AssertUnwindSafe(program)).unwrap_or(on_panic);
    if PANICKED.load(Ordering::SeqCst) {
        on_panic
    } else {
        code
    }
}

/// Prints what clap has to say instead of parsed arguments. Gives true if the person asked for it (`--help`, `--version`).
pub fn print_clap(error: &clap::Error) -> bool {
    // A closed pipe is the reader's own choice.
    let _ = error.print();
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    )
}

/// Runs a future to its end, and leaves without waiting for threads that are stuck in the kernel.
pub(crate) fn run<F: Future>(future: F) -> Result<F::Output, RunError> {
    // Two, so that one is free to look at the clock while a call blocks the other.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(RunError)?;
    // Dropping a runtime waits for its threads, and a panic would drop it.
    let output = catch_unwind(AssertUnwindSafe(|| runtime.block_on(future)));
    runtime.shutdown_background();
    Ok(output.unwrap_or_else(|panic| resume_unwind(panic)))
}

/// A program could not begin its work.
#[derive(Debug, thiserror::Error)]
#[error("cannot start: no threads or file descriptors to be had")]
pub(crate) struct RunError(#[source] std::io::Error);

#[cfg(test)]
mod tests {
    use super::*;

    // One test, because what it is about is global to the process.
    #[test]
    fn a_panic_on_any_thread_decides_the_exit_code() {
        assert_eq!(
            guarded_code(204, || 7),
            7,
            "without a panic the program's own code counts"
        );
        assert_eq!(
            guarded_code(204, || panic!("on purpose")),
            204,
            "a panic in the program"
        );
        PANICKED.store(false, Ordering::SeqCst);
        let detached = || {
            let _ = std::thread::spawn(|| panic!("on purpose, on a thread")).join();
            0
        };
        assert_eq!(
            guarded_code(204, detached),
            204,
            "a panic on a thread whose end nobody looks at"
        );
        PANICKED.store(false, Ordering::SeqCst);
        let task = || {
            u8::from(
                run(async {
                    tokio::spawn(async { panic!("on purpose, in a task") })
                        .await
                        .is_ok()
                })
                .is_err(),
            )
        };
        assert_eq!(
            guarded_code(204, task),
            204,
            "a panic in an asynchronous task"
        );
        PANICKED.store(false, Ordering::SeqCst);
        drop(std::panic::take_hook());
    }
}
