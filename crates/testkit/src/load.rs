//! Writers on a cluster, each transaction numbered.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use walden_pg::Lsn;

use crate::cluster::Cluster;
use crate::process::poll;

/// Each of these gets one row from each transaction.
pub(crate) const TABLES: [&str; 3] = ["ledger_a", "ledger_b", "ledger_c"];

/// What a row says beside its number: restored rows are compared with it, byte by byte.
pub(crate) const TEXT: &str = "repeat(md5(n::text), 8)";

/// One transaction in so many is rolled back.
const ROLLED_BACK_EVERY: u64 = 7;

/// What a writer knows of one of its transactions.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub number: u64,
    pub xid: u32,
    /// Where WAL stood when the server had acknowledged the commit; `None` for a rollback.
    pub committed_before: Option<Lsn>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: Mutex<Vec<Transaction>>,
}

/// Writers that run until they are stopped; from [`crate::Ledger::start_load`].
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, writers: u32, numbers: &Arc<AtomicU64>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self {
            shared: Arc::clone(&shared),
            writers: Vec::new(),
        };
        for writer in 0..writers {
            let mut client = cluster.connect()?;
            let shared = Arc::clone(&shared);
            let numbers = Arc::clone(numbers);
            load.writers.push(std::thread::spawn(move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    let number = numbers.fetch_add(1, Ordering::Relaxed);
                    let transaction = write(&mut client, writer, number)
                        .with_context(|| format!("transaction {number} of the load"))?;
                    shared
                        .done
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(transaction);
                }
                Ok(())
            }));
        }
        Ok(load)
    }

    /// How many transactions have ended.
    #[must_use]
    pub fn done(&self) -> usize {
        self.shared
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Waits until so many more transactions have ended.
    ///
    /// # Errors
    /// Where a writer has failed, or after two minutes.
    pub fn wait_for(&self, more: usize) -> Result<()> {
        let enough = self.done() + more;
        poll(&format!("{more} more transactions"), || {
            if self.writers.iter().any(JoinHandle::is_finished) {
                return Err(anyhow!(
                    "a writer of the load has failed; stopping it tells why"
                ));
            }
            Ok((self.done() >= enough).then_some(()))
        })
    }

    /// Ends the writers after their present transaction.
    pub(crate) fn stop(mut self) -> Result<Vec<Transaction>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer
                .join()
                .map_err(|_| anyhow!("a writer of the load panicked"))??;
        }
        let done = std::mem::take(
            &mut *self
                .shared
                .done
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        Ok(done)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn write(client: &mut postgres::Client, writer: u32, number: u64) -> Result<Transaction> {
    let mut transaction = client.transaction()?;
    let mut sql = String::new();
    for table in TABLES {
        sql += &format!(
            "INSERT INTO {table} SELECT n, {TEXT} FROM (VALUES ({number}::bigint)) AS numbers (n);"
        );
    }
    // A row that is changed and changed again: lost updates show.
    sql += &format!(
        "INSERT INTO ledger_total VALUES ({writer}, 1) ON CONFLICT (writer) DO UPDATE SET transactions = ledger_total.transactions + 1;"
    );
    transaction.batch_execute(&sql)?;
    let xid: String = transaction
        .query_one("SELECT pg_current_xact_id()::text", &[])?
        .try_get(0)?;
    let xid: u64 = xid.parse().context("an odd transaction id")?;
    let committed_before = if number % ROLLED_BACK_EVERY == ROLLED_BACK_EVERY - 1 {
        transaction.rollback()?;
        None
    } else {
        transaction.commit()?;
        let lsn: String = client
            .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?
            .try_get(0)?;
        Some(lsn.parse()?)
    };
    Ok(Transaction {
        number,
        // WAL records hold the lower half alone.
        xid: (xid & u64::from(u32::MAX)) as u32,
        committed_before,
    })
}
