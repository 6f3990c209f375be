//! PostgreSQL's archiver with a repository that comes and goes.

use std::fs;

use anyhow::{Context, Result, ensure};
use walden_integration::{Site, wait_open};
use walden_testkit::{Ledger, PgInstall, StopMode, Target, TestDir, poll};

super::on_17!(archiving_resumes_by_itself_and_nothing_is_lost);

fn archiving_resumes_by_itself_and_nothing_is_lost(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    let before = site.archive_all()?;
    site.backup(&[])?;

    let away = dir.join("away");
    fs::rename(site.repository(), &away)?;
    dir.server_dir("repository")?;
    ledger.write(&site.production, 2, 20)?;
    let failing = site.production.switch_wal()?;
    site.production.wait_for(
        &format!(
            "SELECT failed_count >= 2 AND last_failed_wal <= '{failing}' AND last_failed_wal > '{before}'
             FROM pg_stat_archiver"
        ),
        "t",
        "the archiver to count its failures",
    )?;
    ledger.write(&site.production, 2, 20)?;
    // pg_ctl gives up after its minute, and that would be an error here.
    site.production.stop(StopMode::Fast)?;
    site.production.start()?;
    ledger.write(&site.production, 2, 20)?;
    let status = site.production.pgdata().join("pg_wal/archive_status");
    ensure!(
        status.join(format!("{failing}.ready")).exists(),
        "{failing} should still wait for the archiver"
    );

    fs::remove_dir(site.repository()).context("the mount point should be empty as it was")?;
    fs::rename(&away, site.repository())?;
    let last = site.archive_all()?;
    site.production.wait_for(
        &format!("SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver"),
        "t",
        "the archiver to count its success",
    )?;
    poll("every file to be archived", || {
        let mut left = false;
        for entry in fs::read_dir(&status)? {
            left |= entry?.file_name().to_string_lossy().ends_with(".ready");
        }
        Ok((!left).then_some(()))
    })?;
    site.stored(&failing)?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}
