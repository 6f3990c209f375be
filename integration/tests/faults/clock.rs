//! A clock that jumps: what Walden stores and finds again does not hang on the host's.

use anyhow::{Context, Result};
use walden_integration::{Said, Site, options, wait_open, wait_paused};
use walden_testkit::{Ledger, PgInstall, Target, TestDir};

use crate::shim::Shim;
use crate::{behind, remove};

super::on_17!(a_clock_that_jumps_takes_nothing_away);

/// More than a year, ahead and behind in turn, at each look.
const JUMP: i64 = 400 * 86_400;

fn a_clock_that_jumps_takes_nothing_away(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let shim = Shim::build(dir)?;
    let [preload, clock] = shim.jumping(JUMP);
    let jumping = ["env", &preload, &clock];
    let mut site = Site::new(install, dir, |builder| {
        let push = format!(
            "{} {} --config {} %p",
            jumping.join(" "),
            dir.join("bin/walden-wal-push").display(),
            dir.join("walden.yaml").display()
        );
        builder
            .initdb_arg("--wal-segsize=1")
            .conf("archive_command", &push)
    })?;
    site.production.start()?;
    let walden = |site: &Site<'_>, args: &[&str]| -> Result<Said> {
        Said::run(&mut behind(site, &jumping, args)?)?.exited(0)
    };
    let mut ledger = Ledger::create(&site.production)?;
    let mut targets = Vec::new();
    for _ in 0..3 {
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        walden(&site, &["backup"])?;
        ledger.write(&site.production, 2, 20)?;
        let commits = ledger.commits();
        let time = commits.get(commits.len() - 10).context("a commit")?.time;
        targets.push(Target::Time {
            time,
            inclusive: true,
        });
    }
    site.archive_all()?;
    targets.push(Target::Latest);
    walden(&site, &["windows"])?;
    let directory = dir.join("restored").display().to_string();
    for target in targets {
        let wanted = options(&target);
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        walden(&site, &[&["restore", &directory], &wanted[..]].concat())?;
        let mut restored =
            walden_testkit::Cluster::adopt(install, dir, "restored", dir.join("restored"))?;
        restored.append(
            "postgresql.auto.conf",
            &format!(
                "restore_command = '{} {} --config {} %f %p'\n",
                jumping.join(" "),
                site.binaries.path("walden-wal-fetch").display(),
                dir.join("walden.yaml").display()
            ),
        )?;
        restored.start()?;
        match target {
            Target::Latest => wait_open(&restored)?,
            _ => wait_paused(&restored)?,
        }
        ledger.compare(&restored, &target)?;
        drop(restored);
        remove(&site, "restored")?;
    }
    Ok(())
}
