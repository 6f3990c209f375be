//! The test bed against PostgreSQL's own archiving with `cp`: what the ledger says must be there is
//! what PostgreSQL's recovery leaves there, for each kind of target.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use walden_testkit::{
    Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, pg_amcheck,
    pg_verifybackup, run, run_as_server,
};

on_every_version!(
    ledger_agrees_with_recovery_to_each_target,
    ledger_follows_a_promotion,
    ledger_tells_a_changed_row,
    a_server_that_cannot_start_says_why,
);

/// A cluster that archives with `cp`, and a base backup of it taken while writes went on.
struct Scene<'a> {
    install: &'a PgInstall,
    dir: &'a TestDir,
    production: Cluster,
    ledger: Ledger,
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let archive = dir.server_dir("archive")?;
        let mut production = Cluster::builder(install, dir, "production")
            // No power is lost here, and the disk takes most of these tests' time.
            .conf("fsync", "off")
            .conf("archive_mode", "on")
            .conf(
                "archive_command",
                &format!("cp %p {}/%f", archive.display()),
            )
            .build()?;
        production.start()?;
        let mut ledger = Ledger::create(&production)?;
        let load = ledger.start_load(&production, 3)?;
        load.wait_for(50)?;
        let mut backup = install.server_command("pg_basebackup")?;
        run(backup
            .args(["--checkpoint=fast", "--wal-method=none", "--dbname"])
            .arg(production.connection_string())
            .arg("--pgdata")
            .arg(dir.join("backup")))?;
        load.wait_for(100)?;
        ledger.finish(load, &production)?;
        pg_verifybackup(install, &dir.join("backup"), &[])?;
        Ok(Self {
            install,
            dir,
            production,
            ledger,
        })
    }

    /// A copy of the backup that recovers to `target` when it is started.
    fn restore(&self, name: &str, target: &Target) -> Result<Cluster> {
        let pgdata = self.dir.join(name);
        let mut cp = Command::new("cp");
        cp.arg("-a").arg(self.dir.join("backup")).arg(&pgdata);
        run(&mut run_as_server(cp)?)?;
        let restored = Cluster::adopt(self.install, self.dir, name, pgdata)?;
        let archive = self.dir.join("archive");
        restored.set("archive_mode", "off")?;
        restored.set(
            "restore_command",
            &format!("cp {}/%f %p", archive.display()),
        )?;
        let inclusive = match target {
            Target::Latest => true,
            Target::Time { time, inclusive } => {
                // The server reads its configuration before it knows names of zones, 'Z' among them.
                let time = time.strftime("%Y-%m-%d %H:%M:%S%.6f+00");
                restored.set("recovery_target_time", &time.to_string())?;
                *inclusive
            }
            Target::Lsn { lsn, inclusive } => {
                restored.set("recovery_target_lsn", &lsn.to_string())?;
                *inclusive
            }
            Target::Xid { xid, inclusive } => {
                restored.set("recovery_target_xid", &xid.to_string())?;
                *inclusive
            }
            Target::Name(name) => {
                restored.set("recovery_target_name", name)?;
                true
            }
        };
        let inclusive = if inclusive { "on" } else { "off" };
        restored.set("recovery_target_inclusive", inclusive)?;
        restored.append("recovery.signal", "")?;
        Ok(restored)
    }
}

fn ledger_agrees_with_recovery_to_each_target(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut scene = Scene::new(install, dir)?;
    scene
        .production
        .psql("SELECT pg_create_restore_point('before the rest')")?;
    scene.ledger.write(&scene.production, 3, 20)?;
    let last = scene.production.switch_wal()?;
    scene.production.wait_archived(&last)?;

    let commits = scene.ledger.commits();
    let at = commits.get(commits.len() - 40).context("too few commits")?;
    let (lsn, xid, time) = (at.start, at.xid, at.time);
    let mut targets = vec![Target::Latest, Target::Name("before the rest".to_owned())];
    for inclusive in [true, false] {
        targets.push(Target::Lsn { lsn, inclusive });
        targets.push(Target::Xid { xid, inclusive });
        targets.push(Target::Time { time, inclusive });
    }
    for (number, target) in targets.iter().enumerate() {
        let mut restored = scene.restore(&format!("restored{number}"), target)?;
        restored.start()?;
        if *target == Target::Latest {
            restored.wait_for("SELECT pg_is_in_recovery()", "f", "the end of recovery")?;
        } else {
            restored.wait_for(
                "SELECT pg_get_wal_replay_pause_state()",
                "paused",
                "recovery to reach its target",
            )?;
        }
        scene.ledger.compare(&restored, target)?;
        if *target == Target::Latest {
            pg_amcheck(&restored)?;
        }
    }
    Ok(())
}

fn ledger_follows_a_promotion(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let last = scene.production.switch_wal()?;
    scene.production.wait_archived(&last)?;
    let commits = scene.ledger.commits();
    let at = commits.get(commits.len() - 30).context("too few commits")?;
    let target = Target::Xid {
        xid: at.xid,
        inclusive: true,
    };
    let mut restored = scene.restore("restored", &target)?;
    restored.start()?;
    restored.wait_for(
        "SELECT pg_get_wal_replay_pause_state()",
        "paused",
        "recovery to reach its target",
    )?;
    restored.promote()?;
    let mut branch = scene.ledger.branch(&restored)?;
    branch.compare(&restored, &Target::Latest)?;
    branch.write(&restored, 3, 50)?;
    branch.compare(&restored, &Target::Latest)?;
    ensure!(
        scene.ledger.compare(&restored, &Target::Latest).is_err(),
        "the old timeline's ledger must not fit the new timeline"
    );
    restored.stop(StopMode::Fast)
}

fn ledger_tells_a_changed_row(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut cluster = Cluster::builder(install, dir, "cluster")
        .data_checksums(false)
        .build()?;
    cluster.start()?;
    ensure!(
        cluster.psql("SHOW data_checksums")? == "off",
        "checksums were to be off"
    );
    let mut ledger = Ledger::create(&cluster)?;
    ledger.write(&cluster, 2, 20)?;
    ledger.compare(&cluster, &Target::Latest)?;
    for (damage, complaint) in [
        (
            "UPDATE ledger_b SET text = 'x' WHERE n = 4",
            "ledger_b: 1 missing or changed",
        ),
        (
            "DELETE FROM ledger_c WHERE n = 3",
            "ledger_c: 1 missing or changed",
        ),
        (
            "INSERT INTO ledger_a VALUES (6, repeat(md5('6'), 8))",
            "ledger_a: 1 surplus",
        ),
        (
            "UPDATE ledger_total SET transactions = transactions - 1 WHERE writer = 0",
            "ledger_total: ",
        ),
    ] {
        cluster.psql(damage)?;
        let Err(error) = ledger.compare(&cluster, &Target::Latest) else {
            bail!("the ledger overlooks '{damage}'");
        };
        ensure!(
            error.to_string().contains(complaint),
            "'{complaint}' expected in: {error}"
        );
    }
    Ok(())
}

fn a_server_that_cannot_start_says_why(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut cluster = Cluster::builder(install, dir, "cluster")
        .initdb_arg("--wal-segsize=64")
        .build()?;
    cluster.start()?;
    ensure!(
        cluster.psql("SHOW wal_segment_size")? == "64MB",
        "64 MB segments were asked for"
    );
    cluster.stop(StopMode::Fast)?;
    cluster.set("recovery_target_action", "perhaps")?;
    match cluster.try_start()? {
        Ok(()) => bail!("the server started with an invalid setting"),
        Err(failure) => ensure!(
            failure.log.contains("recovery_target_action"),
            "the log should name the setting: {failure}"
        ),
    }
    ensure!(!cluster.is_running()?, "no server should be left");
    Ok(())
}
