//! Every promised moment is restored after an expiry, on one timeline and across a fork; pins; a second system identifier.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, options, wait_open, wait_paused};
use walden_testkit::{Ledger, PgInstall, StopMode, Target, TestDir, on_version};

use super::{archive, expire, ids, nothing_left, objects, retain, site};

#[test]
fn what_is_promised_can_be_restored_and_the_rest_is_gone() {
    on_version(17, "expire_promises", promises);
}

#[test]
fn both_sides_of_a_fork_are_kept_as_long_as_they_are_promised() {
    on_version(17, "expire_fork", fork);
}

#[test]
fn nothing_goes_that_nobody_configured() {
    on_version(17, "expire_nothing", |install, dir| {
        let mut site = site(install, dir, "")?;
        site.production.start()?;
        archive(&site)?;
        site.backup(&[])?;
        let before = objects(&site)?;
        let said = site.walden(&["expire"])?.exited(2)?;
        said.naming(&["set retention"])?;
        retain(&site, "retention: { minimum: 1 }\n")?;
        site.walden(&["expire"])?.exited(2)?;
        ensure!(objects(&site)? == before, "nothing may have gone");
        Ok(())
    });
}

#[test]
fn a_system_identifier_of_before_an_upgrade_is_kept_by_itself() {
    on_version(17, "expire_systems", systems);
}

/// Restores to a target and compares.
fn check(site: &Site<'_>, ledger: &Ledger, target: &Target, more: &[&str]) -> Result<()> {
    let owned = options(target);
    let args: Vec<&str> = owned
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    let restore = || -> Result<()> {
        let mut restored = site.restore("restored", &args)?;
        restored.start()?;
        if *target == Target::Latest {
            wait_open(&restored)?;
        } else {
            wait_paused(&restored)?;
        }
        ledger.compare(&restored, target)
    };
    restore().with_context(|| format!("restore {args:?}"))?;
    for left in ["restored", "restored.socket"] {
        fs::remove_dir_all(site.dir.join(left))?;
    }
    Ok(())
}

fn promises(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 2 }\n")?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    let mut backups = Vec::new();
    let mut written = Vec::new();
    for _ in 0..4 {
        ledger.write(&site.production, 2, 10)?;
        archive(&site)?;
        backups.push(site.backup(&[])?);
        written.push(ledger.commits().len());
    }
    ledger.write(&site.production, 2, 10)?;
    archive(&site)?;
    let [first, second, third, fourth] = backups.as_slice() else {
        anyhow::bail!("four backups");
    };
    let pin = ["pin", &second.id, "--until", "forever"];
    site.walden(&pin)?.exited(0)?;

    let before = objects(&site)?;
    let planned = expire(&site, &["--dry-run"], 0)?;
    ensure!(objects(&site)? == before, "a dry run removes nothing");
    ensure!(
        ids(&planned, "removed") == [first.id.clone()],
        "planned: {planned}"
    );
    ensure!(
        ids(&planned, "kept") == [second, third, fourth].map(|backup| backup.id.clone()),
        "planned: {planned}"
    );
    let done = expire(&site, &[], 0)?;
    ensure!(
        done.pointer("/done/backups/0")
            .is_some_and(|id| *id == *first.id),
        "what was planned was carried out: {done}"
    );
    nothing_left(&site, &first.id)?;
    let listed: Vec<String> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    ensure!(
        listed == [second, third, fourth].map(|backup| backup.id.clone()),
        "{listed:?}"
    );

    // Every moment from the third's end on.
    let commits = ledger.commits();
    for at in [written[2] + 1, written[3] + 3] {
        let commit = commits.get(at).context("a commit")?;
        let target = Target::Lsn {
            lsn: commit.start,
            inclusive: true,
        };
        check(&site, &ledger, &target, &[])?;
        let time = Target::Time {
            time: commit.time,
            inclusive: true,
        };
        check(&site, &ledger, &time, &["--backup", &third.id])?;
    }
    check(&site, &ledger, &Target::Latest, &["--backup", &third.id])?;
    // The pinned one to its own end; what came between is gone, and that is told.
    let immediate = ["--backup", &second.id, "--target-immediate"];
    let mut restored = site.restore("restored", &immediate)?;
    restored.start()?;
    wait_paused(&restored)?;
    let own_end = Target::Lsn {
        lsn: second.stop_lsn,
        inclusive: false,
    };
    ledger.compare(&restored, &own_end)?;
    drop(restored);
    for left in ["restored", "restored.socket"] {
        fs::remove_dir_all(site.dir.join(left))?;
    }
    let between = commits.get(written[1] + 8).context("a commit")?;
    let lsn = between.start.to_string();
    site.refused("restored", &["--target-lsn", &lsn], &[&third.id])?;

    let again = expire(&site, &[], 0)?;
    ensure!(
        ids(&again, "removed").is_empty()
            && again.pointer("/done/objects").is_some_and(|n| *n == 0),
        "once is enough: {again}"
    );
    site.walden(&["unpin", &second.id])?.exited(0)?;
    site.walden(&["unpin", &second.id])?
        .exited(1)?
        .naming(&["is not pinned"])?;
    expire(&site, &[], 0)?;
    nothing_left(&site, &second.id)?;
    check(&site, &ledger, &Target::Latest, &["--backup", &third.id])?;
    site.walden(&pin)?.exited(1)?.naming(&["has no backup"])?;
    Ok(())
}

/// A restore takes over on timeline 2 while timeline 1 has backups behind the fork.
fn fork(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 1 }\n")?;
    site.production.start()?;
    let mut old = Ledger::create(&site.production)?;
    old.write(&site.production, 2, 10)?;
    archive(&site)?;
    let first = site.backup(&[])?.id;
    old.write(&site.production, 2, 20)?;
    let fork = old.commits().len() - 5;
    let fork = old.commits().get(fork).context("commits")?.xid;
    archive(&site)?;
    let second = site.backup(&[])?.id;
    old.write(&site.production, 2, 10)?;
    archive(&site)?;
    site.production.stop(StopMode::Fast)?;

    let until = Target::Xid {
        xid: fork,
        inclusive: true,
    };
    let mut args = options(&until);
    args.extend(["--backup", &first, "--target-action=promote", "--take-over"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut successor = site.restore("successor", &args)?;
    successor.start()?;
    wait_open(&successor)?;
    let mut new = old.branch(&successor)?;
    new.write(&successor, 2, 10)?;
    successor.wait_archived(&successor.switch_wal()?)?;

    // No backup of timeline 2 yet: the way to it begins with the first.
    let plan = expire(&site, &[], 0)?;
    ensure!(
        ids(&plan, "removed").is_empty(),
        "only the first leads to timeline 2: {plan}"
    );
    check(&site, &new, &Target::Latest, &[])?;
    check(&site, &old, &Target::Latest, &["--target-timeline", "1"])?;

    site.configure("successor.yaml", &successor, "")?;
    Said::run(&mut site.command("successor.yaml", &["backup"])?)?.exited(0)?;
    new.write(&successor, 2, 10)?;
    successor.wait_archived(&successor.switch_wal()?)?;
    expire(&site, &[], 0)?;
    let left: Vec<String> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    ensure!(
        !left.contains(&first),
        "the first is neither newest nor pinned: {left:?}"
    );
    check(&site, &new, &Target::Latest, &[])?;
    if left.contains(&second) {
        check(&site, &old, &Target::Latest, &["--target-timeline", "1"])?;
    }
    Ok(())
}

/// As after pg_upgrade: a new cluster under the same name.
fn systems(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 1 }\n")?;
    site.production.start()?;
    let old = Ledger::create(&site.production)?;
    archive(&site)?;
    let of_old = [site.backup(&[])?.id, site.backup(&[])?.id];
    archive(&site)?;
    site.production.stop(StopMode::Fast)?;

    let push = format!(
        "{} --config {} %p",
        site.binaries.path("walden-wal-push").display(),
        dir.join("walden.yaml").display()
    );
    let upgraded = walden_testkit::Cluster::builder(install, dir, "upgraded")
        .initdb_arg("--wal-segsize=1")
        .conf("fsync", "off")
        .conf("archive_mode", "on")
        .conf("archive_command", &push)
        .build()?;
    let before = std::mem::replace(&mut site.production, upgraded);
    retain(&site, "retention: { full: 1 }\n")?;
    site.walden(&["init", "--new-system-identifier"])?
        .exited(0)?;
    site.production.start()?;
    archive(&site)?;
    let of_new = site.backup(&[])?.id;
    let said = site.walden(&["expire"])?.exited(0)?;
    let left: Vec<String> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    ensure!(
        left == [of_old[1].clone(), of_new.clone()],
        "the newest of each system identifier stays, found {left:?}:\n{}",
        said.stdout
    );
    let list = site.list()?;
    let system = list
        .pointer("/backups/0/system_identifier")
        .context("a system identifier")?;
    let system = system.as_str().context("a text")?.to_owned();
    check(
        &site,
        &old,
        &Target::Latest,
        &["--system-identifier", &system],
    )?;
    drop(before);
    Ok(())
}
