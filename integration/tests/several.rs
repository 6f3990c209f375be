//! Two repositories read as one archive: what one lacks, has lost, or cannot give, the other gives; and what none of them may be taken for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use walden_integration::{Said, Site, files, wait_open};
use walden_testkit::{PgInstall, StopMode, TestDir, on_version, run};

/// With `here`, which the production archives into, and `there`.
const BOTH: &str = "both.yaml";

#[test]
fn a_fetch_goes_on_to_the_next_repository_and_proves_absences_in_all() {
    on_version(17, "several_fetch", fetches);
}

#[test]
fn the_list_says_what_each_repository_lacks_and_copy_makes_it_good() {
    on_version(17, "several_list", lists);
}

#[test]
fn a_restore_takes_from_each_repository_what_the_other_has_lost() {
    on_version(17, "several_restore", restores);
}

#[test]
fn a_standby_goes_on_when_the_first_repository_goes_away() {
    on_version(17, "several_standby", standby);
}

struct Scene<'a> {
    site: Site<'a>,
    here: PathBuf,
    there: PathBuf,
}

impl<'a> Scene<'a> {
    /// A production that archives `here`, and has a table.
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let mut site = Site::new(install, dir, |builder| {
            builder.conf("wal_retrieve_retry_interval", "200ms")
        })?;
        site.production.start()?;
        site.production.psql("CREATE TABLE kept (n int)")?;
        let (here, there) = (site.repository(), dir.join("there"));
        let text = format!(
            "log_level: info\nclusters: {{ main: {{ pgdata: {} }} }}\nrepositories:\n  - {{ name: here, path: {} }}\n  - {{ name: there, path: {}, required: false }}\nfetch: {{ retry_for: 1ms, ahead: 0 }}\n",
            site.production.pgdata().display(),
            here.display(),
            there.display()
        );
        dir.server_file(BOTH, text)?;
        dir.server_dir("there")?;
        dir.server_dir("fetched")?;
        let scene = Self { site, here, there };
        scene.walden(&["init"])?.exited(0)?;
        Ok(scene)
    }

    /// A row in a segment of its own, archived.
    fn segment(&self) -> Result<String> {
        self.site
            .production
            .psql("INSERT INTO kept SELECT coalesce(max(n), 0) + 1 FROM kept")?;
        self.site.archive_all()
    }

    /// `there` gets what `here` has now.
    fn copy(&self) -> Result<()> {
        self.walden(&["copy", "--from", "here", "--to", "there"])?
            .exited(0)
            .map(drop)
    }

    fn walden(&self, args: &[&str]) -> Result<Said> {
        Said::run(&mut self.site.command(BOTH, args)?)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let said = self.walden(args)?.exited(0)?;
        serde_json::from_str(&said.stdout).with_context(|| format!("JSON of {args:?}"))
    }

    fn fetch(&self, file: &str) -> Result<Said> {
        let mut fetch = self
            .site
            .binaries
            .command(self.site.install, "walden-wal-fetch")?;
        fetch
            .arg("--config")
            .arg(self.site.dir.join(BOTH))
            .arg("--pgdata")
            .arg(self.site.production.pgdata())
            .arg(file)
            .arg(self.site.dir.join("fetched").join("RECOVERYXLOG"));
        Said::run(&mut fetch)
    }

    fn serves(&self, file: &str, repository: &str) -> Result<Said> {
        let served = format!(", from \"{repository}\"");
        self.fetch(file)?.exited(0)?.naming(&[file, &served])
    }
}

/// The one stored object of a WAL file.
fn stored(repository: &Path, file: &str) -> Result<PathBuf> {
    let suffix = format!("{file}.zst");
    let mut found = files(repository)?.into_keys();
    found
        .find(|path| path.ends_with(&suffix))
        .with_context(|| format!("{file} in {repository:?}"))
}

/// Flips a bit in the middle of a file.
fn damage(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).context("an empty file")? ^= 1;
    fs::remove_file(path)?;
    Ok(fs::write(path, bytes)?)
}

/// What a folder is that is not mounted: another, empty one of its name.
fn unmount(repository: &Path) -> Result<PathBuf> {
    let away = repository.with_extension("away");
    fs::rename(repository, &away)?;
    fs::create_dir(repository)?;
    Ok(away)
}

fn mount(repository: &Path, away: &Path) -> Result<()> {
    fs::remove_dir(repository)?;
    Ok(fs::rename(away, repository)?)
}

fn after(segment: &str) -> Result<String> {
    let number = u64::from_str_radix(segment.get(8..).context("a segment")?, 16)?;
    Ok(format!("00000001{:016X}", number + 1))
}

fn fetches(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    scene.segment()?;
    let segments = [scene.segment()?, scene.segment()?, scene.segment()?];
    let [first, second, last] = &segments;
    let next = after(last)?;
    scene.copy()?;
    let (here, there) = (&scene.here, &scene.there);

    scene.serves(first, "here")?;
    fs::remove_file(stored(here, first)?)?;
    scene.serves(first, "there")?;
    damage(&stored(here, second)?)?;
    scene
        .serves(second, "there")?
        .naming(&["WARN", "\"here\" has nothing usable"])?;
    scene.fetch(&next)?.exited(1)?;

    // Neither is damage an absence, nor an absence a hole's end.
    fs::remove_file(stored(there, second)?)?;
    scene.fetch(second)?.exited(201)?;
    fs::remove_file(stored(here, second)?)?;
    fs::remove_file(stored(here, last)?)?;
    // Behind it only the other repository has a segment, and the first has none.
    scene.fetch(second)?.exited(202)?.naming(&[last])?;

    scene.copy_back()?;
    let away = unmount(here)?;
    scene
        .serves(last, "there")?
        .naming(&["\"here\" does not answer"])?;
    scene
        .fetch(&next)?
        .exited(200)?
        .naming(&["walden.json", "here"])?;
    mount(here, &away)?;
    let away = unmount(there)?;
    scene.serves(last, "here")?;
    scene.fetch(&next)?.exited(200)?.naming(&["there"])?;
    fs::remove_dir(there)?;
    scene.serves(last, "here")?;
    scene.fetch(&next)?.exited(200)?.naming(&["\"there\""])?;
    fs::rename(&away, there)?;
    scene.fetch(&next)?.exited(1)?;

    // Another server's file stands aside in the repository that did not give the segment.
    let system = files(there)?.into_keys();
    let wal = system.filter_map(|path| {
        let text = path.to_str()?;
        text.find("/wal/")
            .and_then(|at| text.get(..at))
            .map(PathBuf::from)
    });
    let system = wal.max().context("the system identifier's folder")?;
    let aside = system.join("quarantine");
    fs::create_dir(&aside)?;
    fs::write(aside.join(format!("{last}.0123456789abcdef.zst")), "aside")?;
    scene.fetch(last)?.exited(201)?.naming(&["quarantine"])?;
    let list = scene.json(&["list-backups", "--json"])?;
    ensure!(
        list.pointer("/conflicts/0/segment") == Some(&json!(last)),
        "the list should name the conflict: {list}"
    );
    fs::remove_dir_all(&aside)?;

    // Another archive of the same cluster is not mixed with the first one.
    fs::remove_dir_all(there)?;
    dir.server_dir("there")?;
    let alone = format!(
        "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{{ name: there, path: {} }}]\n",
        scene.site.production.pgdata().display(),
        there.display()
    );
    dir.server_file("there.yaml", alone)?;
    Said::run(&mut scene.site.command("there.yaml", &["init"])?)?.exited(0)?;
    scene.serves(last, "here")?;
    scene
        .fetch(&next)?
        .exited(203)?
        .naming(&["archive id", "\"here\"", "\"there\""])?;
    scene
        .walden(&["list-backups"])?
        .exited(0)?
        .naming(&["\"there\" is left out", "archive id"])
        .map(drop)
}

impl Scene<'_> {
    /// `here` gets back what it has lost, from the production's own files.
    fn copy_back(&self) -> Result<()> {
        for path in files(&self.there)?.into_keys() {
            let lost = self.here.join(path.strip_prefix(&self.there)?);
            if !lost.exists() {
                run(Command::new("cp").arg("-a").arg(&path).arg(&lost))?;
            }
        }
        Ok(())
    }
}

fn lists(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    scene.segment()?;
    scene.copy()?;
    let lacks =
        |list: &Value, at: usize| list.pointer(&format!("/repositories/{at}/lacks")).cloned();
    let missing = [scene.segment()?, scene.segment()?];
    scene.site.backup(&[])?;
    let list = scene.json(&["list-backups", "--json"])?;
    let there = lacks(&list, 1).context("what there lacks")?;
    let id = list.pointer("/backups/0/id").cloned().unwrap_or_default();
    ensure!(
        there.get("first_segment") == Some(&json!(missing.first()))
            && there.get("backups") == Some(&json!([id]))
            && there.get("segments").and_then(Value::as_u64) >= Some(2),
        "there should lack the segments from {missing:?} on, and the backup: {list}"
    );
    ensure!(
        lacks(&list, 0).and_then(|lack| lack.get("segments").cloned()) == Some(json!(0))
            && list.pointer("/backups/0/repositories") == Some(&json!(["here"])),
        "here lacks nothing: {list}"
    );

    // Without the one that has it, nobody says that there is no backup.
    let away = unmount(&scene.here)?;
    let table = scene.walden(&["list-backups"])?.exited(0)?;
    ensure!(
        table
            .stdout
            .contains("no backup of cluster main is in a repository that was read")
            && table.stdout.contains("not read: repository \"here\""),
        "what was not read may have one: {}",
        table.stdout
    );
    scene
        .walden(&["restore", &dir.join("none").display().to_string()])?
        .exited(1)?
        .naming(&["repository \"here\" was not read", "walden.json"])?;
    let windows = scene.json(&["windows", "--json"])?;
    ensure!(
        windows.pointer("/unread/0/name") == Some(&json!("here")),
        "windows should name it: {windows}"
    );
    mount(&scene.here, &away)?;

    let table = scene.walden(&["list-backups"])?.exited(0)?.stdout;
    let behind = table.lines().find(|line| line.starts_with("behind: "));
    let command = behind.and_then(|line| line.split_once("with: walden "));
    let (_, command) = command.with_context(|| format!("a command in {table}"))?;
    let words: Vec<&str> = command.split(' ').collect();
    scene.walden(&words)?.exited(0)?;
    let list = scene.json(&["list-backups", "--json"])?;
    ensure!(
        lacks(&list, 1).and_then(|lack| lack.get("segments").cloned()) == Some(json!(0))
            && list.pointer("/backups/0/repositories") == Some(&json!(["here", "there"])),
        "after {command} nothing is lacking: {list}"
    );
    let table = scene.walden(&["list-backups"])?.exited(0)?.stdout;
    ensure!(
        !table.contains("behind"),
        "and nothing is said of it: {table}"
    );
    let alone = scene.site.walden(&["list-backups"])?.exited(0)?.stdout;
    // How long ago the last commit was is another matter each time.
    let of = |table: &str| table.split("would be lost").next().map(str::to_owned);
    ensure!(
        of(&alone) == of(&table),
        "then the list is that of one repository: {alone} {table}"
    );
    let listed = scene.walden(&["wal", "list"])?.exited(0)?.stdout;
    let one = scene.site.walden(&["wal", "list"])?.exited(0)?.stdout;
    ensure!(listed == one, "each file is listed once: {listed}");
    Ok(())
}

fn restores(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut scene = Scene::new(install, dir)?;
    scene
        .site
        .production
        .psql("INSERT INTO kept SELECT generate_series(1, 1000)")?;
    scene.site.archive_all()?;
    let backup = scene.site.backup(&[])?;
    scene.segment()?;
    scene.copy()?;
    let packs = |repository: &Path| -> Result<Vec<PathBuf>> {
        let all = files(repository)?.into_keys();
        Ok(all
            .filter(|path| path.to_string_lossy().contains("/packs/"))
            .collect())
    };
    let maps = files(&scene.here)?.into_keys();
    let map = maps
        .filter(|path| path.to_string_lossy().contains("/files/"))
        .min();
    damage(&map.context("a file map")?)?;
    for (at, pack) in packs(&scene.here)?.iter().enumerate() {
        match at % 2 {
            0 => damage(pack)?,
            _ => fs::remove_file(pack)?,
        }
    }
    let last = scene.segment()?;
    let rows = scene.site.production.psql("SELECT count(*) FROM kept")?;
    scene.site.production.stop(StopMode::Fast)?;
    // What is archived from here on is not what is counted; `there` lacks the last segment.
    let target = dir.join("restored").display().to_string();
    let planned = scene.json(&["restore", &target, "--dry-run", "--json"])?;
    ensure!(
        planned.pointer("/backup/id") == Some(&json!(backup.id)),
        "the plan should begin with the backup: {planned}"
    );
    let restored = scene.json(&["restore", &target, "--json"])?;
    ensure!(
        restored.pointer("/served/there").and_then(Value::as_u64) >= Some(1)
            && restored.pointer("/served/here").is_none(),
        "every pack should come from there: {restored}"
    );
    ensure!(
        stored(&scene.there, &last).is_err(),
        "the last segment should be here alone"
    );
    let mut copy = walden_testkit::Cluster::adopt(install, dir, "restored", target)?;
    // Behind the last segment nothing is proven while one of the two is away, so PostgreSQL must not open the copy.
    let away = unmount(&scene.there)?;
    if copy.try_start()?.is_ok() {
        copy.wait_exit()?;
    }
    ensure!(
        copy.log().contains("walden.json") && copy.log().contains("there"),
        "the log should name what is away: {}",
        copy.log()
    );
    mount(&scene.there, &away)?;
    copy.start()?;
    wait_open(&copy)?;
    let found = copy.psql("SELECT count(*) FROM kept")?;
    ensure!(
        found == rows,
        "every row should be there: {found}, not {rows}"
    );
    Ok(())
}

fn standby(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let scene = Scene::new(install, dir)?;
    scene.site.archive_all()?;
    scene.site.backup(&[])?;
    scene.segment()?;
    scene.copy()?;
    let target = dir.join("standby").display().to_string();
    scene
        .walden(&["restore", &target, "--standby"])?
        .exited(0)?;
    let mut standby = walden_testkit::Cluster::adopt(install, dir, "standby", target)?;
    standby.start()?;
    let count = |n: &str| standby.wait_for("SELECT count(*) FROM kept", n, "the standby to follow");
    count("1")?;
    // The first repository goes away while it recovers; the other goes on with what it gets.
    scene.segment()?;
    count("2")?;
    scene.segment()?;
    scene.copy()?;
    let away = unmount(&scene.here)?;
    count("3")?;
    mount(&scene.here, &away)?;
    scene.segment()?;
    count("4")
}
