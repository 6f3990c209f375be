//! After a failover: what the dead primary never archived comes from the standby's `pg_wal`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Said, Site, wait_open};
use walden_testkit::{Ledger, PgInstall, StopMode, Target, TestDir, on_version, pg_amcheck};

#[test]
fn what_a_dead_primary_never_archived_comes_from_its_standby_14() {
    on_version(14, "failover", what_a_dead_primary_never_archived);
}

#[test]
fn what_a_dead_primary_never_archived_comes_from_its_standby_17() {
    on_version(17, "failover", what_a_dead_primary_never_archived);
}

fn what_a_dead_primary_never_archived(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut standby = site.restore("standby", &["--standby", "--take-over"])?;
    let primary = site.production.connection_string();
    standby.append(
        "postgresql.auto.conf",
        &format!("primary_conninfo = '{primary}'\n"),
    )?;
    standby.start()?;
    site.production.wait_for(
        "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'",
        "1",
        "the standby to stream",
    )?;

    // From here on the primary believes that all is archived.
    site.production
        .psql("ALTER SYSTEM SET archive_command = '/bin/true'")?;
    site.production.psql("SELECT pg_reload_conf()")?;
    let mut lost = Vec::new();
    for _ in 0..2 {
        ledger.write(&site.production, 2, 20)?;
        lost.push(site.archive_all()?);
    }
    ledger.write(&site.production, 2, 20)?;
    let end = site.production.insert_lsn()?;
    standby.wait_for(
        &format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"),
        "t",
        "the standby to replay all that was written",
    )?;
    site.production.stop(StopMode::Immediate)?;
    standby.promote()?;
    let mut ledger = ledger.branch(&standby)?;
    ledger.write(&standby, 2, 20)?;
    standby.wait_archived(&standby.switch_wal()?)?;

    let [first, last] = lost.as_slice() else {
        anyhow::bail!("two segments: {lost:?}");
    };
    let gap = first_gap(&site)?;
    ensure!(
        gap.get("first").is_some_and(|name| name == first.as_str())
            && gap.get("last").is_some_and(|name| name == last.as_str()),
        "list-backups should tell the gap below the fork, {lost:?}: {gap}"
    );

    site.configure("standby.yaml", &standby, "")?;
    let planned = push_missing(&site, &["--dry-run"])?;
    for name in &lost {
        ensure!(
            outcome(&planned, name) == Some("missing"),
            "{name}: {planned}"
        );
    }
    ensure!(first_gap(&site)? == gap, "--dry-run should push nothing");
    // It may run, or be stopped and never have written a checkpoint.
    if install.major() == 17 {
        standby.stop(StopMode::Immediate)?;
    }
    let pushed = push_missing(&site, &[])?;
    for name in &lost {
        ensure!(outcome(&pushed, name) == Some("pushed"), "{name}: {pushed}");
    }
    ensure!(
        pushed.get("timeline").is_some_and(|timeline| timeline == 2)
            && pushed.get("still_missing") == Some(&Value::Array(Vec::new())),
        "the promoted standby is on timeline 2 and lacks nothing: {pushed}"
    );
    let outcomes = |pushed: &Value, wanted: &str| -> usize {
        let files = pushed.get("files").and_then(Value::as_array);
        let such = files.into_iter().flatten();
        such.filter(|file| file.get("outcome").is_some_and(|outcome| outcome == wanted))
            .count()
    };
    ensure!(
        outcomes(&pushed, "unfinished") == 1,
        "the newest segment alone is unfinished: {pushed}"
    );
    let gap = first_gap(&site)?;
    ensure!(gap.is_null(), "the gap should be closed: {gap}");

    let again = push_missing(&site, &[])?;
    ensure!(outcomes(&again, "pushed") == 0, "once is enough: {again}");
    // The dead primary has nothing that is missing; where its timeline went on without it, its last segment stays with it.
    let production = Said::run(&mut site.command("walden.yaml", &["push-missing", "--json"])?)?;
    let dead: Value = serde_json::from_str(&production.exited(0)?.stdout)?;
    let dead = dead.pointer("/repositories/0").context("a repository")?;
    ensure!(
        outcomes(dead, "pushed") == 0 && outcomes(dead, "unfinished") == 1,
        "the dead primary has nothing more: {dead}"
    );

    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    pg_amcheck(&restored)
}

/// The gap behind the only backup; null where there is none.
fn first_gap(site: &Site<'_>) -> Result<Value> {
    let backup = site.backups()?.pop().context("a backup")?;
    let window = backup.json.get("window").context("a window")?;
    window.get("first_gap").cloned().context("first_gap")
}

fn push_missing(site: &Site<'_>, more: &[&str]) -> Result<Value> {
    let args = [&["push-missing", "--json"], more].concat();
    let said = Said::run(&mut site.command("standby.yaml", &args)?)?.exited(0)?;
    let json: Value = serde_json::from_str(&said.stdout).context("no JSON")?;
    let repository = json.pointer("/repositories/0").cloned();
    repository.context("a repository")
}

fn outcome<'a>(report: &'a Value, file: &str) -> Option<&'a str> {
    let files = report.get("files")?.as_array()?;
    let told = files
        .iter()
        .find(|told| told.get("file").is_some_and(|name| name == file))?;
    told.get("outcome")?.as_str()
}
