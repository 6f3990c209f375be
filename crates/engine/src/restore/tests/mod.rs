//! Restores of small backups that were written by hand.

pub(crate) mod bed;
mod damage;
mod layout;
mod listing;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use walden_model::{Note, Tablespace};

use self::bed::{Bed, Part, PartBody, cluster, directory, extra, file, link};
use super::{RestoreError, RestoreReport, RestoreRequest};
use crate::progress::Silent;

async fn run(request: &RestoreRequest) -> Result<RestoreReport, RestoreError> {
    super::restore(super::plan(request).await?, Arc::new(Silent)).await
}

/// Callers put these on their own tasks; this does not compile where one of them cannot go there.
#[allow(dead_code)]
fn every_verb_can_be_spawned(request: RestoreRequest, list: crate::list::ListRequest) {
    tokio::spawn(async move { run(&request).await });
    tokio::spawn(async move { crate::list::list(&list).await });
}

/// The whole text of an error, as the command line prints it.
fn chain(error: &dyn std::error::Error) -> String {
    let parts: Vec<_> = std::iter::successors(Some(error), |e| e.source())
        .map(ToString::to_string)
        .collect();
    parts.join(": ")
}

fn text(path: impl AsRef<Path>) -> String {
    fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{} must be readable: {e}", path.as_ref().display()))
}

/// Content and mode of everything that is not Walden's own addition.
fn check_parts(
    parts: &[Part],
    place: impl Fn(&Part) -> std::path::PathBuf,
) -> Result<(), TestCaseError> {
    for part in parts {
        let path = place(part);
        let meta = fs::symlink_metadata(&path)
            .map_err(|e| TestCaseError::fail(format!("{}: {e}", path.display())))?;
        if !matches!(part.body, PartBody::Link(_)) {
            prop_assert_eq!(
                meta.permissions().mode() & 0o777,
                part.mode,
                "mode of {}",
                part.path
            );
        }
        if let PartBody::File(bytes) | PartBody::Extra(bytes) = &part.body
            && part.path != "postgresql.auto.conf"
        {
            prop_assert_eq!(&fs::read(&path)?, bytes, "content of {}", part.path);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_file_comes_back_however_it_was_cut(
        files in prop::collection::btree_map("[a-z]{1,6}", (prop::collection::vec(any::<u8>(), 0..900), prop::bool::ANY), 0..20),
        frame in 1_usize..400,
        workers in 1_usize..4,
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut bed = Bed::new().await;
            bed.frame = frame;
            let mut parts = cluster();
            parts.extend(files.into_iter().map(|(name, (content, group))| {
                let mut part = file(&format!("base/1/{name}"), content);
                part.mode = if group { 0o640 } else { 0o600 };
                part
            }));
            bed.backup(1, &parts, Vec::new()).await;
            let request = RestoreRequest { workers, ..bed.request() };
            let report = run(&request).await.map_err(|e| TestCaseError::fail(chain(&e)))?;
            let files = parts.iter().filter(|part| matches!(part.body, PartBody::File(_))).count();
            prop_assert_eq!(report.files, files as u64);
            check_parts(&parts, |part| bed.target().join(&part.path))
        })?;
    }
}

#[tokio::test]
async fn a_cluster_with_tablespaces_extras_and_a_wal_directory_goes_where_it_was_told() {
    let bed = Bed::new().await;
    let dir = bed.dir.path();
    let (old, kept) = (dir.join("old"), dir.join("kept"));
    let (old, kept) = (old.to_str().unwrap(), kept.to_str().unwrap());
    let mut parts = cluster();
    parts.extend([
        link("pg_tblspc/16400", old),
        directory("pg_tblspc/16400/PG_17_202406281"),
        file("pg_tblspc/16400/PG_17_202406281/1", [5; 200]),
        directory("pg_tblspc/16401"),
        file("pg_tblspc/16401/x", "kept"),
        file("tablespace_map", format!("16400 {old}\n16401 {kept}\n")),
        file("standby.signal", ""),
        extra("/etc/postgresql/postgresql.conf", "port = 5433\n"),
        extra("/etc/postgresql/pg_hba.conf", "local all all peer\n"),
    ]);
    let tablespace = |oid, path: &str| Tablespace {
        oid,
        path: path.to_owned(),
        size: 1,
    };
    bed.backup(
        1,
        &parts,
        vec![tablespace(16400, old), tablespace(16401, kept)],
    )
    .await;
    let (new, wal) = (dir.join("new"), dir.join("wal"));
    let request = RestoreRequest {
        tablespace_map: vec![(old.into(), new.clone())],
        waldir: Some(wal.clone()),
        ..bed.request()
    };
    let report = run(&request).await.unwrap();
    let target = bed.target();
    let place = |part: &Part| {
        let path = part.path.as_str();
        let below = |prefix: &str| {
            path.strip_prefix(prefix)
                .map(|rest| rest.trim_start_matches('/').to_owned())
        };
        match (
            below("pg_tblspc/16400"),
            below("pg_tblspc/16401"),
            below("/etc"),
            below("pg_wal"),
        ) {
            (Some(rest), ..) => new.join(rest),
            (_, Some(rest), ..) => Path::new(kept).join(rest),
            (_, _, Some(rest), _) => dir.join("pgdata.extras/etc").join(rest),
            (_, _, _, Some(rest)) => wal.join(rest),
            _ => target.join(path),
        }
    };
    parts.retain(|part| part.path != "tablespace_map" && part.path != "standby.signal");
    check_parts(&parts, place).unwrap();
    assert_eq!(
        text(target.join("tablespace_map")),
        format!("16400 {}\n16401 {kept}\n", new.display()),
        "PostgreSQL makes its links from tablespace_map: it must name the new places"
    );
    assert_eq!(fs::read_link(target.join("pg_tblspc/16400")).unwrap(), new);
    assert_eq!(fs::read_link(target.join("pg_wal")).unwrap(), wal);
    assert!(
        !target.join("standby.signal").exists(),
        "the backup's signal file must not make a standby of the copy"
    );
    assert_eq!(
        text(target.join("pg_hba.conf")),
        "local all all peer\n",
        "the server's own pg_hba.conf is taken over"
    );
    let conf = text(target.join("postgresql.conf"));
    assert!(
        conf.contains("max_connections = 123\n"),
        "recovery needs the server's max_connections: {conf}"
    );
    assert!(
        conf.contains("pgdata.extras/etc/postgresql/postgresql.conf"),
        "it must say where the original is: {conf}"
    );
    assert_eq!(report.extras, Some(dir.join("pgdata.extras")));
    let added: Vec<_> = report
        .added
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .collect();
    assert_eq!(added, ["recovery.signal", "postgresql.conf", "pg_hba.conf"]);
}

#[tokio::test]
async fn settings_of_an_earlier_life_do_not_lead_the_recovery() {
    let bed = Bed::new().await;
    let mut parts = cluster();
    parts.retain(|part| part.path != "postgresql.auto.conf");
    parts.push(file(
        "postgresql.auto.conf",
        "work_mem = '8MB'\nRecovery_Target_Name = 'before'\nrestore_command 'cp x'\nprimary_conninfo = 'host=production'\n\
         archive_cleanup_command = 'rm'\narchive_mode = 'on'\nrecovery_min_apply_delay = '1h'\nport = 1",
    ));
    bed.backup(1, &parts, Vec::new()).await;
    run(&bed.request()).await.unwrap();
    let conf = fs::read(bed.target().join("postgresql.auto.conf")).unwrap();
    let settings = walden_pg::conf::settings(&conf);
    let last: BTreeMap<_, _> = settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(last.get("work_mem"), Some(&"8MB"), "other settings stay");
    assert_eq!(
        last.get("port"),
        Some(&"1"),
        "other settings stay, also without a line feed"
    );
    assert_eq!(
        last.get("restore_command"),
        Some(&"/bin/fetch 'it''s' %f %p"),
        "quoted as PostgreSQL reads it"
    );
    assert_eq!(
        last.get("primary_conninfo"),
        Some(&""),
        "the copy must not stream from production"
    );
    assert_eq!(last.get("recovery_target_timeline"), Some(&"1"));
    assert_eq!(
        last.get("archive_mode"),
        Some(&"off"),
        "a copy does not archive"
    );
    for command in ["archive_cleanup_command", "recovery_end_command"] {
        assert_eq!(
            last.get(command),
            Some(&""),
            "{command} of another file must not act in the copy"
        );
    }
    assert_eq!(
        last.get("recovery_min_apply_delay"),
        Some(&"0"),
        "a copy that is no standby does not wait"
    );
    let text = String::from_utf8(conf).unwrap();
    let reset: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#   SELECT ")?.split_once("unnest('{"))
        .filter_map(|(_, rest)| rest.split_once('}'))
        .flat_map(|(names, _)| names.split(','))
        .collect();
    let ours = text.split_once("# Written by walden").unwrap().1;
    let written: Vec<String> = walden_pg::conf::settings(ours.as_bytes())
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        reset, written,
        "the lines to paste should take out whatever was written, and nothing else"
    );
    let names = settings
        .iter()
        .filter(|(name, _)| name == "recovery_target_name")
        .count();
    assert_eq!(
        names, 1,
        "the earlier target is gone, and only our empty one is there"
    );
    assert!(
        bed.target().join("recovery.signal").exists(),
        "without it PostgreSQL would recover as after a crash"
    );
}

#[tokio::test]
async fn a_standby_keeps_whom_it_follows_and_the_new_primary_archives() {
    let bed = Bed::new().await;
    let mut parts = cluster();
    parts.retain(|part| part.path != "postgresql.auto.conf");
    parts.push(file(
        "postgresql.auto.conf",
        "primary_conninfo = 'host=primary'\narchive_mode = 'on'\n",
    ));
    bed.backup(1, &parts, Vec::new()).await;
    let request = RestoreRequest {
        standby: true,
        take_over: true,
        ..bed.request()
    };
    run(&request).await.unwrap();
    let conf =
        walden_pg::conf::settings(&fs::read(bed.target().join("postgresql.auto.conf")).unwrap());
    let values = |wanted: &str| {
        conf.iter()
            .filter(|(name, _)| name == wanted)
            .map(|(_, v)| v.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(values("primary_conninfo"), ["host=primary"]);
    assert_eq!(values("archive_mode"), ["on"]);
    assert_eq!(
        values("max_logical_replication_workers"),
        [""; 0],
        "subscriptions of the new primary run"
    );
    assert!(
        bed.target().join("standby.signal").exists()
            && !bed.target().join("recovery.signal").exists()
    );
}

/// Restores a cluster whose configuration was outside PGDATA, to take over.
async fn taken_over(main: &str, auto_conf: &str) -> (Vec<(String, String)>, Vec<Note>) {
    let bed = Bed::new().await;
    let mut parts = cluster();
    parts.retain(|part| part.path != "postgresql.auto.conf");
    parts.extend([
        file("postgresql.auto.conf", auto_conf),
        extra("/etc/postgresql/postgresql.conf", main),
    ]);
    bed.backup(1, &parts, Vec::new()).await;
    let request = RestoreRequest {
        take_over: true,
        ..bed.request()
    };
    let report = run(&request).await.unwrap();
    let mut conf = walden_pg::conf::settings(text(bed.target().join("postgresql.conf")).as_bytes());
    conf.retain(|(name, _)| name.starts_with("archive") || name == "restore_command");
    (conf, report.notes)
}

#[tokio::test]
async fn a_new_primary_archives_as_the_configuration_outside_its_data_directory_said() {
    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let with = |command: &str| {
        vec![Note::ArchivesWith {
            command: command.to_owned(),
        }]
    };
    let main = "archive_mode = off\narchive_command = 'push ''it'' %p'\nrestore_command = 'x'\nArchive_Mode on\n";
    assert_eq!(
        taken_over(main, "").await,
        (
            vec![
                own("archive_mode", "on"),
                own("archive_command", "push 'it' %p")
            ],
            with("push 'it' %p")
        ),
        "of two settings the last counts"
    );
    let (_, notes) = taken_over(main, "archive_command = 'another %p'\n").await;
    assert_eq!(notes, with("another %p"), "ALTER SYSTEM counts last");
    let nothing = "archive_mode = on\ninclude_dir 'conf.d'\n";
    let (_, notes) = taken_over(nothing, "").await;
    assert_eq!(
        notes,
        [Note::ArchivesNotYet],
        "the report should say that nothing is archived"
    );
    let (_, notes) = taken_over(main, "archive_mode = off\n").await;
    assert_eq!(notes, [Note::ArchivesNotYet]);
}

#[tokio::test]
async fn a_configuration_that_leads_to_another_data_directory_is_told() {
    let notes = async |directory: &str| {
        let bed = Bed::new().await;
        let mut parts = cluster();
        let conf = format!("data_directory = '{directory}'\n")
            .replace("HERE", &bed.target().display().to_string());
        parts.push(file("postgresql.conf", conf));
        bed.backup(1, &parts, Vec::new()).await;
        run(&bed.request()).await.unwrap().notes
    };
    let directory = "/var/lib/postgresql/17/main".to_owned();
    assert_eq!(
        notes(&directory).await,
        [Note::LeadsElsewhere { directory }],
        "started from the copy, PostgreSQL would open the original"
    );
    assert_eq!(notes("HERE").await, [], "the copy's own place is no harm");
}
