//! PostgreSQL servers to test on.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use walden_pg::{Lsn, TimelineId};

use crate::dir::TestDir;
use crate::install::PgInstall;
use crate::process::{own_by_server, poll, run};

/// What is set in `postgresql.conf` before anything that the test asks for.
const DEFAULTS: &[(&str, &str)] = &[
    ("shared_buffers", "16MB"),
    ("log_line_prefix", "%m [%p] "),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    // The ledger reads each record back from pg_wal, so none may be recycled during a test.
    ("wal_keep_size", "4GB"),
];

/// How `pg_ctl stop` ends a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Disconnects everybody, archives what is left, writes a checkpoint.
    Fast,
    /// As after a crash: what was not written is recovered at the next start.
    Immediate,
}

/// A server that did not start, and what it wrote to its log on the way.
#[derive(Debug)]
pub struct StartFailure {
    /// The log since the start was tried.
    pub log: String,
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server did not start; its log:\n{}", self.log)
    }
}

impl std::error::Error for StartFailure {}

/// What a new cluster is made with; from [`Cluster::builder`].
#[derive(Debug)]
pub struct ClusterBuilder<'a> {
    install: &'a PgInstall,
    dir: &'a TestDir,
    name: &'a str,
    checksums: bool,
    initdb_args: Vec<String>,
    conf: Vec<(String, String)>,
}

impl ClusterBuilder<'_> {
    /// Another argument for `initdb`, such as `--wal-segsize=64`.
    #[must_use]
    pub fn initdb_arg(mut self, arg: &str) -> Self {
        self.initdb_args.push(arg.to_owned());
        self
    }

    /// Whether pages carry checksums; they do unless told otherwise.
    #[must_use]
    pub fn data_checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// A setting in `postgresql.conf`; the value is quoted here.
    #[must_use]
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.conf.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs `initdb`. The cluster is not started.
    ///
    /// # Errors
    /// Where `initdb` fails.
    pub fn build(self) -> Result<Cluster> {
        let cluster = Cluster::adopt(self.install, self.dir, self.name, self.dir.join(self.name))?;
        let mut initdb = self.install.server_command("initdb")?;
        initdb
            .args(["--username=postgres", "--auth=trust", "--no-locale"])
            // The machine is not going to lose power; each file would be synced to disk.
            .args(["--encoding=UTF8", "--no-sync", "--pgdata"])
            .arg(&cluster.pgdata);
        if self.checksums {
            initdb.arg("--data-checksums");
        } else if self.install.major() >= 18 {
            initdb.arg("--no-data-checksums");
        }
        run(initdb.args(&self.initdb_args))?;
        for (name, value) in DEFAULTS {
            cluster.set(name, value)?;
        }
        for (name, value) in &self.conf {
            cluster.set(name, value)?;
        }
        Ok(cluster)
    }
}

/// A data directory and, once started, the server on it. Dropping it stops the server at once.
///
/// Port and socket are given on the server's command line, never in its configuration: a copy of the
/// data directory starts beside it as it is.
#[derive(Debug)]
pub struct Cluster {
    install: PgInstall,
    pgdata: PathBuf,
    socket_dir: PathBuf,
    log: PathBuf,
    port: u16,
    options: String,
    started: bool,
}

impl Cluster {
    /// Begins a new cluster in `<dir>/<name>`, its log in `<dir>/<name>.log`.
    #[must_use]
    pub fn builder<'a>(
        install: &'a PgInstall,
        dir: &'a TestDir,
        name: &'a str,
    ) -> ClusterBuilder<'a> {
        ClusterBuilder {
            install,
            dir,
            name,
            checksums: true,
            initdb_args: Vec::new(),
            conf: Vec::new(),
        }
    }

    /// Takes a data directory that something else made (a restore, say), with a port and a socket of
    /// its own. Nothing in it is touched before it is started; the log is `<dir>/<name>.log`.
    ///
    /// # Errors
    /// Where no port is free or no folder for the socket can be made.
    pub fn adopt(
        install: &PgInstall,
        dir: &TestDir,
        name: &str,
        pgdata: impl Into<PathBuf>,
    ) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .context("no free port")?
            .port();
        Ok(Self {
            install: install.clone(),
            pgdata: pgdata.into(),
            socket_dir: dir.server_dir(&format!("{name}.socket"))?,
            log: dir.join(format!("{name}.log")),
            port,
            options: String::new(),
            started: false,
        })
    }

    /// The PostgreSQL that runs it.
    #[must_use]
    pub fn install(&self) -> &PgInstall {
        &self.install
    }

    /// Its data directory.
    #[must_use]
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// Where its Unix socket is, for `--host`.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// For libpq: `host=… port=… user=postgres dbname=postgres`.
    #[must_use]
    pub fn connection_string(&self) -> String {
        format!(
            "host={} port={} user=postgres dbname=postgres",
            self.socket_dir.display(),
            self.port
        )
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Writes a setting at the end of `postgresql.conf`; the server is not told.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.append("postgresql.conf", &setting(name, value))
    }

    /// Appends text to a file in the data directory, and makes it if it is not there.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn append(&self, file: &str, text: &str) -> Result<()> {
        let path = self.pgdata.join(file);
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        own_by_server(&path)
    }

    /// Words of the server's command line for every start from now on, such as `-c config_file=/etc/…`.
    pub fn set_options(&mut self, options: &str) {
        options.clone_into(&mut self.options);
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// Where it does not start; the error holds its log.
    pub fn start(&mut self) -> Result<()> {
        Ok(self.try_start()??)
    }

    /// Starts the server where the test wants to see it fail.
    ///
    /// Where recovery goes beyond consistency before it fails, PostgreSQL counts the start as done: see
    /// [`Cluster::wait_exit`].
    ///
    /// # Errors
    /// The outer one where `pg_ctl` could not be run, the inner one where the server did not start.
    pub fn try_start(&mut self) -> Result<Result<(), StartFailure>> {
        let logged = self.log().len();
        let options = format!(
            "-p {} -k {} -c listen_addresses='' {}",
            self.port,
            self.socket_dir.display(),
            self.options
        );
        self.started = true;
        let started = run(self
            .pg_ctl("start")?
            .args(["--timeout=120", "--options", &options, "--log"])
            .arg(&self.log));
        if started.is_ok() {
            return Ok(Ok(()));
        }
        // pg_ctl's own timeout: the server is still trying.
        if self.is_running()? {
            self.stop(StopMode::Immediate)?;
        }
        self.started = false;
        let log = self.log().get(logged..).unwrap_or_default().to_owned();
        Ok(Err(StartFailure { log }))
    }

    /// Stops the server.
    ///
    /// # Errors
    /// Where it does not stop within a minute.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let mode = match mode {
            StopMode::Fast => "--mode=fast",
            StopMode::Immediate => "--mode=immediate",
        };
        run(self.pg_ctl("stop")?.arg(mode))?;
        self.started = false;
        Ok(())
    }

    /// Ends recovery and waits until the server takes writes.
    ///
    /// # Errors
    /// Where it does not.
    pub fn promote(&self) -> Result<()> {
        run(&mut self.pg_ctl("promote")?)?;
        self.wait_for(
            "SELECT pg_is_in_recovery()",
            "f",
            "the promoted server to take writes",
        )
    }

    /// Whether a server runs on the data directory.
    ///
    /// # Errors
    /// Where `pg_ctl` cannot be run.
    pub fn is_running(&self) -> Result<bool> {
        let status = self
            .pg_ctl("status")?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("cannot run pg_ctl status")?;
        Ok(status.success())
    }

    /// Waits until the server has gone by itself, and returns its log.
    ///
    /// # Errors
    /// Where it stays.
    pub fn wait_exit(&mut self) -> Result<String> {
        poll("the server to give up", || {
            Ok((!self.is_running()?).then_some(()))
        })?;
        self.started = false;
        Ok(self.log())
    }

    /// Runs SQL through psql, each statement by itself, and returns the rows, `|` between columns,
    /// without the newline at the end.
    ///
    /// # Errors
    /// At the first statement that fails, with the server's message.
    pub fn psql(&self, sql: &str) -> Result<String> {
        let mut psql = self
            .install
            .command("psql")
            .args(["-XAtq", "--set=ON_ERROR_STOP=1", "--file=-", "--dbname"])
            .arg(self.connection_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start psql")?;
        // Where psql has gone already, its exit status tells more than the broken pipe.
        if let Some(mut stdin) = psql.stdin.take() {
            let _ = stdin.write_all(sql.as_bytes());
        }
        let output = psql.wait_with_output().context("cannot wait for psql")?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("psql: {}\n{stderr}SQL: {sql}", output.status);
        }
        let stdout = String::from_utf8_lossy(&output.stdout);
        Ok(stdout.trim_end_matches('\n').to_owned())
    }

    /// A connection for as long as the test wants one.
    ///
    /// # Errors
    /// Where the server refuses it.
    pub fn connect(&self) -> Result<postgres::Client> {
        postgres::Client::connect(&self.connection_string(), postgres::NoTls)
            .context("cannot connect to the server")
    }

    /// Asks until the answer is `expected`; `why` says what is waited for.
    ///
    /// # Errors
    /// After two minutes, or as soon as the server is gone; with the last answer.
    pub fn wait_for(&self, sql: &str, expected: &str, why: &str) -> Result<()> {
        let mut last = String::new();
        let outcome = poll(why, || match self.psql(sql) {
            Ok(answer) if answer == expected => Ok(Some(())),
            Ok(answer) => {
                last = answer;
                Ok(None)
            }
            Err(error) if self.is_running()? => {
                last = format!("{error:#}");
                Ok(None)
            }
            Err(error) => Err(error.context(format!("the server went while waiting for {why}"))),
        });
        outcome.with_context(|| format!("'{sql}' should answer '{expected}'; last: '{last}'"))
    }

    /// Where the next record goes.
    ///
    /// # Errors
    /// Where the server does not answer, or is in recovery.
    pub fn insert_lsn(&self) -> Result<Lsn> {
        Ok(self.psql("SELECT pg_current_wal_insert_lsn()")?.parse()?)
    }

    /// The timeline it writes on.
    ///
    /// # Errors
    /// Where the server does not answer, or is in recovery.
    pub fn timeline(&self) -> Result<TimelineId> {
        // pg_control names the new timeline only after the first checkpoint on it.
        let name = self.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")?;
        let digits = name.get(..8).context("a short WAL file name")?;
        let number = u32::from_str_radix(digits, 16).context("an odd WAL file name")?;
        Ok(TimelineId(number))
    }

    /// Ends the current segment and returns its name.
    ///
    /// # Errors
    /// Where the server does not answer, or is in recovery.
    pub fn switch_wal(&self) -> Result<String> {
        self.psql("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Waits until the archiver is done with a WAL file.
    ///
    /// # Errors
    /// After two minutes, with what the archiver says of itself.
    pub fn wait_archived(&self, file: &str) -> Result<()> {
        let status = self.pgdata.join("pg_wal/archive_status");
        let outcome = poll(&format!("{file} to be archived"), || {
            let done = status.join(format!("{file}.done")).exists();
            let ready = status.join(format!("{file}.ready")).exists();
            // Removed since: only what is archived is.
            let gone = !ready && !self.pgdata.join("pg_wal").join(file).exists();
            Ok((done || gone).then_some(()))
        });
        outcome.with_context(|| match self.psql("TABLE pg_stat_archiver") {
            Ok(row) => format!("pg_stat_archiver: {row}"),
            Err(error) => format!("pg_stat_archiver cannot be asked: {error:#}"),
        })
    }

    fn pg_ctl(&self, action: &str) -> Result<Command> {
        let mut command = self.install.server_command("pg_ctl")?;
        command
            .args([action, "--wait", "--silent", "--pgdata"])
            .arg(&self.pgdata);
        Ok(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.started
            && let Err(error) = self.stop(StopMode::Immediate)
            && self.is_running().unwrap_or(true)
        {
            eprintln!("{} may still run: {error:#}", self.pgdata.display());
        }
    }
}

/// A line of `postgresql.conf`.
fn setting(name: &str, value: &str) -> String {
    let quoted = value.replace('\\', "\\\\").replace('\'', "''");
    format!("{name} = '{quoted}'\n")
}
