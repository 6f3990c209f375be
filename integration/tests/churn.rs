//! A backup while relations, databases and large objects come, grow, shrink and go: the whole dump is the judge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use walden_integration::{Site, wait_open, wait_paused};
use walden_testkit::{Cluster, PgInstall, TestDir, on_every_version, pg_amcheck, poll, run};

on_every_version!(a_backup_amid_changes_of_every_kind_restores_the_same_dump);

fn a_backup_amid_changes_of_every_kind_restores_the_same_dump(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder
            .conf("max_prepared_transactions", "5")
            .conf("shared_buffers", "1MB")
    })?;
    site.production.start()?;
    site.production.psql(
        "CREATE EXTENSION amcheck;
         CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 1000) AS n;
         CREATE TABLE prepared (n int);
         BEGIN; INSERT INTO prepared VALUES (1); PREPARE TRANSACTION 'held'",
    )?;
    site.archive_all()?;
    let churn = [
        Churn::start(&site.production, relations)?,
        Churn::start(&site.production, databases)?,
    ];
    for churn in &churn {
        churn.wait_for(3)?;
    }
    let first = site.backup(&["--max-rate=16M"])?;
    let second = site.backup(&["--max-rate=16M"])?;
    for churn in churn {
        churn.wait_for(2)?;
        churn.stop()?;
    }
    site.production.psql("COMMIT PREPARED 'held'")?;
    site.archive_all()?;
    let expected = dump(&site.production)?;

    for (name, backup) in [("from_first", &first), ("from_second", &second)] {
        ensure!(
            backup.json.get("damaged_blocks") == Some(&0.into()),
            "nothing is damaged: {}",
            backup.json
        );
        let mut restored = site.restore(name, &["--backup", &backup.id])?;
        restored.start()?;
        wait_open(&restored)?;
        let found = dump(&restored)?;
        let differs = expected.lines().zip(found.lines()).find(|(a, b)| a != b);
        ensure!(
            expected == found,
            "{name}: the dumps differ, first at {differs:?}"
        );
        pg_amcheck(&restored)?;
        ensure!(
            restored.psql("SELECT count(*) FROM unlogged")? == "0",
            "an unlogged table comes back empty"
        );
    }
    let mut restored = site.restore("consistent", &["--target-immediate"])?;
    restored.start()?;
    wait_paused(&restored)?;
    restored.promote()?;
    ensure!(
        restored.psql("SELECT gid FROM pg_prepared_xacts")? == "held",
        "a transaction that was prepared at the target is prepared in the copy"
    );
    Ok(())
}

/// Roles, databases and all their content, as SQL.
fn dump(cluster: &Cluster) -> Result<String> {
    let mut command = cluster.install().command("pg_dumpall");
    let port = cluster.port().to_string();
    command
        .args(["--no-unlogged-table-data", "--username=postgres", "--host"])
        .arg(cluster.socket_dir())
        .args(["--port", &port]);
    let text = run(&mut command)?;
    // A random word, new in each dump.
    let kept = text
        .lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    Ok(kept.collect::<Vec<_>>().join("\n"))
}

fn relations(round: usize) -> Vec<String> {
    let gone = round.saturating_sub(3);
    let emptied = round.saturating_sub(1);
    vec![
        format!("CREATE TABLE t{round} (n int PRIMARY KEY, text text)"),
        format!(
            "INSERT INTO t{round} SELECT n, repeat(md5(n::text), 8) FROM generate_series(1, 3000) AS n"
        ),
        format!("UPDATE t{round} SET text = text || 'x' WHERE n % 2 = 0"),
        format!("DELETE FROM t{round} WHERE n > 1000"),
        // Gives the file's end back.
        format!("VACUUM t{round}"),
        format!("CREATE INDEX ON t{round} (text)"),
        format!("VACUUM FULL t{round}"),
        format!("REINDEX TABLE t{round}"),
        format!("CREATE TABLE IF NOT EXISTS t{emptied} ()"),
        format!("TRUNCATE t{emptied}"),
        format!("DROP TABLE IF EXISTS t{gone}"),
        "CREATE TEMPORARY TABLE IF NOT EXISTS temporary AS SELECT generate_series(1, 1000)"
            .to_owned(),
        "SELECT lo_from_bytea(0, decode(repeat('ab', 5000), 'hex'))".to_owned(),
        // Not drawn from: sequences are ahead of themselves in the WAL.
        "CREATE SEQUENCE IF NOT EXISTS counter".to_owned(),
    ]
}

fn databases(round: usize) -> Vec<String> {
    let gone = round.saturating_sub(2);
    vec![
        format!("CREATE DATABASE d{round}"),
        format!("CREATE ROLE r{round}"),
        format!("DROP DATABASE IF EXISTS d{gone}"),
    ]
}

/// A connection that runs round after round.
struct Churn {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Churn {
    fn start(cluster: &Cluster, statements: fn(usize) -> Vec<String>) -> Result<Self> {
        let mut client = cluster.connect()?;
        let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let thread = std::thread::spawn({
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let round = rounds.load(Ordering::Relaxed);
                    for statement in statements(round) {
                        client
                            .batch_execute(&statement)
                            .with_context(|| format!("round {round}: {statement}"))?;
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            }
        });
        Ok(Self {
            stop,
            rounds,
            thread,
        })
    }

    fn wait_for(&self, more: usize) -> Result<()> {
        let enough = self.rounds.load(Ordering::Relaxed) + more;
        poll("more rounds of changes", || {
            ensure!(!self.thread.is_finished(), "the changes have ended");
            Ok((self.rounds.load(Ordering::Relaxed) >= enough).then_some(()))
        })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.map_err(|_| anyhow!("a thread of changes panicked"))?
    }
}
