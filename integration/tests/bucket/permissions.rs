//! The policies in `deploy/s3` allow what Walden asks for, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use walden_testkit::{FaultProxy, PgInstall, S3Server, StopMode, TestDir, on_version};

use super::site;

/// What only happens to uploads of more than 64 MiB that are cut off.
const SELDOM: &str = "s3:AbortMultipartUpload";

#[test]
fn the_policies_allow_what_is_asked_for_and_nothing_else() {
    on_version(17, "bucket_policies", least_privilege);
}

/// The action that S3 wants allowed for a request (Service Authorization Reference, "Actions, resources, and condition keys for Amazon S3").
fn action(request: &str) -> Result<&'static str> {
    let (method, rest) = request.split_once(' ').context("a method")?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let bucket = path.trim_start_matches('/').trim_end_matches('/') == S3Server::BUCKET;
    Ok(match method {
        "GET" if bucket && query.contains("list-type=2") => "s3:ListBucket",
        "GET" if bucket && query.contains("uploads") => "s3:ListBucketMultipartUploads",
        "GET" | "HEAD" if !bucket => "s3:GetObject",
        "PUT" | "POST" if !bucket => "s3:PutObject",
        "DELETE" if query.contains("uploadId=") => SELDOM,
        "DELETE" if !bucket => "s3:DeleteObject",
        _ => bail!("no policy was written for {request}"),
    })
}

/// What a policy allows: its actions, and on what.
fn allowed(name: &str) -> Result<(BTreeSet<String>, Value)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/s3");
    let text = fs::read_to_string(path.join(name)).with_context(|| name.to_owned())?;
    let policy: Value = serde_json::from_str(&text).with_context(|| name.to_owned())?;
    let statements = policy.pointer("/Statement").and_then(Value::as_array);
    let mut actions = BTreeSet::new();
    for statement in statements.context("statements")? {
        let is = |key: &str, value: &str| statement.get(key).and_then(Value::as_str) == Some(value);
        let named = statement.get("Action").and_then(Value::as_array);
        let named = named.context("actions")?.iter().filter_map(Value::as_str);
        if is("Effect", "Allow") {
            actions.extend(named.map(str::to_owned));
        }
    }
    Ok((actions, policy))
}

fn least_privilege(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let server = S3Server::s3s_fs()?;
    let proxy = FaultProxy::before(server.address())?;
    proxy.one_write_at_a_time();
    let endpoint = proxy.endpoint();
    let mut site = site(install, dir, &server, &endpoint, "create_only: conditional")?;
    let asked = |what: &str, policy: &str, seldom: &[&str]| -> Result<()> {
        let asked = proxy.take_seen();
        let asked: Result<BTreeSet<&str>> = asked.iter().map(|line| action(line)).collect();
        let asked = asked?;
        let (allowed, _) = allowed(policy)?;
        let mut needed: BTreeSet<&str> = allowed.iter().map(String::as_str).collect();
        needed.retain(|action| !seldom.contains(action));
        ensure!(
            asked == needed,
            "{what} asks for {asked:?}, and {policy} allows {needed:?}"
        );
        let overwriting = proxy.take_unconditional();
        ensure!(
            overwriting.is_empty(),
            "{what} puts without If-None-Match, which {policy} refuses: {overwriting:?}"
        );
        Ok(())
    };

    site.walden(&["init"])?.exited(0)?;
    asked("init", "init.json", &[])?;

    site.production.start()?;
    site.archive_all()?;
    site.backup(&[])?;
    site.production.psql("CREATE TABLE t (n int)")?;
    site.archive_all()?;
    asked("archiving and a backup", "push.json", &[SELDOM])?;

    site.production.stop(StopMode::Fast)?;
    drop(proxy.take_seen());
    site.walden(&["list-backups"])?.exited(0)?;
    site.walden(&["windows"])?.exited(0)?;
    site.walden(&["find", "--dropped"])?.exited(0)?;
    let mut restored = site.restore("restored", &[])?;
    restored.start()?;
    walden_integration::wait_open(&restored)?;
    asked("looking, restoring and recovery", "restore.json", &[])
}

#[test]
fn a_policy_that_lets_put_refuses_to_overwrite_and_only_what_removes_may_delete() -> Result<()> {
    for (name, puts, deletes) in [
        ("restore.json", false, None),
        ("push.json", true, None),
        (
            "init.json",
            true,
            Some("arn:aws:s3:::acme-backups/pg/.probe/*"),
        ),
        ("expire.json", true, Some("arn:aws:s3:::acme-backups/pg/*")),
    ] {
        let (actions, policy) = allowed(name)?;
        ensure!(
            actions.contains("s3:PutObject") == puts,
            "{name}: {actions:?}"
        );
        let statements = policy.pointer("/Statement").and_then(Value::as_array);
        let statements = statements.context("statements")?;
        let overwriting = statements.iter().find(|statement| {
            statement.get("Effect").and_then(Value::as_str) == Some("Deny")
                && statement.pointer("/Condition/Null/s3:if-none-match")
                    == Some(&Value::from("true"))
                && statement.pointer("/Condition/Bool/s3:ObjectCreationOperation")
                    == Some(&Value::from("true"))
        });
        ensure!(
            overwriting.is_some() == puts,
            "{name} should refuse puts that do not ask for an empty place"
        );
        let removing = statements.iter().find(|statement| {
            let actions = statement.get("Action").map(Value::to_string);
            actions.is_some_and(|actions| actions.contains("s3:DeleteObject"))
        });
        let on = removing.and_then(|statement| statement.get("Resource")?.as_str());
        ensure!(
            on == deletes,
            "{name} lets delete {on:?}, and should {deletes:?}"
        );
        let everything = |action: &String| action.contains('*');
        ensure!(!actions.iter().any(everything), "{name}: {actions:?}");
    }
    Ok(())
}
