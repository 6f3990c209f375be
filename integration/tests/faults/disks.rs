//! Disks that fill up, and disks that fail.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use walden_integration::{Site, wait_open};
use walden_testkit::{Ledger, PgInstall, Target, TestDir};

use crate::bench::{Bench, Disk, read};
use crate::shim::Shim;
use crate::{MAKING, NAMING, Objects, SYNCING, count_calls, remove, restores, traced, wait_alone};

super::on_17!(
    a_push_onto_a_disk_that_fills_up_at_any_page_leaves_nothing,
    a_push_of_which_any_write_fails_is_not_done,
    a_fetch_of_which_any_write_fails_stops_recovery,
    a_backup_of_which_any_write_fails_is_none,
    a_backup_that_cannot_make_durable_is_not_done,
    a_backup_onto_a_disk_that_is_full_or_read_only_or_away_is_none,
    a_restore_of_which_a_write_fails_does_not_start,
);

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// What tmpfs gives out.
const PAGE: u64 = 4096;

/// Fills a disk but for so many bytes.
fn fill(disk: &Path, free: u64) -> Result<()> {
    let filler = disk.join(".filler");
    let _ = fs::write(&filler, vec![1; 32 << 20]);
    let full = fs::metadata(&filler)?.len();
    let length = full.checked_sub(free).context("a smaller disk")?;
    Ok(fs::OpenOptions::new()
        .write(true)
        .open(&filler)?
        .set_len(length)?)
}

fn a_push_onto_a_disk_that_fills_up_at_any_page_leaves_nothing(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::unregistered(install, dir)?;
    let Some(_disk) = Disk::mount(&bench.mount, "4m")? else {
        return Ok(());
    };
    bench.walden(&["init"])?.exits(0)?;
    let (name, content) = bench.segment(0)?;
    let before = bench.objects()?;
    for pages in 0..1000 {
        fill(&bench.mount, pages * PAGE)?;
        let answer = bench.archive(&name)?;
        let now = bench.objects()?;
        let left = fs::read_dir(bench.mount.join(".tmp")).map_or(0, Iterator::count);
        ensure!(
            left == 0,
            "with {pages} pages left a temporary stays behind"
        );
        if answer.status.success() {
            eprintln!("the disk was full at {pages} places");
            ensure!(pages > 3, "a segment should take more than {pages} pages");
            return bench.gives(&name, &content);
        }
        answer
            .fails_as_archive_command()?
            .says(&[&name, "No space left"])
            .with_context(|| format!("with {pages} pages left"))?;
        ensure!(now == before, "with {pages} pages left something is stored");
    }
    bail!("a segment should find room in 1000 pages")
}

fn a_push_of_which_any_write_fails_is_not_done(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let shim = Shim::build(dir)?;
    let (name, content) = bench.segment(0)?;
    let file = format!("pg_wal/{name}");
    let before = bench.objects()?;
    for (errno, says) in [(EIO, "os error 5"), (ENOSPC, "No space left")] {
        let failed = shim.each_failing_write(
            errno,
            || bench.command(&[], "walden-wal-push", &[&file]),
            |answer| {
                answer.fails_as_archive_command()?.says(&[&name, says])?;
                ensure!(bench.objects()? == before, "nothing should be stored");
                ensure!(
                    fs::read_dir(bench.mount.join(".tmp"))?.next().is_none(),
                    "no temporary should stay behind"
                );
                Ok(())
            },
        )?;
        ensure!(failed > 1, "a push should write more than {failed} times");
        bench.gives(&name, &content)?;
        fs::remove_dir_all(bench.cluster_folder()?)?;
    }
    Ok(())
}

fn a_fetch_of_which_any_write_fails_stops_recovery(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let bench = Bench::new(install, dir)?;
    let shim = Shim::build(dir)?;
    let (name, content) = bench.segment(0)?;
    bench.archive(&name)?.exits(0)?;
    let destination = bench.pg_wal("RECOVERYXLOG");
    let files = fs::read_dir(bench.pgdata.join("pg_wal"))?.count() + 1;
    for (errno, says) in [(EIO, "os error 5"), (ENOSPC, "No space left")] {
        bench.put(&destination, b"of an earlier call")?;
        let failed = shim.each_failing_write(
            errno,
            || bench.command(&[], "walden-wal-fetch", &[&name, "pg_wal/RECOVERYXLOG"]),
            |answer| {
                answer.exits(204)?.says(&[&name, says])?;
                ensure!(
                    read(&destination)? == b"of an earlier call",
                    "%p should be as it was"
                );
                let now = fs::read_dir(bench.pgdata.join("pg_wal"))?.count();
                ensure!(now == files, "{now} files in pg_wal, and {files} before");
                Ok(())
            },
        )?;
        ensure!(failed > 0, "a fetch should write");
        ensure!(read(&destination)? == content, "the file should be whole");
    }
    Ok(())
}

/// A production of small segments that has archived something.
fn site<'a>(install: &'a PgInstall, dir: &'a TestDir) -> Result<(Site<'a>, Ledger)> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    Ok((site, ledger))
}

fn a_backup_of_which_any_write_fails_is_none(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let (site, _) = site(install, dir)?;
    let shim = Shim::build(dir)?;
    let mut objects = Objects::of(&site);
    let failed = shim.each_failing_write(
        EIO,
        || site.command("walden.yaml", &["backup"]),
        |answer| {
            answer.exits(1)?.says(&["error:", "os error 5"])?;
            wait_alone(&site.production)?;
            objects.check()?;
            ensure!(
                objects.temporaries() == 0,
                "no temporary should stay behind"
            );
            ensure!(site.backups()?.is_empty(), "there should be no backup");
            Ok(())
        },
    )?;
    // started.json, a pack, a shard of the file map, names, the commit document.
    ensure!(
        failed >= 5,
        "a backup should write more than {failed} times"
    );
    let backups = site.backups()?;
    let [backup] = &backups[..] else {
        bail!("the last one should be the only backup");
    };
    restores(&site, &backup.id)
}

fn a_backup_that_cannot_make_durable_is_not_done(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let (site, _) = site(install, dir)?;
    let counts = count_calls(&site, &["backup"])?;
    let mut objects = Objects::of(&site);
    let (mut failures, mut stood, mut known) = (0, 0, 1);
    for (calls, count) in counts {
        if ![SYNCING, NAMING, MAKING].contains(&calls) {
            continue;
        }
        ensure!(count > 0, "a backup should make a call of {calls}");
        for n in 1..=count {
            let trace = format!("trace={calls}");
            let inject = format!("inject={calls}:error=EIO:when={n}");
            let said = traced(&site, &["-e", &trace, "-e", &inject], &["backup"])?;
            let log = fs::read_to_string(dir.join("strace.log"))?;
            let failed: Vec<_> = log.lines().filter(|l| l.ends_with("(INJECTED)")).collect();
            let when = || format!("a backup with\n{}", failed.join("\n"));
            let backups = site.backups().with_context(when)?;
            objects.check().with_context(when)?;
            if failed.is_empty() {
                said.exited(0)?;
                known += 1;
                continue;
            }
            failures += 1;
            said.exited(1)
                .and_then(|said| said.naming(&["os error 5"]))
                .with_context(when)?;
            wait_alone(&site.production)?;
            // Its name was there before the folder's fsync failed: it is said to have failed, and is whole.
            if backups.len() > known {
                (stood, known) = (stood + 1, backups.len());
                let newest = backups.last().context("a backup")?;
                restores(&site, &newest.id).with_context(when)?;
            }
        }
    }
    eprintln!("{failures} calls failed, {stood} after the commit document stood");
    ensure!(
        failures >= 8 && stood < failures,
        "more than {failures} calls should have failed, and few after the commit: {stood}"
    );
    let next = site.backup(&[])?;
    restores(&site, &next.id)
}

fn a_backup_onto_a_disk_that_is_full_or_read_only_or_away_is_none(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let repository = dir.server_dir("repository")?;
    let Some(disk) = Disk::mount(&repository, "16m")? else {
        return Ok(());
    };
    let place = format!("path: {}", repository.display());
    let mut site = Site::unregistered(install, dir, &place, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.walden(&["init"])?.exited(0)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let mut objects = Objects::of(&site);

    for free in [0, PAGE, 64 << 10, 1 << 20, 2 << 20] {
        fill(&repository, free)?;
        let said = site.walden(&["backup", "--wal-timeout=3s"])?;
        fs::remove_file(repository.join(".filler"))?;
        let said = said.exited(1)?;
        // Where started.json has room, the archiver may be the first to find none: then WAL is waited for.
        ensure!(
            ["No space left", "waiting for its archiver"]
                .iter()
                .any(|why| said.stderr.contains(why)),
            "with {free} bytes left it should be told why: {said:?}"
        );
        wait_alone(&site.production)?;
        objects.check()?;
        ensure!(
            objects.temporaries() == 0 && site.backups()?.is_empty(),
            "a backup should leave no temporary and no commit on a disk with {free} bytes left"
        );
    }
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let backup = site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    disk.remount("ro")?;
    site.walden(&["backup"])?
        .exited(1)?
        .naming(&["Read-only file system"])?;
    // Who only reads needs no more.
    restores(&site, &backup.id)?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    disk.remount("rw")?;

    drop(disk);
    site.walden(&["backup"])?.exited(1)?.naming(&["mounted"])?;
    site.try_restore("nowhere", &[])?
        .exited(1)?
        .naming(&["mounted"])?;
    ensure!(
        fs::read_dir(&repository)?.next().is_none(),
        "nothing should be written into the empty mount point"
    );
    Ok(())
}

fn a_restore_of_which_a_write_fails_does_not_start(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let (site, _) = site(install, dir)?;
    site.backup(&[])?;
    let shim = Shim::build(dir)?;
    let target = dir.join("restored");
    let args = ["restore", &target.display().to_string()];
    let mut failed = 0;
    // More than any restore of this cluster writes.
    for n in (0..14).map(|power| 1 << power) {
        let errno = if n % 3 == 1 { EIO } else { ENOSPC };
        let says = if errno == EIO {
            "os error 5"
        } else {
            "No space left"
        };
        let ended = shim.failing_write(site.command("walden.yaml", &args)?, n, errno)?;
        if let Some(answer) = ended {
            failed += 1;
            answer
                .exits(1)?
                .says(&["error:", says])
                .with_context(|| format!("with error {errno} at the write of number {n}"))?;
            ensure!(
                !target.join("global/pg_control").exists(),
                "what a restore leaves that failed at the write of number {n} should not start"
            );
        }
        remove(&site, "restored")?;
    }
    ensure!(
        (5..14).contains(&failed),
        "more writes than {failed} should have failed, and one restore have succeeded"
    );
    site.restore("restored", &[]).map(drop)
}
