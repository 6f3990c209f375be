//! docs/FORMAT.md's "Recovery by hand", run as it is written: no Walden is needed to get one's data back.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use walden_testkit::{
    Binaries, Cluster, PgInstall, StopMode, TestDir, on_version, pg_verifybackup, run,
    run_as_server,
};

const FORMAT: &str = include_str!("../../docs/FORMAT.md");
const SCRIPT: &str = include_str!("../../docs/recover-by-hand.py");
/// In every row, so that there is something to compare apart from numbers.
const FILL: &str = "repeat(md5(i::text), 20)";

/// An archiving cluster with a tablespace, and its repository.
struct Scene<'a> {
    install: &'a PgInstall,
    dir: &'a TestDir,
    binaries: Binaries,
    production: Cluster,
}

impl<'a> Scene<'a> {
    fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let binaries = Binaries::stage(dir)?;
        let config = dir.join("walden.yaml");
        let push = binaries.path("walden-wal-push");
        let mut production = Cluster::builder(install, dir, "production")
            .conf("fsync", "off")
            .conf("archive_mode", "on")
            .conf(
                "archive_command",
                &format!("{} --config {} %p", push.display(), config.display()),
            )
            .build()?;
        dir.server_file(
            "walden.yaml",
            format!(
                "clusters:\n  main:\n    pgdata: {}\n    connection: {}\n    pg_bin_dir: {}\n    spool_dir: {}\n\
                 repositories:\n  - name: here\n    path: {}\n",
                production.pgdata().display(),
                production.connection_string(),
                install.bin_dir().display(),
                dir.server_dir("spool")?.display(),
                dir.join("repository").display(),
            ),
        )?;
        let scene = Self {
            install,
            dir,
            binaries,
            production: {
                production.start()?;
                production
            },
        };
        scene.walden(&["init"])?;
        Ok(scene)
    }

    fn walden(&self, arguments: &[&str]) -> Result<String> {
        let mut walden = self.binaries.command(self.install, "walden")?;
        run(walden
            .arg("--config")
            .arg(self.dir.join("walden.yaml"))
            .args(arguments))
    }

    /// Runs a block of FORMAT.md, its capital placeholders filled in, in a folder that has `docs/` in it.
    fn shell(&self, block: &str, fill: &[(&str, &str)]) -> Result<String> {
        let mut text = block.to_owned();
        for (placeholder, value) in fill {
            ensure!(
                text.contains(placeholder),
                "FORMAT.md's block should have the placeholder {placeholder}:\n{block}"
            );
            text = text.replace(placeholder, value);
        }
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", &text])
            .current_dir(self.dir.join("checkout"));
        run(&mut run_as_server(shell)?)
    }
}

#[test]
fn a_cluster_comes_back_without_walden() -> Result<()> {
    // The format is the same for all.
    let newest = PgInstall::all()?.pop().context("no PostgreSQL")?;
    on_version(newest.major(), "by_hand", comes_back);
    Ok(())
}

fn comes_back(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut scene = Scene::new(install, dir)?;
    let blocks = by_hand_blocks();
    let [segment, _encrypted, script] = blocks.as_slice() else {
        anyhow::bail!(
            "FORMAT.md should show one segment, one that is encrypted, and one cluster by hand: {blocks:?}"
        );
    };
    let checkout = dir.server_dir("checkout")?;
    dir.server_dir("checkout/docs")?;
    dir.server_file("checkout/docs/recover-by-hand.py", SCRIPT)?;

    let (old_space, new_space) = (dir.server_dir("space")?, dir.join("restored space"));
    let production = &scene.production;
    production.psql(&format!(
        "CREATE TABLESPACE side LOCATION '{}';
         CREATE TABLE plain AS SELECT i, {FILL} AS fill FROM generate_series(1, 5000) AS i;
         CREATE TABLE aside TABLESPACE side AS TABLE plain;
         CREATE UNLOGGED TABLE fleeting AS TABLE plain",
        old_space.display()
    ))?;
    production.wait_archived(&production.switch_wal()?)?;
    scene.walden(&["backup"])?;
    production.psql(&format!(
        "INSERT INTO plain SELECT i, {FILL} FROM generate_series(5001, 6000) AS i;
         INSERT INTO aside SELECT i, {FILL} FROM generate_series(5001, 6000) AS i"
    ))?;
    let expected = production.psql(SUMS)?;
    production.wait_archived(&production.switch_wal()?)?;
    let system = production.psql("SELECT system_identifier FROM pg_control_system()")?;
    let repository = dir.join("repository");

    let stored = "000000010000000000000003";
    let said = scene.shell(
        segment,
        &[("REPOSITORY", text(&repository)?), ("SYSTEM-ID", &system)],
    )?;
    let digests: Vec<&str> = said
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 64)
        .collect();
    ensure!(
        matches!(digests.as_slice(), [tail, file] if tail == file),
        "the tail's digest and sha256sum's should be the same: {said}"
    );
    let by_hand = fs::read(checkout.join(stored))?;
    if let Ok(archived) = fs::read(production.pgdata().join("pg_wal").join(stored)) {
        ensure!(by_hand == archived, "zstd -d should give {stored} itself");
    }

    let id = backup_id(&repository.join("main").join(&system))?;
    let target = dir.join("restored");
    let map = format!(
        "{} '--tablespace={}={}'",
        target.display(),
        old_space.display(),
        new_space.display()
    );
    let unmapped = scene.shell(
        script,
        &[
            ("REPOSITORY", text(&repository)?),
            ("CLUSTER", "main"),
            ("BACKUP-ID", &id),
            ("TARGET-DIRECTORY", text(&target)?),
        ],
    );
    let refusal = format!(
        "{:#}",
        unmapped
            .err()
            .context("it wrote into production's tablespace")?
    );
    ensure!(
        refusal.contains("is not empty") && !target.exists(),
        "production's tablespace should be refused before anything is written: {refusal}"
    );
    let said = scene.shell(
        script,
        &[
            ("REPOSITORY", text(&repository)?),
            ("CLUSTER", "main"),
            ("BACKUP-ID", &id),
            ("TARGET-DIRECTORY", &map),
        ],
    )?;
    pg_verifybackup(install, &target, &["--ignore=tablespace_map"])?;

    let mut restored = Cluster::adopt(install, dir, "by-hand", &target)?;
    for line in advised_settings(&said)? {
        restored.append("postgresql.auto.conf", &format!("{line}\n"))?;
    }
    restored.append("recovery.signal", "")?;
    restored.start()?;
    restored.wait_for("SELECT pg_is_in_recovery()", "f", "the end of recovery")?;
    ensure!(
        restored.psql(SUMS)? == expected,
        "every row committed before the last archived segment's end should be there"
    );
    ensure!(
        restored.psql("SELECT count(*) FROM fleeting")? == "0",
        "unlogged tables come back empty"
    );
    ensure!(
        restored
            .psql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'side'")?
            == text(&new_space)?,
        "the copy should have its own tablespace"
    );
    restored.stop(StopMode::Fast)?;

    damage_is_found(&scene, script, &repository.join("main").join(&system), &id)?;
    scene.production.stop(StopMode::Fast)
}

/// One changed byte in the middle of each sort of object ends the program, which names the object.
fn damage_is_found(scene: &Scene<'_>, script: &str, system: &Path, id: &str) -> Result<()> {
    let backup = system.join("backups").join(id);
    for (number, object) in [
        system.join(format!("commits/{id}.json")),
        backup.join("packs/00000000.zst"),
        backup.join("files/00000000.zst"),
        system.join("wal/00000001/00000000/000000010000000000000003.zst"),
    ]
    .iter()
    .enumerate()
    {
        let whole = fs::read(object)?;
        let mut damaged = whole.clone();
        let middle = damaged.len() / 2;
        *damaged.get_mut(middle).context("an empty object")? ^= 1;
        fs::write(object, &damaged)?;
        let target = scene.dir.join(format!("damaged{number}"));
        let to = format!(
            "{} --no-crc '--tablespace={}={}-space'",
            target.display(),
            scene.dir.join("space").display(),
            target.display()
        );
        let outcome = scene.shell(
            script,
            &[
                ("REPOSITORY", text(&scene.dir.join("repository"))?),
                ("CLUSTER", "main"),
                ("BACKUP-ID", id),
                ("TARGET-DIRECTORY", &to),
            ],
        );
        fs::write(object, &whole)?;
        let error = outcome
            .err()
            .with_context(|| format!("a changed byte in {} went unseen", object.display()))?;
        ensure!(
            format!("{error:#}").contains(&format!("{} is damaged", object.display())),
            "the damaged object should be named, {}: {error:#}",
            object.display()
        );
        ensure!(
            !target.join("global/pg_control").exists(),
            "a directory that lacks something should not be startable"
        );
    }
    Ok(())
}

const SUMS: &str = "SELECT count(*), sum(hashtext(plain::text)) FROM plain
    UNION ALL SELECT count(*), sum(hashtext(aside::text)) FROM aside";

/// The shell blocks of FORMAT.md's last chapter.
fn by_hand_blocks() -> Vec<&'static str> {
    let chapter = FORMAT.split("\n## Recovery by hand\n").nth(1);
    let parts = chapter.unwrap_or_default().split("\n```sh\n").skip(1);
    parts
        .filter_map(|part| part.split("\n```").next())
        .collect()
}

/// The settings that the program tells to write.
fn advised_settings(said: &str) -> Result<Vec<&str>> {
    let names = [
        "restore_command",
        "archive_cleanup_command",
        "recovery_end_command",
        "recovery_min_apply_delay",
        "primary_conninfo",
        "archive_mode",
        "max_logical_replication_workers",
        "synchronous_standby_names",
    ];
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| {
            names
                .iter()
                .any(|name| line.starts_with(&format!("{name} = ")))
        })
        .collect();
    ensure!(
        lines.len() == names.len(),
        "the program should tell {names:?}: {said}"
    );
    Ok(lines)
}

/// The one backup's id.
fn backup_id(system: &Path) -> Result<String> {
    let mut commits = fs::read_dir(system.join("commits"))?;
    let name = commits.next().context("no commit document")??.file_name();
    let name = name.into_string().ok().context("an odd name")?;
    Ok(name.trim_end_matches(".json").to_owned())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
