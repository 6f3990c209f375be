//! Until which commit a cluster can be restored, held against the ledger.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use walden_engine::index::LastCommit;
use walden_engine::list::{self, ListRequest, Listing};
use walden_engine::repository::{Place, RepositorySettings};
use walden_engine::windows::{self, RestoreWindow, SystemWindows};
use walden_integration::{Said, Site, options, wait_open};
use walden_testkit::{
    Ledger, Outcome, PgInstall, StopMode, Target, TestDir, on_every_version, on_version,
};

on_every_version!(the_last_commit_that_can_be_restored_is_the_ledgers_last_archived_one);

#[test]
fn a_hole_is_named_and_splits_windows() {
    on_version(17, "hole", hole);
}

#[test]
fn each_timeline_has_its_own_window_after_a_promotion() {
    on_version(17, "promotion", promotion);
}

#[test]
fn an_archive_without_indexes_has_windows_by_names() {
    on_version(17, "stripped", stripped);
}

#[test]
fn a_backup_rolls_the_index_up() {
    on_version(17, "rolled_up", rolled_up);
}

fn request(site: &Site<'_>) -> Result<ListRequest> {
    Ok(ListRequest {
        repositories: vec![RepositorySettings {
            keys: Default::default(),
            name: "here".to_owned(),
            place: Place::Folder(site.repository()),
            id: None,
            required: true,
        }],
        cluster: "main".parse()?,
    })
}

fn told(site: &Site<'_>) -> Result<SystemWindows> {
    let runtime = tokio::runtime::Runtime::new()?;
    let windows = runtime.block_on(windows::windows(&request(site)?))?;
    windows.systems.into_iter().next().context("a system")
}

fn listed(site: &Site<'_>) -> Result<Listing> {
    let runtime = tokio::runtime::Runtime::new()?;
    Ok(runtime.block_on(list::list(&request(site)?))?)
}

/// The windows of a timeline.
fn of(system: &SystemWindows, timeline: u32) -> Result<&[RestoreWindow]> {
    let mut timelines = system.timelines.iter();
    let found = timelines.find(|windows| windows.timeline.0 == timeline);
    match &found
        .with_context(|| format!("timeline {timeline}"))?
        .windows
    {
        Ok(windows) => Ok(windows),
        Err(missing) => bail!("{missing}"),
    }
}

/// Every commit in WAL order, those of the ledger's own housekeeping among them.
fn commits(ledger: &Ledger) -> Vec<&Outcome> {
    let outcomes = ledger.outcomes().iter();
    outcomes.filter(|outcome| outcome.committed).collect()
}

/// Proves that a window ends with the ledger's last commit but `behind`.
fn ends_with(window: &RestoreWindow, ledger: &Ledger, behind: usize) -> Result<()> {
    let commits = commits(ledger);
    let expected = commits
        .len()
        .checked_sub(behind + 1)
        .and_then(|at| commits.get(at))
        .context("commits")?;
    let LastCommit::Known(found) = window.end.commit else {
        bail!("the last commit is {expected:?}, found {:?}", window.end);
    };
    ensure!(
        (found.xid, found.lsn, found.time) == (expected.xid, expected.start, expected.time),
        "the last commit is {expected:?}, found {found:?}"
    );
    Ok(())
}

fn the_last_commit_that_can_be_restored_is_the_ledgers_last_archived_one(
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
    let backup = site.backup(&[])?;
    // Several segments, so that commits cross their edges.
    ledger.write(&site.production, 3, 900)?;
    site.archive_all()?;
    let archived = commits(&ledger).len();
    let system = told(&site)?;
    let [window] = of(&system, 1)? else {
        bail!("one window expected: {system:?}");
    };
    ends_with(window, &ledger, 0)?;
    ensure!(
        window.window.from.lsn == backup.stop_lsn && window.window.from.at == backup.stopped_at,
        "the window begins with the backup's consistency: {window:?}"
    );
    ensure!(
        window.window.segments >= 3,
        "the load should fill segments: {window:?}"
    );
    let listing = listed(&site)?;
    let backups = &listing.systems.first().context("a system")?.backups;
    let until = backups.first().and_then(|backup| backup.until);
    ensure!(
        until == window.end.commit.known(),
        "the list says {until:?}, the windows {window:?}"
    );

    // What stands in the segment that is being written is not claimed.
    ledger.write(&site.production, 2, 20)?;
    let system = told(&site)?;
    let newest = system.newest().context("a window")?;
    ends_with(newest, &ledger, commits(&ledger).len() - archived)?;
    let later = newest.until().context("a time")? + std::time::Duration::from_secs(12);
    let lost = newest.would_be_lost(later).context("a duration")?;
    ensure!(lost.as_secs() == 12, "12 s would be lost, found {lost}");
    Ok(())
}

fn hole(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let before = commits(&ledger).len();
    ledger.write(&site.production, 2, 20)?;
    let lost = site.archive_all()?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let second = site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    fs::remove_file(site.stored(&lost)?)?;

    let system = told(&site)?;
    let [first, last] = of(&system, 1)? else {
        bail!("two windows expected: {system:?}");
    };
    ends_with(first, &ledger, commits(&ledger).len() - before)?;
    let gap = first.window.gap.context("a gap behind the first window")?;
    ensure!(
        gap.first.to_string() == lost && gap.last.to_string() == lost,
        "the gap is {lost}, found {gap}"
    );
    ensure!(
        last.window.from.backup.as_str() == second.id && last.window.gap.is_none(),
        "the second backup opens the second window: {last:?}"
    );
    ends_with(last, &ledger, 0)
}

fn promotion(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut old = Ledger::create(&site.production)?;
    old.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    old.write(&site.production, 2, 40)?;
    let fork = old.commits().len() - 10;
    let fork = old.commits().get(fork).context("commits")?.xid;
    site.archive_all()?;
    site.production.stop(StopMode::Fast)?;
    let until = Target::Xid {
        xid: fork,
        inclusive: true,
    };
    let mut args = options(&until);
    args.extend([
        "--target-action=promote".to_owned(),
        "--take-over".to_owned(),
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut successor = site.restore("successor", &args)?;
    successor.start()?;
    wait_open(&successor)?;
    let mut new = old.branch(&successor)?;
    new.write(&successor, 2, 30)?;
    successor.wait_archived(&successor.switch_wal()?)?;

    let system = told(&site)?;
    for (timeline, ledger) in [(1, &old), (2, &new)] {
        let [window] = of(&system, timeline)? else {
            bail!("one window of timeline {timeline} expected: {system:?}");
        };
        ends_with(window, ledger, 0).with_context(|| format!("timeline {timeline}"))?;
        ensure!(
            window.window.from.timeline.0 == 1,
            "the only backup is of timeline 1: {window:?}"
        );
    }
    let newest = system.newest().context("a window")?;
    ensure!(newest.window.timeline.0 == 2, "{newest:?}");
    Ok(())
}

fn stripped(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    let last = site.archive_all()?;
    ensure!(site.strip_indexes()? >= 3, "every segment had an index");

    // A few segments are read in full.
    let system = told(&site)?;
    ends_with(system.newest().context("a window")?, &ledger, 0)?;

    // One that cannot be read leaves names and times.
    let object = site.stored(&last)?;
    let mut bytes = fs::read(&object)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("a byte")? ^= 1;
    fs::write(&object, bytes)?;
    let system = told(&site)?;
    let newest = system.newest().context("a window")?;
    ensure!(
        newest.end.commit == LastCommit::Unknown,
        "nobody can know the last commit: {newest:?}"
    );
    ensure!(
        newest.window.last_segment.to_string() == last,
        "the window reaches {last}: {newest:?}"
    );
    ensure!(
        newest.until() == newest.archived_at && newest.archived_at.is_some(),
        "the time of archiving stands for it: {newest:?}"
    );
    Ok(())
}

fn rolled_up(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    // From the first segments on to behind the block's end, each with a commit.
    while site.production.insert_lsn()?.0 < 520 << 20 {
        site.production
            .psql("CREATE TABLE IF NOT EXISTS seen (n int); INSERT INTO seen VALUES (1)")?;
        site.production.switch_wal()?;
    }
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let before = told(&site)?;
    site.backup(&[])?;
    let made = walden_integration::files(&site.repository())?;
    let mut made = made
        .into_keys()
        .filter(|path| path.to_string_lossy().contains("/rollup/1/00000001/1/"));
    let made: Vec<_> = made.by_ref().collect();
    ensure!(
        made.len() == 1,
        "one whole block of 256 segments was archived, found {made:?}"
    );
    let runtime = tokio::runtime::Runtime::new()?;
    let repository = runtime.block_on(walden_engine::repository::Repository::open(
        request(&site)?
            .repositories
            .first()
            .context("a repository")?,
    ))?;
    let ends = |system: &SystemWindows| -> Result<_> {
        let newest = system.newest().context("a window")?;
        Ok((newest.window.clone(), newest.end))
    };
    let (window, _) = ends(&before)?;
    runtime.block_on(async {
        let loaded = walden_engine::catalog::load(&repository, &"main".parse()?, None).await?;
        let catalog = Arc::new(loaded.into_iter().next().context("a system")?.catalog);
        let indexes = walden_engine::index::Indexes::new(&repository, &catalog);
        use futures::TryStreamExt;
        let coarse: Vec<_> = indexes
            .summaries(window.ranges.clone())
            .try_collect()
            .await?;
        ensure!(
            coarse
                .iter()
                .any(|summary| summary.last - summary.first == 255),
            "the roll-up is used: {coarse:?}"
        );
        let mut fine = Vec::new();
        for summary in &coarse {
            if summary.first == summary.last {
                fine.push(summary.clone());
                continue;
            }
            let closer = indexes.within(window.ranges.clone(), summary);
            let closer: Vec<_> = closer.try_collect().await?;
            ensure!(closer.len() == 256, "{} segments in a block", closer.len());
            let merged = closer.iter().skip(1).fold(
                closer.first().context("a segment")?.clone(),
                |whole, next| whole.merge(next),
            );
            ensure!(
                merged == *summary,
                "the block says {summary:?}, its segments {merged:?}"
            );
            fine.extend(closer);
        }
        ensure!(
            fine.windows(2)
                .all(|pair| matches!(pair, [a, b] if a.last + 1 == b.first)),
            "every segment once, in order"
        );
        let back: Vec<_> = indexes
            .summaries_back(window.ranges.clone())
            .try_collect()
            .await?;
        ensure!(
            back.iter().rev().eq(coarse.iter()),
            "backwards it is the same"
        );
        Ok(())
    })?;
    Said::run(&mut site.command("walden.yaml", &["list-backups"])?)?.exited(0)?;
    Ok(())
}
