//! Targets at the edges of what the index knows: prepared transactions, ids of a later epoch, gaps, the end of the WAL, no index at all.
//! What is refused is tried on PostgreSQL itself, with settings written by hand.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Site, wait_open, wait_paused};
use walden_pg::Lsn;
use walden_testkit::{Cluster, Ledger, PgInstall, Target, TestDir, on_version, run};

#[test]
fn prepared_transactions_and_ids_of_a_later_epoch_are_planned_as_postgresql_stops_14() {
    on_version(14, "edges14", edges);
}

#[test]
fn prepared_transactions_and_ids_of_a_later_epoch_are_planned_as_postgresql_stops_17() {
    on_version(17, "edges17", edges);
}

#[test]
fn what_the_index_refuses_postgresql_does_not_reach() {
    on_version(17, "never_reached", never_reached);
}

#[test]
fn the_index_tells_a_target_before_a_gap_from_one_behind_it() {
    on_version(17, "around_a_gap", around_a_gap);
}

#[test]
fn an_archive_without_index_is_read_where_it_is_short_and_planned_by_names_where_it_is_long() {
    on_version(17, "no_index", no_index);
}

const BY_NAMES: &str = "Names alone cannot prove";

/// Restores, lets `judge` look, and removes it again.
fn restored(
    site: &Site<'_>,
    args: &[&str],
    judge: impl FnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let mut copy = site.restore("restored", args)?;
    judge(&mut copy).with_context(|| format!("restored with {args:?}"))?;
    drop(copy);
    for left in ["restored", "restored.socket"] {
        fs::remove_dir_all(site.dir.join(left))?;
    }
    Ok(())
}

/// Proves that the restored server shows these `facts`, paused at its target.
fn shows(site: &Site<'_>, args: &[&str], facts: &str) -> Result<()> {
    restored(site, args, |copy| {
        copy.start()?;
        wait_paused(copy)?;
        let found = copy.psql("SELECT string_agg(n::text, ',' ORDER BY n) FROM facts")?;
        ensure!(
            found == facts,
            "the facts should be {facts}, and are {found}"
        );
        Ok(())
    })
}

/// Proves that PostgreSQL gives up, and does not open the copy.
fn gives_up(copy: &mut Cluster) -> Result<()> {
    // It counts as started once it is consistent.
    let log = match copy.try_start()? {
        Ok(()) => copy.wait_exit()?,
        Err(failure) => failure.log,
    };
    ensure!(
        log.contains("recovery ended before configured recovery target was reached"),
        "PostgreSQL should say why it stopped: {log}"
    );
    let history = copy.pgdata().join("pg_wal/00000002.history");
    ensure!(!history.exists(), "the copy was opened");
    Ok(())
}

fn last_commit(plan: &Value) -> Result<(u64, Lsn)> {
    let commit = plan.pointer("/ending/last_commit");
    let commit = commit.with_context(|| format!("no last commit in {plan}"))?;
    let xid = commit.get("xid").and_then(Value::as_u64).context("xid")?;
    let lsn = commit.get("lsn").and_then(Value::as_str).context("lsn")?;
    Ok((xid, lsn.parse()?))
}

/// Puts a fact into a transaction that ends with `end`; its full id.
fn fact(site: &Site<'_>, n: u32, end: &str) -> Result<u64> {
    let mut client = site.production.connect()?;
    client.batch_execute(&format!("BEGIN; INSERT INTO facts VALUES ({n})"))?;
    let id: String = client
        .query_one("SELECT pg_current_xact_id()::text", &[])?
        .get(0);
    client.batch_execute(end)?;
    Ok(id.parse()?)
}

fn edges(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("autovacuum", "off")
            .conf("max_prepared_transactions", "10")
    })?;
    run(install
        .server_command("pg_resetwal")?
        .args(["--epoch=1", "--pgdata"])
        .arg(site.production.pgdata()))?;
    site.production.start()?;
    site.production.psql("CREATE TABLE facts (n int)")?;
    // Prepared before the backup and ended behind it.
    let early = fact(&site, 1, "PREPARE TRANSACTION 'early'")?;
    site.archive_all()?;
    site.backup(&[])?;
    let late = fact(&site, 2, "PREPARE TRANSACTION 'late'")?;
    let undone = fact(&site, 3, "PREPARE TRANSACTION 'undone'")?;
    let left = fact(&site, 4, "PREPARE TRANSACTION 'left'")?;
    fact(&site, 5, "COMMIT")?;
    for end in [
        "COMMIT PREPARED 'late'",
        "ROLLBACK PREPARED 'undone'",
        "COMMIT PREPARED 'early'",
    ] {
        site.production.psql(end)?;
    }
    let plain = fact(&site, 6, "COMMIT")?;
    fact(&site, 7, "COMMIT")?;
    site.archive_all()?;

    ensure!(
        plain >> 32 == 1,
        "transaction {plain} should be of the second epoch"
    );
    let low = |xid: u64| (xid & u64::from(u32::MAX)).to_string();
    for (xid, facts) in [(late, "2,5"), (early, "1,2,5"), (plain, "1,2,5,6")] {
        let (full, low) = (xid.to_string(), low(xid));
        let plans = [&full, &low].map(|xid| site.planned(&["--target-xid", xid]));
        for plan in plans {
            let plan = plan?;
            let (told, _) = last_commit(&plan)?;
            ensure!(
                told.to_string() == low,
                "the last commit should be that of {low}: {plan}"
            );
            ensure!(
                !plan.to_string().contains(BY_NAMES),
                "the index proves it: {plan}"
            );
        }
        shows(&site, &["--target-xid", &full], facts)?;
    }
    shows(&site, &["--target-xid", &low(plain)], "1,2,5,6")?;
    let before = ["--target-xid", &early.to_string(), "--target-exclusive"];
    shows(&site, &before, "2,5")?;

    for xid in [undone.to_string(), low(undone)] {
        let args = ["--target-xid", xid.as_str()];
        site.refused("restored", &args, &["did not commit: it aborted"])?;
    }
    let never = |xid: u64| {
        let xid = xid.to_string();
        let words = format!("does not say that transaction {xid} ended");
        site.refused("restored", &["--target-xid", &xid], &[&words])
    };
    never(left)?;
    // PostgreSQL would take it for the one whose lower 32 bits are the same.
    never(plain + (1 << 32))
}

fn never_reached(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    site.production.psql("CREATE TABLE facts (n int)")?;
    site.archive_all()?;
    let backup = site.backup(&[])?;
    fact(&site, 1, "COMMIT")?;
    let within = fact(&site, 2, "COMMIT")?;
    let last = fact(&site, 3, "COMMIT")?;
    let before_switch = site.production.insert_lsn()?;
    site.archive_all()?;

    let size = 16 * 1024 * 1024;
    let end = Lsn((before_switch.0 / size + 1) * size - 8).to_string();
    let time = (backup.stopped_at + Duration::from_secs(3600)).to_string();
    let unknown = (last + 1000).to_string();
    let all = "out to restore";
    for (option, value, setting, words) in [
        (
            "--target-lsn",
            end.as_str(),
            "lsn",
            "behind the last record",
        ),
        (
            "--target-time",
            time.as_str(),
            "time",
            "is not before any commit",
        ),
        ("--target-xid", unknown.as_str(), "xid", "does not say that"),
        ("--target-name", "never made", "name", "no restore point"),
    ] {
        let offered = if setting == "name" {
            "none at all"
        } else {
            all
        };
        site.refused("restored", &[option, value], &[words, offered])?;
        if setting != "name" {
            let commit = format!("its last commit is that of transaction {last},");
            site.refused("restored", &[option, value], &[&commit])?;
        }
        restored(&site, &[], |copy| {
            // Where settings are read PostgreSQL does not know 'Z' yet.
            let value = value.replace('Z', "+00");
            let line = format!("recovery_target_{setting} = '{value}'\n");
            copy.append("postgresql.auto.conf", &line)?;
            gives_up(copy)
        })?;
    }
    restored(&site, &[], |copy| {
        copy.start()?;
        wait_open(copy)?;
        let facts = copy.psql("SELECT count(*) FROM facts")?;
        ensure!(facts == "3", "what is offered has all facts, not {facts}");
        Ok(())
    })?;

    // An LSN that was the end of the WAL once is the place of the record that came next.
    let (_, commit) = last_commit(&site.planned(&["--target-xid", &within.to_string()])?)?;
    let commit = commit.to_string();
    let plan = site.planned(&["--target-lsn", &commit])?.to_string();
    let note = format!(
        "The record that begins at {commit} is replayed, too: transaction {within} commits with it"
    );
    ensure!(plan.contains(&note), "'{note}' should be said: {plan}");
    shows(&site, &["--target-lsn", &commit], "1,2")?;
    let exclusive = ["--target-lsn", &commit, "--target-exclusive"];
    let plan = site.planned(&exclusive)?.to_string();
    ensure!(
        !plan.contains("is replayed, too"),
        "that record is not replayed: {plan}"
    );
    shows(&site, &exclusive, "1")
}

fn around_a_gap(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    site.production.psql("CREATE TABLE facts (n int)")?;
    site.archive_all()?;
    site.backup(&[])?;
    let mut sides = Vec::new();
    let mut segments = Vec::new();
    for n in [1, 2, 3] {
        let xid = fact(&site, n, "COMMIT")?.to_string();
        let point = format!("SELECT pg_create_restore_point('point {n}')");
        site.production.psql(&point)?;
        let now =
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.USZ')";
        let time = site.production.psql(now)?;
        let lsn = site.production.insert_lsn()?.to_string();
        fact(&site, 10 * n, "COMMIT")?;
        segments.push(site.archive_all()?);
        sides.push([
            ["--target-xid".to_owned(), xid],
            ["--target-name".to_owned(), format!("point {n}")],
            ["--target-time".to_owned(), time],
            ["--target-lsn".to_owned(), lsn],
        ]);
    }
    let missing = segments.get(1).context("three segments")?;
    fs::remove_file(site.stored(missing)?)?;

    let [before, _, behind] = sides.as_slice() else {
        anyhow::bail!("three sides expected");
    };
    for [option, value] in before {
        let args = [option.as_str(), value.as_str()];
        let plan = site.planned(&args)?.to_string();
        ensure!(
            !plan.contains(BY_NAMES),
            "the index proves {args:?}: {plan}"
        );
        // The first record behind an LSN is the next fact's row, which has not committed.
        shows(&site, &args, "1")?;
    }
    for [option, value] in behind {
        let args = [option.as_str(), value.as_str()];
        site.refused("restored", &args, &["WAL is missing", missing])?;
    }
    Ok(())
}

/// Segments without an index are read in full if they are at most 64.
fn no_index(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .initdb_arg("--wal-segsize=1")
            .conf("autovacuum", "off")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    let known = "SELECT pg_create_restore_point('known')";
    site.production.psql(known)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    let args = ["--target-name", "known"];
    let by_index = site.planned(&args)?;
    ensure!(
        site.strip_indexes()? >= 3,
        "every segment should have an index"
    );
    let by_reading = site.planned(&args)?;
    ensure!(
        by_index.pointer("/ending") == by_reading.pointer("/ending")
            && by_index.pointer("/ending/last_commit").is_some(),
        "by the index: {by_index}; by reading the segments: {by_reading}"
    );

    for _ in 0..70 {
        site.production.psql(
            "SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'walden', 'a record')",
        )?;
    }
    ledger.write(&site.production, 2, 20)?;
    let last = ledger.outcomes().last().context("outcomes")?.time;
    site.archive_all()?;
    ensure!(site.strip_indexes()? >= 70, "every new segment, too");
    let plan = site.planned(&args)?;
    ensure!(
        plan.pointer("/ending").is_none_or(Value::is_null) && plan.to_string().contains(BY_NAMES),
        "by names nobody knows where the point is: {plan}"
    );
    restored(&site, &args, |copy| {
        copy.start()?;
        wait_paused(copy)?;
        ledger.compare(copy, &Target::Name("known".to_owned()))
    })?;

    // What names cannot know to be out of reach is planned, and PostgreSQL says it.
    let behind = (last + Duration::from_micros(1)).to_string();
    for args in [
        ["--target-time", behind.as_str()],
        ["--target-name", "never made"],
    ] {
        let plan = site.planned(&args)?.to_string();
        ensure!(plan.contains(BY_NAMES), "{args:?}: {plan}");
        restored(&site, &args, gives_up)?;
    }
    Ok(())
}
