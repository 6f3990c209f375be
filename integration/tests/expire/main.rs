//! `walden expire`: what retention promises can be restored afterwards, on real servers, folders and buckets.

mod kills;
mod promises;
mod racing;
mod store;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use walden_integration::{Said, Site};
use walden_testkit::{PgInstall, TestDir};

/// A cluster with small segments, and these lines at the configuration's end.
fn site<'a>(install: &'a PgInstall, dir: &'a TestDir, more: &str) -> Result<Site<'a>> {
    let site = Site::new(install, dir, |builder| {
        builder.initdb_arg("--wal-segsize=1")
    })?;
    retain(&site, more)?;
    Ok(site)
}

/// Says what is kept from now on.
fn retain(site: &Site<'_>, more: &str) -> Result<()> {
    let file = site.configure("walden.yaml", &site.production, "")?;
    let text = fs::read_to_string(&file)?;
    site.dir.server_file("walden.yaml", text + more)?;
    Ok(())
}

/// Ends the production's segment, which has something in it, and waits until it is archived.
fn archive(site: &Site<'_>) -> Result<()> {
    // A switch in an empty segment does nothing.
    site.production
        .psql("SELECT pg_create_restore_point('a segment of its own')")?;
    site.archive_all().map(drop)
}

/// What `walden expire --json` prints, of the only system identifier, where it exits with `code`.
fn expire(site: &Site<'_>, args: &[&str], code: i32) -> Result<Value> {
    let said = site.walden(&[&["expire", "--json"], args].concat())?;
    system(&said.exited(code)?)
}

fn system(said: &Said) -> Result<Value> {
    let page: Value = serde_json::from_str(&said.stdout).context("expire --json prints no JSON")?;
    let systems = page.get("systems").and_then(Value::as_array);
    systems
        .and_then(|systems| systems.first())
        .cloned()
        .with_context(|| format!("no system in {page}"))
}

fn ids(value: &Value, key: &str) -> Vec<String> {
    let list = value.get(key).and_then(Value::as_array);
    let list = list.into_iter().flatten();
    let text = |id: &Value| {
        let id = id.get("id").unwrap_or(id);
        id.as_str().map(str::to_owned)
    };
    list.filter_map(text).collect()
}

/// Every object of the repository, by its key.
fn objects(site: &Site<'_>) -> Result<BTreeSet<String>> {
    let root = site.repository();
    let found = walden_integration::files(&root)?;
    let keys = found.into_keys().filter_map(|path| {
        let key = path.strip_prefix(&root).ok()?.to_str()?.to_owned();
        (!key.starts_with('.')).then_some(key)
    });
    Ok(keys.collect())
}

/// Proves that no object is left of a backup.
fn nothing_left(site: &Site<'_>, id: &str) -> Result<()> {
    let left: Vec<String> = objects(site)?
        .into_iter()
        .filter(|key| key.contains(id))
        .collect();
    ensure!(left.is_empty(), "nothing should be left of {id}: {left:?}");
    Ok(())
}
