//! A database host without its server: real WAL, Walden's programs, and a registered repository.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result, bail, ensure};
use walden_testkit::{
    Binaries, Cluster, PgInstall, StopMode, TestDir, own_by_server, run, run_as_server,
};

/// How a program ended, and what it said.
pub struct Answer {
    call: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    pub fn of(mut command: Command) -> Result<Self> {
        let call = format!("{command:?}");
        let output = command
            .output()
            .with_context(|| format!("cannot start {call}"))?;
        Ok(Self {
            call,
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// It exited with this code.
    pub fn exits(self, code: i32) -> Result<Self> {
        ensure!(
            self.status.code() == Some(code),
            "exit code {code} expected of {}, found {}:\n{}",
            self.call,
            self.status,
            self.stderr
        );
        Ok(self)
    }

    /// It failed in a way that PostgreSQL's archiver counts and tries again after.
    pub fn fails_as_archive_command(self) -> Result<Self> {
        ensure!(
            self.status
                .code()
                .is_some_and(|code| (1..=125).contains(&code)),
            "an exit code from 1 to 125 expected of {}, found {}:\n{}",
            self.call,
            self.status,
            self.stderr
        );
        Ok(self)
    }

    /// What it said on standard error names each of these.
    pub fn says(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(
                self.stderr.contains(text),
                "{text:?} expected of {}, which said:\n{}",
                self.call,
                self.stderr
            );
        }
        Ok(self)
    }

    /// It said nothing of this on standard error.
    pub fn never_says(self, text: &str) -> Result<Self> {
        ensure!(
            !self.stderr.contains(text),
            "no {text:?} expected of {}, which said:\n{}",
            self.call,
            self.stderr
        );
        Ok(self)
    }

    pub fn killed_by(&self, signal: i32) -> bool {
        self.status.signal() == Some(signal)
    }
}

/// WAL of real servers, in segments of 1 MB: a primary, and two standbys promoted at different places of one segment.
pub struct Wal {
    dir: TestDir,
    /// Whole segments of timeline 1, in order.
    pub segments: Vec<String>,
    /// The backup history file's name.
    pub backup: String,
    /// The segment in which both standbys were promoted: a `.partial` on timeline 1, and the first one on timeline 2.
    pub fork: String,
}

impl Wal {
    /// Made once for all tests that run at the same time, and gone after the last of them.
    fn shared(install: &PgInstall) -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Wal>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wal) = shared.upgrade() {
            return Ok(wal);
        }
        let wal = Arc::new(Self::make(install)?);
        *shared = Arc::downgrade(&wal);
        Ok(wal)
    }

    fn make(install: &PgInstall) -> Result<Self> {
        let dir = TestDir::new("shared-wal")?;
        let mut primary = Cluster::builder(install, &dir, "primary")
            .initdb_arg("--wal-segsize=1")
            .conf("fsync", "off")
            // Without a command the archiver waits, and every file stays in pg_wal.
            .conf("archive_mode", "on")
            .conf("archive_command", "")
            .build()?;
        primary.start()?;
        primary.psql("CREATE TABLE t (n int, text text)")?;
        let mut segments = Vec::new();
        for round in 0..4 {
            primary.psql(&format!(
                "INSERT INTO t SELECT {round}, md5(g::text) FROM generate_series(1, 2000) g"
            ))?;
            segments.push(primary.switch_wal()?);
        }
        primary.psql(
            "SELECT pg_backup_start('wal', true); SELECT pg_backup_stop(false); CREATE TABLE before_the_fork ()",
        )?;
        // A fast shutdown would end the segment, and a crash leaves it as it is.
        primary.stop(StopMode::Immediate)?;
        copy(primary.pgdata(), &dir.join("first"))?;
        primary.start()?;
        primary.psql("CREATE TABLE later ()")?;
        primary.stop(StopMode::Immediate)?;
        copy(primary.pgdata(), &dir.join("second"))?;
        let mut fork = String::new();
        for name in ["first", "second"] {
            let mut standby = Cluster::adopt(install, &dir, name, dir.join(name))?;
            standby.append("standby.signal", "")?;
            standby.start()?;
            standby.promote()?;
            standby.psql(&format!("CREATE TABLE {name}_ ()"))?;
            fork = standby.switch_wal()?;
            standby.stop(StopMode::Fast)?;
        }
        let backup = name_in(&dir.join("primary/pg_wal"), ".backup")?;
        let wal = Self {
            segments,
            backup,
            fork,
            dir,
        };
        for side in ["first", "second"] {
            ensure!(
                wal.promoted(side).join(wal.partial()).exists(),
                "the {side} standby should have left {}",
                wal.partial()
            );
        }
        Ok(wal)
    }

    pub fn pgdata(&self) -> PathBuf {
        self.dir.join("primary")
    }

    /// `pg_wal` of the `first` or the `second` standby.
    pub fn promoted(&self, side: &str) -> PathBuf {
        self.dir.join(side).join("pg_wal")
    }

    pub fn partial(&self) -> String {
        format!("00000001{}.partial", self.fork.get(8..).unwrap_or_default())
    }
}

fn name_in(folder: &Path, end: &str) -> Result<String> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(end) {
            return Ok(name);
        }
    }
    bail!("no *{end} in {}", folder.display())
}

/// Reads a file, and names it where it cannot.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Copies a folder with everything in it, owners too.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

/// One test's host and repository.
pub struct Bench<'a> {
    pub install: &'a PgInstall,
    pub dir: &'a TestDir,
    pub binaries: Binaries,
    pub wal: Arc<Wal>,
    /// As much of the data directory as Walden looks at, with the primary's segments.
    pub pgdata: PathBuf,
    /// The repository, which can be unmounted.
    pub mount: PathBuf,
}

impl<'a> Bench<'a> {
    /// With the cluster registered.
    pub fn new(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let bench = Self::unregistered(install, dir)?;
        bench.walden(&["init"])?.exits(0)?;
        Ok(bench)
    }

    pub fn unregistered(install: &'a PgInstall, dir: &'a TestDir) -> Result<Self> {
        let wal = Wal::shared(install)?;
        let pgdata = dir.server_dir("pgdata")?;
        for folder in ["global", "pg_wal"] {
            dir.server_dir(&format!("pgdata/{folder}"))?;
        }
        let bench = Self {
            install,
            dir,
            binaries: Binaries::stage(dir)?,
            wal,
            pgdata,
            mount: dir.server_dir("mount")?,
        };
        for file in ["PG_VERSION", "global/pg_control"] {
            bench.put(
                &bench.pgdata.join(file),
                &read(bench.wal.pgdata().join(file))?,
            )?;
        }
        for segment in &bench.wal.segments {
            let from = bench.wal.pgdata().join("pg_wal").join(segment);
            bench.put(&bench.pg_wal(segment), &read(from)?)?;
        }
        bench.configure("")?;
        Ok(bench)
    }

    /// Writes the configuration; `more` are further lines.
    pub fn configure(&self, more: &str) -> Result<()> {
        self.configure_repository("", more)
    }

    /// Writes the configuration; `keys` are further keys of the repository.
    pub fn configure_repository(&self, keys: &str, more: &str) -> Result<()> {
        let fetch = if more.contains("fetch:") {
            ""
        } else {
            "fetch: { retry_for: 1ms }"
        };
        self.configure_as(&format!(
            "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{{ name: here, path: {}{keys} }}]\n{fetch}\n{more}\n",
            self.pgdata.display(),
            self.mount.display()
        ))
    }

    pub fn configure_as(&self, text: &str) -> Result<()> {
        self.put(&self.config(), text.as_bytes())
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("walden.yaml")
    }

    /// Writes a file as the database host's user would.
    pub fn put(&self, path: &Path, content: &[u8]) -> Result<()> {
        fs::File::create(path)
            .and_then(|mut file| file.write_all(content))
            .with_context(|| format!("cannot write {}", path.display()))?;
        own_by_server(path)
    }

    /// A folder of this test's, in which another file of a known name can stand.
    pub fn elsewhere(&self, folder: &str, name: &str, content: &[u8]) -> Result<PathBuf> {
        if !self.dir.join(folder).exists() {
            self.dir.server_dir(folder)?;
        }
        let path = self.dir.join(folder).join(name);
        self.put(&path, content)?;
        Ok(path)
    }

    pub fn pg_wal(&self, name: &str) -> PathBuf {
        self.pgdata.join("pg_wal").join(name)
    }

    /// The `index`-th whole segment: its name and content.
    pub fn segment(&self, index: usize) -> Result<(String, Vec<u8>)> {
        let name = self.wal.segments.get(index).context("too few segments")?;
        Ok((name.clone(), read(self.pg_wal(name))?))
    }

    /// A program as PostgreSQL starts it: in PGDATA, as the server's user. `before` are a debugger and its options.
    pub fn command(&self, before: &[&str], program: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = match before.split_first() {
            None => self.binaries.command(self.install, program)?,
            Some((debugger, options)) => {
                let mut command = Command::new(debugger);
                self.install.set_environment(&mut command);
                command.args(options).arg(self.binaries.path(program));
                run_as_server(command)?
            }
        };
        command
            .args(arguments)
            .current_dir(&self.pgdata)
            .env("WALDEN_CONFIG", self.config());
        Ok(command)
    }

    pub fn walden(&self, arguments: &[&str]) -> Result<Answer> {
        Answer::of(self.command(&[], "walden", arguments)?)
    }

    pub fn push(&self, path: impl AsRef<Path>) -> Result<Answer> {
        self.push_with(&[], path)
    }

    pub fn push_with(&self, options: &[&str], path: impl AsRef<Path>) -> Result<Answer> {
        let mut command = self.command(&[], "walden-wal-push", options)?;
        command.arg(path.as_ref());
        Answer::of(command)
    }

    /// Pushes a file of `pg_wal` as PostgreSQL does.
    pub fn archive(&self, name: &str) -> Result<Answer> {
        self.push(Path::new("pg_wal").join(name))
    }

    /// Fetches with a relative `%p`, as PostgreSQL does. Whatever it says, no code may pass for a shell's word of a signal.
    pub fn fetch(&self, name: &str, destination: impl AsRef<Path>) -> Result<Answer> {
        let mut command = self.command(&[], "walden-wal-fetch", &[name])?;
        command.arg(destination.as_ref());
        let answer = Answer::of(command)?;
        let code = answer.status.code();
        ensure!(
            code.is_some_and(|code| code <= 1 || (126..=128).contains(&code) || code > 192),
            "no exit code that PostgreSQL takes for something else expected of {}, found {}:\n{}",
            answer.call,
            answer.status,
            answer.stderr
        );
        Ok(answer)
    }

    /// A fetch gives exactly these bytes.
    pub fn gives(&self, name: &str, content: &[u8]) -> Result<()> {
        let destination = self.pg_wal("RECOVERYXLOG");
        self.fetch(name, "pg_wal/RECOVERYXLOG")?.exits(0)?;
        ensure!(
            read(&destination)? == content,
            "{name} should come back as it was pushed"
        );
        Ok(fs::remove_file(&destination)?)
    }

    /// The cluster's folder in the repository.
    pub fn cluster_folder(&self) -> Result<PathBuf> {
        let control = read(self.pgdata.join("global/pg_control"))?;
        let system = control.first_chunk().context("pg_control is too short")?;
        let system = u64::from_le_bytes(*system);
        Ok(self.mount.join("main").join(system.to_string()))
    }

    /// Where a segment's object stands.
    pub fn object(&self, name: &str) -> Result<PathBuf> {
        let timeline = name.get(..8).context("a short name")?;
        let log = name.get(8..16).context("a short name")?;
        let folder = self.cluster_folder()?.join("wal").join(timeline).join(log);
        Ok(folder.join(format!("{name}.zst")))
    }

    /// What the plain `zstd` program makes of an object.
    pub fn unzstd(&self, object: &Path) -> Result<Vec<u8>> {
        let output = Command::new("zstd")
            .arg("-dc")
            .arg(object)
            .output()
            .context("cannot start zstd")?;
        ensure!(
            output.status.success(),
            "zstd should read {}: {}",
            object.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Every object's path and bytes, temporaries aside.
    pub fn objects(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let mut objects = Vec::new();
        let mut folders = vec![self.mount.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    objects.push((entry.path(), read(entry.path())?));
                }
            }
        }
        objects.sort();
        Ok(objects)
    }

    /// Takes the repository away and leaves the empty mount point.
    pub fn unmount(&self) -> Result<()> {
        fs::rename(&self.mount, self.dir.join("away"))?;
        self.dir.server_dir("mount").map(drop)
    }

    pub fn mount_again(&self) -> Result<()> {
        fs::remove_dir(&self.mount).context("the mount point should be empty as it was")?;
        Ok(fs::rename(self.dir.join("away"), &self.mount)?)
    }

    pub fn mode(&self, path: &Path, mode: u32) -> Result<()> {
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
    }
}

/// A small file system in memory. Dropping it unmounts it.
pub struct Disk(PathBuf);

impl Disk {
    /// Mounts it on `path`, for the server's user; `None` where this user may not mount.
    pub fn mount(path: &Path, size: &str) -> Result<Option<Self>> {
        let mounted = Answer::of({
            let mut mount = Command::new("mount");
            mount.args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={size},mode=0755"),
                "tmpfs",
            ]);
            mount.arg(path);
            mount
        })?;
        if !mounted.status.success() {
            eprintln!("skipped: mounting is refused: {}", mounted.stderr);
            return Ok(None);
        }
        own_by_server(path)?;
        Ok(Some(Self(path.to_owned())))
    }

    pub fn remount(&self, option: &str) -> Result<()> {
        let mut mount = Command::new("mount");
        run(mount
            .args(["-o", &format!("remount,{option}")])
            .arg(&self.0))
        .map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--lazy").arg(&self.0)) {
            eprintln!("cannot unmount: {error:#}");
        }
    }
}
