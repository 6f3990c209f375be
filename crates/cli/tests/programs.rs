//! The three programs together, on a folder and the control file of a real cluster.

#![allow(
    clippy::expect_used,
    reason = "a test that cannot set itself up has failed"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const WALDEN: &str = env!("CARGO_BIN_EXE_walden");
const PUSH: &str = env!("CARGO_BIN_EXE_walden-wal-push");
const FETCH: &str = env!("CARGO_BIN_EXE_walden-wal-fetch");
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pg/tests/fixtures/16");

/// A data directory with a real control file and a WAL segment, and a configuration.
struct Bench {
    dir: tempfile::TempDir,
    segment: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let pgdata = dir.path().join("pgdata");
        fs::create_dir_all(pgdata.join("global")).expect("global");
        fs::create_dir_all(pgdata.join("pg_wal")).expect("pg_wal");
        let fixtures = Path::new(FIXTURES);
        fs::copy(
            fixtures.join("pg_control"),
            pgdata.join("global/pg_control"),
        )
        .expect("pg_control");
        fs::write(pgdata.join("PG_VERSION"), "16\n").expect("PG_VERSION");
        // The fixture is a segment's first page; the rest of it is what PostgreSQL calls recycled.
        let segment = "000000010000000000000002".to_owned();
        let mut content = fs::read(fixtures.join(&segment)).expect("the first page of a segment");
        let size = content
            .get(32..36)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_le_bytes);
        content.resize(size.expect("xlp_seg_size") as usize, 0);
        fs::write(pgdata.join("pg_wal").join(&segment), content).expect("the segment");
        let config = format!(
            "clusters: {{ main: {{ pgdata: {} }} }}\nrepositories: [{{ name: here, path: {} }}]\n",
            pgdata.display(),
            dir.path().join("repository").display()
        );
        fs::write(dir.path().join("walden.yaml"), config).expect("the configuration");
        Self { dir, segment }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.path("pgdata"))
            .env("WALDEN_CONFIG", self.path("walden.yaml"));
        command
    }

    /// Runs a program, which must exit with `code`; gives what it wrote to standard output and standard error.
    fn run(&self, program: &str, arguments: &[&str], code: i32) -> (String, String) {
        let Output {
            status,
            stdout,
            stderr,
        } = self
            .command(program, arguments)
            .output()
            .expect("the program starts");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&stdout),
            String::from_utf8_lossy(&stderr),
        );
        assert_eq!(
            status.code(),
            Some(code),
            "{program} {arguments:?} wrote: {stdout}{stderr}"
        );
        (stdout.into_owned(), stderr.into_owned())
    }

    fn segment_path(&self) -> String {
        format!("pg_wal/{}", self.segment)
    }
}

#[test]
fn a_segment_goes_into_the_repository_and_comes_back() {
    let bench = Bench::new();
    let (_, stderr) = bench.run(PUSH, &[&bench.segment_path()], 1);
    assert!(
        stderr.contains("error: ") && stderr.contains("cause: "),
        "before init a push fails, with its cause: {stderr}"
    );

    let (stdout, _) = bench.run(WALDEN, &["init"], 0);
    assert!(
        stdout.contains("was made; its id is ") && stdout.contains("cluster main was registered: "),
        "init: {stdout}"
    );
    let (stdout, _) = bench.run(WALDEN, &["init"], 0);
    assert!(
        stdout.contains("was there already; its id is ")
            && stdout.contains("cluster main was registered already: "),
        "a second init changes nothing: {stdout}"
    );

    let (stdout, stderr) = bench.run(PUSH, &[&bench.segment_path()], 0);
    assert_eq!(stdout, "", "a push has no result to print");
    let line = format!("{} archived: ", bench.segment);
    assert!(
        stderr.contains(&line) && stderr.lines().count() == 1,
        "one line in PostgreSQL's log: {stderr}"
    );
    let (_, stderr) = bench.run(PUSH, &[&bench.segment_path()], 0);
    assert!(
        stderr.contains("archived already, with the same bytes"),
        "the same file again: {stderr}"
    );

    bench.run(FETCH, &[&bench.segment, "pg_wal/RECOVERYXLOG"], 0);
    assert_eq!(
        fs::read(bench.path("pgdata/pg_wal/RECOVERYXLOG")).expect("the fetched file"),
        fs::read(bench.path("pgdata").join(bench.segment_path())).expect("the segment"),
        "what comes back is what went in"
    );
    let (_, stderr) = bench.run(
        FETCH,
        &["000000010000000000000003", "pg_wal/RECOVERYXLOG2"],
        1,
    );
    assert_eq!(
        stderr, "",
        "PostgreSQL asks for what does not exist as a matter of course"
    );
    bench.run(
        FETCH,
        &["000000010000000000000001", "pg_wal/RECOVERYXLOG2"],
        202,
    );
    bench.run(FETCH, &["00000002.history", "pg_wal/RECOVERYHISTORY"], 1);
    let (_, stderr) = bench.run(FETCH, &[&bench.segment, "absent/RECOVERYXLOG"], 204);
    assert!(
        stderr.contains("absent/RECOVERYXLOG"),
        "what cannot be written is named: {stderr}"
    );
}

#[test]
fn another_repository_or_cluster_in_its_place_is_no_absence() {
    let bench = Bench::new();
    bench.run(WALDEN, &["init"], 0);
    bench.run(PUSH, &[&bench.segment_path()], 0);
    let wanted = ["000000010000000000000009", "pg_wal/RECOVERYXLOG"];
    bench.run(FETCH, &wanted, 1);

    let config = fs::read_to_string(bench.path("walden.yaml")).expect("the configuration");
    let other = config.replace(
        "name: here",
        "name: here, id: 00000000000000000000000000000000",
    );
    fs::write(bench.path("walden.yaml"), other).expect("another id");
    let (_, stderr) = bench.run(FETCH, &wanted, 203);
    assert!(
        stderr.contains("00000000000000000000000000000000"),
        "both ids are named: {stderr}"
    );

    fs::write(bench.path("walden.yaml"), config.replace("main:", "other:"))
        .expect("another cluster");
    let (_, stderr) = bench.run(FETCH, &wanted, 203);
    assert!(
        stderr.contains("walden init --cluster other"),
        "the way to register it is named: {stderr}"
    );
    let (_, stderr) = bench.run(PUSH, &[&bench.segment_path()], 1);
    assert!(
        stderr.contains("walden init --cluster other"),
        "nothing is archived for a cluster nobody registered: {stderr}"
    );
}

#[test]
fn a_damaged_object_is_told_as_damage() {
    let bench = Bench::new();
    bench.run(WALDEN, &["init"], 0);
    bench.run(PUSH, &[&bench.segment_path()], 0);
    let found = Command::new("find")
        .arg(bench.path("repository"))
        .args(["-name", "*02.zst"])
        .output()
        .expect("find");
    let object = String::from_utf8(found.stdout)
        .expect("a path")
        .trim()
        .to_owned();
    let mut bytes = fs::read(&object).expect("the stored segment");
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).expect("a byte") ^= 1;
    fs::write(&object, bytes).expect("the damage");
    let (_, stderr) = bench.run(FETCH, &[&bench.segment, "pg_wal/RECOVERYXLOG"], 201);
    assert!(stderr.contains("cause: "), "the cause is named: {stderr}");
    assert!(
        !bench.path("pgdata/pg_wal/RECOVERYXLOG").exists(),
        "nothing damaged appears"
    );
}

#[test]
fn results_go_to_standard_output_and_refusals_do_not() {
    let bench = Bench::new();
    bench.run(WALDEN, &["init"], 0);
    let (stdout, stderr) = bench.run(WALDEN, &["list-backups"], 0);
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        (
            "cluster main has no backup yet: take one with walden backup\n",
            ""
        )
    );
    let (stdout, _) = bench.run(WALDEN, &["list-backups", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(
        json,
        serde_json::json!({"version": 1, "cluster": "main", "restorable_until": null, "would_be_lost_seconds": null, "backups": [], "unfinished": [], "conflicts": [], "repositories": [], "verified": [], "damaged_documents": []})
    );

    let target = bench.path("restored");
    let target = target.to_str().expect("a path");
    let (stdout, stderr) = bench.run(WALDEN, &["restore", target, "--dry-run"], 1);
    assert_eq!(stdout, "", "no plan, no output");
    assert!(
        stderr.starts_with("error: ") && stderr.contains("has no backup"),
        "the refusal names its reason: {stderr}"
    );
    assert!(!Path::new(target).exists(), "nothing was begun");

    let (stdout, stderr) = bench.run(WALDEN, &["backup"], 2);
    assert_eq!(stdout, "");
    assert!(
        stderr.contains("hint: set clusters.main.connection"),
        "what a backup lacks is named: {stderr}"
    );
    bench.run(WALDEN, &["restore"], 2);
    bench.run(WALDEN, &["frobnicate"], 2);
    bench.run(
        WALDEN,
        &["--config", "/nonexistent/walden.yaml", "list-backups"],
        2,
    );
}

#[test]
fn archived_wal_is_listed_and_shown() {
    let bench = Bench::new();
    bench.run(WALDEN, &["init"], 0);
    let (stdout, stderr) = bench.run(WALDEN, &["wal", "list"], 0);
    assert_eq!(
        (stdout.as_str(), stderr.as_str()),
        ("nothing is archived yet\n", "")
    );
    bench.run(PUSH, &[&bench.segment_path()], 0);
    let (stdout, _) = bench.run(WALDEN, &["wal", "list"], 0);
    assert!(
        stdout.lines().count() == 2
            && stdout.starts_with("FILE ")
            && stdout.contains(&bench.segment),
        "a header, and the segment: {stdout}"
    );
    let json = |arguments: &[&str]| -> serde_json::Value {
        let (stdout, _) = bench.run(WALDEN, arguments, 0);
        serde_json::from_str(&stdout).expect("JSON")
    };
    let list = json(&["wal", "list", "--json"]);
    assert_eq!(
        (&list["version"], &list["files"][0]["name"]),
        (&serde_json::json!(1), &serde_json::json!(bench.segment))
    );
    let other = json(&["wal", "list", "--timeline", "2", "--json"]);
    assert_eq!(
        other["files"],
        serde_json::json!([]),
        "another timeline has none"
    );
    let shown = json(&["wal", "show", &bench.segment, "--json"]);
    assert_eq!(shown["segment"], bench.segment);
    assert_eq!(shown["content_size"], 16 << 20);

    let (stdout, stderr) = bench.run(WALDEN, &["wal", "show", "00000001000000000000000A"], 1);
    assert_eq!(stdout, "");
    assert!(
        stderr.contains("00000001000000000000000A of system identifier")
            && stderr.contains("is not archived; walden wal list shows what is"),
        "{stderr}"
    );
    bench.run(WALDEN, &["wal"], 2);
    bench.run(WALDEN, &["wal", "show"], 2);
    bench.run(WALDEN, &["wal", "show", "00000001.history"], 2);
    bench.run(WALDEN, &["wal", "list", "--timeline", "0"], 2);
}

#[test]
fn an_archive_without_backups_has_no_windows_and_finds_nothing() {
    let bench = Bench::new();
    bench.run(WALDEN, &["init"], 0);
    bench.run(PUSH, &[&bench.segment_path()], 0);
    let (stdout, _) = bench.run(WALDEN, &["windows"], 0);
    assert!(
        stdout.starts_with("nothing of cluster main can be restored yet"),
        "{stdout}"
    );
    let (stdout, _) = bench.run(WALDEN, &["windows", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(json["windows"], serde_json::json!([]));
    let (stdout, _) = bench.run(WALDEN, &["find"], 0);
    assert!(stdout.starts_with("nothing was found\n"), "{stdout}");
    let between = ["2026-11-22 14:00Z", "2026-11-22 15:00Z"];
    let (stdout, _) = bench.run(
        WALDEN,
        &[
            "find",
            "--dropped",
            "--between",
            between[0],
            between[1],
            "--json",
        ],
        0,
    );
    let json: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(json["findings"], serde_json::json!([]));
    for (wrong, says) in [
        (&["--between", between[0]][..], "2 values required"),
        (
            &["--between", between[1], between[0]],
            "the other way round",
        ),
        (
            &["--between", "2026-11-22 14:00", between[1]],
            "has no zone",
        ),
        (&["--deleted-more-than", "many"], "invalid value"),
    ] {
        let arguments = [&["find"], wrong].concat();
        let (_, stderr) = bench.run(WALDEN, &arguments, 2);
        assert!(
            stderr.contains(says),
            "{wrong:?} should say {says:?}: {stderr}"
        );
    }
    bench.run(WALDEN, &["find", "--target-timeline", "9"], 1);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let bench = Bench::new();
    bench.run(WALDEN, &["init"], 0);
    for arguments in [&["list-backups"][..], &["wal", "list"]] {
        let (read, write) = std::io::pipe().expect("a pipe");
        drop(read);
        let output = bench
            .command(WALDEN, arguments)
            .stdout(Stdio::from(write))
            .stderr(Stdio::piped())
            .output()
            .expect("the program starts");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), stderr.as_ref()),
            (Some(0), ""),
            "{arguments:?}: a broken pipe ends the output, quietly"
        );
    }
}
