//! `walden windows`, `find`, `wal list` and `wal show`, as people and programs call them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Said, Site};
use walden_testkit::{PgInstall, TestDir, on_every_version};

on_every_version!(what_happened_is_told_by_every_command);

fn json(site: &Site<'_>, arguments: &[&str]) -> Result<Value> {
    let said = site.walden(&[arguments, &["--json"]].concat())?.exited(0)?;
    let value: Value = serde_json::from_str(&said.stdout)
        .with_context(|| format!("{arguments:?} prints no JSON: {}", said.stdout))?;
    ensure!(
        value.get("version") == Some(&Value::from(1)),
        "{arguments:?} should say its version: {value}"
    );
    Ok(value)
}

fn text<'v>(value: &'v Value, path: &str) -> Result<&'v str> {
    let found = value.pointer(path).and_then(Value::as_str);
    found.with_context(|| format!("no text at {path} of {value}"))
}

fn what_happened_is_told_by_every_command(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder.conf("autovacuum", "off"))?;
    site.production.start()?;
    site.production
        .psql("CREATE TABLE orders AS SELECT generate_series(1, 2000) AS n")?;
    // A backup waits for WAL, and somebody has to begin.
    site.archive_all()?;
    site.backup(&[])?;
    let kept = site.production.psql("SELECT count(*) FROM orders")?;
    site.production
        .psql("SELECT pg_create_restore_point('before the accident')")?;
    let xid = site
        .production
        .psql("CREATE TABLE last (xid text); INSERT INTO last SELECT pg_current_xact_id(); SELECT * FROM last")?;
    let xid = xid.lines().last().context("no transaction id")?.to_owned();
    site.production.psql("DROP TABLE orders")?;
    let dropped_in = site.archive_all()?;

    // Windows: the DROP is the last commit.
    let windows = json(&site, &["windows"])?;
    let window = windows.pointer("/windows/0").context("no window")?;
    ensure!(
        window.get("last_commit_known") == Some(&Value::Bool(true)),
        "the archive has an index: {windows}"
    );
    let last = window.pointer("/last_commit/xid").and_then(Value::as_u64);
    let last = last.context("no last commit")?;
    ensure!(
        last > xid.parse()?,
        "the last commit is the DROP, after transaction {xid}: {windows}"
    );
    let lost = windows.get("would_be_lost_seconds").and_then(Value::as_f64);
    ensure!(
        lost.is_some_and(|lost| (0.0..600.0).contains(&lost)),
        "what would be lost is some seconds: {windows}"
    );
    let list = site.list()?;
    ensure!(
        list.pointer("/backups/0/window/last_commit/xid") == Some(&Value::from(last)),
        "the list should name the same last commit: {list}"
    );
    let table = site.walden(&["windows"])?.exited(0)?.stdout;
    ensure!(
        table.contains("would be lost if the server died now: ")
            && table.contains(&format!(" {last} ")),
        "people should be told the same: {table}"
    );

    // What the archive says, segment by segment.
    let files = json(&site, &["wal", "list"])?;
    let files = files.get("files").and_then(Value::as_array);
    let files = files.context("no files")?;
    let of = |name: &str| {
        let mut found = files.iter();
        found.find(|file| file.get("name") == Some(&Value::from(name)))
    };
    let segment = of(&dropped_in).context("the last segment should be listed")?;
    ensure!(
        text(segment, "/restore_points/0")? == "before the accident"
            && text(segment, "/stopped/why")? == "switch",
        "the segment's marks: {segment}"
    );
    let kinds: Vec<_> = files.iter().filter_map(|file| file.get("kind")).collect();
    ensure!(
        kinds.contains(&&Value::from("backup")),
        "the backup's history file should be listed: {kinds:?}"
    );
    let shown = json(&site, &["wal", "show", &dropped_in])?;
    let read = json(&site, &["wal", "show", &dropped_in, "--read"])?;
    ensure!(
        shown.pointer("/index/ends/last_commit/xid") == Some(&Value::from(last))
            && shown.pointer("/index/ends") == read.pointer("/index/ends"),
        "the index should say what the segment does: {shown} and {read}"
    );
    let moments = read.get("moments").and_then(Value::as_array);
    let moments = moments.context("--read should tell every moment")?;
    let points = moments
        .iter()
        .filter(|moment| moment.get("kind") == Some(&Value::from("restore-point")));
    ensure!(points.count() == 1, "one restore point: {read}");
    site.walden(&["wal", "show", &dropped_in])?.exited(0)?;

    // What happened, and the way back, as printed.
    let copy = dir.join("copy");
    let copy_text = copy.to_str().context("a path that is not UTF-8")?;
    let found = json(&site, &["find", "--dropped", "--target-dir", copy_text])?;
    let findings = found.get("findings").and_then(Value::as_array);
    let [finding] = findings.map_or(&[][..], Vec::as_slice) else {
        anyhow::bail!("exactly one loss should be found: {found}");
    };
    ensure!(
        text(finding, "/action")? == "DROP TABLE"
            && text(finding, "/relation")? == "postgres.public.orders"
            && finding.get("xid") == Some(&Value::from(last)),
        "the loss by its name: {finding}"
    );
    let points = json(&site, &["find", "--restore-point", "before the accident"])?;
    ensure!(
        text(&points, "/findings/0/restore_point")? == "before the accident",
        "{points}"
    );
    let nothing = json(
        &site,
        &[
            "find",
            "--between",
            "2001-01-01 00:00Z",
            "2001-01-02 00:00Z",
        ],
    )?;
    ensure!(
        nothing.get("findings") == Some(&Value::Array(Vec::new())),
        "nothing happened in 2001: {nothing}"
    );
    let since = [
        "find",
        "--dropped",
        "--between",
        "2001-01-01 00:00Z",
        "2101-01-01 00:00Z",
    ];
    let since = json(&site, &[&since[..], &["--target-dir", copy_text]].concat())?;
    ensure!(
        since.get("findings") == found.get("findings"),
        "the loss lies between 2001 and 2101: {since}"
    );
    let page = site
        .walden(&["find", "--target-dir", copy_text])?
        .exited(0)?;
    let command = text(finding, "/restore")?;
    ensure!(
        page.stdout.contains(&format!("    {command}\n")),
        "people should be shown the same command, {command}: {}",
        page.stdout
    );
    let arguments = command
        .split_once(" restore ")
        .context("a restore command")?
        .1;
    let dry = format!("{arguments} --dry-run --json");
    let words: Vec<&str> = dry.split(' ').collect();
    let plan = site.walden(&[&["restore"], words.as_slice()].concat())?;
    let plan: Value = serde_json::from_str(&plan.exited(0)?.stdout)?;
    ensure!(
        text(&plan, "/ending/stop")? == "before"
            && plan.pointer("/ending/last_commit/xid") == Some(&Value::from(xid.parse::<u64>()?)),
        "the plan ends with the transaction before the DROP, {xid}: {plan}"
    );
    let mut restored = site.restore(
        "copy",
        arguments.split(' ').skip(1).collect::<Vec<_>>().as_slice(),
    )?;
    restored.start()?;
    walden_integration::wait_paused(&restored)?;
    ensure!(
        restored.psql("SELECT count(*) FROM orders")? == kept,
        "every row should be back"
    );
    let refused: Said = site.walden(&["wal", "show", "0000000100000000000000FF"])?;
    refused.exited(1)?.naming(&["is not archived"])?;
    Ok(())
}
