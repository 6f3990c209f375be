//! Expiry beside others: a second one, a backup that runs, one that was killed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site};
use walden_testkit::{PgInstall, TestDir, on_version};

use super::{archive, expire, ids, nothing_left, objects, retain, site};

#[test]
fn two_expiries_at_once_do_the_same_work() {
    on_version(17, "expire_two", two);
}

#[test]
fn a_backup_that_runs_is_left_alone_and_one_that_was_killed_is_closed() {
    on_version(17, "expire_open", open);
}

fn two(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 1 }\n")?;
    site.production.start()?;
    archive(&site)?;
    for round in 0..4 {
        let old = site.backup(&[])?.id;
        archive(&site)?;
        let new = site.backup(&[])?.id;
        let mut both = Vec::new();
        for _ in 0..2 {
            let mut command = site.command("walden.yaml", &["expire"])?;
            both.push(
                command
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()?,
            );
        }
        for child in both {
            let output = child.wait_with_output()?;
            ensure!(
                output.status.success(),
                "both expiries should succeed in round {round}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let left: Vec<String> = site
            .backups()?
            .into_iter()
            .map(|backup| backup.id)
            .collect();
        ensure!(
            left == [new],
            "only the newest should be left in round {round}: {left:?}"
        );
        expire(&site, &[], 0)?;
        nothing_left(&site, &old)?;
        let told: Vec<String> = objects(&site)?
            .into_iter()
            .filter(|key| key.contains("/retired/"))
            .collect();
        ensure!(
            told.is_empty(),
            "what is done is taken out of retired/: {told:?}"
        );
    }
    Ok(())
}

fn unfinished(site: &Site<'_>) -> Result<Vec<String>> {
    Ok(ids(&site.list()?, "unfinished"))
}

fn open(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = site(install, dir, "retention: { full: 1 }\n")?;
    site.production.start()?;
    site.production.psql(
        "CREATE TABLE filling AS SELECT g, repeat('x', 500) FROM generate_series(1, 60000) g",
    )?;
    archive(&site)?;
    let old = site.backup(&[])?.id;
    archive(&site)?;
    let new = site.backup(&[])?.id;

    // So slow that it runs until it is killed.
    let mut slow = site.command("walden.yaml", &["backup", "--max-rate", "32k"])?;
    let mut slow = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let until = Instant::now() + Duration::from_secs(60);
    let running = loop {
        if let Some(id) = unfinished(&site)?.pop() {
            break id;
        }
        ensure!(Instant::now() < until, "the backup should have begun");
        std::thread::sleep(Duration::from_millis(50));
    };
    let done = expire(&site, &[], 0)?;
    ensure!(
        ids(&done, "removed") == [old.clone()] && ids(&done, "running") == [running.clone()],
        "the running backup is left alone: {done}"
    );
    let started = format!("/backups/{running}/started.json");
    ensure!(
        objects(&site)?.iter().any(|key| key.ends_with(&started)),
        "started.json of the running backup stays"
    );
    slow.kill()?;
    slow.wait()?;

    let done = expire(&site, &[], 0)?;
    ensure!(
        ids(&done, "abandoned").is_empty(),
        "nobody can tell yet that it is dead: {done}"
    );
    retain(
        &site,
        "retention: { full: 1 }\nexpire: { abandoned_after: 1ms }\n",
    )?;
    // The store's clock is told by what is stored.
    archive(&site)?;
    let done = expire(&site, &[], 0)?;
    ensure!(
        ids(&done, "abandoned") == [running.clone()],
        "it is closed: {done}"
    );
    let left: Vec<String> = objects(&site)?
        .into_iter()
        .filter(|key| key.contains(&running))
        .collect();
    let mark = format!("/commits/{running}.json");
    ensure!(
        left.len() == 1 && left.iter().all(|key| key.ends_with(&mark)),
        "the mark alone is left, by which nothing can commit it any more: {left:?}"
    );
    ensure!(
        unfinished(&site)?.is_empty(),
        "it is not unfinished any more"
    );
    let listed: Vec<String> = site
        .backups()?
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    ensure!(listed == [new], "{listed:?}");
    let said: Said = site.walden(&["expire"])?.exited(0)?;
    ensure!(said.stdout.contains("nothing goes"), "{}", said.stdout);
    site.planned(&[]).context("a plan")?;
    Ok(())
}
