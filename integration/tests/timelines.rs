//! A restore that takes over, a second timeline in the same archive, and restores to both.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, options, wait_open, wait_paused};
use walden_testkit::{
    Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, pg_amcheck,
};

on_every_version!(both_timelines_can_be_restored_after_a_take_over);

/// Made on both timelines, behind the fork.
const POINT: &str = "after the fork";

/// A production that ended, a restore of it that took over, and one archive of both.
struct Scene<'a> {
    site: Site<'a>,
    /// What production wrote, also behind the fork.
    old: Ledger,
    /// What counts since the take-over.
    new: Ledger,
    /// Of timeline 1, from before the fork.
    first: String,
    /// Of timeline 2.
    second: String,
    successor: Cluster,
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut site = Site::new(install, dir, |builder| builder)?;
        site.production.start()?;
        let mut old = Ledger::create(&site.production)?;
        old.write(&site.production, 3, 30)?;
        site.archive_all()?;
        let first = site.backup(&[])?.id;
        old.write(&site.production, 3, 60)?;
        let fork = old.commits().len() - 20;
        let fork = old.commits().get(fork).context("commits")?.xid;
        site.production.psql(&restore_point())?;
        old.write(&site.production, 3, 30)?;
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
        new.compare(&successor, &Target::Latest)?;
        ensure!(
            successor.psql("SHOW archive_mode")? == "on",
            "what takes over must archive"
        );

        new.write(&successor, 3, 30)?;
        successor.psql(&restore_point())?;
        new.write(&successor, 3, 30)?;
        successor.wait_archived(&successor.switch_wal()?)?;
        site.configure("successor.yaml", &successor, "")?;
        Said::run(&mut site.command("successor.yaml", &["backup"])?)?.exited(0)?;
        let second = site.backups()?.pop().context("the second backup")?;
        ensure!(
            second.json.get("timeline").is_some_and(|t| t == 2),
            "the second backup should be of timeline 2: {}",
            second.json
        );
        new.write(&successor, 3, 30)?;
        successor.wait_archived(&successor.switch_wal()?)?;
        Ok(Self {
            site,
            old,
            new,
            first,
            second: second.id,
            successor,
        })
    }

    /// Restores to a target of one of the two ledgers, and returns what the plan said.
    fn check(&self, ledger: &Ledger, target: &Target, more: &[&str]) -> Result<()> {
        let owned = options(target);
        let mut args: Vec<&str> = owned.iter().map(String::as_str).collect();
        args.extend(more);
        let restore = || -> Result<()> {
            let mut restored = self.site.restore("restored", &args)?;
            restored.start()?;
            if *target == Target::Latest {
                wait_open(&restored)?;
                pg_amcheck(&restored)?;
            } else {
                wait_paused(&restored)?;
            }
            ledger.compare(&restored, target)
        };
        restore().with_context(|| format!("restore {args:?}"))?;
        for left in ["restored", "restored.socket"] {
            fs::remove_dir_all(self.site.dir.join(left))?;
        }
        Ok(())
    }
}

fn restore_point() -> String {
    format!("SELECT pg_create_restore_point('{POINT}')")
}

fn both_timelines_can_be_restored_after_a_take_over(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let (first, second) = (scene.first.as_str(), scene.second.as_str());

    // The new timeline: from its own backup, and across the switch.
    let (old, new) = (&scene.old, &scene.new);
    scene.check(new, &Target::Latest, &[])?;
    scene.check(new, &Target::Latest, &["--backup", first])?;
    let commits = new.commits();
    // Behind the switch, before the backup of timeline 2: the first backup is the only way.
    let at = commits.get(commits.len() - 70).context("commits")?;
    let (lsn, time, inclusive) = (at.start, at.time, true);
    scene.check(new, &Target::Lsn { lsn, inclusive }, &[])?;
    scene.check(new, &Target::Time { time, inclusive }, &[])?;
    let point = Target::Name(POINT.to_owned());
    scene.check(new, &point, &["--backup", first])?;

    // The old timeline, behind the fork.
    let on_old = ["--target-timeline", "1"];
    scene.check(old, &Target::Latest, &on_old)?;
    let commits = old.commits();
    let at = commits.get(commits.len() - 10).context("commits")?;
    let (xid, time) = (at.xid, at.time);
    scene.check(old, &Target::Time { time, inclusive }, &on_old)?;
    let current = ["--backup", first, "--target-timeline", "current"];
    let inclusive = false;
    scene.check(old, &Target::Xid { xid, inclusive }, &current)?;
    scene.check(old, &point, &on_old)?;

    let elsewhere: &[&str] = &["does not lead through its end", second];
    let asked = ["--backup", second, "--target-timeline", "1"];
    scene.site.refused("restored", &asked, elsewhere)?;
    new.compare(&scene.successor, &Target::Latest)
}
