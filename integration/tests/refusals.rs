//! What cannot be restored is refused before a byte is written, with what is missing and what can be had instead; what is found
//! damaged on the way is named, and leaves nothing that starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Backup, Site, files, wait_open};
use walden_pg::Lsn;
use walden_testkit::{Cluster, Ledger, PgInstall, Target, TestDir, on_version};

#[test]
fn what_cannot_be_reached_is_refused_before_a_byte_is_written() {
    on_version(17, "unreachable", unreachable);
}

#[test]
fn a_missing_segment_is_named_with_what_lies_before_and_behind_it() {
    on_version(17, "gap", gap);
}

#[test]
fn a_damaged_object_is_found_on_the_way_and_leaves_nothing_that_starts() {
    on_version(17, "damaged_object", damaged_object);
}

#[test]
fn what_lies_behind_the_last_commit_is_refused_and_the_latest_is_all_of_it() {
    on_version(17, "behind_all", behind_all);
}

/// An archive with two backups, and commits before, between and behind them.
struct Scene<'a> {
    site: Site<'a>,
    ledger: Ledger,
    first: Backup,
    second: Backup,
    /// Segments between the backups that neither needs for itself.
    between: Vec<String>,
    /// How many commits there were when the first backup began, and when the second did.
    commits_before: [usize; 2],
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut site = Site::new(install, dir, |builder| builder)?;
        site.production.start()?;
        let mut ledger = Ledger::create(&site.production)?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        let before_first = ledger.commits().len();
        let first = site.backup(&[])?;
        let mut between = Vec::new();
        for _ in 0..3 {
            ledger.write(&site.production, 2, 10)?;
            between.push(site.archive_all()?);
        }
        site.production
            .psql("SELECT pg_create_restore_point('between')")?;
        let before_second = ledger.commits().len();
        let second = site.backup(&[])?;
        ledger.write(&site.production, 2, 20)?;
        site.archive_all()?;
        Ok(Self {
            site,
            ledger,
            first,
            second,
            between,
            commits_before: [before_first, before_second],
        })
    }

    fn refused(&self, args: &[&str], words: &[&str]) -> Result<()> {
        self.site.refused("restored", args, words)
    }

    /// Proves that this can be planned, and from which backup.
    fn planned(&self, args: &[&str], backup: &Backup) -> Result<()> {
        let said = self
            .site
            .try_restore("restored", &[args, &["--dry-run", "--json"]].concat())?
            .exited(0)
            .with_context(|| format!("plan of {args:?}"))?;
        let plan: Value = serde_json::from_str(&said.stdout).context("a plan as JSON")?;
        let planned = plan.pointer("/backup/id").and_then(Value::as_str);
        ensure!(
            planned == Some(backup.id.as_str()),
            "{args:?} should begin with {}: {plan}",
            backup.id
        );
        Ok(())
    }

    /// The options that a refusal offers behind `intro`.
    fn offered(&self, args: &[&str], intro: &str) -> Result<Vec<String>> {
        let said = self.site.try_restore("restored", args)?.exited(1)?;
        let (_, offer) = said
            .stderr
            .split_once(intro)
            .with_context(|| format!("no offer behind '{intro}' in: {}", said.stderr))?;
        let words = offer.split_whitespace();
        Ok(words
            .take_while(|word| word.starts_with("--") || !word.chars().all(char::is_alphabetic))
            .map(|word| word.trim_end_matches([';', ',', ':', '.']).to_owned())
            .collect())
    }
}

fn unreachable(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let (first, second) = (&scene.first, &scene.second);

    let zoneless = scene
        .site
        .try_restore("restored", &["--target-time", "2026-11-22 17:50:07"])?;
    zoneless
        .exited(2)?
        .naming(&["has no zone", "2026-11-22 17:50:07Z"])?;

    let earliest: &[&str] = &["before the end of the earliest backup", &first.id];
    for time in [first.started_at, first.stopped_at] {
        scene.refused(&["--target-time", &time.to_string()], earliest)?;
    }
    scene.refused(&["--target-lsn", &first.start_lsn.to_string()], earliest)?;
    let [before_first, before_second] = scene.commits_before;
    let commits = scene.ledger.commits();
    let xid = |at: usize| Ok::<_, anyhow::Error>(commits.get(at).context("few")?.xid.to_string());
    scene.refused(&["--target-xid", &xid(before_first - 1)?], earliest)?;
    scene.planned(&["--target-xid", &xid(before_second - 1)?], first)?;
    scene.planned(&["--target-xid", &xid(before_second + 5)?], second)?;
    let ended = &["it ended after the target", second.id.as_str()];
    let before = xid(before_second - 1)?;
    scene.refused(&["--target-xid", &before, "--backup", &second.id], ended)?;

    let beyond = Lsn(scene.site.production.insert_lsn()?.0 + (1 << 30)).to_string();
    let beyond = ["--target-lsn", beyond.as_str()];
    scene.refused(&beyond, &["lies behind the archived WAL"])?;
    let offer = scene.offered(&beyond, "choose ")?;
    let offer: Vec<&str> = offer.iter().map(String::as_str).collect();
    scene.planned(&offer, second)?;
    let tomorrow = second.stopped_at + std::time::Duration::from_secs(86_400);
    scene.refused(
        &["--target-time", &tomorrow.to_string()],
        &[
            "is not before any commit or abort",
            "last commit is that of",
        ],
    )?;
    scene.refused(&["--target-timeline", "7"], &["timeline 7"])?;

    scene.planned(&["--target-name", "between"], first)?;
    let unknown: &[&str] = &["no restore point \"never made\"", "between"];
    scene.refused(&["--target-name", "never made"], unknown)?;
    scene.planned(&["--target-name", "between", "--backup", &first.id], first)?;
    let unknown = "20200101T000000Z-00000000";
    let known: &[&str] = &["there is no backup", unknown, &first.id, &second.id];
    scene.refused(&["--backup", unknown], known)?;

    let full = dir.server_dir("full")?;
    dir.server_file("full/mine", "precious")?;
    scene.site.refused("full", &[], &["is not empty"])?;
    ensure!(
        fs::read(full.join("mine"))? == b"precious",
        "a file in the way must stay as it is"
    );
    let running = scene.site.try_restore("production", &[])?;
    running.exited(1)?.naming(&["a server runs"])?;
    scene
        .ledger
        .compare(&scene.site.production, &Target::Latest)
}

fn gap(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let missing = scene.between.get(1).context("a segment between")?;
    let object = scene.site.stored(missing)?;
    let aside = dir.join("aside");
    fs::rename(&object, &aside)?;

    let behind = scene.second.start_lsn.to_string();
    let behind = ["--target-lsn", behind.as_str()];
    let words: &[&str] = &["WAL is missing", missing, &scene.second.id];
    scene.refused(&behind, words)?;
    let offer = scene.offered(&behind, "surely with ")?;
    let offer: Vec<&str> = offer.iter().map(String::as_str).collect();
    scene.planned(&offer, &scene.first)?;
    // The second backup lies behind the hole.
    scene.planned(&[], &scene.second)?;
    scene.refused(&["--backup", &scene.first.id], words)?;
    let list = scene.site.list()?;
    let gap = list.pointer("/backups/0/window/first_gap/first");
    ensure!(
        gap.and_then(Value::as_str) == Some(missing),
        "the list should name the gap {missing}: {list}"
    );
    fs::rename(&aside, &object)?;
    scene.planned(&behind, &scene.first)?;

    // Without the WAL of its own time a backup is worth nothing.
    let size = 16 * 1024 * 1024;
    let own = format!("00000001{:08X}{:08X}", 0, scene.second.start_lsn.0 / size);
    let object = scene.site.stored(&own)?;
    fs::rename(&object, &aside)?;
    let words: &[&str] = &["without which it never becomes consistent", &own];
    scene.refused(&["--backup", &scene.second.id], words)?;
    fs::rename(&aside, &object)?;
    scene.planned(&["--backup", &scene.second.id], &scene.second)
}

fn damaged_object(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    let of_second = |folder: &str| -> Result<PathBuf> {
        let all = files(&scene.site.repository())?;
        let found = all.into_keys().find(|path| {
            path.parent().is_some_and(|parent| parent.ends_with(folder))
                && path.to_string_lossy().contains(&scene.second.id)
        });
        found.with_context(|| format!("no {folder} of {}", scene.second.id))
    };
    let asked = ["--backup", scene.second.id.as_str()];

    let pack = of_second("packs")?;
    let name = pack.file_name().context("a name")?.to_string_lossy();
    let size = fs::metadata(&pack)?.len();
    // In a frame of data, and in the table at the end.
    for at in [size / 2, size - 20] {
        flip(&pack, at)?;
        scene
            .site
            .try_restore("broken", &asked)?
            .exited(1)?
            .naming(&[&name, "global/pg_control", "may be removed"])?;
        let control = dir.join("broken/global/pg_control");
        ensure!(!control.exists(), "pg_control must not be there");
        let mut broken = Cluster::adopt(install, dir, "broken", dir.join("broken"))?;
        ensure!(
            broken.try_start()?.is_err(),
            "a directory of a restore that failed must not start"
        );
        fs::remove_dir_all(dir.join("broken"))?;
        fs::remove_dir_all(dir.join("broken.socket"))?;
        flip(&pack, at)?;
    }

    // What the listing can tell is told before a byte is written.
    let aside = dir.join("aside");
    fs::rename(&pack, &aside)?;
    scene.refused(&asked, &["missing", &name])?;
    scene.planned(
        &["--target-lsn", &scene.first.stop_lsn.to_string()],
        &scene.first,
    )?;
    fs::rename(&aside, &pack)?;
    let map = of_second("files")?;
    flip(&map, fs::metadata(&map)?.len() / 2)?;
    let name = map.file_name().context("a name")?.to_string_lossy();
    scene.refused(&asked, &[&name])?;
    flip(&map, fs::metadata(&map)?.len() / 2)?;

    // A damaged commit document hides its own backup, and no other.
    let commit = scene.site.repository();
    let commit = files(&commit)?
        .into_keys()
        .find(|path| path.ends_with(format!("commits/{}.json", scene.second.id)))
        .context("the commit document")?;
    flip(&commit, 40)?;
    let list = scene.site.list()?;
    let key = list.pointer("/damaged_documents/0/key");
    ensure!(
        key.and_then(Value::as_str)
            .is_some_and(|key| key.contains(&scene.second.id)),
        "the list should name the damaged document: {list}"
    );
    scene.planned(&[], &scene.first)?;
    flip(&commit, 40)?;

    let mut restored = scene.site.restore("restored", &asked)?;
    restored.start()?;
    wait_open(&restored)?;
    scene.ledger.compare(&restored, &Target::Latest)
}

/// PostgreSQL would end such a recovery in an error, although all data is there.
fn behind_all(install: &PgInstall, dir: &TestDir) -> Result<()> {
    // Nobody but the ledger commits.
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    let mut ledger = Ledger::create(&site.production)?;
    ledger.write(&site.production, 2, 20)?;
    site.archive_all()?;
    site.backup(&[])?;
    ledger.write(&site.production, 2, 20)?;
    let last = ledger.outcomes().last().context("outcomes")?;
    let behind = (last.time + std::time::Duration::from_micros(1)).to_string();
    site.archive_all()?;
    let all = "leave the target out to restore everything that is archived";
    site.refused("behind", &["--target-time", &behind], &[all])?;
    let unknown = &["no restore point \"never made\""];
    site.refused("unknown", &["--target-name", "never made"], unknown)?;
    let mut restored = site.restore("latest", &[])?;
    restored.start()?;
    wait_open(&restored)?;
    ledger.compare(&restored, &Target::Latest)
}

/// Changes one byte, and changes it back the second time.
fn flip(path: &Path, at: u64) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let byte = bytes
        .get_mut(usize::try_from(at)?)
        .with_context(|| format!("{} is shorter than {at}", path.display()))?;
    *byte ^= 0x20;
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
