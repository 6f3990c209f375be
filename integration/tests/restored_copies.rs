//! A restored copy beside its original does none of the original's work and touches nothing of it; what takes over does all of it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use walden_integration::{Site, wait_open, wait_paused};
use walden_pg::Lsn;
use walden_testkit::{
    Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, on_version,
};

on_every_version!(
    what_the_original_was_told_to_do_a_copy_does_not,
    no_copy_writes_into_a_tablespace_that_is_younger_than_its_backup,
);

#[test]
fn with_configuration_outside_the_data_directory_what_takes_over_archives() {
    on_version(15, "take_over_debian", take_over_on_debian);
}

#[test]
fn without_a_word_on_archiving_what_takes_over_is_said_not_to_archive() {
    on_version(17, "take_over_unsaid", take_over_unsaid);
}

#[test]
fn a_standby_follows_a_failover_in_the_archive() {
    on_version(17, "standby_failover", failover);
}

fn what_the_original_was_told_to_do_a_copy_does_not(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let ran = dir.server_dir("ran")?;
    let touch = |name: &str| format!("touch {}", ran.join(name).display());
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("archive_cleanup_command", &touch("cleanup"))
            .conf("recovery_end_command", &touch("end"))
            .conf("recovery_min_apply_delay", "1h")
            .conf("hot_standby", "off")
            .conf("synchronous_standby_names", "nobody")
            .conf("synchronous_commit", "local")
            // How soon a subscription tries again.
            .conf("wal_retrieve_retry_interval", "200ms")
    })?;
    site.production.start()?;
    let mut publisher = Cluster::builder(install, dir, "publisher")
        .conf("wal_level", "logical")
        .conf("fsync", "off")
        .build()?;
    publisher.start()?;
    publisher
        .psql("CREATE TABLE orders (n int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE orders")?;
    let connection = publisher.connection_string().replace('\'', "''");
    site.production.psql(&format!(
        "CREATE TABLE orders (n int PRIMARY KEY);
         CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p"
    ))?;
    let count = "SELECT count(*) FROM orders";
    publisher.psql("INSERT INTO orders SELECT generate_series(1, 10)")?;
    site.production.wait_for(count, "10", "the subscription")?;

    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    // With it a checkpoint of the copy is one that cleans up.
    site.production.psql("CHECKPOINT")?;
    site.archive_all()?;
    let lsn = site.production.insert_lsn()?.to_string();
    ledger.write(&site.production, 1, 5)?;
    site.archive_all()?;

    let mut copy = site.restore("copy", &["--target-lsn", &lsn])?;
    copy.start()?;
    wait_paused(&copy)?;
    copy.psql("CHECKPOINT; SELECT pg_wal_replay_resume()")?;
    wait_open(&copy)?;
    ensure!(
        fs::read_dir(&ran)?.next().is_none(),
        "production's commands ran in a copy: {:?}",
        fs::read_dir(&ran)?.collect::<Vec<_>>()
    );
    for (setting, value) in [
        ("archive_mode", "off"),
        ("max_logical_replication_workers", "0"),
        ("synchronous_standby_names", ""),
    ] {
        let found = copy.psql(&format!("SHOW {setting}"))?;
        ensure!(
            found == value,
            "{setting} should be '{value}', is '{found}'"
        );
    }
    // While production's own subscription is away, the copy's could take its slot, and with it what comes meanwhile.
    site.production.stop(StopMode::Fast)?;
    publisher.psql("INSERT INTO orders SELECT generate_series(11, 20)")?;
    ensure!(copy.psql(count)? == "10", "the copy took production's rows");
    site.production.start()?;
    site.production
        .wait_for(count, "20", "production's own subscription")?;

    resets(&copy)
}

/// The lines to paste take out first what recovery needed, then what keeps the copy apart.
fn resets(copy: &Cluster) -> Result<()> {
    let conf = fs::read_to_string(copy.pgdata().join("postgresql.auto.conf"))?;
    let lines: Vec<&str> = conf
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .collect();
    let left = "SELECT string_agg(name, ' ' ORDER BY name) FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf'";
    let [recovery, guards] = lines.as_slice() else {
        anyhow::bail!("two lines to paste expected: {conf}");
    };
    copy.psql(recovery)?;
    let found = copy.psql(left)?;
    ensure!(
        found == "archive_mode max_logical_replication_workers synchronous_standby_names",
        "after recovery's settings are taken out, what keeps the copy apart should be left: {found}"
    );
    copy.psql(guards)?;
    let found = copy.psql(left)?;
    ensure!(found.is_empty(), "nothing should be left: {found}");
    Ok(())
}

fn no_copy_writes_into_a_tablespace_that_is_younger_than_its_backup(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    let spool = dir.server_dir("spool")?;
    let key = format!("    spool_dir: {}\n", spool.display());
    site.configure("walden.yaml", &site.production, &key)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 1, 5)?;
    site.archive_all()?;
    let before = site.backup(&[])?;
    let place = dir.server_dir("space")?;
    let place = place.display();
    site.production
        .psql(&format!("CREATE TABLESPACE space LOCATION '{place}'"))?;
    site.production
        .psql("ALTER TABLE ledger_b SET TABLESPACE space")?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let path = place.to_string();
    let words = [
        "made after backup",
        &path,
        "new backup",
        "another host",
        "--take-over",
    ];
    site.refused("copy", &[], &words)?;
    site.refused("copy", &["--standby"], &words)?;
    site.refused("copy", &["--dry-run"], &words)?;

    site.backup(&[])?;
    // Also where production's own directory is gone, or elsewhere: the later backup tells.
    let config = fs::read_to_string(dir.join("walden.yaml"))?;
    let without: Vec<&str> = config
        .lines()
        .filter(|line| !line.contains("pgdata"))
        .collect();
    dir.server_file("walden.yaml", without.join("\n"))?;
    site.refused("copy", &["--backup", &before.id], &words)?;
    dir.server_file("walden.yaml", config)?;

    let map = format!("--tablespace-map={place}={place}.copy");
    let mut copy = site.restore_ignoring("copy", &[&map], &["tablespace_map"])?;
    copy.start()?;
    wait_open(&copy)?;
    ledger.compare(&copy, &Target::Latest)?;
    copy.psql("DROP TABLE ledger_b; CHECKPOINT")?;
    ledger.compare(&site.production, &Target::Latest)?;

    // What takes the original's place has its places too.
    site.production.stop(StopMode::Fast)?;
    let mut successor = site.restore("successor", &["--take-over", "--backup", &before.id])?;
    successor.start()?;
    wait_open(&successor)?;
    ledger.compare(&successor, &Target::Latest)
}

/// Moves the configuration out of the data directory, as Debian's packages have it.
fn move_configuration(site: &mut Site<'_>, dir: &TestDir) -> Result<()> {
    let etc = dir.server_dir("etc")?;
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(site.production.pgdata().join(name), etc.join(name))?;
    }
    let place = etc.display();
    let mut conf = fs::read_to_string(etc.join("postgresql.conf"))?;
    conf += &format!(
        "data_directory = '{}'\nhba_file = '{place}/pg_hba.conf'\nident_file = '{place}/pg_ident.conf'\n",
        site.production.pgdata().display()
    );
    dir.server_file("etc/postgresql.conf", conf)?;
    site.production
        .set_options(&format!("-c config_file={place}/postgresql.conf"));
    Ok(())
}

/// The files that a restore then makes.
const MADE: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];

fn take_over_on_debian(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    move_configuration(&mut site, dir)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    site.archive_all()?;
    site.production.stop(StopMode::Fast)?;

    let said = site.try_restore("successor", &["--take-over"])?.exited(0)?;
    let named = dir.join("etc/postgresql.conf").display().to_string();
    for words in [
        format!("The server had that in {named}"),
        "the copy archives with: ".to_owned(),
    ] {
        ensure!(
            said.stdout.contains(&words),
            "'{words}' should be said: {}",
            said.stdout
        );
    }
    walden_testkit::pg_verifybackup(
        install,
        &dir.join("successor"),
        &MADE
            .map(|name| format!("--ignore={name}"))
            .each_ref()
            .map(String::as_str),
    )?;
    let mut successor = Cluster::adopt(install, dir, "successor", dir.join("successor"))?;
    successor.start()?;
    wait_open(&successor)?;
    ledger.compare(&successor, &Target::Latest)?;
    let last = successor.switch_wal()?;
    successor.wait_archived(&last)?;
    site.stored(&last).map(drop)
}

fn take_over_unsaid(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    move_configuration(&mut site, dir)?;
    // In a file of its own, which a restore does not follow.
    let conf = fs::read_to_string(dir.join("etc/postgresql.conf"))?;
    let (archiving, rest): (Vec<&str>, Vec<&str>) =
        conf.lines().partition(|line| line.starts_with("archive_"));
    dir.server_file("etc/archiving.conf", archiving.join("\n") + "\n")?;
    let main = rest.join("\n") + "\ninclude 'archiving.conf'\n";
    dir.server_file("etc/postgresql.conf", main)?;
    site.production.start()?;
    site.archive_all()?;
    site.backup(&[])?;
    for (name, args) in [
        ("page", &["--take-over"][..]),
        ("json", &["--take-over", "--json"]),
    ] {
        let said = site.try_restore(name, args)?.exited(0)?;
        ensure!(
            said.stdout.contains("does NOT archive") && !kept_archiving(&dir.join(name))?,
            "{args:?} should say that nothing is archived: {}",
            said.stdout
        );
    }
    Ok(())
}

fn kept_archiving(pgdata: &Path) -> Result<bool> {
    let conf = fs::read_to_string(pgdata.join("postgresql.conf"))?;
    Ok(conf.lines().any(|line| line.starts_with("archive_")))
}

const SEGMENT: u64 = 16 * 1024 * 1024;

fn failover(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.conf("wal_retrieve_retry_interval", "200ms")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut follower = site.restore("follower", &["--standby"])?;
    follower.start()?;
    let mut successor = site.restore("successor", &["--standby", "--take-over"])?;
    successor.start()?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    // The archive ends with the segment before.
    let end = Lsn(site.production.insert_lsn()?.0 / SEGMENT * SEGMENT);
    site.production.stop(StopMode::Fast)?;
    let last = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    successor
        .wait_for(&last, "t", "the standby to replay the archive")
        .context("before the failover")?;
    successor.promote()?;
    successor.psql("CREATE TABLE since_the_failover AS SELECT 7 AS n")?;
    let archived = successor.switch_wal()?;
    ensure!(
        archived.starts_with("00000002"),
        "a promoted standby is on a timeline of its own: {archived}"
    );
    successor.wait_archived(&archived)?;
    follower.wait_for(
        "SELECT n FROM since_the_failover",
        "7",
        "the other standby to follow",
    )
}
