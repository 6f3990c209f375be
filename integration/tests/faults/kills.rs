//! Backups and restores that are killed at their system calls.

use std::fs;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use walden_integration::{Said, Site, files, wait_open};
use walden_testkit::{Ledger, PgInstall, Target, TestDir, pg_verifybackup};

use crate::{Objects, chance, count_calls, remove, restores, sample, traced, wait_alone};

super::on_17!(
    a_backup_killed_at_any_system_call_is_whole_or_none,
    a_restore_killed_at_any_system_call_is_whole_or_does_not_start,
);

/// Every n-th call of each group, or `most` of each.
fn points(
    counts: &[(&'static str, usize)],
    most: usize,
    random: &mut StdRng,
) -> Vec<(&'static str, usize)> {
    let groups = counts.iter().map(|(calls, count)| {
        let all: Vec<_> = (1..=*count).map(|n| (*calls, n)).collect();
        sample(&all, most, random)
    });
    groups.flatten().collect()
}

/// Runs `walden`, which is killed as the first of its threads enters its n-th of these calls. `None` if it was killed.
fn killed_at(site: &Site<'_>, calls: &str, n: usize, args: &[&str]) -> Result<Option<Said>> {
    let trace = format!("trace={calls}");
    let inject = format!("inject={calls}:signal=SIGKILL:when={n}");
    let said = traced(site, &["-e", &trace, "-e", &inject], args)?;
    Ok(said.code.is_some().then_some(said))
}

fn a_backup_killed_at_any_system_call_is_whole_or_none(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let mut random = chance()?;
    let counts = count_calls(&site, &["backup"])?;
    let points = points(&counts, 4, &mut random);
    let mut objects = Objects::of(&site);
    let (mut kills, mut stood, mut known) = (0, 0, site.backups()?.len());
    for (calls, n) in &points {
        let at = || format!("a backup killed at call {n} of {calls}");
        match killed_at(&site, calls, *n, &["backup"])? {
            // Work is spread over threads otherwise each time.
            Some(said) => {
                said.exited(0).with_context(at)?;
                known += 1;
            }
            None => {
                kills += 1;
                wait_alone(&site.production)?;
                let backups = site.backups().with_context(at)?;
                ensure!(
                    backups.len() == known || backups.len() == known + 1,
                    "{} should be there or not, found {} backups after {known}",
                    at(),
                    backups.len()
                );
                if backups.len() > known {
                    stood += 1;
                    known += 1;
                    let newest = backups.last().context("a backup")?;
                    restores(&site, &newest.id).with_context(at)?;
                }
            }
        }
        objects.check().with_context(at)?;
        let next = site.backup(&[]).with_context(at)?;
        known += 1;
        ensure!(
            site.backups()?.len() == known,
            "the backup after {} should be there",
            at()
        );
        restores(&site, &next.id).with_context(at)?;
    }
    eprintln!(
        "{kills} kills at {} calls, {stood} after the commit",
        points.len()
    );
    ensure!(
        kills * 2 > points.len() && stood < kills,
        "most of {} should have been kills, most of them before the commit: {kills}, {stood} after it",
        points.len()
    );
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    objects.check()?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn a_restore_killed_at_any_system_call_is_whole_or_does_not_start(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let stored = files(&site.repository())?;
    let target = dir.join("killed");
    let args = ["restore", &target.display().to_string()];
    let mut random = chance()?;
    let counts = count_calls(&site, &args)?;
    let points = points(&counts, 12, &mut random);
    let (mut kills, mut stood) = (0, 0);
    for (calls, n) in &points {
        let at = || format!("a restore killed at call {n} of {calls}");
        remove(&site, "killed")?;
        if let Some(said) = killed_at(&site, calls, *n, &args)? {
            said.exited(0).with_context(at)?;
            pg_verifybackup(install, &target, &[]).with_context(at)?;
            continue;
        }
        kills += 1;
        // PostgreSQL does not start without it, which directories.rs tries.
        if target.join("global/pg_control").exists() {
            stood += 1;
            ensure!(
                target.join("recovery.signal").exists(),
                "what {} left would start without recovery",
                at()
            );
            pg_verifybackup(install, &target, &[]).with_context(at)?;
        }
        if target.exists() && fs::read_dir(&target)?.next().is_some() {
            let again = site.try_restore("killed", &[])?;
            again
                .exited(1)?
                .naming(&["is not empty"])
                .with_context(at)?;
        }
        remove(&site, "killed")?;
        site.restore("killed", &[]).with_context(at)?;
    }
    eprintln!(
        "{kills} kills at {} calls, {stood} when all was there",
        points.len()
    );
    ensure!(
        kills * 2 > points.len() && stood < kills,
        "most of {} should have been kills, most of them before the end: {kills}, {stood} at the end",
        points.len()
    );
    ensure!(
        files(&site.repository())? == stored,
        "restores should change nothing in the repository, killed or not"
    );
    remove(&site, "killed")?;
    let mut restored = site.restore("killed", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}
