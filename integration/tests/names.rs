//! The names behind OIDs that each backup records.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use postgres::{Client, NoTls};
use walden_engine::list::{ListRequest, list};
use walden_engine::names;
use walden_engine::repository::{Place, Repository, RepositorySettings};
use walden_integration::{Said, Site};
use walden_model::names::{NamedRelation, Names, Persistence, RelationKind, Wanted};
use walden_model::{BackupRecord, SystemKeys};
use walden_testkit::{Cluster, PgInstall, TestDir, on_every_version, on_version};

on_every_version!(
    what_is_recorded_is_what_the_catalogs_say,
    a_standbys_backup_has_names,
);

/// A name that most programs get wrong.
const ODD: &str = "Odd \"one\".of 'them'\\ größe";

/// For people who take backups and are no superusers.
const KEEPER: &str = "CREATE ROLE keeper LOGIN REPLICATION IN ROLE pg_monitor";

/// A schema of everything that has a file, and of what has none.
const OBJECTS: &str = r#"
    CREATE SCHEMA "Select";
    CREATE TABLE "Select"."order" (n serial PRIMARY KEY, id int GENERATED ALWAYS AS IDENTITY, long text) TABLESPACE space;
    INSERT INTO "Select"."order" (long) SELECT repeat('x', 100) FROM generate_series(1, 100);
    CREATE INDEX "order by" ON "Select"."order" (long) TABLESPACE space;
    CREATE TABLE measured (day date, value text) PARTITION BY RANGE (day);
    CREATE TABLE measured_1 PARTITION OF measured FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
    CREATE TABLE measured_2 PARTITION OF measured FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (value);
    CREATE TABLE measured_2_x PARTITION OF measured_2 FOR VALUES IN ('x');
    CREATE INDEX ON measured (day);
    CREATE TABLE parent (n int);
    CREATE TABLE child (m int) INHERITS (parent);
    CREATE MATERIALIZED VIEW totals AS SELECT day, count(*) FROM measured GROUP BY day;
    CREATE VIEW seen AS SELECT * FROM parent;
    CREATE TYPE pair AS (a int, b int);
    CREATE SEQUENCE free;
    CREATE UNLOGGED TABLE fleeting (n int);
    CREATE TABLE rewritten (n int);
    INSERT INTO rewritten SELECT generate_series(1, 100);
    VACUUM FULL rewritten;
    VACUUM FULL pg_class;
    VACUUM FULL pg_attribute;
"#;

fn what_is_recorded_is_what_the_catalogs_say(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    let space = dir.server_dir("space")?;
    for sql in [
        KEEPER,
        &format!("CREATE TABLESPACE space LOCATION '{}'", space.display()),
        &format!("CREATE DATABASE {} TABLESPACE space", quoted(ODD)),
        "CREATE DATABASE raw TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'",
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        "CREATE DATABASE shut",
        "ALTER DATABASE shut ALLOW_CONNECTIONS false",
        "CREATE DATABASE private",
        "REVOKE CONNECT ON DATABASE private FROM PUBLIC",
    ] {
        site.production.psql(sql)?;
    }
    let mut postgres = connect(&site.production, "postgres")?;
    let mut odd = connect(&site.production, ODD)?;
    let mut raw = connect(&site.production, "raw")?;
    let mut latin = connect(&site.production, "latin")?;
    for client in [&mut postgres, &mut odd] {
        for sql in OBJECTS.split(";\n") {
            client.batch_execute(sql)?;
        }
        client.batch_execute(&format!("CREATE TABLE {} (n int)", quoted(ODD)))?;
        client.batch_execute("CREATE TABLE \"two\nlines\" (n int)")?;
    }
    raw.batch_execute(
        "DO $$ BEGIN EXECUTE 'CREATE TABLE \"caf' || convert_from('\\xe95c', 'SQL_ASCII') || '\" (n int)'; END $$",
    )?;
    latin.batch_execute("CREATE TABLE \"café\" (n int)")?;
    // It keeps its session, and so its temporary table.
    postgres.batch_execute("CREATE TEMPORARY TABLE passing (n int)")?;

    let spool = dir.server_dir("spool")?;
    let keeper = format!(
        "clusters:\n  main:\n    connection: {}\n    spool_dir: {}\n",
        site.production
            .connection_string()
            .replace("user=postgres", "user=keeper"),
        spool.display()
    );
    let site_config = fs::read_to_string(dir.join("walden.yaml"))?;
    let repositories = site_config
        .find("repositories:")
        .and_then(|at| site_config.get(at..))
        .context("no repositories in the configuration")?;
    dir.server_file("keeper.yaml", format!("{keeper}{repositories}"))?;
    site.archive_all()?;
    let said = Said::run(&mut site.command("keeper.yaml", &["backup"])?)?.exited(0)?;
    ensure!(
        said.stderr
            .contains("private: the role lacks the privilege CONNECT"),
        "the backup should say that it could not read a database: {}",
        said.stderr
    );
    ensure!(
        !said.stderr.contains("template0"),
        "nobody should be warned of template0: {}",
        said.stderr
    );

    let (keys, record, repository) = newest(&site)?;
    let recorded = record.names.as_ref().context("no names in the backup")?;
    let mut unread: Vec<_> = recorded.unread_databases.iter().collect();
    unread.sort_by_key(|database| database.name.clone());
    let unread: Vec<(String, &str)> = unread
        .into_iter()
        .map(|database| (database.name.text(), database.reason.as_str()))
        .collect();
    let closed = "it does not allow connections";
    ensure!(
        unread
            == [
                (
                    "private".to_owned(),
                    "the role lacks the privilege CONNECT on it"
                ),
                ("shut".to_owned(), closed),
                ("template0".to_owned(), closed)
            ]
            && recorded.unread == 3,
        "three databases are unread, each for its reason: {unread:?}"
    );
    let shards: u64 = recorded.shards.iter().map(|shard| shard.size).sum();
    let map: u64 = record.file_map.iter().map(|shard| shard.size).sum();
    let packs: u64 = record.packs.iter().map(|pack| pack.size).sum();
    ensure!(
        shards > 0 && record.stored_size == shards + map + packs,
        "the backup's stored size should be that of all its objects"
    );

    for (client, database) in [(&mut postgres, "postgres"), (&mut odd, ODD)] {
        agrees(client, database, &repository, &keys, &record)
            .with_context(|| format!("database {database:?}"))?;
    }
    for (client, shown) in [
        (&mut latin, "public.\"café\""),
        (&mut raw, "public.\"caf\u{FFFD}\\\""),
    ] {
        let oid = client.query_one("SELECT max(oid) FROM pg_class WHERE relkind = 'r'", &[])?;
        let relation = (database_oid(client)?, oid.get(0)).into();
        let mut wanted = Wanted::default();
        wanted.relation(relation);
        let names = read(&repository, &keys, &record, wanted)?;
        let found = names.relation(relation).context("the table has no name")?;
        ensure!(
            found.to_string() == shown,
            "{shown} expected, found {found}"
        );
    }
    // A convenience: without it the backup is as good as before.
    let folder = site
        .repository()
        .join(keys.backup_prefix(&record.backup_id))
        .join("names");
    fs::remove_dir_all(folder)?;
    ensure!(
        site.backups()?.len() == 1
            && site.backups()?.iter().all(|backup| {
                backup
                    .json
                    .get("missing_objects")
                    .and_then(|m| m.as_array())
                    .is_some_and(Vec::is_empty)
            }),
        "a backup without its names should be a backup: {:?}",
        site.backups()?
    );
    let spaces = format!(
        "--tablespace-map={}={}",
        space.display(),
        dir.join("space.copy").display()
    );
    site.restore_ignoring(
        "restored",
        &[&spaces, "--target-immediate"],
        &["tablespace_map"],
    )?;
    Ok(())
}

/// Holds what is recorded of a database against what its catalogs say.
fn agrees(
    client: &mut Client,
    database: &str,
    repository: &Repository,
    keys: &SystemKeys,
    record: &BackupRecord,
) -> Result<()> {
    let own = database_oid(client)?;
    let rows = client.query(
        "SELECT c.oid, c.relisshared, format('%I.%I', nspname, relname), relkind, relpersistence, \
         coalesce(pg_relation_filenode(c.oid), 0::oid), \
         coalesce(nullif(reltablespace, 0), CASE WHEN relisshared THEN 1664 ELSE dattablespace END), \
         relname::text, nspname::text \
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace, pg_database \
         WHERE datname = current_database()",
        &[],
    )?;
    let mut wanted = Wanted::default();
    wanted.database(own);
    for row in &rows {
        let shared: bool = row.get(1);
        wanted.relation((if shared { 0 } else { own }, row.get(0)).into());
    }
    let names = read(repository, keys, record, wanted)?;
    let found = names.database(own).context("the database has no name")?;
    ensure!(
        found.name.as_bytes() == database.as_bytes(),
        "the database's name: {found:?}"
    );
    let mut by_name = BTreeMap::new();
    for row in &rows {
        let (oid, shared): (u32, bool) = (row.get(0), row.get(1));
        let (shown, number, tablespace): (String, u32, u32) = (row.get(2), row.get(5), row.get(6));
        let database = if shared { 0 } else { own };
        let letter = |column| char::from(row.get::<_, i8>(column) as u8);
        let expected = oid >= 16384 || matches!(oid, 1259 | 1262) || number >= 16384;
        let found = names.relation((database, oid).into());
        ensure!(
            found.is_some() == expected,
            "{shown}, OID {oid}: recorded is {found:?}, expected {expected}"
        );
        let Some(found) = found else { continue };
        let plain = row.get::<_, &str>(7) == found.name.text()
            && row.get::<_, &str>(8) == found.schema.text();
        ensure!(plain, "{shown} is recorded as {found:?}");
        ensure!(
            found.to_string() == shown
                || (shown.contains('\n') && found.to_string() == "public.U&\"two\\000Alines\""),
            "{shown} should be shown like this, and is shown as {found}"
        );
        ensure!(char::from(found.kind) == letter(3), "{shown}: {found:?}");
        let persistence = match found.persistence {
            Persistence::Permanent => 'p',
            Persistence::Unlogged => 'u',
            Persistence::Temporary => 't',
        };
        ensure!(persistence == letter(4), "{shown}: {found:?}");
        let file =
            (number != 0 && persistence != 't').then(|| (tablespace, database, number).into());
        ensure!(
            found.file == file,
            "{shown} should be in {file:?}: {found:?}"
        );
        if let Some(file) = file {
            ensure!(
                names.by_file(file) == Some(found),
                "{shown} should be found by its file {file:?}"
            );
        }
        by_name.insert(shown, found);
    }
    related(&names, &by_name)?;
    let rewritten = by_name.get("public.rewritten").context("rewritten")?;
    ensure!(
        rewritten
            .file
            .is_some_and(|file| file.number != rewritten.oid.relation),
        "after VACUUM FULL a table has another file: {rewritten:?}"
    );
    Ok(())
}

/// What belongs to what, and is a partition of what.
fn related(names: &Names, by_name: &BTreeMap<String, &NamedRelation>) -> Result<()> {
    let get = |name: &str| {
        by_name
            .get(name)
            .copied()
            .with_context(|| format!("{name} is not recorded"))
    };
    let order = get("\"Select\".\"order\"")?;
    let owned = [
        "\"Select\".order_pkey",
        "\"Select\".\"order by\"",
        "\"Select\".order_n_seq",
        "\"Select\".order_id_seq",
    ];
    for name in owned {
        ensure!(
            get(name)?.belongs_to == Some(order.oid.relation),
            "{name} belongs to {order}: {:?}",
            get(name)?
        );
    }
    let toast = format!("pg_toast.pg_toast_{}", order.oid.relation);
    let index = get(&format!("{toast}_index"))?;
    ensure!(
        get(&toast)?.kind == RelationKind::Toast && names.root(index) == order,
        "the index of a TOAST table leads to the table: {index:?}"
    );
    for (partition, parent) in [
        ("measured_1", "measured"),
        ("measured_2", "measured"),
        ("measured_2_x", "measured_2"),
        ("measured_1_day_idx", "measured_day_idx"),
    ] {
        let (partition, parent) = (
            get(&format!("public.{partition}"))?,
            get(&format!("public.{parent}"))?,
        );
        ensure!(
            partition.partition_of == Some(parent.oid.relation),
            "{partition} is a partition of {parent}: {partition:?}"
        );
    }
    for alone in ["public.child", "public.free", "public.totals"] {
        let alone = get(alone)?;
        ensure!(
            alone.partition_of.is_none() && alone.belongs_to.is_none(),
            "{alone} goes along with nothing: {alone:?}"
        );
    }
    Ok(())
}

fn a_standbys_backup_has_names(install: &PgInstall, dir: &TestDir) -> Result<()> {
    let mut site = Site::new(install, dir, |builder| builder)?;
    site.production.start()?;
    site.production.psql("CREATE TABLE before (n int)")?;
    site.archive_all()?;
    site.backup(&[])?;
    site.production.psql("CREATE TABLE later (n int)")?;
    site.archive_all()?;
    let mut standby = site.restore("standby", &["--standby"])?;
    standby.start()?;
    standby.wait_for(
        "SELECT count(*) FROM pg_class WHERE relname = 'later'",
        "1",
        "the standby to replay what is archived",
    )?;
    let primary = format!(
        "    primary_connection: {}\n",
        site.production.connection_string()
    );
    site.configure("standby.yaml", &standby, &primary)?;
    Said::run(&mut site.command("standby.yaml", &["backup"])?)?.exited(0)?;
    let (keys, record, repository) = newest(&site)?;
    ensure!(record.from_standby, "the newest backup is the standby's");
    let mut client = standby.connect()?;
    let row = client.query_one("SELECT oid FROM pg_class WHERE relname = 'later'", &[])?;
    let relation = (database_oid(&mut client)?, row.get(0)).into();
    let mut wanted = Wanted::default();
    wanted.relation(relation);
    let names = read(&repository, &keys, &record, wanted)?;
    let found = names.relation(relation).map(ToString::to_string);
    ensure!(
        found.as_deref() == Some("public.later"),
        "the standby's backup should know public.later, found {found:?}"
    );
    Ok(())
}

/// Takes its time, so on one version alone.
#[test]
fn a_database_that_does_not_answer_costs_its_own_names_alone() {
    on_version(18, "stuck", |install, dir| {
        let mut site = Site::new(install, dir, |builder| builder)?;
        site.production.start()?;
        site.production.psql("CREATE DATABASE stuck")?;
        site.production.psql("CREATE DATABASE zoo")?;
        connect(&site.production, "zoo")?.batch_execute("CREATE TABLE apes (n int)")?;
        site.archive_all()?;
        let mut stuck = connect(&site.production, "stuck")?;
        let mut lock = stuck.transaction()?;
        lock.batch_execute("LOCK pg_catalog.pg_class IN ACCESS EXCLUSIVE MODE")?;
        let began = Instant::now();
        let said = site.walden(&["backup"])?.exited(0)?;
        ensure!(
            began.elapsed().as_secs() < 90,
            "the backup should not wait for a database that does not answer: {:?}",
            began.elapsed()
        );
        ensure!(
            said.stderr.contains("stuck: "),
            "the backup should name the database that does not answer: {}",
            said.stderr
        );
        let (keys, record, repository) = newest(&site)?;
        let mut client = connect(&site.production, "zoo")?;
        let row = client.query_one("SELECT 'apes'::regclass::oid", &[])?;
        let relation = (database_oid(&mut client)?, row.get(0)).into();
        let mut wanted = Wanted::default();
        wanted.relation(relation);
        wanted.database(database_oid(&mut lock)?);
        let names = read(&repository, &keys, &record, wanted)?;
        ensure!(
            names.relation(relation).is_some(),
            "a database after the one that is stuck is read: {:?}",
            record.names
        );
        let row = lock.query_one("SELECT oid FROM pg_database WHERE datname = 'stuck'", &[])?;
        ensure!(
            names.database(row.get(0)).is_some(),
            "the name of the database itself is known"
        );
        Ok(())
    });
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn connect(cluster: &Cluster, database: &str) -> Result<Client> {
    let mut config: postgres::Config = cluster.connection_string().parse()?;
    config.dbname(database);
    Ok(config.connect(NoTls)?)
}

fn database_oid(client: &mut impl postgres::GenericClient) -> Result<u32> {
    let row = client.query_one(
        "SELECT oid FROM pg_database WHERE datname = current_database()",
        &[],
    )?;
    Ok(row.get(0))
}

fn newest(site: &Site<'_>) -> Result<(SystemKeys, BackupRecord, Repository)> {
    let settings = RepositorySettings {
        keys: Default::default(),
        name: "here".to_owned(),
        place: Place::Folder(site.repository()),
        id: None,
        required: true,
    };
    let request = ListRequest {
        repositories: vec![settings.clone()],
        cluster: "main".parse()?,
    };
    let listing = runtime()?.block_on(list(&request))?;
    let system = listing.systems.into_iter().next().context("no system")?;
    let backup = system
        .backups
        .into_iter()
        .next_back()
        .context("no backup")?;
    let keys = SystemKeys {
        cluster: request.cluster,
        system: backup.record.system_identifier,
    };
    Ok((
        keys,
        backup.record,
        runtime()?.block_on(Repository::open(&settings))?,
    ))
}

fn read(
    repository: &Repository,
    keys: &SystemKeys,
    record: &BackupRecord,
    wanted: Wanted,
) -> Result<Names> {
    let read = names::read(repository, keys, record, wanted);
    runtime()?
        .block_on(read)?
        .context("the backup has no names")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Runtime::new()?)
}
