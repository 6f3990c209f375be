//! Programs that get no more file descriptors.

use anyhow::{Context, Result, ensure};
use walden_integration::Said;
use walden_testkit::{PgInstall, TestDir};

use crate::bench::{Answer, Bench, read};
use crate::{Objects, behind, remove, restores, wait_alone};

super::on_17!(
    a_push_without_descriptors_is_not_done,
    a_fetch_without_descriptors_stops_recovery,
    backups_and_restores_without_descriptors_are_not_done,
);

/// Runs a program with fewer descriptors than it takes, from as many as it can start with, until it has succeeded three times. `judge` gets
/// each end, and says whether it was a success. Gives how often it failed.
fn with_few(
    bench: &Bench<'_>,
    program: &str,
    arguments: &[&str],
    mut judge: impl FnMut(Answer) -> Result<bool>,
) -> Result<usize> {
    let (mut failed, mut succeeded) = (0, 0);
    for descriptors in 3..200 {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let starter = ["timeout", "60", "prlimit", &limit];
        let starts = Answer::of(bench.command(&starter, program, &["--version"])?)?;
        if !starts.status.success() {
            continue;
        }
        let answer = Answer::of(bench.command(&starter, program, arguments)?)?;
        if judge(answer).with_context(|| format!("{program} with {descriptors} descriptors"))? {
            succeeded += 1;
        } else {
            failed += 1;
        }
        if succeeded == 3 {
            break;
        }
    }
    ensure!(
        succeeded == 3 && failed > 0,
        "{program} should have failed with few descriptors and succeeded with more: {failed}, {succeeded}"
    );
    Ok(failed)
}

fn a_push_without_descriptors_is_not_done(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (name, content) = bench.segment(0)?;
    let file = format!("pg_wal/{name}");
    with_few(&bench, "walden-wal-push", &[&file], |answer| {
        if answer.status.success() {
            bench.gives(&name, &content)?;
            return Ok(true);
        }
        answer.fails_as_archive_command()?.says(&["error:"])?;
        Ok(false)
    })
    .map(drop)
}

fn a_fetch_without_descriptors_stops_recovery(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let (missing, _) = bench.segment(0)?;
    let (name, content) = bench.segment(1)?;
    bench.archive(&name)?.exits(0)?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let arguments = [name.as_str(), "pg_wal/RECOVERYXLOG"];
    with_few(&bench, "walden-wal-fetch", &arguments, |answer| {
        if answer.status.success() {
            ensure!(read(&destination)? == content, "the file should be whole");
            return Ok(true);
        }
        stops(&answer)?;
        Ok(false)
    })?;
    // A hole, which is an absence to whoever cannot look.
    let arguments = [missing.as_str(), "pg_wal/RECOVERYXLOG"];
    with_few(&bench, "walden-wal-fetch", &arguments, |answer| {
        stops(&answer)?;
        Ok(answer.status.code() == Some(202))
    })
    .map(drop)
}

fn stops(answer: &Answer) -> Result<()> {
    let code = answer.status.code();
    ensure!(
        code.is_some_and(|code| (126..=128).contains(&code) || code > 192),
        "an exit code that stops recovery expected, found {}:\n{}",
        answer.status,
        answer.stderr
    );
    Ok(())
}

fn backups_and_restores_without_descriptors_are_not_done(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = walden_integration::Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    site.archive_all()?;
    let mut objects = Objects::of(&site);
    let target = dir.join("few").display().to_string();
    let (mut backups, mut restored, mut failed) = (0, 0, 0);
    for descriptors in (8..64).step_by(4) {
        let limit = format!("--nofile={descriptors}:{descriptors}");
        let starter = ["timeout", "60", "prlimit", &limit];
        let with = || format!("with {descriptors} descriptors");
        let said = Said::run(&mut behind(&site, &starter, &["backup"])?)?;
        wait_alone(&site.production)?;
        objects.check().with_context(with)?;
        if said.code == Some(0) {
            backups += 1;
        } else {
            refused(&said).with_context(with)?;
            failed += 1;
        }
        let all = site.backups().with_context(with)?;
        ensure!(
            all.len() == backups,
            "{backups} backups expected {}, found {}",
            with(),
            all.len()
        );
        let Some(newest) = all.last() else {
            continue;
        };
        let said = Said::run(&mut behind(&site, &starter, &["restore", &target])?)?;
        if said.code == Some(0) {
            restored += 1;
        } else {
            refused(&said).with_context(with)?;
            failed += 1;
            ensure!(
                !dir.join("few/global/pg_control").exists(),
                "a restore that failed {} should not start",
                with()
            );
        }
        remove(&site, "few")?;
        restores(&site, &newest.id).with_context(with)?;
    }
    ensure!(
        backups > 0 && restored > 0 && failed > 0,
        "some should fail and some succeed: {failed} failed, {backups} backups, {restored} restores"
    );
    Ok(())
}

fn refused(said: &Said) -> Result<()> {
    ensure!(
        matches!(said.code, Some(1 | 2)) && said.stderr.contains("error:"),
        "an error should be told: {said:?}"
    );
    Ok(())
}
