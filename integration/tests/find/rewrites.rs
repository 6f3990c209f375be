//! What looks like a loss in the WAL and is none, and losses that hide.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use postgres::Client;
use walden_engine::find::{FindReport, FindRequest, Finding, Sought, What, find};
use walden_engine::repository::{Place, RepositorySettings};
use walden_integration::Site;
use walden_pg::Lsn;
use walden_testkit::{Cluster, PgInstall, TestDir, on_every_version, on_version};

on_every_version!(nothing_is_found_where_nothing_was_lost);

/// With `wal_level = logical` records say more, and are more.
#[test]
fn nothing_is_found_where_nothing_was_lost_and_all_is_told_for_decoding() {
    on_version(18, "rewrites_logical", |install, dir| {
        harmless(install, dir, "logical")
    });
}

fn nothing_is_found_where_nothing_was_lost(install: &PgInstall, dir: &TestDir) -> Result<()> {
    harmless(install, dir, "replica")
}

/// What may be found of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing at all.
    Nothing,
    /// Nothing but what is called ambiguous: the WAL of an empty table's rewrite is that of its TRUNCATE.
    NothingCertain,
    /// One loss, for certain.
    Loss,
    /// Something, be it called ambiguous.
    Something,
}

use Verdict::{Loss, Nothing, NothingCertain, Something};

/// Rows of each table: more than the least number that is told where nobody says otherwise.
const ROWS: u32 = 3000;

/// What scenarios run on: each has those of which it speaks for itself alone. `P` stands for its prefix.
const SETUP: &[(&str, &str)] = &[
    (
        "P_rows",
        "CREATE TABLE P_rows (n int PRIMARY KEY, text text);
         INSERT INTO P_rows SELECT n, repeat('x', 50) FROM generate_series(1, 3000) n;
         CREATE INDEX P_rows_by_text ON P_rows (text)",
    ),
    (
        "P_totals",
        "CREATE TABLE P_of (n int);
         INSERT INTO P_of SELECT generate_series(1, 3000);
         CREATE MATERIALIZED VIEW P_totals AS SELECT n, count(*) AS times FROM P_of GROUP BY n;
         CREATE UNIQUE INDEX ON P_totals (n)",
    ),
    ("P_seen", "CREATE VIEW P_seen AS SELECT 1"),
    (
        "P_empty",
        "CREATE TABLE P_empty (n int PRIMARY KEY, text text)",
    ),
    (
        "P_plain",
        "CREATE TABLE P_plain (n int);
         INSERT INTO P_plain SELECT generate_series(1, 3000)",
    ),
    (
        "P_tail",
        "CREATE TABLE P_tail (n int);
         INSERT INTO P_tail SELECT generate_series(1, 3000)",
    ),
    (
        "P_parts",
        "CREATE TABLE P_parts (n int, side text) PARTITION BY LIST (side);
         CREATE TABLE P_left PARTITION OF P_parts FOR VALUES IN ('left');
         CREATE TABLE P_right PARTITION OF P_parts FOR VALUES IN ('right');
         INSERT INTO P_parts SELECT n, 'left' FROM generate_series(1, 3000) n",
    ),
    ("P_numbers", "CREATE SEQUENCE P_numbers"),
    (
        "P_fleeting",
        "CREATE UNLOGGED TABLE P_fleeting (n int PRIMARY KEY);
         INSERT INTO P_fleeting SELECT generate_series(1, 3000)",
    ),
];

/// Statements that run one by one in a session of their own, and what may be found of them.
const SCENARIOS: &[(&str, Verdict, &str)] = &[
    ("VACUUM FULL", Nothing, "VACUUM FULL P_rows"),
    ("CLUSTER", Nothing, "CLUSTER P_rows USING P_rows_pkey"),
    ("REINDEX TABLE", Nothing, "REINDEX TABLE P_rows"),
    ("REINDEX INDEX", Nothing, "REINDEX INDEX P_rows_by_text"),
    (
        "REINDEX CONCURRENTLY",
        Nothing, "REINDEX TABLE CONCURRENTLY P_rows",
    ),
    ("REINDEX of an empty table", Nothing, "REINDEX TABLE P_empty"),
    (
        "CREATE INDEX CONCURRENTLY",
        Nothing, "CREATE INDEX CONCURRENTLY ON P_plain (n)",
    ),
    ("REFRESH", Nothing, "REFRESH MATERIALIZED VIEW P_totals"),
    (
        "REFRESH CONCURRENTLY",
        Nothing, "UPDATE P_rows SET n = n + 10000 WHERE n <= 100;
         REFRESH MATERIALIZED VIEW CONCURRENTLY P_totals",
    ),
    (
        "ALTER COLUMN TYPE",
        Nothing, "ALTER TABLE P_rows ALTER COLUMN text TYPE varchar(60)",
    ),
    (
        "ADD COLUMN with a volatile default",
        Nothing, "ALTER TABLE P_rows ADD COLUMN random float DEFAULT random()",
    ),
    (
        "ALTER TABLE without a rewrite",
        Nothing, "ALTER TABLE P_rows ADD COLUMN more int;
         ALTER TABLE P_rows ALTER COLUMN more SET DEFAULT 7;
         ALTER TABLE P_rows DROP COLUMN more;
         ALTER TABLE P_rows RENAME TO P_renamed;
         ALTER TABLE P_renamed RENAME TO P_rows",
    ),
    (
        "SET TABLESPACE",
        Nothing, "ALTER TABLE P_rows SET TABLESPACE space;
         ALTER INDEX P_rows_by_text SET TABLESPACE space",
    ),
    (
        "SET UNLOGGED",
        Nothing, "ALTER TABLE P_rows SET UNLOGGED",
    ),
    (
        "ALTER SEQUENCE",
        Nothing, "ALTER SEQUENCE P_numbers RESTART WITH 100 INCREMENT BY 3",
    ),
    (
        "SET LOGGED",
        Nothing,
        "ALTER TABLE P_fleeting SET LOGGED",
    ),
    (
        "a rewrite of what was rewritten and has new indexes",
        NothingCertain,
        "VACUUM FULL P_rows;
         CREATE INDEX ON P_rows (text);
         CLUSTER P_rows USING P_rows_pkey;
         ALTER TABLE P_rows SET UNLOGGED;
         ALTER TABLE P_rows SET LOGGED",
    ),
    ("LOCK TABLE", Nothing, "BEGIN; LOCK TABLE P_rows; COMMIT"),
    (
        "ATTACH and DETACH PARTITION",
        Nothing, "ALTER TABLE P_parts DETACH PARTITION P_right;
         ALTER TABLE P_parts ATTACH PARTITION P_right FOR VALUES IN ('right')",
    ),
    (
        "rows that move to another partition",
        Nothing, "UPDATE P_parts SET side = 'right'",
    ),
    (
        "rewrites of an unlogged table",
        Nothing, "VACUUM FULL P_fleeting; REINDEX TABLE P_fleeting",
    ),
    ("DROP VIEW", Nothing, "DROP VIEW P_seen"),
    (
        "VACUUM FULL of an empty table",
        NothingCertain, "VACUUM FULL P_empty",
    ),
    (
        "ALTER TABLE of an empty table",
        NothingCertain, "ALTER TABLE P_empty ALTER COLUMN n TYPE bigint",
    ),
    (
        "REFRESH WITH NO DATA",
        NothingCertain, "REFRESH MATERIALIZED VIEW P_totals WITH NO DATA",
    ),
    (
        "temporary tables",
        Nothing, "CREATE TEMPORARY TABLE P_passing (n serial PRIMARY KEY, text text);
         INSERT INTO P_passing SELECT generate_series(1, 5000);
         DELETE FROM P_passing WHERE n > 100;
         TRUNCATE P_passing;
         DROP TABLE P_passing;
         BEGIN;
         CREATE TEMPORARY TABLE P_passing (n int) ON COMMIT DROP;
         INSERT INTO P_passing SELECT generate_series(1, 5000);
         COMMIT;
         CREATE TEMPORARY TABLE P_passing (n int) ON COMMIT DELETE ROWS;
         BEGIN;
         INSERT INTO P_passing SELECT generate_series(1, 5000);
         COMMIT;
         DISCARD TEMP",
    ),
    (
        "a temporary table that goes with its session",
        Nothing, "CREATE TEMPORARY TABLE P_left_behind (n int PRIMARY KEY)",
    ),
    (
        "a table that does not outlive its transaction",
        Nothing, "BEGIN;
         CREATE TABLE P_short AS SELECT * FROM P_rows;
         CREATE INDEX ON P_short (n);
         DELETE FROM P_short WHERE n < 10;
         DROP TABLE P_short;
         COMMIT",
    ),
    (
        "TRUNCATE of the transaction's own table",
        Nothing, "BEGIN;
         CREATE TABLE P_staged (n int);
         INSERT INTO P_staged SELECT generate_series(1, 5000);
         TRUNCATE P_staged;
         INSERT INTO P_staged SELECT generate_series(1, 100);
         COMMIT",
    ),
    (
        "what was rolled back",
        Nothing, "BEGIN; DROP TABLE P_rows ; ROLLBACK;
         BEGIN; TRUNCATE P_rows; ROLLBACK;
         BEGIN; DELETE FROM P_rows; ROLLBACK;
         BEGIN; UPDATE P_rows SET text = ''; ROLLBACK;
         BEGIN; DROP MATERIALIZED VIEW P_totals; ROLLBACK",
    ),
    (
        "what was rolled back two segments later",
        Nothing, "BEGIN;
         DELETE FROM P_rows;
         TRUNCATE P_plain;
         DROP TABLE P_tail;
         SELECT pg_switch_wal();
         INSERT INTO P_empty VALUES (1);
         SELECT pg_switch_wal();
         DELETE FROM P_empty;
         ROLLBACK",
    ),
    (
        "what was rolled back to a savepoint",
        Nothing, "BEGIN;
         INSERT INTO P_plain VALUES (0);
         SAVEPOINT one;
         DROP TABLE P_rows;
         ROLLBACK TO one;
         SAVEPOINT two;
         TRUNCATE P_plain;
         ROLLBACK TO two;
         SAVEPOINT three;
         DELETE FROM P_rows;
         SAVEPOINT four;
         DELETE FROM P_tail;
         RELEASE four;
         SELECT pg_switch_wal();
         ROLLBACK TO three;
         INSERT INTO P_plain VALUES (0);
         COMMIT",
    ),
    (
        "what a procedure caught",
        Nothing, "DO $$ BEGIN
             BEGIN DROP TABLE P_rows ; RAISE 'no'; EXCEPTION WHEN raise_exception THEN NULL; END;
             BEGIN DELETE FROM P_rows; PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;
             INSERT INTO P_plain VALUES (0);
         END $$",
    ),
    (
        "ROLLBACK PREPARED",
        Nothing, "BEGIN;
         DROP TABLE P_tail;
         DELETE FROM P_plain;
         PREPARE TRANSACTION 'P_never';
         SELECT pg_switch_wal();
         ROLLBACK PREPARED 'P_never'",
    ),
    (
        "VACUUM that gives the table's end back",
        Nothing, "DELETE FROM P_tail WHERE n > 2100;
         VACUUM (TRUNCATE) P_tail",
    ),
    (
        "catalogs' rows that go with temporary tables",
        Nothing, "DO $$ BEGIN
             FOR i IN 1..3 LOOP
                 EXECUTE 'CREATE TEMPORARY TABLE P_wide (' || (SELECT string_agg('c' || n || ' int', ',') FROM generate_series(1, 1000) n) || ')';
                 DROP TABLE P_wide;
             END LOOP;
         END $$",
    ),
    (
        "COMMIT PREPARED of a DROP, a segment later",
        Loss, "BEGIN;
         DROP TABLE P_plain;
         PREPARE TRANSACTION 'P_done';
         SELECT pg_switch_wal();
         COMMIT PREPARED 'P_done'",
    ),
    (
        "DELETE in savepoints and two segments",
        Loss, "BEGIN;
         SAVEPOINT one;
         DELETE FROM P_plain WHERE n % 2 = 0;
         RELEASE one;
         SELECT pg_switch_wal();
         SAVEPOINT two;
         DELETE FROM P_plain;
         RELEASE two;
         COMMIT",
    ),
    (
        "DROP after a rewrite",
        Loss, "VACUUM FULL P_plain; DROP TABLE P_plain",
    ),
    (
        "DROP in the transaction of a rewrite",
        Something, "BEGIN;
         ALTER TABLE P_plain ADD COLUMN random float DEFAULT random();
         DROP TABLE P_plain;
         COMMIT",
    ),
    (
        "TRUNCATE and new rows in one transaction",
        Something, "BEGIN;
         TRUNCATE P_plain;
         INSERT INTO P_plain SELECT generate_series(1, 100);
         COMMIT",
    ),
    (
        "TRUNCATE after a rewrite",
        Loss, "VACUUM FULL P_plain; TRUNCATE P_plain",
    ),
    (
        "DROP, and CREATE under the same name",
        Loss, "BEGIN;
         DROP TABLE P_plain;
         CREATE TABLE P_plain (n int PRIMARY KEY);
         COMMIT",
    ),
    (
        "DROP in a procedure that had nothing to catch",
        Loss, "DO $$ BEGIN
             BEGIN DROP TABLE P_plain; EXCEPTION WHEN OTHERS THEN NULL; END;
         END $$",
    ),
    ("DROP TABLE", Loss, "DROP TABLE P_tail"),
    ("DROP of a partitioned table", Something, "DROP TABLE P_parts"),
];

/// A scenario, and where WAL stood before and after it.
struct Ran {
    label: String,
    verdict: Verdict,
    from: Lsn,
    to: Lsn,
}

fn harmless(install: &PgInstall, dir: &TestDir, wal_level: &str) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("max_prepared_transactions", "5")
            .conf("wal_level", wal_level)
    })?;
    site.production.start()?;
    let space = dir.server_dir("space")?;
    let spool = dir.server_dir("spool")?;
    let key = format!("    spool_dir: {}\n", spool.display());
    site.configure("walden.yaml", &site.production, &key)?;
    site.production.psql(&format!(
        "CREATE TABLESPACE space LOCATION '{}'",
        space.display()
    ))?;
    // From here on the file of a catalog has a number like a user's.
    site.production.psql("VACUUM FULL pg_attribute")?;
    site.production.psql(
        "CREATE TABLE busy (n bigserial PRIMARY KEY, text text);
         CREATE TABLE upsert (n int PRIMARY KEY, times int);",
    )?;
    for at in 0..SCENARIOS.len() {
        set_up(&site.production, "old", at)?;
    }
    site.archive_all()?;
    site.backup(&[])?;
    for at in 0..SCENARIOS.len() {
        set_up(&site.production, "new", at)?;
    }
    let load = [
        Load::start(&site.production)?,
        Load::start(&site.production)?,
    ];

    let mut ran = Vec::new();
    for age in ["old", "new"] {
        for (at, (label, verdict, sql)) in SCENARIOS.iter().enumerate() {
            let label = format!("{label} ({age})");
            let from = site.production.insert_lsn()?;
            run(&site.production, &prefix(age, at), sql).with_context(|| label.clone())?;
            // Of what no backup has the name, less can be told; and in 14 nothing tells the rewrite of a table without indexes from its DROP
            // and a CREATE.
            let vague = age == "new" || (install.major() == 14 && sql.contains("P_plain"));
            let verdict = match *verdict {
                Nothing if vague => NothingCertain,
                Loss if vague => Something,
                verdict => verdict,
            };
            ran.push(Ran {
                label,
                verdict,
                from,
                to: site.production.insert_lsn()?,
            });
        }
    }
    let from = site.production.insert_lsn()?;
    race(&site.production)?;
    ran.push(Ran {
        label: "INSERT … ON CONFLICT".to_owned(),
        verdict: Nothing,
        from,
        to: site.production.insert_lsn()?,
    });
    for load in load {
        load.stop()?;
    }
    site.archive_all()?;
    judge(&search(&site)?, &ran)
}

fn prefix(age: &str, scenario: usize) -> String {
    format!("{age}_{scenario}")
}

/// Makes what a scenario runs on.
fn set_up(cluster: &Cluster, age: &str, scenario: usize) -> Result<()> {
    let (label, _, sql) = SCENARIOS.get(scenario).context("a scenario")?;
    for (name, create) in SETUP {
        if sql.contains(name) {
            run(cluster, &prefix(age, scenario), create)
                .with_context(|| format!("for {label} ({age})"))?;
        }
    }
    Ok(())
}

/// Runs statements one by one in a session of their own.
fn run(cluster: &Cluster, prefix: &str, sql: &str) -> Result<()> {
    let mut client = cluster.connect()?;
    let mut statement = String::new();
    for part in sql.split_inclusive(';') {
        statement.push_str(part);
        // Not within a body.
        if statement.matches("$$").count().is_multiple_of(2) {
            execute(&mut client, &statement.replace("P_", &format!("{prefix}_")))?;
            statement.clear();
        }
    }
    execute(&mut client, &statement.replace("P_", &format!("{prefix}_")))
}

fn execute(client: &mut Client, statement: &str) -> Result<()> {
    let statement = statement.trim();
    if statement.is_empty() {
        return Ok(());
    }
    client
        .batch_execute(statement)
        .with_context(|| statement.to_owned())
}

/// Two sessions insert the same rows: what one inserts on probation and finds to be there already, it takes back.
fn race(cluster: &Cluster) -> Result<()> {
    let sql = format!(
        "INSERT INTO upsert SELECT n, 1 FROM generate_series(1, {ROWS}) n \
         ON CONFLICT (n) DO UPDATE SET times = upsert.times + 1"
    );
    let racers: Vec<_> = (0..2)
        .map(|_| {
            let mut client = cluster.connect()?;
            let sql = sql.clone();
            Ok(thread::spawn(move || client.batch_execute(&sql)))
        })
        .collect::<Result<_>>()?;
    for racer in racers {
        racer
            .join()
            .map_err(|_| anyhow!("a racing session panicked"))??;
    }
    Ok(())
}

/// What goes on beside the scenarios: small transactions that insert, update and delete.
struct Load {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<()>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut client = cluster.connect()?;
        let stopped = Arc::clone(&stop);
        let writer = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                client.batch_execute(
                    "BEGIN; \
                     INSERT INTO busy (text) SELECT repeat('x', 20) FROM generate_series(1, 5); \
                     DELETE FROM busy WHERE n = (SELECT max(n) - 100 FROM busy); \
                     UPDATE busy SET text = '' WHERE n = (SELECT max(n) FROM busy); \
                     COMMIT",
                )?;
            }
            Ok(())
        });
        Ok(Self { stop, writer })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.writer
            .join()
            .map_err(|_| anyhow!("a writer of the load panicked"))?
    }
}

fn search(site: &Site<'_>) -> Result<FindReport> {
    let request = FindRequest {
        repositories: vec![RepositorySettings {
            keys: Default::default(),
            name: "here".to_owned(),
            place: Place::Folder(site.repository()),
            id: None,
            required: true,
        }],
        cluster: "main".parse()?,
        system: None,
        timeline: None,
        between: None,
        sought: Sought::everything(),
        target_directory: None,
        pgdata: None,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    Ok(runtime.block_on(find(&request))?)
}

fn judge(report: &FindReport, ran: &[Ran]) -> Result<()> {
    ensure!(
        report.gaps.is_empty() && report.unreadable.is_empty() && !report.more && !report.nameless,
        "the whole archive should have been searched: {report:?}"
    );
    let mut wrong = String::new();
    for ran in ran {
        let of_this = |finding: &&Finding| (ran.from..ran.to).contains(&finding.lsn);
        let found: Vec<&Finding> = report.findings.iter().filter(of_this).collect();
        let certain = found.iter().filter(|finding| is_certain(finding)).count();
        let right = match ran.verdict {
            Nothing => found.is_empty(),
            NothingCertain => certain == 0,
            Loss => found.len() == 1 && certain == 1,
            Something => !found.is_empty(),
        };
        if !right {
            let (label, verdict) = (&ran.label, ran.verdict);
            let found: Vec<String> = found.into_iter().map(told).collect();
            writeln!(wrong, "{label}: {verdict:?} expected, found {found:?}")?;
        }
    }
    let known = |finding: &&Finding| {
        let mut of = ran.iter();
        !of.any(|ran| (ran.from..ran.to).contains(&finding.lsn))
    };
    let stray: Vec<&Finding> = report.findings.iter().filter(known).collect();
    ensure!(
        stray.is_empty(),
        "found between the scenarios: {:?}",
        stray.into_iter().map(told).collect::<Vec<_>>()
    );
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

fn told(finding: &Finding) -> String {
    match &finding.what {
        What::Incident(incident) => format!(
            "{} of {} by {:?} at {}, doubt {:?}",
            incident.statement(),
            incident.object,
            finding.xid,
            finding.lsn,
            incident.doubt
        ),
        What::RestorePoint(name) => format!("restore point {name}"),
    }
}

fn is_certain(finding: &Finding) -> bool {
    match &finding.what {
        What::Incident(incident) => incident.doubt.is_none(),
        What::RestorePoint(_) => true,
    }
}
