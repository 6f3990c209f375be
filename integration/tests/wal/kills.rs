//! Pushes and fetches that are killed at any moment.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, Bench, read};

super::on_17!(
    a_push_killed_at_any_system_call_is_healed_by_the_next,
    a_push_killed_at_any_moment_is_healed_by_the_next,
    a_fetch_killed_at_any_system_call_leaves_all_or_nothing,
);

/// What changes files, in groups in which strace counts: a program has its n-th link, say, on one thread or another.
const CALLS: &[&str] = &[
    "write,pwrite64,writev",
    "fsync,fdatasync",
    "link,linkat,rename,renameat,renameat2",
    "unlink,unlinkat",
    "mkdir,mkdirat",
    "openat",
];

/// More than any program here makes of a group on one thread.
const TOO_MANY: usize = 200;

/// Runs a program that is killed as it enters the n-th of these calls on any thread. `None` if it was killed.
fn killed_at(
    bench: &Bench,
    calls: &str,
    n: usize,
    program: &str,
    arguments: &[&str],
) -> Result<Option<Answer>> {
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
    let answer = Answer::of(bench.command(&options, program, arguments)?)?;
    Ok((!answer.killed_by(9)).then_some(answer))
}

/// What stands under a segment's key is the whole segment, or there is nothing.
fn whole_or_nothing(bench: &Bench, name: &str, content: &[u8], when: &str) -> Result<bool> {
    let object = bench.object(name)?;
    if !object.exists() {
        return Ok(false);
    }
    ensure!(
        bench.unzstd(&object)? == content,
        "a push killed {when} should leave a whole object or none"
    );
    bench.gives(name, content)?;
    Ok(true)
}

/// Takes away what a push leaves, its folders and its temporaries.
fn clean(bench: &Bench) -> Result<()> {
    for folder in [bench.cluster_folder()?, bench.mount.join(".tmp")] {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

fn a_push_killed_at_any_system_call_is_healed_by_the_next(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let file = format!("pg_wal/{name}");
    let (mut kills, mut stood) = (0, 0);
    for calls in CALLS {
        for n in 1.. {
            clean(&bench)?;
            let when = format!("at call {n} of {calls}");
            let ended = killed_at(&bench, calls, n, "walden-wal-push", &[&file])?;
            if let Some(answer) = ended {
                answer
                    .exits(0)
                    .with_context(|| format!("not killed {when}"))?;
                ensure!(n > 1, "a push should make one of {calls} at least");
                break;
            }
            kills += 1;
            stood += usize::from(whole_or_nothing(&bench, &name, &content, &when)?);
            bench
                .archive(&name)?
                .exits(0)
                .with_context(|| format!("the next push after one killed {when}"))?;
            ensure!(
                whole_or_nothing(&bench, &name, &content, &when)?,
                "the segment should be stored after a push killed {when}, and another one"
            );
            if n > TOO_MANY {
                bail!("a push that makes more than {TOO_MANY} calls of {calls}");
            }
        }
    }
    ensure!(
        stood > 0 && stood < kills,
        "kills both before and after the object stands should have been tried: {stood} of {kills}"
    );
    Ok(())
}

fn a_push_killed_at_any_moment_is_healed_by_the_next(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (name, content) = bench.segment(0)?;
    let started = std::time::Instant::now();
    bench.archive(&name)?.exits(0)?;
    let whole = started.elapsed();
    for round in 0..30 {
        clean(&bench)?;
        let file = format!("pg_wal/{name}");
        let mut push = bench.command(&[], "walden-wal-push", &[&file])?;
        let mut child = push.stderr(Stdio::null()).spawn()?;
        // Where in its life the push is then is chance, and that is the point.
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.2)));
        child.kill()?;
        let status = child.wait()?;
        let when = format!("in round {round} with seed {seed}");
        let stands = whole_or_nothing(&bench, &name, &content, &when)?;
        ensure!(
            stands || status.signal() == Some(9),
            "a push that ended with {status} {when} should have stored the segment"
        );
        bench.archive(&name)?.exits(0)?;
        ensure!(
            whole_or_nothing(&bench, &name, &content, &when)?,
            "the segment should be stored after a push killed {when}, and another one"
        );
    }
    Ok(())
}

fn a_fetch_killed_at_any_system_call_leaves_all_or_nothing(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let arguments = [name.as_str(), "pg_wal/RECOVERYXLOG"];
    let (mut kills, mut stood) = (0, 0);
    for calls in CALLS {
        for n in 1..=TOO_MANY {
            bench.put(&destination, b"of an earlier call")?;
            let ended = killed_at(&bench, calls, n, "walden-wal-fetch", &arguments)?;
            let found = read(&destination)?;
            if let Some(answer) = ended {
                answer.exits(0)?;
                ensure!(
                    found == content,
                    "a fetch that exits 0 should have brought it"
                );
                break;
            }
            kills += 1;
            stood += usize::from(found == content);
            ensure!(
                found == content || found == b"of an earlier call",
                "a fetch killed at call {n} of {calls} should leave %p whole or as it was, found {} bytes",
                found.len()
            );
            ensure!(
                n < TOO_MANY,
                "a fetch that makes {TOO_MANY} calls of {calls}"
            );
        }
    }
    ensure!(
        stood > 0 && stood < kills,
        "kills both before and after the file stands should have been tried: {stood} of {kills}"
    );
    fs::remove_file(&destination)?;
    bench.gives(&name, &content)
}
