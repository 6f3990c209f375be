//! What the programs that PostgreSQL runs say with their exit codes, each way of going wrong, with the real programs.

#![allow(
    clippy::expect_used,
    reason = "a test that cannot set itself up has failed"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const FETCH: &str = env!("CARGO_BIN_EXE_walden-wal-fetch");
const PUSH: &str = env!("CARGO_BIN_EXE_walden-wal-push");
const SEGMENT: &str = "000000010000000000000003";

/// A configuration whose repository is a folder that is not there.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
        };
        bench.configure("fetch: { retry_for: 1ms }");
        fs::create_dir(bench.pgdata()).expect("PGDATA");
        bench
    }

    fn configure(&self, more: &str) {
        let repository = self.path("repository");
        let text = format!(
            "clusters: {{ main: }}\nrepositories: [{{ name: here, path: {} }}]\n{more}\n",
            repository.display()
        );
        fs::write(self.config(), text).expect("the configuration");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("walden.yaml")
    }

    fn pgdata(&self) -> PathBuf {
        self.path("pgdata")
    }

    /// PGDATA as far as Walden looks at it.
    fn make_cluster(&self) {
        let global = self.pgdata().join("global");
        fs::create_dir(&global).expect("global");
        fs::write(
            global.join("pg_control"),
            7_123_456_789_012_345_678_u64.to_le_bytes(),
        )
        .expect("pg_control");
        fs::create_dir(self.pgdata().join("pg_wal")).expect("pg_wal");
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.pgdata())
            .env("WALDEN_CONFIG", self.config());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        self.command(program, arguments)
            .output()
            .expect("the program starts")
    }

    /// Runs walden-wal-fetch, which must exit with `code` and say `says`.
    fn fetch(&self, arguments: &[&str], code: i32, says: &str) {
        let output = self.run(FETCH, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "walden-wal-fetch {arguments:?} said: {stderr}"
        );
        assert!(
            stderr.contains(says),
            "walden-wal-fetch {arguments:?} should say {says:?}, and said: {stderr}"
        );
    }
}

#[test]
fn a_fetch_with_a_wrong_command_line_stops_recovery() {
    let bench = Bench::new();
    bench.fetch(&[], 203, "required arguments were not provided");
    bench.fetch(&[SEGMENT], 203, "DESTINATION");
    bench.fetch(
        &["--frobnicate", SEGMENT, "pg_wal/RECOVERYXLOG"],
        203,
        "unexpected argument '--frobnicate'",
    );
    bench.fetch(
        &[SEGMENT, "pg_wal/RECOVERYXLOG", "more"],
        203,
        "unexpected argument 'more'",
    );
    bench.fetch(&["--config"], 203, "a value is required");
}

#[test]
fn asking_a_fetch_for_help_is_no_restored_file() {
    let bench = Bench::new();
    for option in ["--help", "-h", "--version", "-V"] {
        bench.fetch(&[option], 0, "");
        bench.fetch(&[option, SEGMENT, "pg_wal/RECOVERYXLOG"], 203, "");
        bench.fetch(&[SEGMENT, "pg_wal/RECOVERYXLOG", option], 203, "");
    }
}

#[test]
fn a_fetch_with_a_wrong_configuration_stops_recovery() {
    let bench = Bench::new();
    let wanted = [SEGMENT, "pg_wal/RECOVERYXLOG"];
    for (configuration, says) in [
        ("clusters: {", "walden.yaml, line "),
        ("clutsers: { main: }", "unknown key \"clutsers\""),
        ("", "\"clusters\" is missing"),
        ("clusters: { main: }", "\"repositories\" is missing"),
        (
            "clusters: { a: , b: }\nrepositories: [{ name: r, path: /r }]",
            "name one with --cluster: a, b",
        ),
    ] {
        fs::write(bench.config(), configuration).expect("the configuration");
        bench.fetch(&wanted, 203, says);
    }
    fs::write(bench.config(), [0xff, 0xfe]).expect("the configuration");
    bench.fetch(&wanted, 203, "cannot read the configuration");
    fs::remove_file(bench.config()).expect("the configuration goes");
    bench.fetch(&wanted, 203, "cannot read the configuration");
    // A directory can be read by nobody, not even by root.
    fs::create_dir(bench.config()).expect("a directory in its place");
    bench.fetch(&wanted, 203, "cannot read the configuration");
    let elsewhere = [
        "--config",
        "/nonexistent/walden.yaml",
        SEGMENT,
        "pg_wal/RECOVERYXLOG",
    ];
    bench.fetch(&elsewhere, 203, "/nonexistent/walden.yaml");
}

#[test]
fn a_fetch_of_what_is_no_wal_file_stops_recovery() {
    let bench = Bench::new();
    bench.make_cluster();
    bench.fetch(
        &["postgresql.conf", "pg_wal/RECOVERYXLOG"],
        203,
        "does not name a WAL file",
    );
}

#[test]
fn a_fetch_from_an_unmounted_repository_stops_recovery() {
    let bench = Bench::new();
    bench.make_cluster();
    let wanted = [SEGMENT, "pg_wal/RECOVERYXLOG"];
    bench.fetch(&wanted, 200, "repository \"here\"");
    fs::create_dir(bench.path("repository")).expect("an empty mount point");
    bench.fetch(&wanted, 200, "not mounted there");
    bench.fetch(
        &["00000002.history", "pg_wal/RECOVERYHISTORY"],
        200,
        "not mounted there",
    );
    assert!(
        !bench.pgdata().join("pg_wal/RECOVERYXLOG").exists(),
        "nothing was put in place"
    );
}

#[test]
fn a_standby_asks_again_during_an_outage_unless_told_to_stop() {
    let bench = Bench::new();
    bench.make_cluster();
    fs::write(bench.pgdata().join("standby.signal"), "").expect("standby.signal");
    let wanted = [SEGMENT, "pg_wal/RECOVERYXLOG"];
    bench.fetch(&wanted, 1, "this standby will ask again");
    bench.configure("fetch: { retry_for: 1ms, standby_on_outage: stop }");
    bench.fetch(&wanted, 200, "repository \"here\"");
}

#[test]
fn what_fetches_ahead_never_looks_like_a_crash_of_the_server() {
    let bench = Bench::new();
    bench.make_cluster();
    let wanted = ["--segment-size", "16777216", SEGMENT, "pg_wal/RECOVERYXLOG"];
    for arguments in [&wanted[..], &wanted[..2], &["--config", "/nonexistent"]] {
        let mut command = bench.command(FETCH, arguments);
        std::os::unix::process::CommandExt::arg0(&mut command, "walden-wal-prefetch");
        assert_eq!(
            command.output().expect("the program starts").status.code(),
            Some(0),
            "a server that is process 1 would restart after any other exit than 0 or 1: {arguments:?}"
        );
    }
    // Under its own name it is a fetch, whatever it is given.
    bench.fetch(&wanted, 200, "repository \"here\"");
}

#[test]
fn a_closed_standard_error_changes_no_exit_code() {
    let bench = Bench::new();
    for (arguments, code) in [
        ("", 203),
        ("--help x y", 203),
        (SEGMENT, 203),
        ("000000010000000000000003 RECOVERYXLOG", 200),
    ] {
        let script = format!("exec {FETCH} {arguments} >&- 2>&-");
        let status = bench
            .command("sh", &["-c", &script])
            .status()
            .expect("sh starts");
        assert_eq!(
            status.code(),
            Some(code),
            "walden-wal-fetch {arguments} without standard output and error"
        );
    }
}

#[test]
fn a_fetch_dies_of_sigterm_itself() {
    let bench = Bench::new();
    bench.make_cluster();
    bench.configure("fetch: { retry_for: 1h }");
    let mut child = bench
        .command(FETCH, &[SEGMENT, "pg_wal/RECOVERYXLOG"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("its standard error"));
    let mut line = String::new();
    stderr.read_line(&mut line).expect("a line");
    assert!(
        line.contains("will try again"),
        "it waits the outage out: {line}"
    );
    let killed = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .expect("kill starts");
    assert!(killed.success(), "kill");
    let status = child.wait().expect("its end");
    assert_eq!(
        status.signal(),
        Some(15),
        "PostgreSQL tells a shutdown by the signal, not by an exit code: {status}"
    );
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).expect("the rest");
    assert!(!rest.contains("defect"), "no panic on the way: {rest}");
}

fn push(bench: &Bench, arguments: &[&str], code: i32, says: &str) {
    let output = bench.run(PUSH, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(code),
        "walden-wal-push {arguments:?} said: {stderr}"
    );
    assert!(
        stderr.contains(says),
        "walden-wal-push {arguments:?} should say {says:?}, and said: {stderr}"
    );
}

#[test]
fn a_push_that_fails_exits_with_a_code_that_the_archiver_counts() {
    let bench = Bench::new();
    bench.make_cluster();
    push(&bench, &[], 2, "required arguments were not provided");
    push(
        &bench,
        &["--frobnicate", "pg_wal/x"],
        2,
        "unexpected argument",
    );
    push(
        &bench,
        &["--config", "/nonexistent/walden.yaml", "pg_wal/x"],
        2,
        "cannot read the configuration",
    );
    push(
        &bench,
        &["pg_wal/postgresql.conf"],
        1,
        "does not name a WAL file",
    );
    push(&bench, &[&format!("pg_wal/{SEGMENT}")], 1, "No such file");
    let history = Path::new("pg_wal/00000002.history");
    fs::write(
        bench.pgdata().join(history),
        "1\t0/3000000\tno recovery target specified\n",
    )
    .expect("a history file");
    push(
        &bench,
        &["pg_wal/00000002.history"],
        1,
        "repository \"here\"",
    );
    push(&bench, &["--help"], 0, "");
}

#[test]
fn a_push_ends_at_its_deadline() {
    let bench = Bench::new();
    bench.make_cluster();
    bench.configure("push: { deadline: 200ms }");
    // Opening a pipe that nobody writes into blocks for ever, as a dead network file system does.
    let fifo = bench.pgdata().join("pg_wal").join(SEGMENT);
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .expect("mkfifo starts")
            .success(),
        "mkfifo"
    );
    push(
        &bench,
        &[&format!("pg_wal/{SEGMENT}")],
        1,
        "was not archived within 200ms",
    );
}
