//! A library that is loaded before the C library, and makes writes fail or the clock jump.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use walden_testkit::{TestDir, run};

use crate::bench::Answer;

/// More writes than anything here makes before they are counted out.
const TOO_MANY: usize = 300;

pub struct Shim {
    library: PathBuf,
    told: PathBuf,
}

impl Shim {
    pub fn build(dir: &TestDir) -> Result<Self> {
        let library = dir.join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        run(Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source))
        .context("the shim does not compile")?;
        Ok(Self {
            library,
            told: dir.join("told"),
        })
    }

    /// For a command line of PostgreSQL's: what is run behind this finds its clock so many seconds ahead or behind, in turn.
    pub fn jumping(&self, seconds: i64) -> [String; 2] {
        [
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAULT_CLOCK={seconds}"),
        ]
    }

    /// Runs it with the n-th write to a file failing. `None` if it does not write so often; then it has succeeded.
    pub fn failing_write(
        &self,
        mut command: Command,
        n: usize,
        errno: i32,
    ) -> Result<Option<Answer>> {
        if self.told.exists() {
            fs::remove_file(&self.told)?;
        }
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAULT_WRITE", n.to_string())
            .env("FAULT_ERRNO", errno.to_string())
            .env("FAULT_TOLD", &self.told);
        let answer = Answer::of(command)?;
        if self.told.exists() {
            return Ok(Some(answer));
        }
        answer.exits(0).map(|_| None)
    }

    /// Runs it again and again, each time with the next write to a file failing, until none is left to fail. `judge` gets each end. Gives
    /// how many failed.
    pub fn each_failing_write(
        &self,
        errno: i32,
        command: impl Fn() -> Result<Command>,
        mut judge: impl FnMut(Answer) -> Result<()>,
    ) -> Result<usize> {
        for n in 1..TOO_MANY {
            match self.failing_write(command()?, n, errno)? {
                None => return Ok(n - 1),
                Some(answer) => judge(answer)
                    .with_context(|| format!("with error {errno} at the write of number {n}"))?,
            }
        }
        bail!("more than {TOO_MANY} writes")
    }
}
