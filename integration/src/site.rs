//! A production cluster, a repository, and Walden's own programs between them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use walden_engine::codec::{encode_tail, tail_of};
use walden_pg::Lsn;
use walden_testkit::{
    Binaries, Cluster, ClusterBuilder, PgInstall, Target, TestDir, Timestamp, pg_verifybackup,
    run_as_server,
};

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its result.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

impl Said {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn run(command: &mut Command) -> Result<Self> {
        let output = command
            .output()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Its result, where it exited with `code`.
    ///
    /// # Errors
    /// Where it did not, with all it said.
    pub fn exited(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "exit code {code} expected, found {:?}\nstdout: {}\nstderr: {}",
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Proves that everything else names each of these.
    ///
    /// # Errors
    /// Where one is not named.
    pub fn naming(self, words: &[&str]) -> Result<Self> {
        for word in words {
            ensure!(
                self.stderr.contains(word),
                "'{word}' should be named in: {}",
                self.stderr
            );
        }
        Ok(self)
    }
}

/// A line of `walden list-backups --json`.
#[derive(Debug, Clone)]
pub struct Backup {
    /// For `--backup`.
    pub id: String,
    /// Where it starts.
    pub start_lsn: Lsn,
    /// Where it ends.
    pub stop_lsn: Lsn,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub stopped_at: Timestamp,
    /// All that the list says of it.
    pub json: Value,
}

/// Files with their size, change time and link target: what `find -ls` would show.
pub type Survey = BTreeMap<PathBuf, String>;

/// A production cluster that archives with `walden-wal-push` into a repository, which is in `<dir>/repository` unless it is said to be elsewhere.
#[derive(Debug)]
pub struct Site<'a> {
    /// Its PostgreSQL.
    pub install: &'a PgInstall,
    /// The test's folder.
    pub dir: &'a TestDir,
    /// Walden's programs.
    pub binaries: Binaries,
    /// The cluster.
    pub production: Cluster,
    /// What the configuration says of the repository beside its name.
    place: String,
}

impl<'a> Site<'a> {
    /// Makes and registers the cluster. It is not started.
    ///
    /// # Errors
    /// Where anything on the way fails.
    pub fn new(
        install: &'a PgInstall,
        dir: &'a TestDir,
        customize: impl FnOnce(ClusterBuilder<'a>) -> ClusterBuilder<'a>,
    ) -> Result<Self> {
        let folder = format!("path: {}", dir.join("repository").display());
        let site = Self::unregistered(install, dir, &folder, customize)?;
        site.walden(&["init"])?.exited(0)?;
        Ok(site)
    }

    /// Makes a cluster for a repository at `place`, such as `s3: { bucket: b }`. It is neither registered nor started.
    ///
    /// # Errors
    /// Where anything on the way fails.
    pub fn unregistered(
        install: &'a PgInstall,
        dir: &'a TestDir,
        place: &str,
        customize: impl FnOnce(ClusterBuilder<'a>) -> ClusterBuilder<'a>,
    ) -> Result<Self> {
        let binaries = Binaries::stage(dir)?;
        let push = format!(
            "{} --config {} %p",
            binaries.path("walden-wal-push").display(),
            dir.join("walden.yaml").display()
        );
        let builder = Cluster::builder(install, dir, "production")
            // No power is lost here, and the disk would take most of the time.
            .conf("fsync", "off")
            .conf("archive_mode", "on")
            .conf("archive_command", &push);
        let production = customize(builder).build()?;
        let site = Self {
            install,
            dir,
            binaries,
            production,
            place: place.to_owned(),
        };
        site.configure("walden.yaml", &site.production, "")?;
        Ok(site)
    }

    /// Writes a configuration `<dir>/<name>` for a cluster; `more` are further lines of its mapping.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn configure(&self, name: &str, cluster: &Cluster, more: &str) -> Result<PathBuf> {
        let text = format!(
            "clusters:\n  main:\n    pgdata: {}\n    connection: {}\n{more}\
             repositories:\n  - name: here\n    {}\n",
            cluster.pgdata().display(),
            cluster.connection_string(),
            self.place
        );
        self.dir.server_file(name, text)
    }

    /// The repository's folder, where it is one.
    #[must_use]
    pub fn repository(&self) -> PathBuf {
        self.dir.join("repository")
    }

    /// `walden` with a configuration of the test's folder, as the database host's user.
    ///
    /// # Errors
    /// Where there is no such user.
    pub fn command(&self, config: &str, args: &[&str]) -> Result<Command> {
        let mut walden = self.binaries.command(self.install, "walden")?;
        walden.arg("--config").arg(self.dir.join(config)).args(args);
        Ok(walden)
    }

    /// A shell that runs a command line as the database host's user, with Walden's programs in its path.
    ///
    /// # Errors
    /// Where there is no such user.
    pub fn shell(&self, line: &str) -> Result<Command> {
        let programs = self.binaries.path("walden");
        let programs = programs.parent().context("the programs' folder")?;
        let mut shell = Command::new("sh");
        self.install.set_environment(&mut shell);
        shell
            .args(["-euc", r#"PATH=$1:$PATH; eval "$2""#, "sh"])
            .arg(programs)
            .arg(line);
        run_as_server(shell)
    }

    /// Runs `walden` with the site's own configuration.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn walden(&self, args: &[&str]) -> Result<Said> {
        Said::run(&mut self.command("walden.yaml", args)?)
    }

    /// Takes a backup and returns what the list then says of it.
    ///
    /// # Errors
    /// Where it fails, or the list does not have it.
    pub fn backup(&self, args: &[&str]) -> Result<Backup> {
        self.walden(&[&["backup"], args].concat())?.exited(0)?;
        self.backups()?.pop().context("a backup in the list")
    }

    /// What `walden list-backups --json` prints.
    ///
    /// # Errors
    /// Where it fails or is no JSON.
    pub fn list(&self) -> Result<Value> {
        let said = self.walden(&["list-backups", "--json"])?.exited(0)?;
        serde_json::from_str(&said.stdout).context("list-backups --json prints no JSON")
    }

    /// The backups of the list, oldest first.
    ///
    /// # Errors
    /// Where the list cannot be read.
    pub fn backups(&self) -> Result<Vec<Backup>> {
        let list = self.list()?;
        let backups = list
            .get("backups")
            .and_then(Value::as_array)
            .context("no backups in the list")?;
        let mut backups: Vec<Backup> = backups.iter().map(read_backup).collect::<Result<_>>()?;
        backups.sort_by_key(|backup| backup.stopped_at);
        Ok(backups)
    }

    /// Restores into `<dir>/<name>`, lets `pg_verifybackup` judge it, and returns the cluster, not started.
    ///
    /// # Errors
    /// Where it fails, or `pg_verifybackup` finds anything.
    pub fn restore(&self, name: &str, args: &[&str]) -> Result<Cluster> {
        self.restore_ignoring(name, args, &[])
    }

    /// As [`Site::restore`], where these files are rightly not the backup's.
    ///
    /// # Errors
    /// As [`Site::restore`].
    pub fn restore_ignoring(&self, name: &str, args: &[&str], ignored: &[&str]) -> Result<Cluster> {
        let directory = self.dir.join(name);
        self.try_restore(name, args)?.exited(0)?;
        let ignored: Vec<String> = ignored
            .iter()
            .map(|file| format!("--ignore={file}"))
            .collect();
        let ignored: Vec<&str> = ignored.iter().map(String::as_str).collect();
        pg_verifybackup(self.install, &directory, &ignored)
            .with_context(|| format!("pg_verifybackup of {name}, restored with {args:?}"))?;
        Cluster::adopt(self.install, self.dir, name, directory)
    }

    /// `walden restore` into `<dir>/<name>`, however it ends.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn try_restore(&self, name: &str, args: &[&str]) -> Result<Said> {
        let directory = self.dir.join(name).display().to_string();
        self.walden(&[&["restore", &directory], args].concat())
    }

    /// What `walden restore --dry-run --json` prints.
    ///
    /// # Errors
    /// Where it is refused or prints no JSON.
    pub fn planned(&self, args: &[&str]) -> Result<Value> {
        let said = self
            .try_restore("restored", &[args, &["--dry-run", "--json"]].concat())?
            .exited(0)
            .with_context(|| format!("plan of {args:?}"))?;
        serde_json::from_str(&said.stdout).context("a plan as JSON")
    }

    /// Proves that a restore into `<dir>/<name>` is refused before a byte is written, and that its words name these.
    ///
    /// # Errors
    /// Where it is not.
    pub fn refused(&self, name: &str, args: &[&str], words: &[&str]) -> Result<()> {
        let before = self.around_production()?;
        self.try_restore(name, args)?
            .exited(1)?
            .naming(words)
            .with_context(|| format!("restore {args:?}"))?;
        let after = self.around_production()?;
        ensure!(
            before == after,
            "restore {args:?} was refused, and left something behind: {before:?} before, {after:?} after"
        );
        Ok(())
    }

    /// Everything in the test's folder that the running server does not touch.
    fn around_production(&self) -> Result<Vec<PathBuf>> {
        let mut found: Vec<PathBuf> = survey(self.dir.path())?.into_keys().collect();
        found.retain(|path| !path.starts_with(self.production.pgdata()));
        Ok(found)
    }

    /// Ends the production's segment and waits until it is archived.
    ///
    /// # Errors
    /// Where it is not in two minutes.
    pub fn archive_all(&self) -> Result<String> {
        let last = self.production.switch_wal()?;
        self.production.wait_archived(&last)?;
        Ok(last)
    }

    /// Takes the index out of every stored segment, as a writer would have left them that knows none; how many had one.
    ///
    /// # Errors
    /// Where one cannot be read or written.
    pub fn strip_indexes(&self) -> Result<usize> {
        let mut stripped = 0;
        for path in files(&self.repository())?.into_keys() {
            if !path.to_string_lossy().contains("/wal/") {
                continue;
            }
            let bytes = fs::read(&path)?;
            let Ok(Ok(read)) = tail_of(&bytes) else {
                bail!("{} has no tail", path.display());
            };
            let mut tail = read.tail;
            if tail.index.take().is_none() {
                continue;
            }
            let content = bytes
                .get(..bytes.len() - read.length)
                .context("an object before its tail")?;
            let (tail, _) = encode_tail(&tail)?;
            fs::remove_file(&path)?;
            fs::write(&path, [content, &tail].concat())?;
            stripped += 1;
        }
        Ok(stripped)
    }

    /// A stored segment or other WAL file of the repository.
    ///
    /// # Errors
    /// Where there is not exactly one.
    pub fn stored(&self, file: &str) -> Result<PathBuf> {
        let log = file.get(8..16).unwrap_or_default();
        let short = file.get(16..).unwrap_or_default();
        let suffix = if short.is_empty() {
            format!("{file}.zst")
        } else {
            format!("{}/{log}/{file}.zst", file.get(..8).unwrap_or_default())
        };
        let found: Vec<PathBuf> = files(&self.repository())?
            .into_keys()
            .filter(|path| path.ends_with(&suffix))
            .collect();
        match <[PathBuf; 1]>::try_from(found) {
            Ok([path]) => Ok(path),
            Err(found) => bail!("one object for {file} expected, found {found:?}"),
        }
    }
}

/// The options that ask `walden restore` for a target of the ledger.
#[must_use]
pub fn options(target: &Target) -> Vec<String> {
    let (option, value, inclusive) = match target {
        Target::Latest => return Vec::new(),
        Target::Time { time, inclusive } => ("--target-time", time.to_string(), *inclusive),
        Target::Lsn { lsn, inclusive } => ("--target-lsn", lsn.to_string(), *inclusive),
        Target::Xid { xid, inclusive } => ("--target-xid", xid.to_string(), *inclusive),
        Target::Name(name) => ("--target-name", name.clone(), true),
    };
    let exclusive = (!inclusive).then(|| "--target-exclusive".to_owned());
    [option.to_owned(), value]
        .into_iter()
        .chain(exclusive)
        .collect()
}

/// Waits until recovery stands at its target, read-only.
///
/// # Errors
/// Where it does not get there.
pub fn wait_paused(restored: &Cluster) -> Result<()> {
    restored.wait_for(
        "SELECT pg_get_wal_replay_pause_state()",
        "paused",
        "recovery to reach its target",
    )?;
    ensure!(
        restored.psql("SELECT pg_is_in_recovery()")? == "t",
        "at its target the server should still be in recovery"
    );
    ensure!(
        restored.psql("CREATE TABLE written (n int)").is_err(),
        "at its target the server should be read-only"
    );
    Ok(())
}

/// Waits until recovery has ended by itself.
///
/// # Errors
/// Where it does not.
pub fn wait_open(restored: &Cluster) -> Result<()> {
    restored.wait_for("SELECT pg_is_in_recovery()", "f", "the end of recovery")
}

/// Everything below a folder; links are not followed.
///
/// # Errors
/// Where something cannot be read.
pub fn survey(folder: &Path) -> Result<Survey> {
    let mut found = Survey::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {folder:?}"))? {
            let path = entry?.path();
            // Files of a running server come and go.
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            if meta.is_dir() {
                folders.push(path.clone());
            }
            let target = fs::read_link(&path).unwrap_or_default();
            let text = format!(
                "{:o} {} {}.{:09} {}",
                meta.mode(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec(),
                target.display()
            );
            found.insert(path, text);
        }
    }
    Ok(found)
}

/// The files of [`survey`].
///
/// # Errors
/// Where something cannot be read.
pub fn files(folder: &Path) -> Result<Survey> {
    let mut found = survey(folder)?;
    found.retain(|path, _| path.is_file() || path.is_symlink());
    Ok(found)
}

fn read_backup(json: &Value) -> Result<Backup> {
    let text = |key: &str| {
        json.get(key)
            .and_then(Value::as_str)
            .with_context(|| format!("no {key} in {json}"))
    };
    Ok(Backup {
        id: text("id")?.to_owned(),
        start_lsn: text("start_lsn")?.parse()?,
        stop_lsn: text("stop_lsn")?.parse()?,
        started_at: text("started_at")?.parse()?,
        stopped_at: text("stopped_at")?.parse()?,
        json: json.clone(),
    })
}
