//! A cluster whose WAL has everything in it.

use anyhow::Result;
use walden_testkit::{Cluster, PgInstall, StopMode, TestDir, run};

/// Its WAL stays in `pg_wal`, in segments of 4 MiB.
pub fn cluster(install: &PgInstall, dir: &TestDir) -> Result<Cluster> {
    let logical = is_logical(install.major());
    Cluster::builder(install, dir, "written")
        .initdb_arg("--wal-segsize=4")
        .conf("fsync", "off")
        .conf("max_prepared_transactions", "10")
        .conf("wal_keep_size", "4GB")
        .conf("max_wal_size", "4GB")
        .conf("wal_level", if logical { "logical" } else { "replica" })
        .conf("wal_compression", if logical { "on" } else { "off" })
        .build()
}

/// Whether its WAL is for logical decoding.
pub fn is_logical(major: u16) -> bool {
    major.is_multiple_of(2)
}

/// Writes with several clients, then each kind of thing, in a cluster that runs.
pub fn write(cluster: &Cluster) -> Result<()> {
    pgbench(cluster, &["--initialize", "--scale=1"])?;
    pgbench(cluster, &["--client=4", "--transactions=150"])?;
    for script in [ROWS, INDEXES, DDL] {
        cluster.psql(script)?;
    }
    cluster.psql(&many_subtransactions())?;
    // Longer than what is kept of a record, but within a segment; and longer than a segment.
    cluster.switch_wal()?;
    for bytes in [1_500_000, 9_000_000] {
        cluster.psql(&format!(
            "SELECT pg_logical_emit_message(true, 'long', repeat('x', {bytes}))"
        ))?;
    }
    // Records of odd lengths, some of which cross from one segment to the next.
    pgbench(cluster, &["--client=3", "--transactions=200"])?;
    cluster.psql("SELECT pg_create_restore_point('behind the load'); CHECKPOINT")?;
    cluster.switch_wal()?;
    pgbench(cluster, &["--client=2", "--transactions=20"])
}

/// Ends the timeline and begins the next, as the promotion of a standby does.
pub fn promote(cluster: &mut Cluster) -> Result<()> {
    cluster.stop(StopMode::Fast)?;
    cluster.append("standby.signal", "")?;
    cluster.start()?;
    cluster.promote()?;
    pgbench(cluster, &["--client=2", "--transactions=50"])
}

fn pgbench(cluster: &Cluster, args: &[&str]) -> Result<()> {
    let mut command = cluster.install().command("pgbench");
    command
        .args(args)
        .args(["--username=postgres", "--no-vacuum"]);
    command.arg("--host").arg(cluster.socket_dir());
    command.arg(format!("--port={}", cluster.port()));
    run(command.arg("postgres")).map(drop)
}

const ROWS: &str = "
CREATE TABLE rows (id bigint PRIMARY KEY, words text, n int);
INSERT INTO rows SELECT n, md5(n::text), n FROM generate_series(1, 3000) AS s (n);
COPY (SELECT n, repeat('y', n % 90), n FROM generate_series(3001, 6000) AS s (n)) TO PROGRAM 'cat > copied';
COPY rows FROM PROGRAM 'cat copied';
UPDATE rows SET words = words || 'z' WHERE id % 3 = 0;
DELETE FROM rows WHERE id % 5 = 0;
INSERT INTO rows VALUES (1, 'again', 0) ON CONFLICT (id) DO UPDATE SET n = -1;
INSERT INTO rows VALUES (1, 'again', 0) ON CONFLICT DO NOTHING;
BEGIN; UPDATE rows SET n = 0; ROLLBACK;
BEGIN; SELECT FROM rows WHERE id < 10 FOR UPDATE; COMMIT;
BEGIN; CREATE TABLE never (id int); INSERT INTO never VALUES (1); ROLLBACK;
VACUUM (FREEZE) rows;
CREATE TABLE parts (id int, place int) PARTITION BY LIST (place);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES IN (2);
INSERT INTO parts SELECT n, 1 FROM generate_series(1, 100) AS s (n);
UPDATE parts SET place = 2 WHERE id <= 40;
BEGIN; DELETE FROM rows WHERE id < 50; PREPARE TRANSACTION 'kept'; COMMIT PREPARED 'kept';
BEGIN; DELETE FROM rows WHERE id < 99; SAVEPOINT a; DELETE FROM rows WHERE id = 101; PREPARE TRANSACTION 'not kept'; ROLLBACK PREPARED 'not kept';
BEGIN; CREATE TABLE prepared (id int); DROP TABLE parts_2; SAVEPOINT a; INSERT INTO rows VALUES (-1); PREPARE TRANSACTION 'ddl';
COMMIT PREPARED 'ddl';
CREATE TEMPORARY TABLE passing (id int);
INSERT INTO passing SELECT generate_series(1, 100);
DROP TABLE passing;
SELECT pg_logical_emit_message(false, 'prefix', 'not in a transaction');
SELECT pg_create_restore_point('Überfall, ''quoted''; and so on');
";

const INDEXES: &str = "
CREATE TABLE indexed (id int, words text[], box box, name text);
INSERT INTO indexed SELECT n, ARRAY[md5(n::text), 'all'], box(point(n, n), point(n + 1, n + 1)), 'name ' || n FROM generate_series(1, 2000) AS s (n);
CREATE INDEX ON indexed USING gin (words);
CREATE INDEX ON indexed USING gist (box);
CREATE INDEX ON indexed USING brin (id);
CREATE INDEX ON indexed USING hash (id);
CREATE INDEX ON indexed USING spgist (name);
CREATE INDEX CONCURRENTLY by_name ON indexed (name);
INSERT INTO indexed SELECT n, ARRAY[md5(n::text), 'all'], box(point(n, n), point(n + 1, n + 1)), 'name ' || n FROM generate_series(2001, 3000) AS s (n);
DELETE FROM indexed WHERE id % 7 = 0;
VACUUM indexed;
CREATE SEQUENCE numbers;
SELECT nextval('numbers') FROM generate_series(1, 100);
REINDEX TABLE indexed;
CLUSTER indexed USING by_name;
VACUUM FULL indexed;
";

const DDL: &str = "
CREATE TABLE doomed (id int PRIMARY KEY, words text);
INSERT INTO doomed SELECT n, repeat('w', 3000) || n FROM generate_series(1, 50) AS s (n);
ALTER TABLE doomed ADD COLUMN more int DEFAULT (random() * 10)::int;
ALTER TABLE doomed ALTER COLUMN id TYPE bigint;
BEGIN; TRUNCATE doomed; INSERT INTO doomed VALUES (1); COMMIT;
TRUNCATE doomed, parts;
DROP TABLE doomed;
CREATE MATERIALIZED VIEW counted AS SELECT n, count(*) FROM rows GROUP BY n;
REFRESH MATERIALIZED VIEW counted;
CREATE UNIQUE INDEX ON counted (n);
REFRESH MATERIALIZED VIEW CONCURRENTLY counted;
CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';
DROP FUNCTION one();
CREATE UNLOGGED TABLE unlogged (id int);
CREATE DATABASE other;
DROP DATABASE other;
ANALYZE;
CHECKPOINT;
";

/// One transaction with more subtransactions than a backend caches (`PGPROC_MAX_CACHED_SUBXIDS`), some of them rolled back.
fn many_subtransactions() -> String {
    let mut sql = "BEGIN; INSERT INTO rows VALUES (-1000);".to_owned();
    for number in 1..=150 {
        sql += &format!("SAVEPOINT s; INSERT INTO rows VALUES (-1000 - {number});");
        if number % 40 == 0 {
            sql += "ROLLBACK TO s;";
        }
    }
    sql + "COMMIT;"
}
