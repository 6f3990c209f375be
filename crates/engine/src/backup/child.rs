//! pg_basebackup as a child process.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::server::Server;
use super::{BackupRequest, CheckpointMode};

/// Lines of its stderr that are kept for the error.
const KEPT_LINES: usize = 20;
/// Longest line that is kept, in bytes.
const KEPT_LINE: usize = 1000;

/// A running pg_basebackup. Dropped, it is killed: what it wrote so far is an unfinished backup.
pub(super) struct BaseBackup {
    program: PathBuf,
    child: Child,
    stderr: Arc<Mutex<VecDeque<String>>>,
    listening: tokio::task::JoinHandle<()>,
}

/// Why there is no stream, or no whole one.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It did not start.
    #[error("cannot start {}; install PostgreSQL's client programs of the server's version, or set pg_bin_dir", program.display())]
    Start {
        /// What was tried.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{} failed ({status}): {said}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        said: String,
    },
    /// It could not be waited for.
    #[error("cannot wait for {}", program.display())]
    Wait {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl BaseBackup {
    /// Starts it: into standard output, or into `spool` where there are tablespaces, for which it refuses standard output.
    pub fn start(
        request: &BackupRequest,
        server: &Server,
        major: u16,
        spool: Option<&Path>,
    ) -> Result<Self, ChildError> {
        let program = find(request.pg_bin_dir.as_deref(), major);
        let mut command = Command::new(&program);
        command.arg("--dbname").arg(server.conninfo()).args([
            "--no-password",
            "--format=tar",
            "--wal-method=none",
        ]);
        // A page checksum that fails would end the backup with everything in hand; pages are checked in the stream instead.
        command.args([
            "--no-sync",
            "--no-verify-checksums",
            "--manifest-checksums=CRC32C",
            "--verbose",
        ]);
        command.arg("--pgdata").arg(spool.unwrap_or(Path::new("-")));
        command.arg("--label").arg(&request.label);
        command.arg(match request.checkpoint {
            CheckpointMode::Fast => "--checkpoint=fast",
            CheckpointMode::Spread => "--checkpoint=spread",
        });
        if let Some(rate) = &request.max_rate {
            command.arg("--max-rate").arg(rate);
        }
        if let Some(password) = server.password() {
            command.env("PGPASSWORD", String::from_utf8_lossy(password).as_ref());
        }
        command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if spool.is_some() {
            // Were this program killed, nothing else would stop pg_basebackup from filling the folder for nobody: each second it finds out
            // by the progress that it cannot tell.
            command.arg("--progress").stdout(Stdio::null());
        } else {
            command.stdout(Stdio::piped());
        }
        let mut child = command.spawn().map_err(|source| ChildError::Start {
            program: program.clone(),
            source,
        })?;
        let stderr = Arc::new(Mutex::new(VecDeque::new()));
        let listening = tokio::spawn(listen(child.stderr.take(), stderr.clone()));
        Ok(BaseBackup {
            program,
            child,
            stderr,
            listening,
        })
    }

    /// Its standard output, once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        // One that has ended needs no killing.
        let _ = self.child.start_kill();
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> Result<(), ChildError> {
        let ended = self.child.wait().await;
        let status = ended.map_err(|source| ChildError::Wait {
            program: self.program.clone(),
            source,
        })?;
        // Its last words may still be on their way.
        let _ = (&mut self.listening).await;
        if status.success() {
            Ok(())
        } else {
            Err(self.failed(status))
        }
    }

    fn failed(&self, status: ExitStatus) -> ChildError {
        let lines = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let said = lines
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n");
        ChildError::Failed {
            program: self.program.clone(),
            status,
            said,
        }
    }
}

async fn listen(stderr: Option<tokio::process::ChildStderr>, kept: Arc<Mutex<VecDeque<String>>>) {
    let Some(stderr) = stderr else { return };
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line).await, Ok(length) if length > 0) {
        line.truncate(KEPT_LINE);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        tracing::debug!("{text}");
        if is_progress(&text) {
            continue;
        }
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(text);
    }
}

/// Whether a line is one of `--progress`, in whatever language: kilobytes, a slash, all kilobytes.
fn is_progress(line: &str) -> bool {
    line.trim_start()
        .split_once('/')
        .is_some_and(|(done, _)| !done.is_empty() && done.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The configured folder's, else Debian's of the server's version (the one on the path there is a wrapper that may choose an older
/// version), else the path's.
fn find(bin_dir: Option<&Path>, major: u16) -> PathBuf {
    const NAME: &str = "pg_basebackup";
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")).join(NAME);
    match bin_dir {
        Some(dir) => dir.join(NAME),
        None if debian.exists() => debian,
        None => PathBuf::from(NAME),
    }
}
