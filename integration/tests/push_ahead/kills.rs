//! Pushes that are killed while they take files along.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, Bench, read};
use crate::{BY_EARLIER_CALL, COMPARED, MARKS, host, take_along};

super::on_17!(
    a_push_killed_at_any_system_call_leaves_no_gap_and_no_lie,
    a_push_killed_at_any_moment_leaves_no_gap_and_no_lie,
    a_call_killed_over_its_mark_is_healed_by_the_next,
);

/// What changes files, in groups in which strace counts, and how far to go each time.
const CALLS: &[(&str, usize)] = &[
    ("write,pwrite64,writev", 1),
    ("fsync,fdatasync", 1),
    ("link,linkat,rename,renameat,renameat2", 1),
    ("unlink,unlinkat", 1),
    ("mkdir,mkdirat", 1),
    ("openat", 5),
];

/// Runs a push that is killed as it enters the n-th of these calls on any thread.
fn killed_at(bench: &Bench, calls: &str, n: usize, file: &str) -> Result<Answer> {
    let trace = format!("trace={calls}");
    let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
    let options = [
        "strace",
        "-f",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        &trace,
        "-e",
        "signal=none",
        "-e",
        &inject,
    ];
    Answer::of(bench.command(&options, "walden-wal-push", &[file])?)
}

/// A batch of three that is killed again and again.
struct Killed<'a> {
    bench: &'a Bench<'a>,
    files: Vec<(String, Vec<u8>)>,
    /// How often so many files stood after a kill.
    stood: [usize; 4],
}

impl<'a> Killed<'a> {
    fn new(bench: &'a Bench<'a>) -> Result<Self> {
        let files = bench.wal.segments.iter().take(3);
        Ok(Self {
            bench,
            files: files
                .map(|name| Ok((name.clone(), read(bench.pg_wal(name))?)))
                .collect::<Result<_>>()?,
            stood: [0; 4],
        })
    }

    fn first(&self) -> String {
        format!("pg_wal/{}", self.files[0].0)
    }

    /// Takes away what a push leaves.
    fn clean(&self) -> Result<()> {
        for folder in [
            self.bench.cluster_folder()?,
            self.bench.mount.join(".tmp"),
            self.bench.pgdata.join(MARKS),
        ] {
            if folder.exists() {
                fs::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }

    /// What a killed push left has no gap and no lie, and the calls that PostgreSQL makes next mend it.
    fn check(&mut self, when: &str) -> Result<()> {
        let stand = self
            .files
            .iter()
            .map(|(name, _)| Ok(self.bench.object(name)?.exists()))
            .collect::<Result<Vec<_>>>()?;
        let standing = stand.iter().take_while(|stands| **stands).count();
        ensure!(
            stand.iter().skip(standing).all(|stands| !stands),
            "no file should be archived before those in front of it, {when}: {stand:?}"
        );
        self.stood[standing] += 1;
        for ((name, _), stands) in self.files.iter().zip(&stand) {
            ensure!(
                *stands || !self.bench.pgdata.join(MARKS).join(name).exists(),
                "{name} should not be marked before it is archived, {when}"
            );
        }
        for (name, content) in &self.files {
            self.bench
                .archive(name)?
                .exits(0)
                .with_context(|| format!("{name} after a push {when}"))?;
            ensure!(
                self.bench.unzstd(&self.bench.object(name)?)? == *content,
                "{name} should be archived as it is after a push {when}"
            );
        }
        Ok(())
    }
}

fn a_push_killed_at_any_system_call_leaves_no_gap_and_no_lie(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = host(install, dir, "push: { ahead: 2 }")?;
    let mut killed = Killed::new(&bench)?;
    for (calls, step) in CALLS {
        for n in (1..400).step_by(*step) {
            killed.clean()?;
            let ended = killed_at(&bench, calls, n, &killed.first())?;
            let by_itself = !ended.killed_by(9);
            if by_itself {
                ended.exits(0)?;
            }
            killed.check(&format!("killed at call {n} of {calls}"))?;
            if by_itself {
                break;
            }
        }
    }
    ensure!(
        killed.stood[0] > 0 && killed.stood[1] + killed.stood[2] > 0,
        "kills should have been tried before and within the batch: {:?}",
        killed.stood
    );
    Ok(())
}

fn a_push_killed_at_any_moment_leaves_no_gap_and_no_lie(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = host(install, dir, "push: { ahead: 2 }")?;
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut killed = Killed::new(&bench)?;
    let started = Instant::now();
    bench.push(killed.first())?.exits(0)?;
    let whole = started.elapsed();
    for round in 0..30 {
        killed.clean()?;
        let mut push = bench.command(&[], "walden-wal-push", &[&killed.first()])?;
        let mut child = push.stderr(Stdio::null()).spawn()?;
        // Where in its life the push is then is chance, and that is the point.
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.2)));
        child.kill()?;
        child.wait()?;
        killed.check(&format!("killed in round {round} with seed {seed}"))?;
    }
    Ok(())
}

fn a_call_killed_over_its_mark_is_healed_by_the_next(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = host(install, dir, "")?;
    let files = take_along(&bench)?;
    let mark = bench.pgdata.join(MARKS).join(&files[1]);
    let whole = read(&mark)?;
    let file = format!("pg_wal/{}", files[1]);
    let mut kills = 0;
    for calls in ["openat", "unlink,unlinkat", "write,pwrite64,writev"] {
        for n in 1..400 {
            bench.put(&mark, &whole)?;
            let answer = killed_at(&bench, calls, n, &file)?;
            if !answer.killed_by(9) {
                answer.exits(0)?.says(&[BY_EARLIER_CALL])?;
                break;
            }
            kills += 1;
            let mended = bench.archive(&files[1])?.exits(0)?;
            ensure!(
                [BY_EARLIER_CALL, COMPARED]
                    .iter()
                    .any(|said| mended.stderr.contains(said)),
                "after a call killed at call {n} of {calls} the file should still be archived:\n{}",
                mended.stderr
            );
        }
    }
    ensure!(kills > 3, "calls should have been killed, and {kills} were");
    bench.gives(&files[1], &read(bench.pg_wal(&files[1]))?)
}
