//! Encryption: the database host has public keys alone, and whoever has an identity brings the cluster back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt;
use walden_integration::{Said, Site, files, wait_open, wait_paused};
use walden_testkit::{
    Cluster, PgInstall, S3Server, StopMode, TestDir, on_version, pg_verifybackup, run,
    run_as_server,
};

const FORMAT: &str = include_str!("../../docs/FORMAT.md");
const SCRIPT: &str = include_str!("../../docs/recover-by-hand.py");

/// Stands in rows, in WAL, in a table's name and in a backup's files. Short, so that no compression takes it apart.
const CANARY: &str = "canaryinthemine";

const COUNT: &str = "SELECT count(*) FROM canaryinthemine";

/// A pair of keys, made by age's own program.
struct Key {
    file: PathBuf,
    recipient: String,
}

fn key(dir: &TestDir, name: &str) -> Result<Key> {
    let made = run(&mut Command::new("age-keygen"))?;
    let recipient = made
        .lines()
        .find_map(|line| line.strip_prefix("# public key: "))
        .with_context(|| format!("age-keygen names no public key: {made}"))?;
    let file = dir.server_file(name, &made)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    Ok(Key {
        recipient: recipient.to_owned(),
        file,
    })
}

/// Writes a configuration with these lines of `encryption`.
fn configure(site: &Site<'_>, name: &str, encryption: &str) -> Result<()> {
    let file = site.configure(name, &site.production, "")?;
    let text = fs::read_to_string(file)?;
    let text = format!("{text}encryption:\n{encryption}");
    site.dir.server_file(name, text).map(drop)
}

fn recipients(keys: &[&Key]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| key.recipient.as_str()).collect();
    format!("  recipients: [{}]\n", keys.join(", "))
}

fn identity(key: &Key) -> String {
    format!("  identity_file: {}\n", key.file.display())
}

/// A started cluster that archives with public keys alone.
fn encrypting<'a>(
    install: &'a PgInstall,
    dir: &'a TestDir,
    place: &str,
    to: &[&Key],
) -> Result<Site<'a>> {
    let mut site = Site::unregistered(install, dir, place, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    configure(&site, "walden.yaml", &recipients(to))?;
    site.walden(&["init"])?.exited(0)?;
    site.production.start()?;
    site.production.psql(&format!(
        "CREATE TABLE {CANARY} AS SELECT i, '{CANARY}' || i AS t FROM generate_series(1, 1000) i"
    ))?;
    site.archive_all()?;
    Ok(site)
}

/// `walden` with another configuration.
fn with(site: &Site<'_>, config: &str, args: &[&str]) -> Result<Said> {
    Said::run(&mut site.command(config, args)?)
}

fn restore(site: &Site<'_>, config: &str, name: &str, args: &[&str]) -> Result<Cluster> {
    let directory = site.dir.join(name);
    let text = directory.display().to_string();
    with(site, config, &[&["restore", &text], args].concat())?.exited(0)?;
    pg_verifybackup(site.install, &directory, &[])?;
    Cluster::adopt(site.install, site.dir, name, directory)
}

fn add_row(site: &Site<'_>) -> Result<()> {
    site.production
        .psql(&format!("INSERT INTO {CANARY} VALUES (0, '{CANARY}')"))
        .map(drop)
}

#[test]
fn the_host_has_public_keys_alone_and_each_identity_brings_the_cluster_back() {
    on_version(17, "encrypted", whole_way);
}

fn whole_way(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let (one, two, three) = (key(dir, "one")?, key(dir, "two")?, key(dir, "three")?);
    let folder = format!("path: {}", dir.join("repository").display());
    let site = encrypting(install, dir, &folder, &[&one, &two])?;
    configure(&site, "one.yaml", &identity(&one))?;
    let command = format!("  identity_command: [cat, {}]\n", two.file.display());
    configure(&site, "two.yaml", &command)?;
    configure(&site, "three.yaml", &identity(&three))?;
    configure(&site, "plain.yaml", "  {}\n")?;

    dir.server_dir("fetched")?;
    let first = site.backup(&[])?;
    add_row(&site)?;
    let time = site.production.psql("SELECT now()")?;
    add_row(&site)?;
    let last = site.archive_all()?;

    // What can be told without a secret key is told.
    for args in [&["list-backups"], &["windows"]] {
        site.walden(args)?.exited(0)?;
    }
    site.refused("refused", &[], &["encryption.identity_file"])?;
    let target = dir.join("refused").display().to_string();
    with(&site, "three.yaml", &["restore", &target])?
        .exited(1)?
        .naming(&["encrypted for others"])?;
    for config in ["walden.yaml", "three.yaml"] {
        fetch(&site, config, &last)?
            .exited(203)?
            .naming(&["encrypted"])?;
    }
    fs::set_permissions(&one.file, fs::Permissions::from_mode(0o644))?;
    fetch(&site, "one.yaml", &last)?
        .exited(203)?
        .naming(&["chmod 600"])?;
    fs::set_permissions(&one.file, fs::Permissions::from_mode(0o600))?;
    fetch(&site, "one.yaml", &last)?.exited(0)?;

    nothing_in_clear(&site)?;
    pushes_again(&site, &last)?;

    let target = ["--target-time", time.as_str()];
    for (config, name) in [("one.yaml", "restored-one"), ("two.yaml", "restored-two")] {
        let mut restored = restore(&site, config, name, &target)?;
        restored.start()?;
        wait_paused(&restored)?;
        ensure!(
            restored.psql(COUNT)? == "1001",
            "{config} alone should restore to the time"
        );
        restored.stop(StopMode::Fast)?;
    }

    // Rotation: what is written from now on is for another key, and what stands is not written anew.
    configure(&site, "walden.yaml", &recipients(&[&three]))?;
    let second = site.backup(&[])?;
    add_row(&site)?;
    site.archive_all()?;
    let mut restored = restore(
        &site,
        "three.yaml",
        "restored-new",
        &["--backup", &second.id],
    )?;
    restored.start()?;
    wait_open(&restored)?;
    ensure!(
        restored.psql(COUNT)? == "1003",
        "the new key restores the new backup"
    );
    restored.stop(StopMode::Fast)?;
    // PostgreSQL reads WAL ahead of its target, so that the newer segments must open, too.
    let both = [fs::read(&one.file)?, fs::read(&three.file)?].concat();
    let both = dir.server_file("both", both)?;
    fs::set_permissions(&both, fs::Permissions::from_mode(0o600))?;
    let both = format!("  identity_file: {}\n", both.display());
    configure(&site, "both.yaml", &both)?;
    let args = [["--backup", first.id.as_str()], target].concat();
    let mut restored = restore(&site, "both.yaml", "restored-old", &args)?;
    restored.start()?;
    wait_paused(&restored)?;
    ensure!(
        restored.psql(COUNT)? == "1001",
        "the old backup is restored with the old key, while the new one is kept beside it"
    );
    restored.stop(StopMode::Fast)?;

    by_hand(&site, &one, &last, &first.id)
}

fn fetch(site: &Site<'_>, config: &str, file: &str) -> Result<Said> {
    let line = format!(
        "cd {} && walden-wal-fetch --config {} {file} {}",
        site.production.pgdata().display(),
        site.dir.join(config).display(),
        site.dir.join("fetched").join(file).display()
    );
    Said::run(&mut site.shell(&line)?)
}

fn push(site: &Site<'_>, config: &str, path: &Path) -> Result<Said> {
    let line = format!(
        "walden-wal-push --config {} --pgdata {} {}",
        site.dir.join(config).display(),
        site.production.pgdata().display(),
        path.display()
    );
    Said::run(&mut site.shell(&line)?)
}

/// PostgreSQL does ask twice. Who cannot read the archive knows the same bytes, and others.
fn pushes_again(site: &Site<'_>, file: &str) -> Result<()> {
    let same = site.dir.join("fetched").join(file);
    push(site, "walden.yaml", &same)?.exited(0)?;
    let mut bytes = fs::read(&same)?;
    *bytes.get_mut(9000).context("a whole segment")? ^= 1;
    site.dir.server_dir("other")?;
    let other = site.dir.server_file(&format!("other/{file}"), &bytes)?;
    push(site, "walden.yaml", &other)?
        .exited(1)?
        .naming(&["other bytes", "what is archived is encrypted"])?;

    // No secret key is needed to see that what is archived is no longer whole.
    let stored = site.stored(file)?;
    let whole = fs::read(&stored)?;
    let mut damaged = whole.clone();
    *damaged.get_mut(whole.len() / 2).context("an object")? ^= 1;
    fs::write(&stored, &damaged)?;
    let said = push(site, "walden.yaml", &same)?;
    fs::write(&stored, &whole)?;
    said.exited(1)?.naming(&["is damaged"])?;

    // Nothing gets in there in clear.
    push(site, "plain.yaml", &same)?
        .exited(1)?
        .naming(&["encryption.recipients"])?;
    with(site, "plain.yaml", &["backup"])?
        .exited(1)?
        .naming(&["encryption.recipients"])
        .map(drop)
}

/// Whoever has the repository finds nothing of the rows and their table in it.
fn nothing_in_clear(site: &Site<'_>) -> Result<()> {
    let canary = CANARY.as_bytes();
    let holds = |path: &Path| -> Result<bool> {
        let bytes = fs::read(path)?;
        // Packed or not.
        let content = match path.extension().is_some_and(|name| name == "zst") {
            true => zstd_content(&bytes)?,
            false => Vec::new(),
        };
        Ok([bytes, content]
            .iter()
            .any(|bytes| bytes.windows(canary.len()).any(|window| window == canary)))
    };
    let mut kinds = Vec::new();
    for path in files(&site.repository())?.into_keys() {
        ensure!(!holds(&path)?, "{} tells of {CANARY}", path.display());
        kinds.push(path.to_string_lossy().into_owned());
    }
    for kind in ["/wal/", "/packs/", "/files/", "/names/"] {
        ensure!(
            kinds.iter().any(|path| path.contains(kind)),
            "the repository should have {kind}: {kinds:?}"
        );
    }
    let fetched = site.dir.join("fetched");
    let plain = files(&fetched)?
        .into_keys()
        .try_fold(false, |found, path| {
            let bytes = fs::read(path)?;
            let here = bytes.windows(canary.len()).any(|window| window == canary);
            Ok::<_, anyhow::Error>(found | here)
        })?;
    ensure!(
        plain,
        "the fetched WAL should tell of {CANARY}, or this looks for nothing"
    );
    Ok(())
}

/// What `zstd -d` makes of it, however far it gets.
fn zstd_content(bytes: &[u8]) -> Result<Vec<u8>> {
    use std::io::Write;
    let mut zstd = Command::new("zstd")
        .args(["-dcq"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    let mut stdin = zstd.stdin.take().context("zstd's input")?;
    let bytes = bytes.to_vec();
    let feeding = std::thread::spawn(move || {
        // It stops reading where it can make nothing of it.
        let _ = stdin.write_all(&bytes);
    });
    let output = zstd.wait_with_output()?;
    feeding.join().ok().context("feeding zstd")?;
    Ok(output.stdout)
}

/// FORMAT.md's "Recovery by hand", with the public programs.
fn by_hand(site: &Site<'_>, key: &Key, file: &str, backup: &str) -> Result<()> {
    let system = site
        .production
        .psql("SELECT system_identifier FROM pg_control_system()")?;
    let chapter = FORMAT.split("\n## Recovery by hand\n").nth(1);
    let blocks: Vec<&str> = chapter
        .unwrap_or_default()
        .split("\n```sh\n")
        .skip(1)
        .filter_map(|part| part.split("\n```").next())
        .collect();
    let [_, segment, script] = blocks.as_slice() else {
        anyhow::bail!("three blocks expected in FORMAT.md: {blocks:?}");
    };
    site.dir.server_dir("checkout")?;
    site.dir.server_dir("checkout/docs")?;
    site.dir
        .server_file("checkout/docs/recover-by-hand.py", SCRIPT)?;
    let target = site.dir.join("by-hand");
    let arguments = format!("{} --identity {}", target.display(), key.file.display());
    let shell = |block: &str| {
        let text = block
            .replace("REPOSITORY", &site.repository().display().to_string())
            .replace("SYSTEM-ID", &system)
            .replace("000000010000000000000003", file)
            .replace("IDENTITY", &key.file.display().to_string())
            .replace("CLUSTER", "main")
            .replace("BACKUP-ID", backup)
            .replace("TARGET-DIRECTORY", &arguments);
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", &text])
            .current_dir(site.dir.join("checkout"));
        run(&mut run_as_server(shell)?)
    };
    let said = shell(segment)?;
    let digests: Vec<&str> = said
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|word| word.len() == 64)
        .collect();
    ensure!(
        matches!(digests.as_slice(), [tail, file] if tail == file),
        "the tail's digest and sha256sum's should be the same: {said}"
    );
    // Later segments are for another key: the program says which.
    let refused = shell(script)
        .err()
        .context("the newer WAL is for another key")?;
    ensure!(
        format!("{refused:#}").contains("cannot be opened with"),
        "the object that is for another key should be named: {refused:#}"
    );
    Ok(())
}

#[test]
fn an_encrypted_cluster_comes_back_by_hand() {
    on_version(14, "encrypted_by_hand", |install, dir| {
        let one = key(dir, "one")?;
        let folder = format!("path: {}", dir.join("repository").display());
        let site = encrypting(install, dir, &folder, &[&one])?;
        let backup = site.backup(&[])?;
        site.archive_all()?;
        let system = site
            .production
            .psql("SELECT system_identifier FROM pg_control_system()")?;
        ensure!(!system.is_empty(), "a system identifier");
        let script = site.dir.server_file("recover-by-hand.py", SCRIPT)?;
        let target = dir.join("by-hand");
        let line = format!(
            "python3 {} {} main {} {} --identity {}",
            script.display(),
            site.repository().display(),
            backup.id,
            target.display(),
            one.file.display()
        );
        Said::run(&mut site.shell(&line)?)?.exited(0)?;
        pg_verifybackup(install, &target, &[])
    });
}

#[test]
fn an_encrypted_cluster_comes_back_from_a_bucket() {
    on_version(17, "encrypted_bucket", |install, dir| {
        let server = S3Server::s3s_fs()?;
        let one = key(dir, "one")?;
        let credentials = dir.server_file("credentials", server.credentials())?;
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600))?;
        let place = format!(
            "s3: {{ bucket: {}, region: {}, endpoint: '{}', credentials_file: {}, create_only: claims }}",
            S3Server::BUCKET,
            server.region(),
            server.endpoint(),
            credentials.display()
        );
        let site = encrypting(install, dir, &place, &[&one])?;
        configure(&site, "one.yaml", &identity(&one))?;
        site.backup(&[])?;
        add_row(&site)?;
        site.archive_all()?;
        let windows = with(&site, "one.yaml", &["windows"])?.exited(0)?;
        ensure!(!windows.stdout.is_empty(), "windows should be told");
        let mut restored = restore(&site, "one.yaml", "restored", &[])?;
        restored.start()?;
        wait_open(&restored)?;
        ensure!(restored.psql(COUNT)? == "1001", "every row comes back");
        restored.stop(StopMode::Fast)
    });
}
