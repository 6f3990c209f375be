//! What a plan says of the end of recovery is what the restored server shows; what it refuses cannot be had, and what it offers can.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use walden_integration::{Backup, Site, options, wait_paused};
use walden_pg::Lsn;
use walden_testkit::{Ledger, PgInstall, Target, TestDir, on_version};

#[test]
fn a_plan_names_the_last_commit_that_the_restored_server_shows_14() {
    on_version(14, "planner14", plans);
}

#[test]
fn a_plan_names_the_last_commit_that_the_restored_server_shows_17() {
    on_version(17, "planner17", plans);
}

#[test]
fn what_the_index_knows_to_be_out_of_reach_is_refused_with_what_works() {
    on_version(17, "out_of_reach", out_of_reach);
}

fn last_commit(plan: &Value) -> Result<(u64, Lsn)> {
    let commit = plan
        .pointer("/ending/last_commit")
        .with_context(|| format!("no last commit in {plan}"))?;
    let xid = commit.get("xid").and_then(Value::as_u64).context("xid")?;
    let lsn = commit.get("lsn").and_then(Value::as_str).context("lsn")?;
    Ok((xid, lsn.parse()?))
}

fn plans(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let seed: u64 = rand::random();
    each_target(install, dir, seed).with_context(|| format!("seed of the moments: {seed}"))
}

fn each_target(install: &PgInstall, dir: &TestDir, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    // Nobody but the ledger commits.
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 30)?;
    site.archive_all()?;
    let backup = site.backup(&[])?;
    for _ in 0..3 {
        ledger.write(&site.production, 3, 40)?;
        site.archive_all()?;
    }
    let point = "SELECT pg_create_restore_point('known')";
    site.production.psql(point)?;
    ledger.write(&site.production, 3, 40)?;
    site.archive_all()?;

    let behind: Vec<_> = ledger
        .outcomes()
        .iter()
        .filter(|outcome| outcome.start >= backup.stop_lsn && outcome.time > backup.stopped_at)
        .cloned()
        .collect();
    let mut any = |committed: bool| {
        let fitting: Vec<_> = behind
            .iter()
            .take(behind.len() - 2)
            .filter(|outcome| outcome.committed || !committed)
            .collect();
        let at = random.random_range(1..fitting.len());
        fitting
            .get(at)
            .map(|outcome| (*outcome).clone())
            .context("few")
    };
    let mut targets = vec![Target::Latest, Target::Name("known".to_owned())];
    for inclusive in [true, false] {
        for _ in 0..4 {
            let time = any(false)?.time;
            targets.push(Target::Time { time, inclusive });
            let lsn = any(false)?.start;
            targets.push(Target::Lsn { lsn, inclusive });
            let lsn = Lsn(any(false)?.start.0 + 8);
            targets.push(Target::Lsn { lsn, inclusive });
            let xid = any(true)?.xid;
            targets.push(Target::Xid { xid, inclusive });
        }
    }
    let of_ledger = |target: &Target| -> Result<(u64, Lsn)> {
        let replayed = ledger.expected_at(target)?;
        let last = ledger
            .outcomes()
            .iter()
            .rfind(|outcome| {
                outcome
                    .number
                    .is_some_and(|number| replayed.contains(&number))
            })
            .context("no commit")?;
        Ok((last.xid.into(), last.start))
    };
    for target in &targets {
        let args = options(target);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let plan = site.planned(&args)?;
        let (told, expected) = (last_commit(&plan)?, of_ledger(target)?);
        // The ledger closes with commits of its own that have no number.
        let between = ledger.outcomes().iter().filter(|outcome| {
            outcome.committed && outcome.start > expected.1 && outcome.start <= told.1
        });
        ensure!(
            told.1 >= expected.1 && between.clone().all(|outcome| outcome.number.is_none()),
            "{target:?}: the plan names {told:?}, the ledger {expected:?}"
        );
        let by_names = "Names alone cannot prove";
        ensure!(
            !plan.to_string().contains(by_names),
            "{target:?}: the index proves the target: {plan}"
        );
    }
    // What is planned is also what happens.
    for target in targets.iter().skip(1).take(5) {
        let args = options(target);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut restored = site.restore("restored", &args)?;
        restored.start()?;
        wait_paused(&restored)?;
        ledger
            .compare(&restored, target)
            .with_context(|| format!("{target:?}"))?;
        drop(restored);
        for left in ["restored", "restored.socket"] {
            fs::remove_dir_all(site.dir.join(left))?;
        }
    }
    Ok(())
}

fn out_of_reach(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 10)?;
    site.production.psql("CREATE TABLE facts (n int)")?;
    site.archive_all()?;
    let first = site.backup(&[])?;
    site.production
        .psql("SELECT pg_create_restore_point('twice')")?;
    let text = |sql: &str| site.production.psql(sql);
    let aborted = in_transaction(&site, "INSERT INTO facts VALUES (1)", None, "ROLLBACK")?;
    let top = in_transaction(
        &site,
        "INSERT INTO facts VALUES (2)",
        Some("INSERT INTO facts VALUES (3)"),
        "COMMIT",
    )?;
    site.archive_all()?;
    let second = site.backup(&[])?;
    text("SELECT pg_create_restore_point('twice')")?;
    text("SELECT pg_create_restore_point('once')")?;
    text("INSERT INTO facts VALUES (4)")?;
    site.archive_all()?;

    let refused = |args: &[&str], words: &[&str]| site.refused("restored", args, words);
    let starts = |args: &[&str], backup: &Backup| -> Result<()> {
        let plan = site.planned(args)?;
        let id = plan.pointer("/backup/id").and_then(Value::as_str);
        ensure!(id == Some(backup.id.as_str()), "{args:?}: {plan}");
        Ok(())
    };
    let offer = |args: &[&str], intro: &str| -> Result<Vec<String>> {
        let said = site.try_restore("restored", args)?.exited(1)?;
        let (_, offer) = said
            .stderr
            .split_once(intro)
            .with_context(|| format!("no offer behind '{intro}' in: {}", said.stderr))?;
        let mut words = offer.split_whitespace();
        let (option, value) = (words.next(), words.next());
        Ok([option, value]
            .into_iter()
            .flatten()
            .map(|word| word.trim_end_matches([',', '.']).to_owned())
            .collect())
    };

    let latest = second.stopped_at + Duration::from_secs(3600);
    let latest = latest.to_string();
    refused(
        &["--target-time", &latest],
        &["before any commit or abort", "last commit"],
    )?;
    starts(&[], &second)?;

    let (aborted, _) = aborted;
    let args = ["--target-xid", aborted.as_str()];
    refused(&args, &["did not commit", "aborted"])?;
    let offered = offer(&args, "right after that is ")?;
    let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
    starts(&offered, &first)?;

    let (top, sub) = top;
    let sub = sub.context("a subtransaction")?;
    let args = ["--target-xid", sub.as_str()];
    refused(&args, &["is a subtransaction of transaction", &top])?;
    let offered = offer(&args, "choose ")?;
    ensure!(offered == ["--target-xid", top.as_str()], "{offered:?}");
    let mut restored = site.restore("restored", &["--target-xid", top.as_str()])?;
    restored.start()?;
    wait_paused(&restored)?;
    let rows = restored.psql("SELECT string_agg(n::text, ',' ORDER BY n) FROM facts")?;
    ensure!(rows == "2,3", "after transaction {top}: {rows}");
    drop(restored);
    for left in ["restored", "restored.socket"] {
        fs::remove_dir_all(site.dir.join(left))?;
    }

    refused(
        &["--target-xid", "400000"],
        &["does not say that transaction 400000 ended"],
    )?;
    let args = ["--target-name", "twice"];
    refused(
        &args,
        &["more than one restore point is called", "--target-lsn"],
    )?;
    let offered = offer(&args, "choose ")?;
    let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
    starts(&offered, &first)?;
    starts(&["--target-name", "once"], &second)?;
    refused(&["--target-name", "never"], &["no restore point", "once"])
}

/// Runs statements in one transaction, and a further one in a subtransaction; their ids.
fn in_transaction(
    site: &Site<'_>,
    first: &str,
    within: Option<&str>,
    end: &str,
) -> Result<(String, Option<String>)> {
    let mut client = site.production.connect()?;
    client.batch_execute("BEGIN")?;
    client.batch_execute(first)?;
    let id = |client: &mut postgres::Client, sql: &str| -> Result<String> {
        Ok(client.query_one(sql, &[])?.get(0))
    };
    let top = id(&mut client, "SELECT pg_current_xact_id()::text")?;
    let sub = match within {
        None => None,
        Some(sql) => {
            client.batch_execute("SAVEPOINT within")?;
            client.batch_execute(sql)?;
            Some(id(
                &mut client,
                "SELECT xmin::text FROM facts ORDER BY n DESC LIMIT 1",
            )?)
        }
    };
    client.batch_execute(end)?;
    Ok((top, sub))
}
