//! The truth about what was committed, in WAL order, kept outside the database.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use walden_pg::{Lsn, TimelineId};

use crate::cluster::Cluster;
use crate::judges::pg_waldump;
use crate::load::{Load, TABLES, TEXT, Transaction};
use crate::wal::{self, Outcome, Record, RestorePoint};

/// How many rows a failing comparison lists.
const LISTED: usize = 10;

/// A moment to which a cluster is restored, in PostgreSQL's terms (`recovery_target_*`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields' names are PostgreSQL's")]
pub enum Target {
    /// The end of the WAL.
    Latest,
    /// Before the first commit or abort later than `time`, or as late where it is not inclusive.
    Time { time: Timestamp, inclusive: bool },
    /// After (inclusive) or before the first record that starts at `lsn` or later.
    Lsn { lsn: Lsn, inclusive: bool },
    /// After (inclusive) or before that transaction's commit or abort.
    Xid { xid: u32, inclusive: bool },
    /// The first restore point of that name.
    Name(String),
}

/// What a load has written to one line of timelines, read back from the WAL by `pg_waldump`.
///
/// The order of commits among several writers is known to the WAL alone; so is each commit's exact
/// position and time. The writers' own notes join transaction ids to numbers and are checked against it.
#[derive(Debug)]
pub struct Ledger {
    numbers: Arc<AtomicU64>,
    outcomes: Vec<Outcome>,
    restore_points: Vec<RestorePoint>,
    timeline: TimelineId,
    /// Where reading begins: the start of the last record that was read, if any was, since that is
    /// surely a record's start.
    read_from: Lsn,
    /// Whether the record at `read_from` has been read.
    read_it: bool,
}

impl Ledger {
    /// Makes the ledger's tables (and the extension that [`crate::pg_amcheck`] wants) in a cluster.
    ///
    /// # Errors
    /// Where the server refuses.
    pub fn create(cluster: &Cluster) -> Result<Self> {
        let read_from = cluster.insert_lsn()?;
        let mut sql = "CREATE EXTENSION amcheck;\n".to_owned();
        for table in TABLES {
            writeln!(
                sql,
                "CREATE TABLE {table} (n bigint PRIMARY KEY, text text NOT NULL);"
            )?;
        }
        sql +=
            "CREATE TABLE ledger_total (writer bigint PRIMARY KEY, transactions bigint NOT NULL);";
        cluster.psql(&sql)?;
        Ok(Self {
            numbers: Arc::default(),
            outcomes: Vec::new(),
            restore_points: Vec::new(),
            timeline: cluster.timeline()?,
            read_from,
            read_it: false,
        })
    }

    /// Starts writers on the cluster; give the load back with [`Ledger::finish`].
    ///
    /// # Errors
    /// Where they cannot connect.
    pub fn start_load(&self, cluster: &Cluster, writers: u32) -> Result<Load> {
        Load::start(cluster, writers, &self.numbers)
    }

    /// Stops a load and writes down what it did.
    ///
    /// # Errors
    /// Where a writer failed, or the WAL does not agree with what the writers were told.
    pub fn finish(&mut self, load: Load, cluster: &Cluster) -> Result<()> {
        let transactions = load.stop()?;
        // Aborts are not flushed by themselves; a commit behind them is, with all before it.
        cluster.psql("INSERT INTO ledger_total VALUES (-1, 0) ON CONFLICT (writer) DO UPDATE SET transactions = 0")?;
        let end = cluster.psql("SELECT pg_current_wal_flush_lsn()")?.parse()?;
        let read_before = self.outcomes.len();
        self.read(cluster, end)?;
        let fresh = self.outcomes.get_mut(read_before..).unwrap_or_default();
        join(fresh, &transactions)
    }

    /// Runs writers until so many transactions have ended, and writes down what they did.
    ///
    /// # Errors
    /// As [`Ledger::finish`].
    pub fn write(&mut self, cluster: &Cluster, writers: u32, transactions: usize) -> Result<()> {
        let load = self.start_load(cluster, writers)?;
        let waited = load.wait_for(transactions);
        self.finish(load, cluster)?;
        waited
    }

    /// The ledger of a cluster that was restored from this one and has been promoted: what was
    /// written here before the new timeline began. What is written there goes into the new one.
    ///
    /// # Errors
    /// Where the new timeline's history file cannot be read.
    pub fn branch(&self, promoted: &Cluster) -> Result<Self> {
        let timeline = promoted.timeline()?;
        let file = promoted
            .pgdata()
            .join(format!("pg_wal/{}.history", timeline.hex()));
        let history = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let switch: Lsn = history
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .and_then(|line| line.split_whitespace().nth(1))
            .with_context(|| format!("no switch in {}", file.display()))?
            .parse()?;
        Ok(Self {
            numbers: Arc::clone(&self.numbers),
            outcomes: self
                .outcomes
                .iter()
                .filter(|outcome| outcome.start < switch)
                .cloned()
                .collect(),
            restore_points: self
                .restore_points
                .iter()
                .filter(|point| point.start < switch)
                .cloned()
                .collect(),
            timeline,
            read_from: switch,
            read_it: false,
        })
    }

    /// Every commit and abort, in WAL order; those without a number are not the load's.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The load's commits, in WAL order: from these a test picks its targets.
    #[must_use]
    pub fn commits(&self) -> Vec<&Outcome> {
        self.outcomes
            .iter()
            .filter(|outcome| outcome.committed && outcome.number.is_some())
            .collect()
    }

    /// Every restore point, in WAL order.
    #[must_use]
    pub fn restore_points(&self) -> &[RestorePoint] {
        &self.restore_points
    }

    /// The numbers whose rows are there after recovery to `target`, and no others.
    ///
    /// A target before the backup's own end is not known here: PostgreSQL then gives later data.
    ///
    /// # Errors
    /// Where the ledger knows no such transaction or restore point.
    pub fn expected_at(&self, target: &Target) -> Result<BTreeSet<u64>> {
        let outcomes = self.outcomes.iter();
        let replayed: Vec<&Outcome> = match target {
            Target::Latest => outcomes.collect(),
            Target::Time { time, inclusive } => outcomes
                .take_while(|outcome| outcome.time < *time || *inclusive && outcome.time == *time)
                .collect(),
            // Inclusive: the first record at or behind the target is replayed too, so a commit is
            // replayed exactly where the record before it starts before the target.
            Target::Lsn {
                lsn,
                inclusive: true,
            } => outcomes.take_while(|outcome| outcome.prev < *lsn).collect(),
            Target::Lsn {
                lsn,
                inclusive: false,
            } => outcomes
                .take_while(|outcome| outcome.start < *lsn)
                .collect(),
            Target::Xid { xid, inclusive } => {
                let at = self
                    .outcomes
                    .iter()
                    .position(|outcome| outcome.xid == *xid)
                    .with_context(|| format!("transaction {xid} is not in the ledger"))?;
                outcomes.take(at + usize::from(*inclusive)).collect()
            }
            Target::Name(name) => {
                let point = self
                    .restore_points
                    .iter()
                    .find(|point| point.name == *name)
                    .with_context(|| format!("restore point '{name}' is not in the ledger"))?;
                outcomes
                    .take_while(|outcome| outcome.start < point.start)
                    .collect()
            }
        };
        Ok(replayed
            .into_iter()
            .filter(|outcome| outcome.committed)
            .filter_map(|outcome| outcome.number)
            .collect())
    }

    /// Proves that a server holds exactly the rows of `target`, byte by byte.
    ///
    /// # Errors
    /// Where it does not: the error lists what is missing, what is surplus, and where each stands in the WAL.
    pub fn compare(&self, restored: &Cluster, target: &Target) -> Result<()> {
        let expected = self.expected_at(target)?;
        let mut wrong = String::new();
        for table in TABLES {
            // Ordered by no index: a damaged index must not hide a row.
            let rows = restored.psql(&format!("SET enable_indexscan = off; SET enable_indexonlyscan = off; SELECT n FROM {table} WHERE text = {TEXT}"))?;
            let found: BTreeSet<u64> = rows
                .lines()
                .map(str::parse)
                .collect::<Result<_, _>>()
                .context("an odd row")?;
            self.list(
                &mut wrong,
                table,
                "missing or changed",
                expected.difference(&found),
            )?;
            self.list(&mut wrong, table, "surplus", found.difference(&expected))?;
        }
        let total = restored.psql("SELECT coalesce(sum(transactions), 0) FROM ledger_total")?;
        if total != expected.len().to_string() {
            writeln!(
                wrong,
                "ledger_total: {total} transactions counted, {} expected",
                expected.len()
            )?;
        }
        if !wrong.is_empty() {
            bail!(
                "not the rows of {target:?} ({} expected):\n{wrong}",
                expected.len()
            );
        }
        Ok(())
    }

    fn list<'a>(
        &self,
        into: &mut String,
        table: &str,
        what: &str,
        numbers: impl Iterator<Item = &'a u64>,
    ) -> Result<()> {
        let numbers: Vec<u64> = numbers.copied().collect();
        if numbers.is_empty() {
            return Ok(());
        }
        writeln!(into, "{table}: {} {what}", numbers.len())?;
        for number in numbers.iter().take(LISTED) {
            match self
                .outcomes
                .iter()
                .find(|outcome| outcome.number == Some(*number))
            {
                Some(outcome) => writeln!(into, "  {number}: {outcome:?}")?,
                None => writeln!(into, "  {number}: on no timeline of this ledger")?,
            }
        }
        Ok(())
    }

    /// Reads the records from where the last reading ended.
    fn read(&mut self, cluster: &Cluster, end: Lsn) -> Result<()> {
        let timeline = cluster.timeline()?;
        if timeline != self.timeline {
            bail!(
                "the ledger is of timeline {}, the cluster of {timeline}: branch it",
                self.timeline
            );
        }
        let wal = cluster.pgdata().join("pg_wal");
        let dump = pg_waldump(cluster.install(), &wal, timeline, self.read_from, end)?;
        for line in dump.lines().filter(|line| line.starts_with("rmgr: ")) {
            let (start, record) = wal::parse(line)?;
            if self.read_it && start == self.read_from {
                continue;
            }
            (self.read_from, self.read_it) = (start, true);
            match record {
                Record::Outcome(outcome) => self.outcomes.push(outcome),
                Record::RestorePoint(point) => self.restore_points.push(point),
                Record::Other => {}
            }
        }
        Ok(())
    }
}

/// Joins what the WAL says to what the writers were told.
fn join(outcomes: &mut [Outcome], transactions: &[Transaction]) -> Result<()> {
    let mut by_xid: BTreeMap<u32, &Transaction> = BTreeMap::new();
    for transaction in transactions {
        by_xid.insert(transaction.xid, transaction);
    }
    for outcome in outcomes {
        if let Some(transaction) = by_xid.remove(&outcome.xid) {
            let agree = match transaction.committed_before {
                Some(lsn) => outcome.committed && outcome.start < lsn,
                None => !outcome.committed,
            };
            if !agree {
                bail!("the server told a writer {transaction:?}, and the WAL says {outcome:?}");
            }
            outcome.number = Some(transaction.number);
        }
    }
    if let Some(lost) = by_xid.into_values().next() {
        bail!("the WAL knows nothing of {lost:?}");
    }
    Ok(())
}
