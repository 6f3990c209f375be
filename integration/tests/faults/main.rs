//! The fault suite: programs that are killed, disks that fill up or fail, clocks that jump, descriptors that run out, pushes that race,
//! and restores to targets that chance picks.
//!
//! `WALDEN_TEST_LONG=1` tries every case where a sample is taken otherwise; `WALDEN_TEST_SEED` repeats a run's sample.
#![expect(
    clippy::print_stderr,
    reason = "a test says what it skipped, how much it tried, and with which seed"
)]

#[path = "../wal/bench.rs"]
#[allow(dead_code)]
mod bench;
mod clock;
mod descriptors;
mod disks;
mod kills;
mod races;
mod random_restores;
mod shim;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walden_engine::codec::tail_of;
use walden_integration::{Said, Site, files};
use walden_model::document;
use walden_testkit::{Cluster, run, run_as_server};

use bench::read;

/// Makes a `#[test]` of each named function, on PostgreSQL 17.
macro_rules! on_17 {
    ($($test:ident),+ $(,)?) => {
        mod on_17 {
            $(
                #[test]
                fn $test() {
                    walden_testkit::on_version(17, stringify!($test), super::$test);
                }
            )+
        }
    };
}
use on_17;

/// Whether every case is tried, and not a sample.
fn long() -> bool {
    std::env::var_os("WALDEN_TEST_LONG").is_some_and(|value| value == "1")
}

/// Chance, which a failing run's seed repeats.
fn chance() -> Result<StdRng> {
    let seed = match std::env::var("WALDEN_TEST_SEED") {
        Ok(seed) => seed.parse().context("WALDEN_TEST_SEED is no number")?,
        Err(_) => rand::random(),
    };
    eprintln!("WALDEN_TEST_SEED={seed}");
    Ok(StdRng::seed_from_u64(seed))
}

/// So many of all cases, in even steps from a random one on; all of them in the long mode.
fn sample<T: Clone>(all: &[T], most: usize, random: &mut StdRng) -> Vec<T> {
    if long() || all.len() <= most {
        return all.to_vec();
    }
    let first = random.random_range(0..all.len());
    (0..most)
        .filter_map(|step| all.get((first + step * all.len() / most) % all.len()))
        .cloned()
        .collect()
}

/// `walden`, started by another program such as `strace` with its options, as the database host's user.
fn behind(site: &Site<'_>, starter: &[&str], args: &[&str]) -> Result<Command> {
    let (program, options) = starter.split_first().context("no program")?;
    let mut command = Command::new(program);
    site.install.set_environment(&mut command);
    command
        .args(options)
        .arg(site.binaries.path("walden"))
        .arg("--config")
        .arg(site.dir.join("walden.yaml"))
        .args(args);
    run_as_server(command)
}

/// What changes files, in groups in which strace counts.
const NAMING: &str = "link,linkat,symlink,symlinkat,rename,renameat,renameat2";
const SYNCING: &str = "fsync,fdatasync,syncfs";
const MAKING: &str = "mkdir,mkdirat";
const CALLS: &[&str] = &[
    "write,pwrite64,writev",
    SYNCING,
    NAMING,
    "unlink,unlinkat,rmdir",
    MAKING,
    "openat",
];

/// `walden` under strace, which leaves alone the programs that it starts. Its log is `<dir>/strace.log`.
fn traced(site: &Site<'_>, options: &[&str], args: &[&str]) -> Result<Said> {
    let output = format!("--output={}", site.dir.join("strace.log").display());
    let starter = ["strace", "-f", "-y", "-qq", "-b", "execve", &output];
    let starter = [&starter[..], &["-e", "signal=none"], options].concat();
    Said::run(&mut behind(site, &starter, args)?)
}

/// Lets `walden` do it once, and tells how many calls of each group one thread of it makes at most: strace counts by threads.
fn count_calls(site: &Site<'_>, args: &[&str]) -> Result<Vec<(&'static str, usize)>> {
    let trace = format!("trace={}", CALLS.join(","));
    traced(site, &["-e", &trace], args)?.exited(0)?;
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let log = fs::read_to_string(site.dir.join("strace.log"))?;
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').context("an odd line of strace")?;
        let name = call.trim_start().split('(').next().unwrap_or_default();
        let group = CALLS
            .iter()
            .find(|group| group.split(',').any(|of| of == name));
        if let Some(group) = group {
            *counts.entry((*group, thread)).or_default() += 1;
        }
    }
    let most = |group: &str| {
        let of_group = counts.iter().filter(|((of, _), _)| *of == group);
        of_group.map(|(_, count)| *count).max().unwrap_or(0)
    };
    Ok(CALLS.iter().map(|group| (*group, most(group))).collect())
}

/// What stands in a repository under final names.
struct Objects {
    folder: PathBuf,
    /// What was proven whole; objects do not change.
    seen: BTreeSet<PathBuf>,
}

impl Objects {
    fn of(site: &Site<'_>) -> Self {
        Self {
            folder: site.repository(),
            seen: BTreeSet::new(),
        }
    }

    /// Proves that nothing half stands under a final name.
    fn check(&mut self) -> Result<()> {
        let mut framed = Vec::new();
        for path in files(&self.folder)?.into_keys() {
            if path.starts_with(self.folder.join(".tmp")) || !self.seen.insert(path.clone()) {
                continue;
            }
            let bytes = read(&path)?;
            let half = || format!("{} is not whole", path.display());
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => drop(document::check(&bytes).with_context(half)?),
                Some("zst") => {
                    let tail = tail_of(&bytes).with_context(half)?;
                    ensure!(tail.is_ok(), half());
                    framed.push(path);
                }
                _ => bail!("{} is no object", path.display()),
            }
        }
        if !framed.is_empty() {
            run(Command::new("zstd").arg("-tq").args(&framed))
                .context("nothing half should stand under a final name")?;
        }
        Ok(())
    }

    /// How many temporaries there are.
    fn temporaries(&self) -> usize {
        fs::read_dir(self.folder.join(".tmp")).map_or(0, Iterator::count)
    }
}

/// Restores a backup to where it is consistent, and has `pg_verifybackup` judge it.
fn restores(site: &Site<'_>, backup: &str) -> Result<()> {
    let args = ["--target-immediate", "--backup", backup];
    site.restore("proof", &args)?;
    remove(site, "proof")
}

/// Removes a restored cluster.
fn remove(site: &Site<'_>, name: &str) -> Result<()> {
    for folder in [name.to_owned(), format!("{name}.socket")] {
        let folder = site.dir.join(folder);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

/// Waits until no program streams a backup any more.
fn wait_alone(production: &Cluster) -> Result<()> {
    production.wait_for(
        "SELECT count(*) FROM pg_stat_replication",
        "0",
        "pg_basebackup to end",
    )
}
