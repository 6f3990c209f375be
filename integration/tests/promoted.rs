//! Clusters that were promoted before they archived into this repository.

use anyhow::{Context, Result, ensure};
use walden_integration::{Said, Site};
use walden_testkit::{PgInstall, StopMode, TestDir, on_version};

#[test]
fn a_cluster_promoted_before_it_archived_here_is_told_how_to_hand_over_its_history() {
    on_version(17, "promoted", told);
}

fn told(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.append("standby.signal", "")?;
    site.production
        .append("postgresql.auto.conf", "archive_command = '/bin/true'\n")?;
    site.production.start()?;
    site.production.promote()?;
    // On the new timeline, and with the history file marked as archived: nobody hands it over again.
    let segment = site.production.switch_wal()?;
    site.production.wait_archived(&segment)?;
    site.production.psql("ALTER SYSTEM RESET archive_command")?;
    // Not a reload: the archiver might do one more segment in the old way.
    site.production.stop(StopMode::Fast)?;
    site.production.start()?;
    site.archive_all()?;

    let told = site.walden(&["backup"])?.exited(1)?;
    let history = site.production.pgdata().join("pg_wal/00000002.history");
    let command = format!("walden-wal-push {}", history.display());
    let told = told.naming(&["00000002.history", &command])?;
    ensure!(
        !told.stderr.contains("unfinished"),
        "it must be told before anything is streamed: {}",
        told.stderr
    );
    let mut push = site.binaries.command(site.install, "walden-wal-push")?;
    push.arg("--config")
        .arg(dir.join("walden.yaml"))
        .arg(&history);
    Said::run(&mut push)?.exited(0)?;
    let backup = site.backup(&[])?;
    ensure!(
        site.list()?.to_string().contains("\"timeline\":2"),
        "a backup on timeline 2"
    );
    let mut restored = site
        .restore("restored", &["--target-immediate"])
        .with_context(|| format!("backup {}", backup.id))?;
    restored.start()
}
