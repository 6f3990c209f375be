//! The PostgreSQL installations that `integration/scripts/bring-postgres` brings.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::run_as_server;

const SUPPORTED: [u16; 5] = [14, 15, 16, 17, 18];

/// PostgreSQL of one major version: its programs and libraries.
#[derive(Debug, Clone)]
pub struct PgInstall {
    major: u16,
    root: PathBuf,
}

impl PgInstall {
    /// The installation of a major version.
    ///
    /// # Errors
    /// Where it is not there: the error names the script that brings it.
    pub fn get(major: u16) -> Result<Self> {
        let root = cache()?.join("pg").join(major.to_string());
        if !root.join("bin/postgres").exists() {
            bail!(
                "no PostgreSQL {major} in {}: run integration/scripts/bring-postgres {major}",
                root.display()
            );
        }
        Ok(Self { major, root })
    }

    /// Every supported version that `WALDEN_TEST_PG` (such as `17` or `14,17`) does not leave out.
    ///
    /// # Errors
    /// Where one of them is not there.
    pub fn all() -> Result<Vec<Self>> {
        let mut installs = Vec::new();
        for major in SUPPORTED {
            if Self::wanted(major)? {
                installs.push(Self::get(major)?);
            }
        }
        Ok(installs)
    }

    /// Whether `WALDEN_TEST_PG` lets this version be tested; where it is not set, all are.
    ///
    /// # Errors
    /// Where the variable holds something other than supported versions.
    pub fn wanted(major: u16) -> Result<bool> {
        let Ok(list) = std::env::var("WALDEN_TEST_PG") else {
            return Ok(true);
        };
        let mut found = false;
        for item in list.split(',') {
            let version: u16 = item
                .trim()
                .parse()
                .with_context(|| format!("WALDEN_TEST_PG={list}: '{item}' is no version"))?;
            if !SUPPORTED.contains(&version) {
                bail!("WALDEN_TEST_PG={list}: {version} is none of {SUPPORTED:?}");
            }
            found |= version == major;
        }
        Ok(found)
    }

    /// The major version, such as 17.
    #[must_use]
    pub fn major(&self) -> u16 {
        self.major
    }

    /// Where `postgres`, `psql` and the other programs are.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Where libpq and the server's modules are.
    #[must_use]
    pub fn lib_dir(&self) -> PathBuf {
        self.root.join("lib")
    }

    /// One of PostgreSQL's programs, run as the user of the test.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin_dir().join(program));
        self.set_environment(&mut command);
        command
    }

    /// One of PostgreSQL's programs, run as the database host's user.
    ///
    /// # Errors
    /// Where there is no such user.
    pub fn server_command(&self, program: &str) -> Result<Command> {
        run_as_server(self.command(program))
    }

    /// Makes any program (Walden's, say) find this PostgreSQL first, with its own libraries, and
    /// nothing of what the person who runs the tests has set for another one, or for AWS. English messages, UTC.
    pub fn set_environment(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PG") || text.starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        let mut path = self.bin_dir().into_os_string();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        command
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", self.lib_dir())
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
    }
}

/// The same folder that `integration/scripts/bring-postgres` fills.
fn cache() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("WALDEN_TEST_CACHE").filter(|value| !value.is_empty()) {
        return Ok(cache.into());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(Path::new("/var/cache/walden-test").into());
    }
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("walden-test"))
}
