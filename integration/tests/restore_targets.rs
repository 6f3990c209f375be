//! Backup under write load, and restores to each kind of target: the rows are exactly those committed up to it, in WAL order.

use std::fs;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walden_integration::{Backup, Site, files, options, wait_open, wait_paused};
use walden_testkit::{
    Cluster, Ledger, PgInstall, Target, TestDir, Timestamp, on_every_version, pg_amcheck,
};

on_every_version!(restores_hold_exactly_the_rows_of_their_target);

const POINT: &str = "before the upgrade";

/// A production with a ledger, and a backup that was taken while three writers wrote.
struct Scene<'a> {
    site: Site<'a>,
    ledger: Ledger,
    backup: Backup,
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut site = Site::new(install, dir, |builder| builder)?;
        site.production.start()?;
        let mut ledger = Ledger::create(&site.production)?;
        let load = ledger.start_load(&site.production, 3)?;
        load.wait_for(50)?;
        // Nothing can be backed up before the archive holds something.
        site.archive_all()?;
        let backup = site.backup(&["--annotate", "why=a test"])?;
        load.wait_for(100)?;
        let point = format!("SELECT pg_create_restore_point('{POINT}')");
        site.production.psql(&point)?;
        load.wait_for(50)?;
        ledger.finish(load, &site.production)?;
        site.archive_all()?;
        Ok(Self {
            site,
            ledger,
            backup,
        })
    }

    /// Restores, starts, lets `judge` look at the server and at the rows that must be there, and removes it again.
    fn check(
        &self,
        what: &str,
        args: &[String],
        target: &Target,
        judge: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<()> {
        let restore = || -> Result<()> {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut restored = self.site.restore("restored", &args)?;
            restored.start()?;
            judge(&restored)?;
            self.ledger.compare(&restored, target)?;
            ensure!(
                restored.psql("SHOW archive_mode")? == "off",
                "a copy must not archive"
            );
            Ok(())
        };
        restore().with_context(|| format!("{what}: restore {args:?}"))?;
        for left in ["restored", "restored.socket"] {
            fs::remove_dir_all(self.site.dir.join(left))?;
        }
        Ok(())
    }

    fn check_paused(&self, what: &str, target: &Target) -> Result<()> {
        self.check(what, &options(target), target, wait_paused)
    }
}

fn restores_hold_exactly_the_rows_of_their_target(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let seed: u64 = rand::random();
    each_target(install, dir, seed).with_context(|| format!("seed of the moments: {seed}"))
}

fn each_target(install: &PgInstall, dir: &TestDir, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let scene = Scene::new(install, dir)?;
    let stored = files(&scene.site.repository())?;

    scene.check("the end of the archive", &[], &Target::Latest, |restored| {
        wait_open(restored)?;
        pg_amcheck(restored)
    })?;
    scene.check(
        "as soon as the backup is consistent",
        &["--target-immediate".to_owned()],
        // Everything up to the record that ends the backup, and nothing behind it.
        &Target::Lsn {
            lsn: scene.backup.stop_lsn,
            inclusive: false,
        },
        wait_paused,
    )?;
    scene.check_paused("a restore point", &Target::Name(POINT.to_owned()))?;

    let outcomes = scene.ledger.outcomes();
    let behind: Vec<_> = outcomes
        .iter()
        .filter(|outcome| outcome.time > scene.backup.stopped_at)
        .collect();
    // The very last can be reached by no time: nothing comes later.
    let last = behind
        .len()
        .checked_sub(2)
        .context("too few transactions")?;
    let within = scene.backup.stopped_at + std::time::Duration::from_micros(1);
    let mut times = vec![("the microsecond after the backup's end", within)];
    for (what, offset) in [
        ("a random transaction's own moment", 0),
        ("a microsecond before a random transaction", -1),
    ] {
        let at = behind.get(random.random_range(1..last)).context("random")?;
        times.push((what, micros(at.time, offset)?));
    }
    for (what, time) in times {
        let inclusive = true;
        scene.check_paused(what, &Target::Time { time, inclusive })?;
    }

    let commits: Vec<_> = behind
        .iter()
        .filter(|outcome| outcome.committed && outcome.number.is_some())
        .collect();
    let mut any = || {
        let at = random.random_range(1..commits.len() - 1);
        commits.get(at).context("random")
    };
    for inclusive in [true, false] {
        let lsn = any()?.start;
        scene.check_paused("a commit's LSN", &Target::Lsn { lsn, inclusive })?;
    }
    // In the second half: whether a transaction had ended before the backup is asked a little after the backup's end.
    let at = random.random_range(commits.len() / 2..commits.len() - 1);
    let xid = commits.get(at).context("random")?.xid;
    scene.check_paused(
        "with a transaction",
        &Target::Xid {
            xid,
            inclusive: true,
        },
    )?;
    let before = Target::Xid {
        xid,
        inclusive: false,
    };
    let promoting = [options(&before), vec!["--target-action=promote".to_owned()]].concat();
    scene.check("without a transaction", &promoting, &before, wait_open)?;

    let production = &scene.site.production;
    scene.ledger.compare(production, &Target::Latest)?;
    ensure!(
        files(&scene.site.repository())? == stored,
        "restoring must change nothing in the repository"
    );
    Ok(())
}

fn micros(time: Timestamp, offset: i64) -> Result<Timestamp> {
    Timestamp::from_microsecond(time.as_microsecond() + offset).context("a time out of range")
}
