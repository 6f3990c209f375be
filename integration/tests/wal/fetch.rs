//! `restore_command`: what is restored, what is proven absent, and what must never be taken for either.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use walden_testkit::{Cluster, PgInstall, TestDir, own_by_server, run};

use crate::bench::{Answer, Bench, read};

super::on_17!(
    what_is_archived_comes_back_and_what_is_not_is_proven_absent,
    a_hole_is_no_end_of_the_archive,
    a_later_timeline_shows_what_an_earlier_one_must_have,
    an_archive_without_any_wal_is_an_outage,
    a_standby_is_asked_to_come_again_where_a_recovery_is_stopped,
    a_fetch_serves_pg_rewind_from_any_directory,
    a_fetch_killed_midway_leaves_what_stood_there,
);

fn what_is_archived_comes_back_and_what_is_not_is_proven_absent(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (first, content) = bench.segment(0)?;
    let (second, _) = bench.segment(1)?;
    let history = read(bench.wal.promoted("first").join("00000002.history"))?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let absent = |name: &str| -> Result<()> {
        let answer = bench.fetch(name, "pg_wal/RECOVERYXLOG")?.exits(1)?;
        ensure!(
            answer.stderr.is_empty() && answer.stdout.is_empty(),
            "PostgreSQL asks for absent files as a matter of course, and {name} should be silent: {}",
            answer.stderr
        );
        ensure!(
            !destination.exists(),
            "nothing should stand under %p after {name} was not found"
        );
        Ok(())
    };
    bench.archive(&first)?.exits(0)?;
    absent(&second)?;
    absent("00000002.history")?;
    absent("00000003.history")?;
    // Later segments of another timeline say nothing about this one.
    absent(&format!("00000002{}", second.get(8..).context("digits")?))?;
    bench.put(&bench.pg_wal("00000002.history"), &history)?;
    bench.archive("00000002.history")?.exits(0)?;
    bench.gives("00000002.history", &history)?;
    for call in 1..=5 {
        bench
            .fetch(&first, "pg_wal/RECOVERYXLOG")?
            .exits(0)
            .with_context(|| format!("call {call} of five for the same segment"))?;
        ensure!(
            read(&destination)? == content,
            "call {call} should bring the segment whole"
        );
    }
    // An absence is never remembered.
    bench.archive(&second)?.exits(0)?;
    fs::remove_file(&destination)?;
    bench.gives(&second, &bench.segment(1)?.1)?;
    let left: Vec<_> = fs::read_dir(bench.pgdata.join("pg_wal"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .filter(|name: &Result<String>| name.as_ref().is_ok_and(|name| name.contains("walden")))
        .collect::<Result<_>>()?;
    ensure!(
        left.is_empty(),
        "no temporary should be left in pg_wal: {left:?}"
    );
    Ok(())
}

fn a_hole_is_no_end_of_the_archive(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let [(first, _), (missing, _), (later, _), (last, _)] = [
        bench.segment(0)?,
        bench.segment(1)?,
        bench.segment(2)?,
        bench.segment(3)?,
    ];
    bench.archive(&first)?.exits(0)?;
    bench.archive(&later)?.exits(0)?;
    bench.put(&bench.pg_wal("RECOVERYXLOG"), b"of an earlier call")?;
    bench
        .fetch(&missing, "pg_wal/RECOVERYXLOG")?
        .exits(202)?
        .says(&[&missing, &later, "walden-wal-push"])?;
    ensure!(
        read(bench.pg_wal("RECOVERYXLOG"))? == b"of an earlier call",
        "what stands under %p should stay"
    );
    bench.fetch(&last, "pg_wal/RECOVERYXLOG")?.exits(1)?;
    // The way out that the message names.
    bench.archive(&missing)?.exits(0)?;
    bench.gives(&missing, &bench.segment(1)?.1)
}

fn a_later_timeline_shows_what_an_earlier_one_must_have(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (first, _) = bench.segment(0)?;
    let (second, content) = bench.segment(1)?;
    bench.archive(&first)?.exits(0)?;
    let promoted = bench.wal.promoted("first");
    for name in ["00000002.history", &bench.wal.fork] {
        bench.put(&bench.pg_wal(name), &read(promoted.join(name))?)?;
    }
    // Its segments alone: PostgreSQL would take the timeline's number a second time.
    bench.archive(&bench.wal.fork)?.exits(0)?;
    bench
        .fetch("00000002.history", "pg_wal/RECOVERYHISTORY")?
        .exits(202)?
        .says(&["00000002.history", &bench.wal.fork, "walden-wal-push"])?;
    bench.archive("00000002.history")?.exits(0)?;
    // Timeline 2 left timeline 1 further on, so what lies between must have been there.
    bench
        .fetch(&second, "pg_wal/RECOVERYXLOG")?
        .exits(202)?
        .says(&[
            &second,
            "timeline 2 left its timeline further on",
            "walden-wal-push",
        ])?;
    // The segment of the fork may end as a .partial, and then there is none of this name.
    let fork = format!("00000001{}", bench.wal.fork.get(8..).context("digits")?);
    bench.fetch(&fork, "pg_wal/RECOVERYXLOG")?.exits(1)?;
    bench.archive(&second)?.exits(0)?;
    bench.gives(&second, &content)
}

fn an_archive_without_any_wal_is_an_outage(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (first, _) = bench.segment(0)?;
    for name in [first.as_str(), "00000002.history"] {
        bench
            .fetch(name, "pg_wal/RECOVERYXLOG")?
            .exits(200)?
            .says(&[name, "no WAL of this cluster at all", "not mounted"])?;
    }
    Ok(())
}

fn a_standby_is_asked_to_come_again_where_a_recovery_is_stopped(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let [(first, content), (hole, _), (later, _)] =
        [bench.segment(0)?, bench.segment(1)?, bench.segment(2)?];
    bench.archive(&first)?.exits(0)?;
    bench.archive(&later)?.exits(0)?;
    let object = bench.object(&later)?;
    let mut damaged = read(&object)?;
    let byte = damaged.get_mut(700).context("a byte")?;
    *byte ^= 1;
    fs::write(&object, damaged)?;
    let signal = bench.pgdata.join("standby.signal");
    let stop = "fetch: { retry_for: 1ms, standby_on_outage: stop }";
    for (standby, more, outage, hole_code, damage) in [
        (false, "", 200, 202, 201),
        (true, "", 1, 1, 1),
        (true, stop, 200, 202, 201),
    ] {
        bench.configure(more)?;
        if standby {
            bench.put(&signal, b"")?;
        }
        bench.gives(&first, &content)?;
        let again = if outage == 1 { "ask again" } else { "" };
        bench
            .fetch(&hole, "pg_wal/RECOVERYXLOG")?
            .exits(hole_code)?
            .says(&[&hole, again])?;
        bench
            .fetch(&later, "pg_wal/RECOVERYXLOG")?
            .exits(damage)?
            .says(&[&later, again])?;
        bench.unmount()?;
        bench
            .fetch(&first, "pg_wal/RECOVERYXLOG")?
            .exits(outage)?
            .says(&[&first, again])?;
        bench.mount_again()?;
        // What a person must mend first stops a standby, too: it would ask in vain for ever.
        bench.configure_repository(", id: 00000000000000000000000000000000", more)?;
        bench.fetch(&first, "pg_wal/RECOVERYXLOG")?.exits(203)?;
        ensure!(
            !bench.pg_wal("RECOVERYXLOG").exists(),
            "nothing should stand under %p"
        );
    }
    Ok(())
}

fn a_fetch_serves_pg_rewind_from_any_directory(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let other = Cluster::builder(install, dir, "other").build()?;
    // The other one is a standby, and this is none.
    other.append("standby.signal", "")?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let fetch = |folder: &Path, name: &str| -> Result<Answer> {
        let mut command = bench.command(&[], "walden-wal-fetch", &[name])?;
        command.current_dir(folder).arg(&destination);
        Answer::of(command)
    };
    for folder in [Path::new("/"), &bench.pgdata, other.pgdata()] {
        fetch(folder, &name)?
            .exits(0)
            .with_context(|| format!("from {}", folder.display()))?;
        ensure!(
            read(&destination)? == content,
            "the segment of the cluster at the destination should come"
        );
        fs::remove_file(&destination)?;
        bench.unmount()?;
        fetch(folder, &name)?
            .exits(200)
            .with_context(|| format!("an outage, from {}", folder.display()))?;
        bench.mount_again()?;
    }
    Ok(())
}

fn a_fetch_killed_midway_leaves_what_stood_there(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    bench.put(&destination, b"of an earlier call")?;
    // A pipe holds less than a segment: behind it the fetch waits, with a part written.
    let pipe = bench.pg_wal("RECOVERYXLOG.walden");
    run(Command::new("mkfifo").arg(&pipe))?;
    own_by_server(&pipe)?;
    for signal in [15, 2, 9] {
        let mut command =
            bench.command(&[], "walden-wal-fetch", &[&name, "pg_wal/RECOVERYXLOG"])?;
        let mut child = command.spawn()?;
        let mut reader = fs::File::open(&pipe)?;
        let mut part = [0; 1000];
        reader.read_exact(&mut part)?;
        ensure!(
            content.starts_with(&part),
            "the fetch should be under way when it is killed"
        );
        run(Command::new("kill").args([format!("-{signal}"), child.id().to_string()]))?;
        let status = child.wait()?;
        ensure!(
            std::os::unix::process::ExitStatusExt::signal(&status) == Some(signal),
            "PostgreSQL tells a shutdown by the signal itself: signal {signal} expected, found {status}"
        );
        ensure!(
            read(&destination)? == b"of an earlier call",
            "a fetch killed midway should leave what stands under %p"
        );
    }
    fs::remove_file(&pipe)?;
    bench.gives(&name, &content)
}
