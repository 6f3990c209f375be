//! The configuration as it is written: one type for each YAML mapping. What it means is [`super::Settings`].

use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Error, MapAccess, Visitor};
use walden_model::{ClusterName, RandomId};

use super::duration::Span;
use super::encryption::RawAgeKeys;
use super::retention::{RawExpire, RawRetention};
use super::s3::RawS3;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub clusters: Option<RawClusters>,
    pub repositories: Option<Vec<RawRepository>>,
    #[serde(default)]
    pub compression: RawCompression,
    #[serde(default)]
    pub encryption: RawAgeKeys,
    #[serde(default)]
    pub push: RawPush,
    #[serde(default)]
    pub fetch: RawFetch,
    #[serde(default)]
    pub backup: RawBackup,
    pub retention: Option<RawRetention>,
    #[serde(default)]
    pub expire: RawExpire,
    #[serde(default)]
    pub log_level: LogLevel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    pub pgdata: Option<Text<AbsolutePath>>,
    pub connection: Option<String>,
    pub primary_connection: Option<String>,
    pub pg_bin_dir: Option<Text<AbsolutePath>>,
    pub spool_dir: Option<Text<AbsolutePath>>,
    pub retention: Option<RawRetention>,
}

/// Clusters in the order of the file. Not a map type, because those silently keep the last of two equal names.
#[derive(Debug)]
pub(super) struct RawClusters(pub Vec<(ClusterName, RawCluster)>);

impl<'de> Deserialize<'de> for RawClusters {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Clusters;

        impl<'de> Visitor<'de> for Clusters {
            type Value = RawClusters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("clusters by their names, as in \"main: { pgdata: /var/lib/postgresql/17/main }\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawClusters, A::Error> {
                let mut clusters: Vec<(ClusterName, RawCluster)> = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let name: ClusterName = name.parse().map_err(A::Error::custom)?;
                    if clusters.iter().any(|(known, _)| *known == name) {
                        return Err(A::Error::custom(format_args!(
                            "the cluster {name} is there twice"
                        )));
                    }
                    let cluster: Option<RawCluster> = map.next_value()?;
                    clusters.push((name, cluster.unwrap_or_default()));
                }
                Ok(RawClusters(clusters))
            }
        }

        deserializer.deserialize_map(Clusters)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRepository {
    pub name: Option<String>,
    pub path: Option<Text<AbsolutePath>>,
    pub id: Option<Text<RandomId>>,
    pub s3: Option<RawS3>,
    pub required: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCompression {
    pub level: Text<CompressionLevel>,
}

impl Default for RawCompression {
    fn default() -> Self {
        Self {
            level: Text(CompressionLevel(1)),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPush {
    pub deadline: Text<Span>,
    pub ahead: Text<Ahead>,
    pub backlog_level: Text<BacklogLevel>,
    pub optional_wait: Text<Span>,
}

impl Default for RawPush {
    fn default() -> Self {
        // Below the 60 s after which `pg_ctl stop` gives up, and it waits for the archiver's last round.
        Self {
            deadline: seconds(50),
            ahead: Text(Ahead(16)),
            backlog_level: Text(BacklogLevel(None)),
            optional_wait: seconds(5),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawFetch {
    pub retry_for: Text<Span>,
    pub ahead: Text<Ahead>,
    pub standby_on_outage: StandbyOnOutage,
}

impl Default for RawFetch {
    fn default() -> Self {
        Self {
            retry_for: seconds(30),
            ahead: Text(Ahead(8)),
            standby_on_outage: StandbyOnOutage::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBackup {
    pub wal_timeout: Text<Span>,
}

impl Default for RawBackup {
    fn default() -> Self {
        Self {
            wal_timeout: seconds(600),
        }
    }
}

/// What a standby's `restore_command` does while no repository answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StandbyOnOutage {
    /// Tells PostgreSQL that the file is not there, which then asks again and tries streaming between.
    #[default]
    Wait,
    /// Stops the standby, as a recovery that is no standby's is stopped.
    Stop,
}

/// What is logged: this and everything more severe.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures alone.
    Error,
    /// Also what somebody should look at.
    Warn,
    /// Also one line for each thing done.
    #[default]
    Info,
    /// Also how it was done.
    Debug,
    /// Everything.
    Trace,
}

/// A scalar that is parsed where it stands: an error then has its line and key, which serde's `try_from` loses.
#[derive(Debug, Default)]
pub(super) struct Text<T>(pub T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar<T>(PhantomData<T>);

        impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Scalar<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                text.parse().map(Text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Scalar(PhantomData))
    }
}

pub(super) fn seconds(seconds: u64) -> Text<Span> {
    Text(Span(Duration::from_secs(seconds)))
}

/// A path that does not depend on the directory from which PostgreSQL, cron or a person runs the program.
#[derive(Debug)]
pub(super) struct AbsolutePath(pub PathBuf);

impl FromStr for AbsolutePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if Path::new(text).is_absolute() {
            Ok(Self(PathBuf::from(text)))
        } else {
            Err(format!("{text:?} is not an absolute path: begin it with /"))
        }
    }
}

/// zstd's level.
#[derive(Debug, Clone, Copy)]
pub(super) struct CompressionLevel(pub i32);

impl FromStr for CompressionLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            // Levels above 19 need window logs that plain zstd refuses to decompress.
            Ok(level @ 1..=19) => Ok(Self(level)),
            _ => Err(format!(
                "{text} is not a compression level: write 1 (fastest) to 19 (smallest)"
            )),
        }
    }
}

/// How many files a push takes beyond its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ahead(pub usize);

impl FromStr for Ahead {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(files @ 0..=64) => Ok(Self(files)),
            _ => Err(format!(
                "{text} is not a number of files: write 0 (none) to 64"
            )),
        }
    }
}

/// zstd's level while files wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct BacklogLevel(pub Option<i32>);

impl FromStr for BacklogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("off", _) => Ok(Self(None)),
            // Beyond -7 zstd gains no speed that the rest of a push would not eat.
            (_, Ok(level @ -7..=19)) => Ok(Self(Some(level))),
            _ => Err(format!(
                "{text} is not a compression level: write off, or -7 (fastest) to 19 (smallest)"
            )),
        }
    }
}
