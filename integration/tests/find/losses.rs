//! What was lost while others wrote is found, and the command that comes with it brings every row back.

use std::fs;

use anyhow::{Context, Result, ensure};
use postgres::{Client, NoTls};
use serde_json::Value;
use walden_integration::{Said, Site, wait_paused};
use walden_testkit::{Cluster, Ledger, PgInstall, TestDir, on_every_version};

on_every_version!(every_loss_is_found_and_every_row_comes_back);

/// More than the rows from which on a deletion is told where nobody says otherwise.
const ROWS: u32 = 3000;

/// What is lost, by which statement, and the database in which it stood.
struct Loss {
    statement: &'static str,
    told: &'static str,
    database: &'static str,
    table: &'static str,
    rows: Option<u64>,
}

const LOSSES: [Loss; 4] = [
    Loss {
        statement: "DROP TABLE orders",
        told: "DROP TABLE postgres.public.orders",
        database: "postgres",
        table: "orders",
        rows: None,
    },
    Loss {
        statement: "TRUNCATE items",
        told: "TRUNCATE postgres.public.items",
        database: "postgres",
        table: "items",
        rows: None,
    },
    Loss {
        statement: "DELETE FROM customers",
        told: "DELETE postgres.public.customers",
        database: "postgres",
        table: "customers",
        rows: Some(ROWS as u64),
    },
    Loss {
        statement: "DROP DATABASE shop",
        told: "DROP DATABASE shop",
        database: "shop",
        table: "articles",
        rows: None,
    },
];

fn every_loss_is_found_and_every_row_comes_back(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    site.production.psql("CREATE DATABASE shop")?;
    for loss in &LOSSES {
        connect(&site.production, loss.database)?.batch_execute(&format!(
            "CREATE TABLE {table} (n int PRIMARY KEY, text text);
             INSERT INTO {table} SELECT n, md5(n::text) FROM generate_series(1, {ROWS}) n",
            table = loss.table
        ))?;
    }
    let load = ledger.start_load(&site.production, 3)?;
    load.wait_for(20)?;
    site.archive_all()?;
    site.backup(&[])?;

    let mut before = Vec::new();
    for loss in &LOSSES {
        load.wait_for(20)?;
        // What came in after the backup is to come back, too.
        let mut client = connect(&site.production, loss.database)?;
        let table = loss.table;
        client.batch_execute(&format!(
            "UPDATE {table} SET text = 'changed' WHERE n <= 10"
        ))?;
        before.push(content(&mut client, table)?);
        drop(client);
        load.wait_for(20)?;
        site.production.psql(loss.statement)?;
    }
    load.wait_for(20)?;
    site.production
        .psql("SELECT pg_create_restore_point('behind it all')")?;
    ledger.finish(load, &site.production)?;
    site.archive_all()?;

    let found = site.walden(&["find", "--json"])?.exited(0)?;
    let found: Value = serde_json::from_str(&found.stdout)?;
    let findings = found.get("findings").and_then(Value::as_array);
    let findings = findings.context("a list of findings")?;
    let told: Vec<String> = findings.iter().map(told).collect();
    let mut expected: Vec<&str> = LOSSES.iter().map(|loss| loss.told).collect();
    expected.push("restore point behind it all");
    ensure!(told == expected, "{expected:?} expected, found {told:?}");

    for ((loss, before), finding) in LOSSES.iter().zip(before).zip(findings) {
        comes_back(&site, loss, &before, finding)
            .with_context(|| format!("{}: {finding}", loss.statement))?;
    }
    Ok(())
}

/// Runs the printed command as a person would, and looks at what it brings.
fn comes_back(site: &Site<'_>, loss: &Loss, before: &str, finding: &Value) -> Result<()> {
    ensure!(
        finding.get("ambiguous").is_none_or(Value::is_null),
        "this is certain"
    );
    ensure!(
        finding.get("rows").and_then(Value::as_u64) == loss.rows,
        "{:?} rows expected",
        loss.rows
    );
    let command = text(finding, "restore");
    Said::run(&mut site.shell(command)?)?.exited(0)?;
    let directory = format!(
        "{}-before-{}",
        site.production.pgdata().display(),
        finding.get("xid").unwrap_or(&Value::Null)
    );
    let mut restored = Cluster::adopt(site.install, site.dir, "back", &directory)?;
    restored.start()?;
    wait_paused(&restored)?;
    let found = content(&mut connect(&restored, loss.database)?, loss.table)?;
    ensure!(
        found == before,
        "the table held {before} before it was lost, and holds {found} now"
    );
    drop(restored);
    fs::remove_dir_all(directory)?;
    fs::remove_dir_all(site.dir.join("back.socket"))?;
    Ok(())
}

fn connect(cluster: &Cluster, database: &str) -> Result<Client> {
    let postgres = cluster.connection_string();
    let database = postgres.replace("dbname=postgres", &format!("dbname={database}"));
    Ok(Client::connect(&database, NoTls)?)
}

/// How many rows a table has, and the digest of all.
fn content(client: &mut Client, table: &str) -> Result<String> {
    let row = client.query_one(
        &format!("SELECT count(*) || ' rows, ' || md5(string_agg(n || text, ',' ORDER BY n)) FROM {table}"),
        &[],
    )?;
    Ok(row.try_get(0)?)
}

fn text<'a>(finding: &'a Value, key: &str) -> &'a str {
    finding.get(key).and_then(Value::as_str).unwrap_or("")
}

fn told(finding: &Value) -> String {
    let what = match text(finding, "restore_point") {
        "" => text(finding, "relation"),
        name => name,
    };
    format!("{} {what}", text(finding, "action"))
}
