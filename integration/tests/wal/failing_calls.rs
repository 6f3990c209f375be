//! Every system call on files fails once: nothing is called done that is not, and nothing absent that is not proven so.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, Bench, read};

super::on_17!(
    a_push_whose_writing_fails_is_not_done,
    a_repeated_push_that_cannot_make_durable_is_not_done,
    a_push_whose_reading_fails_is_done_or_not,
    a_fetch_whose_call_fails_brings_all_or_stops_recovery,
    a_hole_is_no_end_of_the_archive_whatever_fails,
);

/// Calls without which nothing is durable.
const WRITING: &[&str] = &["fsync,fdatasync", "link,linkat", "mkdir,mkdirat"];

/// Calls that look at files. Some of them are the program's own loading, and some it can do without.
const READING: &[&str] = &[
    "openat",
    "read,pread64",
    "getdents64",
    "fstat,statx,newfstatat",
];

/// Runs a program again and again, each time with the next of these calls failing on any thread, until none is left to fail.
/// `judge` gets each end. Gives how often a call failed.
fn each_failing(
    bench: &Bench,
    calls: &str,
    error: &str,
    program: &str,
    arguments: &[&str],
    mut judge: impl FnMut(Answer) -> Result<()>,
) -> Result<usize> {
    let log = bench.elsewhere("strace", "log", b"")?;
    let output = format!("--output={}", log.display());
    let trace = format!("trace={calls}");
    for n in 1..=200 {
        let inject = format!("inject={calls}:error={error}:when={n}");
        let options = [
            "strace",
            "-f",
            "-y",
            &output,
            "-e",
            &trace,
            "-e",
            "signal=none",
            "-e",
            &inject,
        ];
        let answer = Answer::of(bench.command(&options, program, arguments)?)?;
        let log = fs::read_to_string(&log)?;
        let failed: Vec<_> = log
            .lines()
            .filter(|line| line.ends_with("(INJECTED)"))
            .collect();
        if failed.is_empty() {
            return Ok(n - 1);
        }
        judge(answer).with_context(|| format!("{program} with\n{}", failed.join("\n")))?;
    }
    bail!("{program} makes more than 200 calls of {calls}")
}

/// Takes away what a push leaves.
fn clean(bench: &Bench) -> Result<()> {
    for folder in [bench.cluster_folder()?, bench.mount.join(".tmp")] {
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(())
}

fn a_push_whose_writing_fails_is_not_done(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let file = format!("pg_wal/{name}");
    for calls in WRITING {
        let failed = each_failing(
            &bench,
            calls,
            "EIO",
            "walden-wal-push",
            &[&file],
            |answer| {
                answer
                    .fails_as_archive_command()?
                    .says(&[&name, "os error 5"])?;
                bench.archive(&name)?.exits(0)?;
                bench.gives(&name, &content)?;
                clean(&bench)
            },
        )?;
        ensure!(failed > 0, "a push should make a call of {calls}");
        clean(&bench)?;
    }
    Ok(())
}

fn a_repeated_push_that_cannot_make_durable_is_not_done(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let file = format!("pg_wal/{name}");
    bench.archive(&name)?.exits(0)?;
    let before = bench.objects()?;
    let failed = each_failing(
        &bench,
        "fsync,fdatasync",
        "EIO",
        "walden-wal-push",
        &[&file],
        |answer| {
            answer.fails_as_archive_command()?.says(&[&name])?;
            ensure!(bench.objects()? == before, "what is stored should stand");
            Ok(())
        },
    )?;
    ensure!(failed > 1, "a repeated push should make it durable again");
    bench.gives(&name, &content)
}

fn a_push_whose_reading_fails_is_done_or_not(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let file = format!("pg_wal/{name}");
    for calls in READING {
        each_failing(
            &bench,
            calls,
            "EIO",
            "walden-wal-push",
            &[&file],
            |answer| {
                if answer.status.success() {
                    bench.gives(&name, &content)?;
                }
                bench.archive(&name)?.exits(0)?;
                bench.gives(&name, &content)?;
                clean(&bench)
            },
        )?;
        clean(&bench)?;
    }
    Ok(())
}

/// Where no segment may be called absent: PostgreSQL stops.
fn stops_recovery(answer: &Answer) -> Result<()> {
    let code = answer.status.code();
    ensure!(
        code.is_some_and(|code| (126..=128).contains(&code) || code > 192),
        "an exit code that stops recovery expected, found {}:\n{}",
        answer.status,
        answer.stderr
    );
    Ok(())
}

fn a_fetch_whose_call_fails_brings_all_or_stops_recovery(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let arguments = [name.as_str(), "pg_wal/RECOVERYXLOG"];
    bench.put(&destination, b"of an earlier call")?;
    for error in ["EIO", "EACCES"] {
        for calls in [READING, &["fsync,fdatasync", "rename,renameat,renameat2"]].concat() {
            let failed = each_failing(
                &bench,
                calls,
                error,
                "walden-wal-fetch",
                &arguments,
                |answer| {
                    let now = read(&destination)?;
                    if answer.status.success() {
                        ensure!(now == content, "exit 0 should mean that the file is whole");
                        return bench.put(&destination, b"of an earlier call");
                    }
                    stops_recovery(&answer)?;
                    // The last step, after the rename, makes the name durable.
                    ensure!(
                        now == b"of an earlier call" || now == content,
                        "%p should be whole or as it was, found {} bytes",
                        now.len()
                    );
                    bench.put(&destination, b"of an earlier call")
                },
            )?;
            ensure!(
                failed > 0 || calls == "getdents64",
                "a fetch should make a call of {calls}"
            );
        }
    }
    fs::remove_file(&destination)?;
    bench.gives(&name, &content)
}

fn a_hole_is_no_end_of_the_archive_whatever_fails(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let [(missing, _), (later, _)] = [bench.segment(0)?, bench.segment(1)?];
    bench.archive(&later)?.exits(0)?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let arguments = [missing.as_str(), "pg_wal/RECOVERYXLOG"];
    for error in ["EIO", "EACCES", "ENOMEM"] {
        for calls in READING {
            let failed = each_failing(
                &bench,
                calls,
                error,
                "walden-wal-fetch",
                &arguments,
                |answer| {
                    stops_recovery(&answer)?;
                    ensure!(!destination.exists(), "nothing should stand under %p");
                    Ok(())
                },
            )?;
            ensure!(failed > 0, "a fetch should make a call of {calls}");
        }
    }
    Ok(())
}
