//! Two servers of one system identifier in one archive: what is shown of them, and what a person's word does.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Said, Site, wait_open};
use walden_testkit::{Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_version};

#[test]
fn a_clones_wal_is_shown_and_a_persons_word_heals_the_archive() {
    on_version(17, "clone", a_clone);
}

fn a_clone(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    site.production.stop(StopMode::Immediate)?;
    let copied = Command::new("cp")
        .arg("-a")
        .args([site.production.pgdata(), &dir.join("clone")])
        .status()?;
    ensure!(copied.success(), "the data directory can be copied");
    let mut clone = Cluster::adopt(install, dir, "clone", dir.join("clone"))?;
    site.production.start()?;
    ledger.write(&site.production, 2, 20)?;
    let segment = site.archive_all()?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    clone.start()?;
    clone.psql("CREATE TABLE of_the_clone ()")?;
    let same = clone.switch_wal()?;
    ensure!(same == segment, "both write {segment}, found {same}");
    clone.wait_for(
        &format!("SELECT last_failed_wal = '{segment}' FROM pg_stat_archiver"),
        "t",
        "the clone's archiver to be refused",
    )?;
    let pgdata = clone.pgdata().display().to_string();
    let told = conflicts(&site, &["--pgdata", &pgdata])?;
    ensure!(
        at(&told, "/repositories/0/refused/0/file")? == segment.as_str()
            && at(&told, "/repositories/0/refused/0/writer/host")?.is_string()
            && at(&told, "/repositories/0/set_aside")? == &Value::Array(Vec::new()),
        "what the clone's archiver is refused should be told: {told}"
    );
    let differs = at(&told, "/repositories/0/refused/0/differs_at")?.clone();
    clone.stop(StopMode::Immediate)?;

    // Whoever does this takes the clone for the cluster.
    let mut push = site.binaries.command(install, "walden-wal-push")?;
    push.arg("--config").arg(dir.join("walden.yaml"));
    push.arg("--quarantine")
        .arg(clone.pgdata().join("pg_wal").join(&segment));
    Said::run(&mut push)?.exited(0)?;
    let gap = "/backups/0/window/first_gap";
    let list = site.list()?;
    ensure!(
        at(&list, gap)?
            .get("conflict")
            .is_some_and(|name| name == segment.as_str()),
        "nothing goes across {segment} now: {list}"
    );
    let refusal = ["conflict", segment.as_str()];
    site.refused("restored", &[], &refusal)?;
    let told = conflicts(&site, &[])?;
    ensure!(
        at(&told, "/repositories/0/set_aside/0/file")? == segment.as_str()
            && at(&told, "/repositories/0/set_aside/0/differs_at")? == &differs
            && at(&told, "/repositories/0/set_aside/0/aside/writer/host")?.is_string()
            && at(&told, "/repositories/0/set_aside/0/decision")?.is_null(),
        "both files should be told, which differ at {differs}: {told}"
    );
    let page = site.walden(&["conflicts"])?.exited(0)?.stdout;
    let ours = format!("walden conflicts resolve {segment} --archived-is ours");
    ensure!(page.contains(&ours), "'{ours}' is not in: {page}");

    site.walden(&["conflicts", "resolve", &segment, "--archived-is", "foreign"])?
        .exited(0)?;
    let list = site.list()?;
    ensure!(
        !at(&list, gap)?.is_null(),
        "another server's file stays a gap: {list}"
    );
    site.refused("restored", &[], &refusal)?;
    // A later word counts.
    site.walden(&["conflicts", "resolve", &segment, "--archived-is", "ours"])?
        .exited(0)?;
    let told = conflicts(&site, &[])?;
    ensure!(
        at(&told, "/repositories/0/set_aside/0/decision/archived_is")? == "ours",
        "the last word should be told: {told}"
    );
    let list = site.list()?;
    ensure!(at(&list, gap)?.is_null(), "no gap is left: {list}");
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;

    site.walden(&[
        "conflicts",
        "resolve",
        "0000000100000000000000AA",
        "--archived-is",
        "ours",
    ])?
    .exited(1)?
    .naming(&["0000000100000000000000AA", "nothing to decide"])?;
    Ok(())
}

fn conflicts(site: &Site<'_>, more: &[&str]) -> Result<Value> {
    let said = site
        .walden(&[&["conflicts", "--json"], more].concat())?
        .exited(0)?;
    serde_json::from_str(&said.stdout).context("conflicts --json prints no JSON")
}

fn at<'a>(value: &'a Value, place: &str) -> Result<&'a Value> {
    value
        .pointer(place)
        .with_context(|| format!("no {place} in {value}"))
}
