//! Restores to targets that chance picks, behind backups that were taken while writers wrote.

use anyhow::{Context, Result};
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use walden_integration::{Backup, Site, options, wait_open, wait_paused};
use walden_pg::Lsn;
use walden_testkit::{Ledger, Outcome, PgInstall, Target, TestDir, Timestamp};

use crate::{chance, long, remove};

super::on_17!(random_restores_hold_exactly_the_rows_of_their_target);

/// Kinds of targets; each comes as often as the next.
const KINDS: usize = 9;

fn random_restores_hold_exactly_the_rows_of_their_target(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    let load = ledger.start_load(&site.production, 3)?;
    for round in 0..3 {
        load.wait_for(60)?;
        site.archive_all()?;
        site.backup(&[])?;
        load.wait_for(60)?;
        let point = format!("SELECT pg_create_restore_point('point {round}')");
        site.production.psql(&point)?;
    }
    load.wait_for(60)?;
    ledger.finish(load, &site.production)?;
    site.archive_all()?;
    let backups = site.backups()?;
    let mut random = chance()?;
    for number in 0..if long() { 200 } else { 10 } {
        let (target, mut args) = pick(number % KINDS, &ledger, &backups, &mut random)?;
        let latest = target == Target::Latest;
        let promotes = !latest && random.random_bool(0.5);
        if promotes {
            args.push("--target-action=promote".to_owned());
        }
        let restore = || -> Result<()> {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut restored = site.restore("restored", &args)?;
            restored.start()?;
            if latest || promotes {
                wait_open(&restored)?;
            } else {
                wait_paused(&restored)?;
            }
            ledger.compare(&restored, &target)
        };
        restore().with_context(|| format!("restore {number}: {args:?}"))?;
        remove(&site, "restored")?;
    }
    Ok(())
}

/// A target of a kind, and the options that ask for it.
fn pick(
    kind: usize,
    ledger: &Ledger,
    backups: &[Backup],
    random: &mut StdRng,
) -> Result<(Target, Vec<String>)> {
    let first = backups.first().context("a backup")?;
    if kind == 7 {
        let backup = backups.choose(random).context("a backup")?;
        // Everything up to the record that ends the backup, and nothing behind it.
        let target = Target::Lsn {
            lsn: backup.stop_lsn,
            inclusive: false,
        };
        let args = ["--target-immediate", "--backup", &backup.id];
        return Ok((target, args.map(str::to_owned).into()));
    }
    let behind: Vec<&Outcome> = ledger
        .outcomes()
        .iter()
        .filter(|outcome| outcome.start > first.stop_lsn && outcome.time > first.stopped_at)
        .collect();
    // The very last can be reached by no time and no position: nothing comes later.
    let reachable = behind.get(1..behind.len().saturating_sub(3));
    let reachable = reachable.context("too few transactions")?;
    let any = reachable.choose(random).context("a transaction")?;
    let inclusive = kind.is_multiple_of(2);
    let target = match kind {
        0 | 1 => Target::Time {
            time: Timestamp::from_microsecond(
                any.time.as_microsecond() + random.random_range(-20..=20),
            )?,
            inclusive,
        },
        2 | 3 => Target::Lsn {
            lsn: Lsn(any.start.0 + random.random_range(0..3) * 24),
            inclusive,
        },
        4 | 5 => {
            // Whether a transaction had ended before a backup is asked a little after the backup's end: none of the first moments.
            let second = backups.get(1).context("a second backup")?.start_lsn;
            let later: Vec<_> = reachable
                .iter()
                .filter(|outcome| outcome.committed && outcome.number.is_some())
                .filter(|outcome| outcome.start > second)
                .collect();
            let xid = later.choose(random).context("a commit")?.xid;
            Target::Xid { xid, inclusive }
        }
        6 => {
            let points = ledger.restore_points();
            Target::Name(
                points
                    .choose(random)
                    .context("a restore point")?
                    .name
                    .clone(),
            )
        }
        _ => Target::Latest,
    };
    let mut args = options(&target);
    // An earlier backup leads there too.
    if random.random_bool(0.3) {
        args.extend(["--backup".to_owned(), first.id.clone()]);
    }
    Ok((target, args))
}
