//! What Walden asks the server over SQL: whether it archives, what it is, its configuration files, blocks to look at again.

use std::time::Duration;

use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, NoTls, Row, RowStream};
use walden_model::Snapshot;
use walden_pg::{Lsn, SystemIdentifier, TimelineId};

use super::stream::Extra;

/// How long a server may be silent on the network.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest configuration file that is kept.
const MAX_EXTRA: i64 = 4 << 20;

/// Why the server could not be asked, or should not be backed up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The connection string.
    #[error("the configuration's connection string is not one that PostgreSQL knows")]
    ConnectionString(#[source] tokio_postgres::Error),
    /// No connection.
    #[error("cannot connect to PostgreSQL ({0})")]
    Connect(String, #[source] tokio_postgres::Error),
    /// A query failed.
    #[error("PostgreSQL did not answer: {what}")]
    Query {
        /// What was asked.
        what: &'static str,
        /// PostgreSQL's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A value that cannot be.
    #[error("PostgreSQL answers {what} with {value:?}")]
    Nonsense {
        /// What was asked.
        what: &'static str,
        /// The answer.
        value: String,
    },
    /// WAL that a backup needs would not be written.
    #[error(
        "wal_level is {0}: the WAL holds too little to recover from a base backup; set wal_level = replica and restart PostgreSQL"
    )]
    WalLevel(String),
    /// WAL that a backup needs would not be archived.
    #[error(
        "archive_mode is off: a base backup is worth nothing without the WAL after it; set archive_mode = on and restart PostgreSQL"
    )]
    ArchiveMode,
    /// Nothing is called.
    #[error("neither {} is set: set archive_command = 'walden-wal-push %p' and reload PostgreSQL", if *library { "archive_command nor archive_library" } else { "archive_command" })]
    ArchiveCommand {
        /// Whether this version has `archive_library`.
        library: bool,
    },
}

/// What the server says of itself.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    /// `system_identifier`.
    pub system: SystemIdentifier,
    /// `server_version_num`.
    pub version_num: u32,
    /// `block_size`, in bytes.
    pub block_size: u32,
    /// Blocks in a file of a relation (`segment_size`).
    pub segment_blocks: u32,
    /// `wal_segment_size`, in bytes.
    pub wal_segment_size: u64,
    /// `data_checksums`.
    pub data_checksums: bool,
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The timeline that it writes, or replays.
    pub timeline: TimelineId,
    /// Where its recovery would begin if it crashed now (`pg_control`): no backup of it begins before.
    pub redo: Lsn,
    /// The data directory, on the server.
    pub data_directory: String,
    /// `wal_level`.
    pub wal_level: String,
    /// `archive_mode`.
    pub archive_mode: String,
    /// `archive_command`.
    pub archive_command: String,
    /// `archive_library`, from PostgreSQL 15 on.
    pub archive_library: Option<String>,
    /// Bytes in all tablespaces.
    pub size: u64,
    /// Tablespaces of the person's own: OID and place.
    pub tablespaces: Vec<(u32, String)>,
}

impl ServerFacts {
    /// PostgreSQL's major version.
    pub fn major(&self) -> u16 {
        (self.version_num / 10_000) as u16
    }

    /// Refuses a server whose WAL would not reach the archive. A standby's WAL is its primary's affair.
    pub fn check_archiving(&self) -> Result<(), ServerError> {
        if self.wal_level == "minimal" {
            return Err(ServerError::WalLevel(self.wal_level.clone()));
        }
        if self.in_recovery {
            return Ok(());
        }
        if self.archive_mode == "off" {
            return Err(ServerError::ArchiveMode);
        }
        let library = self.archive_library.as_deref().unwrap_or_default();
        if library.is_empty() && matches!(self.archive_command.trim(), "" | "(disabled)") {
            return Err(ServerError::ArchiveCommand {
                library: self.archive_library.is_some(),
            });
        }
        Ok(())
    }
}

/// How far the server's archiver is (`pg_stat_archiver`).
#[derive(Debug, Clone)]
pub struct ArchiverStatus {
    /// Archived last.
    pub last_archived: Option<String>,
    /// Failed last, if that was after the last success.
    pub failing: Option<String>,
}

/// A connection.
pub struct Server {
    client: Client,
    config: Config,
}

impl Server {
    /// Connects with a libpq connection string.
    pub async fn connect(connection: &str) -> Result<Self, ServerError> {
        let config = connection.parse().map_err(ServerError::ConnectionString)?;
        Self::connect_with(config).await
    }

    /// Connects to the same server's database of that name.
    pub async fn connect_to(&self, database: &str) -> Result<Self, ServerError> {
        let mut config = self.config.clone();
        config.dbname(database);
        Self::connect_with(config).await
    }

    async fn connect_with(mut config: Config) -> Result<Self, ServerError> {
        config.application_name("walden");
        // A peer that is gone must not be waited for without bound.
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(PATIENCE);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(PATIENCE).keepalives_idle(PATIENCE);
        }
        let (client, driver) = config
            .connect(NoTls)
            .await
            .map_err(|source| ServerError::Connect(conninfo(&config), source))?;
        // Its errors come out of the queries that they break.
        tokio::spawn(driver);
        let server = Server { client, config };
        // Nothing that a role or database sets may change what we read, or end the session while a backup runs.
        server
            .execute(
                "prepare the session",
                "SET search_path = pg_catalog; SET statement_timeout = 0; SET idle_session_timeout = 0; SET DateStyle = ISO",
            )
            .await?;
        Ok(server)
    }

    /// The connection string for a program that we start. The password goes into its environment instead.
    pub fn conninfo(&self) -> String {
        conninfo(&self.config)
    }

    /// The password of the connection string.
    pub fn password(&self) -> Option<&[u8]> {
        self.config.get_password()
    }

    /// Asks for rows one after the other: none is read before it is taken.
    pub async fn stream(&self, what: &'static str, sql: &str) -> Result<RowStream, ServerError> {
        self.client
            .query_raw(sql, std::iter::empty::<i64>())
            .await
            .map_err(|source| ServerError::Query { what, source })
    }

    pub(super) async fn execute(&self, what: &'static str, sql: &str) -> Result<(), ServerError> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|source| ServerError::Query { what, source })
    }

    async fn row(&self, what: &'static str, sql: &str) -> Result<Row, ServerError> {
        self.client
            .query_one(sql, &[])
            .await
            .map_err(|source| ServerError::Query { what, source })
    }

    pub(super) async fn rows(
        &self,
        what: &'static str,
        sql: &str,
    ) -> Result<Vec<Row>, ServerError> {
        self.client
            .query(sql, &[])
            .await
            .map_err(|source| ServerError::Query { what, source })
    }

    /// Asks everything that a backup must know before it starts.
    pub async fn facts(&self) -> Result<ServerFacts, ServerError> {
        const WHAT: &str = "its settings";
        let row = self
            .row(
                WHAT,
                "SELECT (SELECT system_identifier FROM pg_control_system()), \
                 current_setting('server_version_num')::int8, current_setting('block_size')::int8, \
                 (SELECT setting::int8 FROM pg_settings WHERE name = 'segment_size'), \
                 (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size'), \
                 current_setting('data_checksums') = 'on', pg_is_in_recovery(), current_setting('wal_level'), \
                 current_setting('archive_mode'), current_setting('archive_command'), \
                 current_setting('archive_library', true), \
                 (SELECT sum(pg_tablespace_size(oid))::int8 FROM pg_tablespace), \
                 CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::int8 FROM pg_control_checkpoint()) \
                 ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 END, \
                 coalesce((SELECT setting FROM pg_settings WHERE name = 'data_directory'), 'PGDATA'), \
                 (SELECT redo_lsn::text FROM pg_control_checkpoint())",
            )
            .await?;
        let number = |column: usize| -> Result<i64, ServerError> { get(&row, column, WHAT) };
        let narrow = |column: usize| {
            number(column).and_then(|value| {
                u32::try_from(value).map_err(|_| ServerError::Nonsense {
                    what: WHAT,
                    value: value.to_string(),
                })
            })
        };
        let tablespaces = self
            .rows(
                "its tablespaces",
                "SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid",
            )
            .await?;
        Ok(ServerFacts {
            system: SystemIdentifier(number(0)? as u64),
            version_num: narrow(1)?,
            block_size: narrow(2)?,
            segment_blocks: narrow(3)?,
            wal_segment_size: number(4)? as u64,
            data_checksums: get(&row, 5, WHAT)?,
            in_recovery: get(&row, 6, WHAT)?,
            wal_level: get(&row, 7, WHAT)?,
            archive_mode: get(&row, 8, WHAT)?,
            archive_command: get(&row, 9, WHAT)?,
            archive_library: get(&row, 10, WHAT)?,
            size: number(11)? as u64,
            timeline: TimelineId(narrow(12)?),
            data_directory: get(&row, 13, WHAT)?,
            redo: {
                let text: String = get(&row, 14, WHAT)?;
                text.parse().map_err(|_| ServerError::Nonsense {
                    what: WHAT,
                    value: text,
                })?
            },
            tablespaces: tablespaces
                .iter()
                .map(|row| {
                    Ok((
                        get(row, 0, "its tablespaces")?,
                        get(row, 1, "its tablespaces")?,
                    ))
                })
                .collect::<Result<_, ServerError>>()?,
        })
    }

    /// The server's clock, or the last commit's that it replayed if that is later.
    pub async fn clock(&self) -> Result<jiff::Timestamp, ServerError> {
        const WHAT: &str = "its clock";
        let row = self
            .row(
                WHAT,
                // Commits carry the primary's clock, which may be ahead of a standby's.
                "SELECT (extract(epoch FROM greatest(clock_timestamp(), \
                 CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END)) * 1000000)::int8",
            )
            .await?;
        let micros: i64 = get(&row, 0, WHAT)?;
        jiff::Timestamp::from_microsecond(micros).map_err(|_| ServerError::Nonsense {
            what: WHAT,
            value: micros.to_string(),
        })
    }

    /// The transactions that run now.
    pub async fn snapshot(&self) -> Result<Snapshot, ServerError> {
        const WHAT: &str = "its snapshot";
        let row = self.row(WHAT, "SELECT pg_current_snapshot()::text").await?;
        let text: String = get(&row, 0, WHAT)?;
        let mut parts = text.split(':');
        let mut id = || parts.next().and_then(|part| part.parse().ok());
        let (xmin, xmax) = (id(), id());
        let running = parts
            .next()
            .unwrap_or_default()
            .split(',')
            .filter(|id| !id.is_empty());
        let running: Result<Vec<u64>, _> = running.map(str::parse).collect();
        match (xmin, xmax, running) {
            (Some(xmin), Some(xmax), Ok(in_progress)) => Ok(Snapshot {
                xmin,
                xmax,
                in_progress,
            }),
            _ => Err(ServerError::Nonsense {
                what: WHAT,
                value: text,
            }),
        }
    }

    /// How far archiving is.
    pub async fn archiver(&self) -> Result<ArchiverStatus, ServerError> {
        const WHAT: &str = "pg_stat_archiver";
        let row = self
            .row(
                WHAT,
                "SELECT last_archived_wal, CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') \
                 THEN last_failed_wal END FROM pg_stat_archiver",
            )
            .await?;
        Ok(ArchiverStatus {
            last_archived: get(&row, 0, WHAT)?,
            failing: get(&row, 1, WHAT)?,
        })
    }

    /// Whether every base backup that the server is sending, ours among them, waits for the archiver
    /// (`PROGRESS_BASEBACKUP_PHASE_WAIT_WAL_ARCHIVE`, commands/progress.h).
    pub async fn backups_wait(&self) -> Result<bool, ServerError> {
        const WHAT: &str = "pg_stat_progress_basebackup";
        let row = self
            .row(
                WHAT,
                "SELECT coalesce(bool_and(phase = 'waiting for wal archiving to finish'), false) \
                 FROM pg_stat_progress_basebackup",
            )
            .await?;
        get(&row, 0, WHAT)
    }

    /// Ends the segment that is being written, so that it can be archived.
    pub async fn switch_wal(&self) -> Result<(), ServerError> {
        self.row("pg_switch_wal()", "SELECT pg_switch_wal()")
            .await
            .map(|_| ())
    }

    /// The configuration files that the server reads and that stand outside its data directory. Second: what of that could not be had.
    pub async fn extras(&self, major: u16) -> (Vec<Extra>, Vec<String>) {
        const WHAT: &str = "its configuration files";
        // Files that pg_hba.conf and pg_ident.conf include are named from the version on that has such includes.
        let included = match major {
            ..16 => "",
            _ => {
                "UNION SELECT file_name FROM pg_hba_file_rules UNION SELECT file_name FROM pg_ident_file_mappings"
            }
        };
        let rows = self
            .rows(
                WHAT,
                &format!(
                    "WITH named AS ( \
                       SELECT setting AS path FROM pg_settings WHERE name IN ('config_file', 'hba_file', 'ident_file') \
                       UNION SELECT sourcefile FROM pg_file_settings {included}), \
                     home AS (SELECT current_setting('data_directory') || '/' AS dir) \
                     SELECT DISTINCT path FROM named, home WHERE path IS NOT NULL AND path <> '' \
                     AND NOT starts_with(path, dir) ORDER BY 1"
                ),
            )
            .await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(e) => {
                return (
                    Vec::new(),
                    vec![with_cause(
                        "the server does not name its configuration files",
                        &e,
                    )],
                );
            }
        };
        let (mut extras, mut missed) = (Vec::new(), Vec::new());
        for row in &rows {
            let Ok(path) = get::<String>(row, 0, WHAT) else {
                continue;
            };
            let read = self
                .client
                .query_one(
                    "SELECT pg_read_binary_file($1, 0, $2)",
                    &[&path, &(MAX_EXTRA + 1)],
                )
                .await;
            match read.and_then(|row| row.try_get::<_, Vec<u8>>(0)) {
                Ok(content) if content.len() as i64 <= MAX_EXTRA => {
                    extras.push(Extra { path, content })
                }
                Ok(_) => missed.push(format!("{path} is longer than {MAX_EXTRA} bytes")),
                Err(e) => missed.push(with_cause(
                    &format!("{path} cannot be read through the server"),
                    &e,
                )),
            }
        }
        (extras, missed)
    }

    /// Reads a part of a file below the data directory, as it is now; `None` where there is no such file any more.
    pub async fn read_file(
        &self,
        path: &str,
        offset: u64,
        length: u32,
    ) -> Result<Option<Vec<u8>>, ServerError> {
        let what = "part of a file";
        let row = self
            .client
            .query_one(
                "SELECT pg_read_binary_file($1, $2, $3, true)",
                &[&path, &(offset as i64), &i64::from(length)],
            )
            .await
            .map_err(|source| ServerError::Query { what, source })?;
        get(&row, 0, what)
    }
}

pub(super) fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    column: usize,
    what: &'static str,
) -> Result<T, ServerError> {
    row.try_get(column)
        .map_err(|source| ServerError::Query { what, source })
}

pub(super) fn with_cause(text: &str, error: &dyn std::error::Error) -> String {
    let mut text = text.to_owned();
    let mut next = Some(error);
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

/// Whether a password stands in a connection string. One that cannot be read holds one if it speaks of it.
#[must_use]
pub fn holds_password(connection: &str) -> bool {
    match connection.parse::<Config>() {
        Ok(config) => config.get_password().is_some(),
        Err(_) => connection.contains("password") || connection.contains('@'),
    }
}

/// The connection in libpq's words, without its password.
fn conninfo(config: &Config) -> String {
    let hosts = config.get_hosts().iter().map(|host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.to_string_lossy().into_owned(),
    });
    let ports = config.get_ports().iter().map(ToString::to_string);
    let ssl = match config.get_ssl_mode() {
        SslMode::Disable => "disable",
        SslMode::Require => "require",
        _ => "prefer",
    };
    let addresses = config.get_hostaddrs().iter().map(ToString::to_string);
    // libpq must end up at the server that was asked what it is.
    let session = match config.get_target_session_attrs() {
        TargetSessionAttrs::ReadWrite => "read-write",
        TargetSessionAttrs::ReadOnly => "read-only",
        _ => "",
    };
    let parts = [
        ("hostaddr", addresses.collect::<Vec<_>>().join(",")),
        ("target_session_attrs", session.to_owned()),
        ("host", hosts.collect::<Vec<_>>().join(",")),
        ("port", ports.collect::<Vec<_>>().join(",")),
        ("user", config.get_user().unwrap_or_default().to_owned()),
        ("sslmode", ssl.to_owned()),
        ("application_name", "walden".to_owned()),
    ];
    let parts = parts.iter().filter(|(_, value)| !value.is_empty());
    let quoted = parts.map(|(name, value)| {
        format!(
            "{name}='{}'",
            value.replace('\\', "\\\\").replace('\'', "\\'")
        )
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_for_a_child_keeps_everything_but_the_password() {
        let config: Config = "host=/tmp/a\\'b port=5433 user=backup password=secret"
            .parse()
            .unwrap();
        let text = conninfo(&config);
        assert!(
            !text.contains("secret"),
            "the password must not reach an argument list, found {text}"
        );
        assert_eq!(
            text,
            "host='/tmp/a\\'b' port='5433' user='backup' sslmode='prefer' application_name='walden'"
        );
    }
}
