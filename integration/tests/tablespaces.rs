//! Tablespaces: backed up through the spool folder, restored elsewhere, and production's left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use walden_integration::{Site, files, wait_open};
use walden_testkit::{
    Cluster, Ledger, PgInstall, StopMode, Target, TestDir, on_every_version, pg_amcheck,
};

on_every_version!(mapped_tablespaces_leave_productions_untouched);

/// A blank and an equals sign, as people have them.
const PLACES: [&str; 2] = ["space one", "space=two"];

/// The OIDs of the tablespaces, in the order of [`PLACES`].
const OIDS: &str = "SELECT oid FROM pg_tablespace WHERE spcname LIKE 'space%' ORDER BY spcname";

fn mapped_tablespaces_leave_productions_untouched(
    install: &PgInstall,
    dir: &TestDir,
) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    for (place, name) in PLACES.iter().zip(["space_1", "space_2"]) {
        let place = dir.server_dir(place)?;
        let sql = format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display());
        site.production.psql(&sql)?;
    }
    let mut ledger = Ledger::create(&site.production)?;
    site.production.psql(
        "ALTER TABLE ledger_b SET TABLESPACE space_1;
         ALTER INDEX ledger_a_pkey SET TABLESPACE space_2;
         CREATE DATABASE elsewhere TABLESPACE space_2;",
    )?;
    let load = ledger.start_load(&site.production, 3)?;
    load.wait_for(30)?;
    site.archive_all()?;

    site.walden(&["backup"])?
        .exited(1)?
        .naming(&["2 tablespaces", "spool_dir"])?;
    let spool = dir.server_dir("spool")?;
    let key = format!("    spool_dir: {}\n", spool.display());
    site.configure("walden.yaml", &site.production, &key)?;
    site.backup(&[])?;
    ensure!(
        fs::read_dir(&spool)?.next().is_none(),
        "a backup should leave its spool folder empty"
    );
    load.wait_for(30)?;
    ledger.finish(load, &site.production)?;
    site.archive_all()?;
    let oids = site.production.psql(OIDS)?;
    // From here on only a mistake of ours can change production's files.
    site.production.stop(StopMode::Fast)?;
    let originals = PLACES.map(|place| dir.join(place));
    let before = contents(&originals)?;
    ensure!(!before.is_empty(), "production's tablespaces hold files");

    let maps = moved(&originals, "copy");
    let maps: Vec<&str> = maps.iter().map(String::as_str).collect();
    let taken: &[&str] = &["is not empty", "--tablespace-map"];
    site.refused("restored", &[], taken)?;
    site.refused("restored", maps.get(..1).unwrap_or_default(), taken)?;
    let unknown = format!("--tablespace-map=/nowhere={}", dir.join("x").display());
    let words: &[&str] = &["no tablespace of this backup", "space one"];
    site.refused("restored", &[&unknown], words)?;

    let waldir = format!("--waldir={}", dir.join("wal").display());
    let args = [maps.as_slice(), &[&waldir]].concat();
    let mut restored = site.restore_ignoring("restored", &args, &["tablespace_map"])?;
    let targets = PLACES.map(|place| dir.join(format!("{place}.copy")));
    leads_to(&restored, &oids, &targets)?;
    // In the order in which the server listed its directory.
    let map = fs::read_to_string(restored.pgdata().join("tablespace_map"))?;
    let map: BTreeSet<&str> = map.lines().collect();
    let expected: Vec<String> = oids
        .lines()
        .zip(&targets)
        .map(|(oid, target)| format!("{oid} {}", target.display()))
        .collect();
    ensure!(
        map == expected.iter().map(String::as_str).collect(),
        "tablespace_map, from which PostgreSQL makes the links anew, should be {expected:?}, is {map:?}"
    );
    ensure!(
        fs::read_link(restored.pgdata().join("pg_wal"))? == dir.join("wal"),
        "pg_wal should be a link to --waldir"
    );
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    pg_amcheck(&restored)?;
    leads_to(&restored, &oids, &targets)?;
    ensure!(
        fs::read_dir(dir.join("wal"))?.count() > 2,
        "the WAL should be written to --waldir"
    );
    // Writes into every tablespace, and removes files from them.
    restored.psql(
        "UPDATE ledger_b SET text = ''; CHECKPOINT; DROP DATABASE elsewhere;
         DROP TABLE ledger_a, ledger_b; CHECKPOINT",
    )?;
    restored.stop(StopMode::Fast)?;
    ensure!(
        contents(&originals)? == before,
        "a restored copy changed production's tablespaces"
    );

    // Where production is gone, its places are free.
    for original in &originals {
        fs::rename(original, original.with_extension("gone"))?;
    }
    let mut restored = site.restore("in_place", &[])?;
    leads_to(&restored, &oids, &originals)?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)?;
    leads_to(&restored, &oids, &originals)
}

/// `--tablespace-map` for each, to the same path and a suffix.
fn moved(originals: &[PathBuf], suffix: &str) -> Vec<String> {
    let escape = |path: String| path.replace('=', "\\=");
    originals
        .iter()
        .map(|original| {
            let original = escape(original.display().to_string());
            format!("--tablespace-map={original}={original}.{suffix}")
        })
        .collect()
}

fn leads_to(cluster: &Cluster, oids: &str, targets: &[PathBuf]) -> Result<()> {
    for (oid, target) in oids.lines().zip(targets) {
        let link = cluster.pgdata().join("pg_tblspc").join(oid);
        let found = fs::read_link(&link).with_context(|| format!("no link {link:?}"))?;
        ensure!(
            found == *target,
            "tablespace {oid} should be in {target:?}, is in {found:?}"
        );
    }
    Ok(())
}

fn contents(folders: &[PathBuf]) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for folder in folders {
        for path in files(folder)?.into_keys() {
            let content = fs::read(&path)?;
            all.insert(path, content);
        }
    }
    Ok(all)
}
