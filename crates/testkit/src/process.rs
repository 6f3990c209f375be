//! Running programs: as whom, with what environment, and what is said when they fail.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long anything that a test waits for may take on a busy machine of two cores.
const PATIENCE: Duration = Duration::from_secs(120);

/// The user and group that act as the database host's user; `None` where the test is no root and
/// that user is itself.
fn server_user() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (name == "nobody").then_some((uid, gid))
    });
    ids.map(Some)
        .context("there is no user 'nobody' to run PostgreSQL as")
}

/// Makes `command` run as the database host's user: `nobody` where the test is root.
///
/// # Errors
/// Where the test is root and there is no such user.
pub fn run_as_server(mut command: Command) -> Result<Command> {
    if let Some((uid, gid)) = server_user()? {
        command.uid(uid).gid(gid);
        // The test's own folder may be closed to that user, and PostgreSQL's programs complain.
        if command.get_current_dir().is_none() {
            command.current_dir("/tmp");
        }
        command.env("HOME", "/tmp");
    }
    Ok(command)
}

/// Gives a file or folder (not what is in it) to the database host's user.
///
/// # Errors
/// Where the owner cannot be changed.
pub fn own_by_server(path: &Path) -> Result<()> {
    if let Some((uid, gid)) = server_user()? {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to nobody", path.display()))?;
    }
    Ok(())
}

/// Runs a program to its end and returns what it wrote on stdout.
///
/// # Errors
/// Where it cannot be started or exits with another status than 0: the error holds its output.
pub fn run(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("{command:?}: {status}\n{stderr}{stdout}");
    }
    Ok(stdout)
}

/// Asks again until `ask` answers something, two minutes at most.
///
/// # Errors
/// What `ask` fails with, at once; after the two minutes an error that says `what` was waited for.
pub fn poll<T>(what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if started.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(25));
    }
}
