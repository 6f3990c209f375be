//! The names behind OIDs: what a backup records so that WAL, which speaks in numbers, can be told in words.
//!
//! Names are a convenience: what cannot be read is named, and never keeps anybody from having a backup.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, error::Elapsed, timeout_at};
use tokio_postgres::Row;
use walden_model::names::{Name, NameEntry, NamedDatabase, NamedRelation, Persistence};
use walden_model::{HeadKind, NamesRef, ShardRef, UnreadDatabase};

use super::content::ObjectWriter;
use super::server::{Server, ServerError, get, with_cause};
use super::shard::Shard;
use super::{BackupError, BackupRequest};
use crate::codec::FrameCompressor;

/// How long reading names may take in all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most databases that the commit document names as unread.
const MOST_UNREAD: usize = 1000;
/// Longest reason that is kept, in characters: a server's messages have no bound.
const LONGEST_REASON: usize = 500;
/// Most of them that a warning names.
const MOST_TOLD: usize = 5;

const DATABASES: &str = "the names of its databases";
const RELATIONS: &str = "the names of its relations";

/// `pg_global`.
const GLOBAL: u32 = 1664;

struct Database {
    named: NamedDatabase,
    encoding: String,
    connectable: bool,
    permitted: bool,
}

/// Why a database's names are not all there.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("it does not allow connections")]
    Closed,
    #[error("the role lacks the privilege CONNECT on it")]
    NotPermitted,
    #[error("its name is not UTF-8")]
    StrangeName,
    #[error("it did not give all names in the {0} s that there were for it")]
    Late(u64),
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Ends the backup.
    #[error(transparent)]
    Store(BackupError),
}

/// Records the names of all databases that may be read. `None` where the server does not say which there are.
pub(super) async fn store(
    writer: &ObjectWriter,
    server: &Server,
    request: &BackupRequest,
    warnings: &mut Vec<String>,
) -> Result<Option<NamesRef>, BackupError> {
    let deadline = Instant::now() + PATIENCE;
    let databases = match timeout_at(deadline, databases(server)).await {
        Ok(Ok(databases)) => databases,
        failed => {
            let why = match failed {
                Ok(Err(error)) => with_cause("it does not say which databases it has", &error),
                _ => format!(
                    "it did not say in {} s which databases it has",
                    PATIENCE.as_secs()
                ),
            };
            warnings.push(format!("the backup has no names of relations: {why}"));
            return Ok(None);
        }
    };
    let mut shards = Shards {
        writer,
        compressor: FrameCompressor::new(request.level).map_err(BackupError::Encode)?,
        open: None,
        done: Vec::new(),
    };
    for database in &databases {
        let entry = NameEntry::Database(database.named.clone());
        shards.add(&entry).await?;
    }
    let mut names = NamesRef::default();
    let mut told = Vec::new();
    let mut shared_wanted = true;
    for database in databases {
        let why = match read(server, &database, shared_wanted, deadline, &mut shards).await {
            Ok(()) => {
                shared_wanted = false;
                continue;
            }
            Err(Unread::Store(error)) => return Err(error),
            Err(why) => why,
        };
        let reason = match &why {
            Unread::Server(error) => with_cause("it cannot be read", error),
            why => why.to_string(),
        };
        let reason: String = reason.chars().take(LONGEST_REASON).collect();
        // Nobody looks for the tables of template0.
        if !matches!(why, Unread::Closed) {
            told.push(format!("{}: {reason}", database.named.name));
        }
        names.unread += 1;
        if names.unread_databases.len() < MOST_UNREAD {
            names.unread_databases.push(UnreadDatabase {
                oid: database.named.oid,
                name: database.named.name,
                reason,
            });
        }
    }
    names.shards = shards.finish().await?;
    warnings.extend(warning(&told));
    Ok(Some(names))
}

fn warning(told: &[String]) -> Option<String> {
    let first = told.get(..MOST_TOLD.min(told.len()))?.join("; ");
    let more = match told.len().saturating_sub(MOST_TOLD) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (!told.is_empty()).then(|| {
        format!("the backup lacks names of relations, so what happens to those is told by numbers: {first}{more}")
    })
}

/// SQL for a name as bytes that are UTF-8 as far as the server can tell.
///
/// In databases of these encodings the bytes are taken as they are, because asking for text would fail on the first name that is not what
/// the database's encoding says: SQL_ASCII promises nothing, and names of shared objects come from databases of other encodings.
fn utf8(name: &str, encoding: &str) -> String {
    match encoding {
        "UTF8" | "SQL_ASCII" | "MULE_INTERNAL" => {
            // The cast reads backslashes as escapes.
            format!("replace({name}::text, chr(92), repeat(chr(92), 2))::bytea")
        }
        _ => format!("convert_to({name}::text, 'UTF8')"),
    }
}

async fn databases(server: &Server) -> Result<Vec<Database>, ServerError> {
    let rows = server
        .rows(DATABASES, "SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database()")
        .await?;
    let own: String = match rows.first() {
        Some(row) => get(row, 0, DATABASES)?,
        None => String::new(),
    };
    let sql = format!(
        "SELECT oid, {}, dattablespace, pg_encoding_to_char(encoding)::text, datallowconn, has_database_privilege(oid, 'CONNECT') \
         FROM pg_database ORDER BY oid",
        utf8("datname", &own)
    );
    let rows = server.rows(DATABASES, &sql).await?;
    rows.iter()
        .map(|row| {
            Ok(Database {
                named: NamedDatabase {
                    oid: get(row, 0, DATABASES)?,
                    name: get::<Vec<u8>>(row, 1, DATABASES)?.into(),
                    tablespace: get(row, 2, DATABASES)?,
                },
                encoding: get(row, 3, DATABASES)?,
                connectable: get(row, 4, DATABASES)?,
                permitted: get(row, 5, DATABASES)?,
            })
        })
        .collect()
}

/// Reads one database. Half of the time that is left is for it, so that one that is stuck leaves time for the others.
async fn read(
    server: &Server,
    database: &Database,
    shared: bool,
    deadline: Instant,
    shards: &mut Shards<'_>,
) -> Result<(), Unread> {
    if !database.connectable {
        return Err(Unread::Closed);
    }
    if !database.permitted {
        return Err(Unread::NotPermitted);
    }
    let name =
        std::str::from_utf8(database.named.name.as_bytes()).map_err(|_| Unread::StrangeName)?;
    let share = deadline.saturating_duration_since(Instant::now()) / 2;
    let until = Instant::now() + share;
    let late = |_: Elapsed| Unread::Late(share.as_secs());
    let asking = async {
        let server = server.connect_to(name).await?;
        // Hash joins cost next to nothing on few relations, and a million cost no more than that many; and the server must not go on for
        // a client that has given up.
        let settings = format!(
            "SET enable_nestloop = off; SET jit = off; SET statement_timeout = {}",
            share.as_millis().max(1)
        );
        server.execute(RELATIONS, &settings).await?;
        let rows = server
            .stream(RELATIONS, &relations(&database.encoding, shared))
            .await?;
        // The connection must outlive its rows.
        Ok::<_, ServerError>((server, rows))
    };
    let (_connection, rows) = timeout_at(until, asking).await.map_err(late)??;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = timeout_at(until, rows.next()).await.map_err(late)? {
        let row = row.map_err(|source| ServerError::Query {
            what: RELATIONS,
            source,
        })?;
        let entry = NameEntry::Relation(relation(&row, &database.named)?);
        shards.add(&entry).await.map_err(Unread::Store)?;
    }
    Ok(())
}

/// Asks for whatever people made, and for catalogs whose file WAL may be asked about: `pg_class`, `pg_database`, and those that a rewrite
/// gave a number like a user's.
fn relations(encoding: &str, shared: bool) -> String {
    let (schema, name) = (utf8("n.nspname", encoding), utf8("c.relname", encoding));
    // Mapped catalogs have their file's number elsewhere. Temporary relations have theirs in a folder of names of their own.
    let file = "CASE WHEN c.relpersistence = 't' THEN 0::oid WHEN c.relfilenode <> 0 THEN c.relfilenode \
                ELSE coalesce(pg_relation_filenode(c.oid), 0::oid) END";
    format!(
        "SELECT c.oid, c.relisshared, {schema}, {name}, c.relkind, c.relpersistence, {file}, c.reltablespace, \
         coalesce(i.indrelid, t.oid, d.refobjid), p.inhparent \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_index i ON i.indexrelid = c.oid \
         LEFT JOIN pg_class t ON t.reltoastrelid = c.oid AND c.relkind = 't' \
         LEFT JOIN pg_depend d ON d.objid = c.oid AND c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objsubid = 0 \
         AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
         LEFT JOIN pg_inherits p ON p.inhrelid = c.oid AND c.relispartition \
         WHERE (c.oid >= 16384 OR c.oid IN (1259, 1262) OR {file} >= 16384) AND ({shared} OR NOT c.relisshared)"
    )
}

fn relation(row: &Row, database: &NamedDatabase) -> Result<NamedRelation, ServerError> {
    let letter = |column| get::<i8>(row, column, RELATIONS).map(|letter| char::from(letter as u8));
    let name = |column| get::<Vec<u8>>(row, column, RELATIONS).map(Name::from);
    let shared: bool = get(row, 1, RELATIONS)?;
    let own_database = if shared { 0 } else { database.oid };
    let number: u32 = get(row, 6, RELATIONS)?;
    let tablespace = match get(row, 7, RELATIONS)? {
        0 if shared => GLOBAL,
        0 => database.tablespace,
        tablespace => tablespace,
    };
    Ok(NamedRelation {
        oid: (own_database, get(row, 0, RELATIONS)?).into(),
        schema: name(2)?,
        name: name(3)?,
        kind: letter(4)?.into(),
        persistence: match letter(5)? {
            'u' => Persistence::Unlogged,
            't' => Persistence::Temporary,
            _ => Persistence::Permanent,
        },
        file: (number != 0).then(|| (tablespace, own_database, number).into()),
        belongs_to: get(row, 8, RELATIONS)?,
        partition_of: get(row, 9, RELATIONS)?,
    })
}

/// Stores entries as they come.
struct Shards<'a> {
    writer: &'a ObjectWriter,
    compressor: FrameCompressor,
    open: Option<(String, Shard)>,
    done: Vec<ShardRef>,
}

impl Shards<'_> {
    async fn add(&mut self, entry: &NameEntry) -> Result<(), BackupError> {
        if self.open.as_ref().is_some_and(|(_, shard)| shard.is_full()) {
            self.close().await?;
        }
        let line = entry.encode_line().map_err(BackupError::Name)?;
        let (_, shard) = match &mut self.open {
            Some(open) => open,
            none => {
                let key = self
                    .writer
                    .keys
                    .names(&self.writer.backup, self.done.len() as u32);
                let head = self.writer.head(HeadKind::Names, &key)?;
                none.insert((key, Shard::new(head)))
            }
        };
        shard.add(&line, &mut self.compressor)
    }

    async fn close(&mut self) -> Result<(), BackupError> {
        if let Some((key, mut shard)) = self.open.take() {
            shard.end_frame(&mut self.compressor)?;
            let number = self.done.len() as u32;
            self.done.push(shard.put(self.writer, key, number).await?);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<ShardRef>, BackupError> {
        self.close().await?;
        Ok(self.done)
    }
}

#[cfg(test)]
#[path = "names/tests.rs"]
mod tests;
