//! Walden's programs, where the server's user can run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

use crate::dir::TestDir;
use crate::install::PgInstall;
use crate::process::{run, run_as_server};

/// `walden`, `walden-wal-push` and `walden-wal-fetch`, built from the present source.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Builds the programs (once per test process, so that none is ever older than the source) and
    /// copies them into the test's folder: the checkout may be closed to the server's user.
    ///
    /// # Errors
    /// Where they do not build or cannot be copied.
    pub fn stage(dir: &TestDir) -> Result<Self> {
        static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let built = BUILT
            .get_or_init(|| build().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("Walden's programs do not build: {error}"))?;
        let staged = dir.join("bin");
        fs::create_dir(&staged).with_context(|| format!("cannot make {}", staged.display()))?;
        for program in ["walden", "walden-wal-push", "walden-wal-fetch"] {
            let (from, to) = (built.join(program), staged.join(program));
            // A link where it can be one: the three are a hundred megabytes. Else another process copies: a file that
            // this one had open for writing could be so still in a child that another thread has just begun, and a
            // program that is open for writing does not start (ETXTBSY).
            if fs::hard_link(&from, &to).is_err() {
                run(Command::new("cp").arg(&from).arg(&to))?;
            }
        }
        Ok(Self { dir: staged })
    }

    /// A program's absolute path, for `archive_command` and `restore_command`.
    #[must_use]
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }

    /// A program as the database host's user runs it, with that PostgreSQL's programs in its path.
    ///
    /// # Errors
    /// Where there is no such user.
    pub fn command(&self, install: &PgInstall, program: &str) -> Result<Command> {
        let mut command = Command::new(self.path(program));
        install.set_environment(&mut command);
        // What the person who runs the tests has configured is not what is tested.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WALDEN_") {
                command.env_remove(name);
            }
        }
        run_as_server(command)
    }
}

/// Builds the programs in the profile of the running test; returns the folder they are in.
fn build() -> Result<PathBuf> {
    let test = std::env::current_exe().context("cannot tell where the test's own program is")?;
    let output = test
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "deps"))
        .and_then(Path::parent)
        .with_context(|| format!("{} is not where cargo puts tests", test.display()))?;
    let profile = match output.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => "dev",
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The whole workspace, with the same features as `cargo test --workspace`: nothing is built twice.
    let mut build = Command::new(cargo);
    build
        .args(["build", "--quiet", "--workspace", "--bins"])
        .args(["--profile", profile])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package: ring's build script, which looks at it, would run again, and all that leans on ring be built anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            build.env_remove(name);
        }
    }
    run(&mut build)?;
    Ok(output.to_owned())
}
