//! What a restored directory is on the disk: modes, links, memory on the way, and what a killed restore leaves.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use walden_integration::{Site, survey, wait_open};
use walden_testkit::{
    Cluster, Ledger, PgInstall, Target, TestDir, on_version, own_by_server, poll,
};

#[test]
fn modes_and_empty_directories_come_back() {
    on_version(16, "modes", modes);
}

#[test]
fn a_killed_restore_leaves_nothing_that_starts() {
    on_version(17, "killed_restore", killed_restore);
}

#[test]
fn many_files_are_backed_up_and_restored_in_little_memory() {
    on_version(17, "many_files", many_files);
}

fn modes(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let waldir = format!("--waldir={}", dir.join("wal").display());
    let mut site = Site::new(install, dir, |builder| {
        builder
            .initdb_arg("--allow-group-access")
            .initdb_arg(&waldir)
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let mut restored = site.restore("restored", &[])?;
    let (was, is) = (
        entries(site.production.pgdata())?,
        entries(restored.pgdata())?,
    );
    for (path, mode) in &was {
        // pg_basebackup leaves out what is in these, and what the running server keeps for itself.
        let own = ["pg_wal", "postmaster.pid", "postmaster.opts"];
        let left_out = [
            "pg_dynshmem",
            "pg_notify",
            "pg_replslot",
            "pg_serial",
            "pg_snapshots",
            "pg_stat_tmp",
            "pg_subtrans",
            "pg_stat",
            "pg_wal",
        ];
        let within = |folder: &&str| path.parent().is_some_and(|p| p.starts_with(folder));
        let is_cache = path.ends_with("pg_internal.init") || path.ends_with("pgsql_tmp");
        if own.iter().any(|own| path == Path::new(own)) || left_out.iter().any(within) || is_cache {
            continue;
        }
        let found = is.get(path);
        ensure!(
            found == Some(mode),
            "{} should have the mode {mode:o}, has {}",
            path.display(),
            found.map_or("none".to_owned(), |mode| format!("{mode:o}"))
        );
    }
    ensure!(
        fs::symlink_metadata(restored.pgdata().join("pg_wal"))?.is_dir(),
        "without --waldir, pg_wal is a directory of the copy's own"
    );
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

/// Modes by path below a folder.
fn entries(folder: &Path) -> Result<BTreeMap<PathBuf, u32>> {
    let mut modes = BTreeMap::new();
    for path in survey(folder)?.into_keys() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        modes.insert(path.strip_prefix(folder)?.to_owned(), meta.mode());
    }
    Ok(modes)
}

fn killed_restore(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    site.archive_all()?;
    // Each is there earlier than the next.
    for (number, seen) in ["base", "global/1262", "recovery.signal"]
        .iter()
        .enumerate()
    {
        let name = format!("killed{number}");
        let target = dir.join(&name);
        let mut child = site
            .command("walden.yaml", &["restore", &target.display().to_string()])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start walden restore")?;
        poll(&format!("{seen} to be restored"), || {
            Ok((target.join(seen).exists() || child.try_wait()?.is_some()).then_some(()))
        })?;
        child.kill()?;
        let whole = child.wait()?.signal().is_none();
        let control = target.join("global/pg_control");
        ensure!(
            !whole || control.exists(),
            "a restore that ended well has a pg_control"
        );
        if !control.exists() {
            let mut broken = Cluster::adopt(install, dir, &name, &target)?;
            ensure!(
                broken.try_start()?.is_err(),
                "what was killed when {seen} was there must not start"
            );
        }
        site.try_restore(&name, &[])?
            .exited(1)?
            .naming(&["is not empty"])?;
        fs::remove_dir_all(&target)?;
        let mut restored = site.restore(&format!("whole{number}"), &[])?;
        restored.start()?;
        wait_open(&restored)?;
        ledger.compare(&restored, &Target::Latest)?;
    }
    Ok(())
}

/// Files beside those of the cluster.
const FILES: u32 = 100_000;
/// What a backup or restore may take at most, in kilobytes.
const MEMORY: u64 = 512 * 1024;

fn many_files(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.data_checksums(false))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    // More than a pack, and hardly to be compressed.
    site.production.psql(
        "CREATE TABLE large AS SELECT string_agg(md5(random()::text || n), '') AS text
         FROM generate_series(1, 3000000) AS n GROUP BY n / 60",
    )?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let database = site
        .production
        .psql("SELECT oid FROM pg_database WHERE datname = 'postgres'")?;
    let folder = site.production.pgdata().join("base").join(database);
    for number in 0..FILES {
        // Beyond all numbers of the cluster's own files.
        let path = folder.join((100_000_000 + number).to_string());
        // Most are empty, as tables of people who have so many: a full one is slow to remove on some disks.
        let content = if number % 50 == 0 { "full" } else { "" };
        fs::write(&path, content)?;
        own_by_server(&path)?;
    }
    let used = peak(site.command("walden.yaml", &["backup"])?)?;
    ensure!(used < MEMORY, "the backup took {used} kB");
    site.archive_all()?;
    let target = dir.join("restored").display().to_string();
    let used = peak(site.command("walden.yaml", &["restore", &target])?)?;
    ensure!(used < MEMORY, "the restore took {used} kB");
    walden_testkit::pg_verifybackup(install, &dir.join("restored"), &[])?;
    let mut restored = Cluster::adopt(install, dir, "restored", dir.join("restored"))?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

/// Runs a program to its good end and returns the most memory that it held, in kilobytes.
fn peak(mut command: Command) -> Result<u64> {
    let mut child: Child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut most = 0;
    let ended = poll("the program to end", || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        // The kernel's own high-water mark: no moment between two looks is missed but the last.
        let mark = text
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(mark.unwrap_or_default());
        Ok(child.try_wait()?)
    })?;
    ensure!(ended.success(), "{command:?}: {ended}");
    ensure!(most > 0, "no memory was seen");
    Ok(most)
}
