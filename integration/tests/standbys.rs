//! Standbys: fed from the archive alone, and as the source of a backup.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site, wait_open, wait_paused};
use walden_pg::Lsn;
use walden_testkit::{
    Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, pg_amcheck, poll,
};

on_every_version!(
    a_standby_lives_from_the_archive_alone,
    a_backup_from_a_standby_becomes_a_primary_that_streams_from_nobody,
);

/// A production with a ledger and a backup, and a standby that was restored from it.
struct Scene<'a> {
    site: Site<'a>,
    ledger: Ledger,
    standby: Cluster,
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut site = Site::new(install, dir, |builder| {
            // How often a standby asks again, and tries to stream again.
            builder.conf("wal_retrieve_retry_interval", "200ms")
        })?;
        site.production.start()?;
        let mut ledger = Ledger::create(&site.production)?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        site.backup(&[])?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        let mut standby = site.restore("standby", &["--standby"])?;
        ensure!(
            standby.pgdata().join("standby.signal").exists()
                && !standby.pgdata().join("recovery.signal").exists(),
            "a standby has standby.signal, and no recovery.signal"
        );
        standby.start()?;
        Ok(Self {
            site,
            ledger,
            standby,
        })
    }

    /// Waits until the standby has replayed all that production has archived, and compares.
    fn follows(&self) -> Result<()> {
        let end = self.site.production.insert_lsn()?;
        // The archive ends with the segment before.
        let end = Lsn(end.0 / SEGMENT * SEGMENT);
        self.standby.wait_for(
            &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"),
            "t",
            "the standby to replay what is archived",
        )?;
        ensure!(
            self.standby.psql("SELECT pg_is_in_recovery()")? == "t",
            "a standby stays in recovery"
        );
        self.ledger.compare(&self.standby, &Target::Latest)
    }
}

const SEGMENT: u64 = 16 * 1024 * 1024;

fn a_standby_lives_from_the_archive_alone(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut scene = Scene::new(install, dir)?;
    scene.follows()?;
    scene.ledger.write(&scene.site.production, 2, 20)?;
    scene.site.archive_all()?;
    scene.follows()?;

    let logged = scene.standby.log().len();
    let away = dir.join("repository.away");
    fs::rename(scene.site.repository(), &away)?;
    poll("the standby to find the repository gone", || {
        let log = scene.standby.log();
        let since = log.get(logged..).unwrap_or_default();
        Ok(since.contains("repository").then_some(()))
    })?;
    scene.ledger.write(&scene.site.production, 2, 20)?;
    let unarchived = scene.site.production.switch_wal()?;
    scene.site.production.wait_for(
        &format!("SELECT last_failed_wal = '{unarchived}' FROM pg_stat_archiver"),
        "t",
        "the archiver to fail",
    )?;
    ensure!(
        scene.standby.psql("SELECT pg_is_in_recovery()")? == "t",
        "without its archive a standby goes on serving"
    );
    fs::rename(&away, scene.site.repository())?;
    scene.ledger.write(&scene.site.production, 2, 20)?;
    scene.site.archive_all()?;
    scene.follows()?;

    scene.site.production.stop(StopMode::Fast)?;
    scene.standby.promote()?;
    ensure!(
        scene.standby.psql("SHOW archive_mode")? == "off",
        "a standby that was not to take over must not archive"
    );
    scene.ledger.compare(&scene.standby, &Target::Latest)?;
    pg_amcheck(&scene.standby)
}

/// Servers that stream from production.
const SENDERS: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";

fn a_backup_from_a_standby_becomes_a_primary_that_streams_from_nobody(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut scene = Scene::new(install, dir)?;
    let production = scene.site.production.connection_string();
    // In both files that a base backup holds.
    scene.standby.append(
        "postgresql.conf",
        &format!("primary_conninfo = '{production}'\n"),
    )?;
    let stream = format!("ALTER SYSTEM SET primary_conninfo = '{production}'");
    scene.standby.psql(&stream)?;
    scene.standby.psql("SELECT pg_reload_conf()")?;
    scene
        .site
        .production
        .wait_for(SENDERS, "1", "the standby to stream")?;
    let primary = format!("    primary_connection: {production}\n");
    scene.site.configure("standby.yaml", &scene.standby, "")?;
    scene
        .site
        .configure("both.yaml", &scene.standby, &primary)?;

    // An idle primary never ends the segment in which the backup ends.
    scene.ledger.write(&scene.site.production, 1, 5)?;
    let end = scene.site.production.insert_lsn()?;
    scene.standby.wait_for(
        &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"),
        "t",
        "the standby to replay the beginning of a segment",
    )?;
    let site = &scene.site;
    let hurried = ["backup", "--wal-timeout", "3s"];
    Said::run(&mut site.command("standby.yaml", &hurried)?)?
        .exited(1)?
        .naming(&["pg_switch_wal()", "not committed", "primary_connection"])?;
    ensure!(
        site.backups()?.len() == 1,
        "a backup whose WAL did not come must not be committed"
    );
    Said::run(&mut site.command("both.yaml", &["backup"])?)?.exited(0)?;
    let idle = site.backups()?.pop().context("the idle backup")?;
    ensure!(
        idle.json
            .get("from_standby")
            .is_some_and(|from| from == true),
        "the list should say that it is a standby's: {}",
        idle.json
    );

    let load = scene.ledger.start_load(&site.production, 2)?;
    load.wait_for(20)?;
    Said::run(&mut site.command("both.yaml", &["backup"])?)?.exited(0)?;
    load.wait_for(20)?;
    scene.ledger.finish(load, &site.production)?;
    site.archive_all()?;
    let loaded = site.backups()?.pop().context("the loaded backup")?;
    ensure!(loaded.id != idle.id, "two backups");

    let mut restored = site.restore("restored", &["--target-immediate"])?;
    restored.start()?;
    wait_paused(&restored)?;
    scene.ledger.compare(
        &restored,
        &Target::Lsn {
            lsn: loaded.stop_lsn,
            inclusive: false,
        },
    )?;
    streams_from_nobody(&restored)?;
    restored.promote()?;
    streams_from_nobody(&restored)?;
    site.production
        .wait_for(SENDERS, "1", "the standby alone to stream from production")?;

    for (name, backup) in [("from_idle", &idle.id), ("from_loaded", &loaded.id)] {
        let mut restored = site.restore(name, &["--backup", backup])?;
        restored.start()?;
        wait_open(&restored)?;
        streams_from_nobody(&restored)?;
        scene.ledger.compare(&restored, &Target::Latest)?;
        pg_amcheck(&restored)?;
    }
    ensure!(
        site.production
            .psql("SELECT count(*) FROM pg_stat_replication")?
            == "1",
        "nobody but the standby should be connected to production"
    );
    Ok(())
}

fn streams_from_nobody(restored: &Cluster) -> Result<()> {
    ensure!(
        !restored.pgdata().join("standby.signal").exists(),
        "a copy that is no standby must not have standby.signal"
    );
    for setting in ["primary_conninfo", "primary_slot_name"] {
        let value = restored.psql(&format!("SHOW {setting}"))?;
        ensure!(value.is_empty(), "{setting} should be blank, is {value}");
    }
    let receivers = restored.psql("SELECT count(*) FROM pg_stat_wal_receiver")?;
    ensure!(receivers == "0", "the copy streams from somebody");
    Ok(())
}
