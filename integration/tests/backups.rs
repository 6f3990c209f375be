//! Backups that must not begin, and those that do not end.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use walden_integration::{Said, Site, files, wait_open};
use walden_testkit::{
    Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, on_version, poll, run,
};

on_every_version!(a_server_that_does_not_archive_is_refused);

#[test]
fn a_killed_backup_is_unfinished_and_in_nobodys_way() {
    on_version(17, "killed", killed);
}

#[test]
fn a_backup_whose_wal_does_not_arrive_is_given_up() {
    on_version(17, "stuck", stuck);
}

fn a_server_that_does_not_archive_is_refused(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let refused = |site: &Site, words: &[&str]| -> Result<()> {
        site.walden(&["backup"])?.exited(1)?.naming(words)?;
        let list = site.list()?;
        let begun = ["backups", "unfinished"]
            .map(|key| list.get(key).and_then(Value::as_array).map(Vec::len));
        ensure!(
            begun == [Some(0), Some(0)],
            "a refused backup must leave nothing in the repository: {list}"
        );
        Ok(())
    };

    refused(&site, &["no WAL", "archived yet", "pg_switch_wal()"])?;
    site.archive_all()?;
    let works = site.production.psql("SHOW archive_command")?;
    site.production
        .psql("ALTER SYSTEM SET archive_command = ''")?;
    site.production.psql("SELECT pg_reload_conf()")?;
    refused(&site, &["set archive_command = 'walden-wal-push %p'"])?;
    site.production.psql("ALTER SYSTEM RESET archive_command")?;
    for (settings, word) in [
        (&[("archive_mode", "off")][..], "archive_mode is off"),
        (
            &[("wal_level", "minimal"), ("max_wal_senders", "0")],
            "wal_level is minimal",
        ),
    ] {
        for (name, value) in settings {
            site.production.set(name, value)?;
        }
        site.production.stop(StopMode::Fast)?;
        site.production.start()?;
        refused(&site, &[word])?;
    }
    for (name, value) in [
        ("archive_mode", "on"),
        ("wal_level", "replica"),
        ("max_wal_senders", "10"),
    ] {
        site.production.set(name, value)?;
    }
    site.production.stop(StopMode::Fast)?;
    site.production.start()?;
    ensure!(
        site.production.psql("SHOW archive_command")? == works,
        "the archive_command of before"
    );
    site.backup(&[])?;
    Ok(())
}

/// Starts a slow backup and waits until the server has sent some of it.
fn halfway(site: &Site) -> Result<Child> {
    let known = files(&site.repository())?.len();
    // So slow that it takes longer than anything here waits for.
    let mut child = site
        .command("walden.yaml", &["backup", "--max-rate=128k"])?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start walden backup")?;
    poll("a backup to begin", || {
        if let Some(status) = child.try_wait()? {
            bail!("walden backup ended before it was halfway: {status}");
        }
        let begun = files(&site.repository())?.len() > known;
        let streams = site.production.psql(STREAMED)? == "t";
        Ok((begun && streams).then_some(()))
    })?;
    Ok(child)
}

/// Whether the server has sent something, and not all.
const STREAMED: &str = "SELECT count(*) = 1 FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files' AND backup_streamed > 100000";

fn killed(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let spool = dir.server_dir("spool")?;
    for (number, signal) in ["-INT", "-TERM", "-KILL", "-INT", "-TERM", "-KILL"]
        .iter()
        .enumerate()
    {
        // The second half through a spool folder.
        if number == 3 {
            let place = dir.server_dir("space")?;
            let sql = format!("CREATE TABLESPACE space LOCATION '{}'", place.display());
            site.production.psql(&sql)?;
            let key = format!("    spool_dir: {}\n", spool.display());
            site.configure("walden.yaml", &site.production, &key)?;
        }
        let child = halfway(&site)?;
        run(Command::new("kill").args([*signal, &child.id().to_string()]))?;
        let output = child.wait_with_output()?;
        ensure!(
            !output.status.success(),
            "a backup that was ended with {signal} must not call itself done"
        );
        // pg_basebackup must not go on for nobody.
        site.production.wait_for(
            "SELECT count(*) FROM pg_stat_replication",
            "0",
            "pg_basebackup to end",
        )?;
        let list = site.list()?;
        let counts = ["backups", "unfinished"]
            .map(|key| list.get(key).and_then(Value::as_array).map(Vec::len));
        ensure!(
            counts == [Some(0), Some(number + 1)],
            "{} unfinished backups and no other expected: {list}",
            number + 1
        );
        if *signal != "-KILL" {
            ensure!(
                fs::read_dir(&spool)?.next().is_none(),
                "a backup that was ended with {signal} should empty its spool folder"
            );
        }
        site.refused("restored", &[], &["no backup", "unfinished"])?;
    }
    let table = site.walden(&["list-backups"])?.exited(0)?;
    ensure!(
        table.stdout.contains("unfinished"),
        "people should see unfinished backups too: {}",
        table.stdout
    );
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let space = dir.join("space");
    let map = format!("--tablespace-map={0}={0}.copy", space.display());
    let mut restored = site.restore_ignoring("restored", &[&map], &["tablespace_map"])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn stuck(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let slow = ["backup", "--max-rate=8M", "--wal-timeout=3s"];
    let child = site
        .command("walden.yaml", &slow)?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start walden backup")?;
    poll("the backup to stream", || {
        Ok((site.production.psql(STREAMED)? == "t").then_some(()))
    })?;
    site.production
        .psql("ALTER SYSTEM SET archive_command = '/bin/false'")?;
    site.production.psql("SELECT pg_reload_conf()")?;
    let output = child.wait_with_output()?;
    Said {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
    .exited(1)?
    .naming(&["waiting for its archiver", "archive_command", "it fails on"])?;
    ensure!(
        site.backups()?.is_empty(),
        "a backup without its WAL must not be committed"
    );
    site.production.wait_for(
        "SELECT count(*) FROM pg_stat_replication",
        "0",
        "pg_basebackup to end",
    )?;
    ledger.compare(&site.production, &Target::Latest)?;

    site.production.psql("ALTER SYSTEM RESET archive_command")?;
    site.production.psql("SELECT pg_reload_conf()")?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut restored = site.restore("restored", &["--target-immediate"])?;
    restored.start()
}
