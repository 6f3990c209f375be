//! A segment that was damaged before it was archived ends every recovery that comes to it: windows, lists and plans say so, and are right.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use walden_engine::index::LastCommit;
use walden_engine::list::ListRequest;
use walden_engine::repository::{Place, RepositorySettings};
use walden_engine::windows::{self, RestoreWindow, SystemWindows};
use walden_integration::{Said, Site, options, wait_open, wait_paused};
use walden_pg::Lsn;
use walden_testkit::{Ledger, Outcome, PgInstall, StopMode, Target, TestDir, on_version};

#[test]
fn nothing_is_promised_behind_a_segment_that_was_damaged_before_it_was_archived_14() {
    on_version(14, "damaged14", damaged);
}

#[test]
fn nothing_is_promised_behind_a_segment_that_was_damaged_before_it_was_archived_17() {
    on_version(17, "damaged17", damaged);
}

#[test]
fn a_record_across_two_segments_that_was_damaged_ends_recovery_too() {
    on_version(17, "damaged_edge", damaged_edge);
}

fn told(site: &Site<'_>) -> Result<SystemWindows> {
    let request = ListRequest {
        repositories: vec![RepositorySettings {
            keys: Default::default(),
            name: "here".to_owned(),
            place: Place::Folder(site.repository()),
            id: None,
            required: true,
        }],
        cluster: "main".parse()?,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let windows = runtime.block_on(windows::windows(&request))?;
    windows.systems.into_iter().next().context("a system")
}

fn of_first_timeline(system: &SystemWindows) -> Result<&[RestoreWindow]> {
    let first = system.timelines.first().context("a timeline")?;
    match &first.windows {
        Ok(windows) => Ok(windows),
        Err(missing) => bail!("{missing}"),
    }
}

/// Every commit in WAL order, those of the ledger's own housekeeping among them.
fn commits(ledger: &Ledger) -> Vec<Outcome> {
    let outcomes = ledger.outcomes().iter();
    outcomes
        .filter(|outcome| outcome.committed)
        .cloned()
        .collect()
}

/// Archives a segment anew, with one byte flipped at this LSN.
fn damage(site: &Site<'_>, segment: &str, at: Lsn) -> Result<()> {
    let file = site.production.pgdata().join("pg_wal").join(segment);
    let mut bytes = fs::read(file)?;
    let offset = usize::try_from(at.0)? % bytes.len();
    *bytes.get_mut(offset).context("a byte")? ^= 0x10;
    let copy = site.dir.server_file(segment, &bytes)?;
    fs::remove_file(site.stored(segment)?)?;
    push(site, &copy)
}

fn push(site: &Site<'_>, file: &Path) -> Result<()> {
    let mut push = site.binaries.command(site.install, "walden-wal-push")?;
    push.arg("--config").arg(site.dir.join("walden.yaml"));
    push.arg("--pgdata").arg(site.production.pgdata());
    Said::run(push.arg(file))?.exited(0).map(drop)
}

fn is(list: &Value, place: &str, expected: &str) -> Result<()> {
    let found = list
        .pointer(place)
        .with_context(|| format!("no {place} in {list}"))?;
    ensure!(
        *found == expected,
        "{place} is {found}, not {expected}: {list}"
    );
    Ok(())
}

fn damaged(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("wal_keep_size", "4GB")
            .conf("autovacuum", "off")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let first = site.backup(&[])?;
    ledger.write(&site.production, 2, 40)?;
    let segment = site.archive_all()?;
    // The thirtieth-last commit of this segment is hurt: within its record's transaction id.
    let all = commits(&ledger);
    let at = all.len().checked_sub(30).context("commits")?;
    let hurt = all.get(at).context("a commit")?.clone();
    let last = all.get(at - 1).context("a commit before")?.clone();
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    damage(&site, &segment, Lsn(hurt.start.0 + 5))?;

    let broken_at = hurt.start.to_string();
    let system = told(&site)?;
    let [window] = of_first_timeline(&system)? else {
        bail!("one window expected: {system:?}");
    };
    let LastCommit::Known(found) = window.end.commit else {
        bail!("the last commit is {last:?}, found {window:?}");
    };
    ensure!(
        (found.xid, found.lsn) == (last.xid, last.start),
        "the last commit before the damage is {last:?}, found {found:?}"
    );
    let gap = window.window.gap.context("the damage behind the window")?;
    ensure!(
        gap.first.to_string() == segment && gap.broken.is_some_and(|b| b.at == hurt.start),
        "{segment} is broken at {broken_at}, found {gap:?}"
    );
    let list = site.list()?;
    is(&list, "/backups/0/window/until", &broken_at)?;
    is(&list, "/backups/0/window/first_gap/first", &segment)?;
    is(&list, "/backups/0/window/first_gap/broken/at", &broken_at)?;
    is(&list, "/backups/0/window/first_gap/broken/why", "damaged")?;
    let table = site.walden(&["list-backups"])?.exited(0)?.stdout;
    let words = format!("{segment}, damaged at {broken_at}");
    ensure!(table.contains(&words), "'{words}' is not in: {table}");

    // What lies behind is refused, with what works.
    let offer = format!("--target-lsn {}", last.start);
    let refusal = ["WAL is broken", &words, &offer];
    let behind = commits(&ledger).last().context("commits")?.clone();
    let beyond = commits(&ledger);
    let beyond = beyond.get(beyond.len() - 5).context("commits")?;
    let (time, lsn) = (beyond.time.to_string(), behind.start.to_string());
    let xid = beyond.xid.to_string();
    for args in [
        &[][..],
        &["--target-time", &time],
        &["--target-lsn", &lsn],
        &["--target-lsn", &broken_at],
        &["--target-xid", &xid],
        &["--target-name", "nowhere", "--backup", &first.id],
    ] {
        let words = if args.first() == Some(&"--target-name") {
            &refusal[1..2]
        } else {
            &refusal[..]
        };
        site.refused("restored", args, words)?;
    }

    // The offer works, and one record more does not.
    let target = Target::Lsn {
        lsn: last.start,
        inclusive: true,
    };
    let args = options(&target);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut restored = site.restore("before", &args)?;
    restored.start()?;
    wait_paused(&restored)?;
    ledger.compare(&restored, &target)?;
    restored.stop(StopMode::Fast)?;
    let mut beyond = site.restore("beyond", &args)?;
    let later = format!("recovery_target_lsn = '{broken_at}'\n");
    beyond.append("postgresql.auto.conf", &later)?;
    let _ = beyond.try_start()?;
    beyond.wait_exit()?;
    let log = beyond.log();
    ensure!(
        log.contains("recovery ended before configured recovery target was reached"),
        "PostgreSQL should not get past the damage: {log}"
    );

    // A later backup opens what lies behind.
    let second = site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let system = told(&site)?;
    let [_, window] = of_first_timeline(&system)? else {
        bail!("two windows expected: {system:?}");
    };
    ensure!(
        window.window.from.backup.as_str() == second.id && window.window.gap.is_none(),
        "the second backup opens the second window: {window:?}"
    );
    let opens = second.stop_lsn.to_string();
    site.refused(
        "restored",
        &["--target-time", &time],
        &["WAL is broken", &offer, "what lies behind", &opens],
    )?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

fn damaged_edge(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .initdb_arg("--wal-segsize=1")
            .conf("wal_keep_size", "4GB")
            .conf("autovacuum", "off")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 40)?;
    let segment = site.archive_all()?;
    let before = commits(&ledger).last().context("commits")?.clone();
    // One record of half a megabyte that begins in one segment and ends in the next: the message fills more than what is left.
    let sql = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 600000)), \
               pg_logical_emit_message(false, 'edge', repeat('x', 600000))";
    site.production.psql(sql)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let segments = walden_pg::WalSegmentSize::new(1 << 20)?;
    let filled = segment
        .parse::<walden_pg::SegmentName>()?
        .next(segments)
        .context("a next segment")?;
    let start = filled.start(segments).context("an odd name")?;
    // In the middle of the crossing record's first part: the segment's own records are whole.
    damage(
        &site,
        &filled.to_string(),
        Lsn(start.0 + (1 << 20) - 40_000),
    )?;

    let system = told(&site)?;
    let [window] = of_first_timeline(&system)? else {
        bail!("one window expected: {system:?}");
    };
    let gap = window.window.gap.context("the damage behind the window")?;
    let broken = gap.broken.with_context(|| format!("{gap:?} is broken"))?;
    ensure!(
        gap.first == filled && broken.at > start,
        "the record that begins in {filled} is damaged, found {gap:?}"
    );
    let LastCommit::Known(found) = window.end.commit else {
        bail!("the last commit is {before:?}, found {window:?}");
    };
    ensure!(
        found.lsn >= before.start && found.lsn < broken.at,
        "a commit between {before:?} and the damage, found {found:?}"
    );
    site.refused("restored", &[], &["WAL is broken", &filled.to_string()])
}
