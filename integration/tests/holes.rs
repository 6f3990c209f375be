//! What an archive does not hold, or holds twice, is told, and never passed by: segments in conflict, timelines of which nobody knows
//! where they come from, registrations that cannot be read.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Said, Site, options, wait_open, wait_paused};
use walden_testkit::{Ledger, PgInstall, StopMode, Target, TestDir, on_version};

#[test]
fn nothing_is_restored_across_a_segment_of_which_another_file_was_set_aside() {
    on_version(17, "conflict", conflict);
}

#[test]
fn a_timeline_without_a_readable_history_file_is_never_passed_by() {
    on_version(17, "lost_history", lost_history);
}

#[test]
fn a_timeline_that_a_clone_took_first_is_not_followed_and_a_new_backup_is_the_way_out() {
    on_version(17, "disputed_history", disputed_history);
}

#[test]
fn a_damaged_registration_hides_no_other_and_is_not_chosen_around() {
    on_version(17, "damaged_registration", damaged_registration);
}

fn push(site: &Site<'_>, args: &[&str], file: &Path) -> Result<Said> {
    let mut push = site.binaries.command(site.install, "walden-wal-push")?;
    push.arg("--config").arg(site.dir.join("walden.yaml"));
    Said::run(push.args(args).arg(file))
}

/// What the JSON list says at this place.
fn said<'a>(list: &'a Value, place: &str) -> Result<&'a Value> {
    list.pointer(place)
        .with_context(|| format!("no {place} in {list}"))
}

fn conflict(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let first = site.backup(&[])?.id;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let before = ledger.commits().len() - 5;

    // A clone has the segment as it is now, and archives it first; production's goes on.
    ledger.write(&site.production, 2, 10)?;
    let segment = site
        .production
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn())")?;
    let own = site.production.pgdata().join("pg_wal").join(&segment);
    let intruder = dir.server_file(&segment, fs::read(&own)?)?;
    push(&site, &[], &intruder)?.exited(0)?;
    ledger.write(&site.production, 2, 30)?;
    let ended = site.production.switch_wal()?;
    ensure!(ended == segment, "{segment} ended, found {ended}");
    push(&site, &["--quarantine"], &own)?.exited(0)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let list = site.list()?;
    for place in [
        "/backups/0/window/first_gap/conflict",
        "/backups/0/window/first_gap/first",
        "/backups/0/window/first_gap/last",
        "/conflicts/0/segment",
    ] {
        let found = said(&list, place)?;
        ensure!(*found == segment.as_str(), "{place} is {found}: {list}");
    }
    let table = site.walden(&["list-backups"])?.exited(0)?.stdout;
    for words in [
        format!("conflict at {segment}, see quarantine"),
        format!("conflict: {segment} is archived, and another file"),
    ] {
        ensure!(table.contains(&words), "'{words}' is not in: {table}");
    }
    let refusal = ["conflict", segment.as_str(), "quarantine", "new backup"];
    site.refused("restored", &[], &refusal)?;
    let last = ledger.commits().last().context("commits")?.time.to_string();
    for more in [&[][..], &["--backup", &first]] {
        let args = [&["--target-time", &last], more].concat();
        site.refused("restored", &args, &refusal[..3])?;
    }

    // What lies before it is not touched by it.
    let at = ledger.commits().get(before).context("commits")?.start;
    let target = Target::Lsn {
        lsn: at,
        inclusive: true,
    };
    let args = options(&target);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut restored = site.restore("before", &args)?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)?;
    restored.stop(StopMode::Fast)?;

    // The way out.
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let list = site.list()?;
    ensure!(
        said(&list, "/backups/1/window/first_gap")?.is_null(),
        "the new backup's window is whole: {list}"
    );
    let mut restored = site.restore("behind", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn lost_history(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    site.production.stop(StopMode::Fast)?;
    site.production.append("standby.signal", "")?;
    site.production.start()?;
    site.production.promote()?;
    let mut ledger = ledger.branch(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let stored = site.stored("00000002.history")?;
    let whole = fs::read(&stored)?;
    let own = site.production.pgdata().join("pg_wal/00000002.history");
    let look = |words: &[&str]| -> Result<()> {
        let list = site.list()?;
        ensure!(
            said(&list, "/backups/0/window")?.is_null(),
            "nobody can tell how far the WAL goes: {list}"
        );
        let table = site.walden(&["list-backups"])?.exited(0)?.stdout;
        ensure!(
            table.contains("unknown") && words.iter().all(|word| table.contains(word)),
            "{words:?} should be named in: {table}"
        );
        site.refused("restored", &[], words)?;
        site.try_restore("restored", &["--target-timeline", "1", "--dry-run"])?
            .exited(0)?;
        Ok(())
    };

    let command = "walden-wal-push PGDATA/pg_wal/00000002.history";
    let mut damaged = whole.clone();
    *damaged.get_mut(300).context("a short object")? ^= 1;
    fs::write(&stored, damaged)?;
    look(&["00000002.history", "damaged", "move main/", command])?;

    fs::remove_file(&stored)?;
    let way_out = [
        "00000002.history is not in the repository",
        command,
        "--target-timeline",
    ];
    look(&way_out)?;

    push(&site, &[], &own)?.exited(0)?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn disputed_history(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut clone = site.restore("clone", &["--take-over"])?;
    clone.start()?;
    wait_open(&clone)?;
    clone.wait_archived(&clone.switch_wal()?)?;
    clone.stop(StopMode::Fast)?;

    for _ in 0..3 {
        ledger.write(&site.production, 2, 10)?;
        site.archive_all()?;
    }
    site.production.stop(StopMode::Fast)?;
    site.production.append("standby.signal", "")?;
    site.production.start()?;
    site.production.promote()?;
    let mut ledger = ledger.branch(&site.production)?;
    let history = site.production.pgdata().join("pg_wal/00000002.history");
    push(&site, &["--quarantine"], &history)?.exited(0)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;

    let list = site.list()?;
    ensure!(
        said(&list, "/backups/0/window")?.is_null(),
        "nobody can tell which timeline 2 is production's: {list}"
    );
    let words = ["00000002.history is in conflict", "take a new backup"];
    site.refused("restored", &[], &words)?;
    let asked = ["--target-timeline", "2"];
    site.refused("restored", &asked, &["no backup leads to timeline 2"])?;

    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn damaged_registration(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    site.archive_all()?;
    let backup = site.backup(&[])?;
    let system = said(&backup.json, "/system_identifier")?
        .as_str()
        .context("a text")?
        .to_owned();
    let identity = site.repository().join("main/identity");
    let mut text = fs::read(identity.join(format!("{system}.json")))?;
    *text.get_mut(30).context("a short document")? ^= 1;
    dir.server_file("repository/main/identity/4711.json", text)?;

    let list = site.list()?;
    ensure!(
        *said(&list, "/backups/0/id")? == backup.id.as_str()
            && *said(&list, "/damaged_documents/0/key")? == "main/identity/4711.json",
        "the backup and the damaged registration should be listed: {list}"
    );
    let words = [
        "main/identity/4711.json",
        "--system-identifier",
        system.as_str(),
    ];
    site.refused("restored", &[], &words)?;
    let named = ["--system-identifier", system.as_str(), "--target-immediate"];
    site.restore("restored", &named).map(drop)
}
