//! `walden verify` on what a real server archived and was backed up to.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use walden_engine::progress::Silent;
use walden_engine::repository::{Place, RepositorySettings};
use walden_engine::verify::{VerifyReport, VerifyRequest, verify};
use walden_integration::Site;
use walden_model::{BackupId, FindingKind, VerifyMode};
use walden_testkit::{PgInstall, StopMode, TestDir, on_version};

/// Every object of a folder repository, by key.
fn objects(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let below = path.strip_prefix(root)?.display().to_string();
            if below.starts_with('.') {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(below, path);
            }
        }
    }
    Ok(found)
}

struct Bed {
    root: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Bed {
    fn request(&self, mode: VerifyMode) -> Result<VerifyRequest> {
        Ok(VerifyRequest {
            repository: RepositorySettings {
                name: "here".to_owned(),
                place: Place::Folder(self.root.clone()),
                id: None,
                required: true,
                keys: Default::default(),
            },
            cluster: "main".parse()?,
            system: None,
            mode,
            backup: None,
            jobs: 4,
        })
    }

    fn verify(&self, mode: VerifyMode) -> Result<VerifyReport> {
        let request = self.request(mode)?;
        Ok(self.runtime.block_on(verify(&request, Arc::new(Silent))))
    }
}

/// What was found, as kind and subject.
fn found(report: &VerifyReport) -> Vec<(FindingKind, String)> {
    let systems = report.systems.iter().map(|system| &system.findings);
    let all = systems.chain([&report.findings]);
    all.flat_map(|findings| findings.sorted())
        .map(|finding| (finding.kind, finding.subject.clone()))
        .collect()
}

/// One change that a store's rot could make.
fn spoil(bytes: &[u8], rng: &mut StdRng) -> (Vec<u8>, String) {
    if rng.random_bool(0.5) && !bytes.is_empty() {
        let (at, bit) = (rng.random_range(0..bytes.len()), rng.random_range(0..8));
        let mut spoiled = bytes.to_vec();
        spoiled[at] ^= 1 << bit;
        (spoiled, format!("bit {bit} of byte {at} flipped"))
    } else {
        let length = rng.random_range(0..bytes.len());
        (bytes[..length].to_vec(), format!("cut to {length} bytes"))
    }
}

/// A server that archived, was backed up twice and has a quarantined segment, and the repository of that.
fn archived<'a>(install: &'a PgInstall, dir: &'a TestDir) -> Result<Site<'a>> {
    let mut site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    site.production.start()?;
    site.archive_all()?;
    site.walden(&["backup"])?.exited(0)?;
    site.production
        .psql("CREATE TABLE t AS SELECT g FROM generate_series(1, 30000) g")?;
    site.walden(&["backup"])?.exited(0)?;
    site.production
        .psql("INSERT INTO t SELECT g FROM generate_series(1, 30000) g")?;
    site.archive_all()?;
    site.production.stop(StopMode::Fast)?;
    Ok(site)
}

#[test]
fn every_object_that_rots_is_named() {
    on_version(17, "verify_rot", rot);
}

#[expect(
    clippy::print_stderr,
    reason = "the seed, and how many cases there were"
)]
fn rot(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let site = archived(install, dir)?;
    let bed = Bed {
        root: site.repository(),
        runtime: tokio::runtime::Runtime::new()?,
    };
    site.walden(&["verify"])?.exited(0)?;
    let good = bed.verify(VerifyMode::All)?;
    ensure!(good.worst().is_none(), "a good archive: {:?}", found(&good));

    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let whole: BTreeMap<String, (PathBuf, Vec<u8>)> = objects(&bed.root)?
        .into_iter()
        .map(|(key, path)| Ok((key, (path.clone(), fs::read(path)?))))
        .collect::<Result<_>>()?;
    // What hides other objects when it is damaged has rounds of its own.
    let hides =
        |key: &str| key == "walden.json" || key.contains("/identity/") || key.contains("/commits/");
    let mut cases = 0;
    for round in 0..60 {
        let mut spoiled = BTreeMap::new();
        for (key, (path, bytes)) in whole.iter().filter(|(key, _)| !hides(key)) {
            let (changed, how) = spoil(bytes, &mut rng);
            fs::write(path, changed)?;
            spoiled.insert(key, how);
        }
        let report = bed.verify(VerifyMode::All)?;
        let named = found(&report);
        for (key, how) in spoiled {
            cases += 1;
            let kind = named.iter().find(|(_, subject)| subject == key);
            ensure!(
                kind.is_some(),
                "seed {seed}, round {round}: {key}, {how}, was not found in {named:?}"
            );
        }
        for (path, bytes) in whole.values() {
            fs::write(path, bytes)?;
        }
        forget_events(&bed.root, &whole)?;
    }
    for round in 0..60 {
        for (key, (path, bytes)) in whole.iter().filter(|(key, _)| hides(key)) {
            let (changed, how) = spoil(bytes, &mut rng);
            fs::write(path, changed)?;
            let named = found(&bed.verify(VerifyMode::Names)?);
            let is_named = named.iter().any(|(kind, subject)| {
                subject == key
                    || (key == "walden.json" && *kind == FindingKind::RegistrationDamaged)
            });
            ensure!(
                is_named,
                "seed {seed}, round {round}: {key}, {how}, was not found in {named:?}"
            );
            cases += 1;
            fs::write(path, bytes)?;
            forget_events(&bed.root, &whole)?;
        }
    }
    eprintln!("{cases} cases");
    ensure!(cases > 1000, "{cases} cases are too few");
    let again = bed.verify(VerifyMode::All)?;
    ensure!(
        again.worst().is_none(),
        "the archive is good again: {:?}",
        found(&again)
    );
    Ok(())
}

/// Removes the results that verifies kept meanwhile.
fn forget_events(root: &Path, whole: &BTreeMap<String, (PathBuf, Vec<u8>)>) -> Result<()> {
    for (key, path) in objects(root)? {
        if key.contains("/events/") && !whole.contains_key(&key) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[test]
fn each_kind_of_trouble_has_its_name_and_its_exit_code() {
    on_version(17, "verify_kinds", kinds);
}

fn kinds(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let site = archived(install, dir)?;
    let root = site.repository();
    let keys: Vec<String> = objects(&root)?.into_keys().collect();
    let one = |wanted: &dyn Fn(&str) -> bool| {
        let key = keys.iter().find(|key| wanted(key)).cloned();
        key.context("an object of that sort")
    };
    let segments: Vec<&String> = keys
        .iter()
        .filter(|key| key.contains("/wal/") && key.len() > 40 && !key.contains("backup"))
        .collect();
    let behind = segments
        .iter()
        .rev()
        .nth(1)
        .context("segments")?
        .to_string();
    let backups = site.backups()?;
    let first: BackupId = backups[0].id.parse()?;
    let pack = one(&|key| key.contains(first.as_str()) && key.contains("/packs/"))?;
    let names = one(&|key| key.contains("/names/"))?;
    let expect = |args: &[&str], code: i32, kinds: &[FindingKind]| -> Result<serde_json::Value> {
        let args = [&["verify", "--json"], args].concat();
        let said = site.walden(&args)?.exited(code)?;
        let json: serde_json::Value = serde_json::from_str(&said.stdout)?;
        let all = &json["repositories"][0]["findings"];
        for kind in kinds {
            let has = all
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["kind"] == kind.id()));
            ensure!(has, "{} was expected in {all:#}", kind.id());
        }
        Ok(json)
    };
    let away = |key: &str, test: &dyn Fn() -> Result<()>| -> Result<()> {
        let (path, aside) = (root.join(key), dir.join("aside"));
        fs::rename(&path, &aside)?;
        let tested = test().with_context(|| format!("without {key}"));
        fs::rename(&aside, &path)?;
        tested
    };

    // WAL behind the backups: a gap. Exit codes are the same for every mode.
    away(&behind, &|| {
        let json = expect(&["--mode", "names"], 11, &[FindingKind::SegmentsMissing])?;
        let shortened = &json["repositories"][0]["findings"][0]["shortened_backups"];
        ensure!(
            shortened.as_array().map(Vec::len) == Some(2),
            "both windows end there: {json:#}"
        );
        Ok(())
    })?;
    // A pack that is not there: the backup is lost, and the listing tells.
    away(&pack, &|| {
        let json = expect(&["--mode", "names"], 10, &[FindingKind::PackMissing])?;
        let lost = &json["repositories"][0]["findings"][0]["lost_backups"][0];
        ensure!(*lost == first.as_str(), "{json:#}");
        Ok(())
    })?;
    away(&names, &|| {
        expect(&[], 10, &[FindingKind::NamesDamaged]).map(drop)
    })?;
    away("walden.json", &|| {
        expect(&[], 12, &[FindingKind::Unreachable]).map(drop)
    })?;
    expect(
        &["--backup", "20200101T000000Z-00000000"],
        12,
        &[FindingKind::BackupUnknown],
    )?;
    expect(&["--backup", first.as_str()], 0, &[])?;

    // A whole pack in another one's place.
    let other = one(&|key| !key.contains(first.as_str()) && key.contains("/packs/"))?;
    let (mine, theirs) = (fs::read(root.join(&pack))?, fs::read(root.join(&other))?);
    fs::write(root.join(&pack), &theirs)?;
    let said = site.walden(&["verify", "--json"])?.exited(10)?;
    let named = ["pack-damaged", "pack-missing"];
    ensure!(
        named.iter().any(|kind| said.stdout.contains(kind)),
        "{}",
        said.stdout
    );
    fs::write(root.join(&pack), &mine)?;

    // Strays and unfinished backups are named, and no fault.
    let system = pack.split('/').nth(1).context("a system identifier")?;
    fs::write(root.join(format!("main/{system}/what-is-this")), "?")?;
    let started = one(&|key| key.ends_with("started.json"))?;
    let begun = format!("main/{system}/backups/20260101T000000Z-0badcafe");
    fs::create_dir(root.join(&begun))?;
    let bytes = fs::read(root.join(&started))?;
    fs::write(root.join(&begun).join("started.json"), bytes)?;
    expect(
        &["--mode", "names"],
        0,
        &[FindingKind::Stray, FindingKind::BackupRunning],
    )?;
    fs::remove_dir_all(root.join(&begun))?;
    let said = site.walden(&["list-backups"])?.exited(0)?;
    ensure!(said.stdout.contains("\nverified 20"), "{}", said.stdout);
    Ok(())
}

#[test]
fn new_reads_what_is_new() {
    on_version(17, "verify_new_reads", new_reads);
}

fn new_reads(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = archived(install, dir)?;
    let bed = Bed {
        root: site.repository(),
        runtime: tokio::runtime::Runtime::new()?,
    };
    let first = bed.verify(VerifyMode::New)?;
    ensure!(
        first.systems[0].since.is_none(),
        "nothing was proven before"
    );
    let all = first.systems[0].objects;
    // What was stored in the hour before the newest that was proven is read again: so all but one object become older than that. Of two
    // results in one second either may count, so the first goes.
    let aged = |wanted: &dyn Fn(&str) -> bool, days: u64| -> Result<()> {
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(86_400 * days);
        for (_, path) in objects(&bed.root)?.iter().filter(|(key, _)| wanted(key)) {
            fs::File::options()
                .append(true)
                .open(path)?
                .set_modified(at)?;
        }
        Ok(())
    };
    let is_event = |key: &str| key.contains("/events/");
    for (_, path) in objects(&bed.root)?.iter().filter(|(key, _)| is_event(key)) {
        fs::remove_file(path)?;
    }
    let mut keys = objects(&bed.root)?.into_keys();
    let last = keys.rfind(|key| key.contains("/wal/"));
    let last = last.context("a segment")?;
    aged(&|_| true, 3)?;
    aged(&|key| key == last, 1)?;
    bed.verify(VerifyMode::All)?;
    aged(&is_event, 3)?;
    site.production.start()?;
    site.production.psql("INSERT INTO t SELECT 1")?;
    site.archive_all()?;
    let second = bed.verify(VerifyMode::New)?;
    ensure!(second.worst().is_none(), "{:?}", found(&second));
    let read = second.systems[0].objects;
    ensure!(
        second.systems[0].since.is_some(),
        "it goes on from the last good one"
    );
    ensure!(
        (1..10).contains(&read) && read * 3 < all,
        "{read} objects were read, and {all} before"
    );
    Ok(())
}
