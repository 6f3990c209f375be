//! A bucket as the configuration says it. Secrets have no key here: AWS's own chain finds them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use walden_engine::repository::{
    Checksums, CreateOnly, ObjectLock, ObjectLockMode, S3Credentials, S3Settings, ServerEncryption,
};

use super::duration::Span;
use super::raw::{AbsolutePath, Text, seconds};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawS3 {
    bucket: String,
    #[serde(default)]
    prefix: String,
    region: Option<String>,
    endpoint: Option<String>,
    path_style: Option<bool>,
    profile: Option<String>,
    credentials_file: Option<Text<AbsolutePath>>,
    ca_file: Option<Text<AbsolutePath>>,
    storage_class: Option<String>,
    server_side_encryption: Option<RawEncryption>,
    kms_key: Option<String>,
    object_lock: Option<RawObjectLock>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    checksums: RawChecksums,
    #[serde(default)]
    create_only: RawCreateOnly,
    #[serde(default)]
    upload_concurrency: Text<Uploads>,
    #[serde(default = "request_deadline")]
    request_deadline: Text<Span>,
    #[serde(default = "operation_deadline")]
    operation_deadline: Text<Span>,
}

/// The values of S3's header `x-amz-server-side-encryption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum RawEncryption {
    #[serde(rename = "AES256")]
    S3,
    #[serde(rename = "aws:kms")]
    Kms,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawObjectLock {
    mode: RawLockMode,
    days: Text<Days>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawLockMode {
    Governance,
    Compliance,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawChecksums {
    #[default]
    WhenSupported,
    WhenRequired,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCreateOnly {
    #[default]
    Conditional,
    Claims,
}

/// Days that an object cannot be removed.
#[derive(Debug, Clone, Copy)]
struct Days(u32);

impl FromStr for Days {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            // S3's own bound is a hundred years.
            Ok(days @ 1..=36_500) => Ok(Self(days)),
            _ => Err(format!("{text} is not a number of days: write 1 to 36500")),
        }
    }
}

/// Parts of one upload that are under way at once.
#[derive(Debug, Clone, Copy)]
struct Uploads(usize);

impl Default for Uploads {
    fn default() -> Self {
        Self(4)
    }
}

impl FromStr for Uploads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(parts @ 1..=16) => Ok(Self(parts)),
            _ => Err(format!("{text} is not a number of parts: write 1 to 16")),
        }
    }
}

fn request_deadline() -> Text<Span> {
    seconds(10)
}

fn operation_deadline() -> Text<Span> {
    seconds(40)
}

/// What contradicts itself.
#[derive(Debug)]
pub(super) struct KeyWithoutKms(usize);

impl fmt::Display for KeyWithoutKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "repositories[{}].s3: kms_key goes with server_side_encryption: aws:kms alone",
            self.0
        )
    }
}

impl RawS3 {
    /// `place` is the repository's in the list.
    pub fn resolve(self, place: usize) -> Result<S3Settings, KeyWithoutKms> {
        let path = |path: Option<Text<AbsolutePath>>| path.map(|path| path.0.0);
        let encryption = match (self.server_side_encryption, self.kms_key) {
            (Some(RawEncryption::Kms), key) => Some(ServerEncryption::Kms { key }),
            (_, Some(_)) => return Err(KeyWithoutKms(place)),
            (Some(RawEncryption::S3), None) => Some(ServerEncryption::S3),
            (None, None) => None,
        };
        Ok(S3Settings {
            bucket: self.bucket,
            prefix: self.prefix,
            region: self.region,
            // Few stores beside AWS's have a host name for each bucket.
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
            endpoint: self.endpoint,
            credentials: S3Credentials::Chain {
                profile: self.profile,
                credentials_file: path(self.credentials_file),
            },
            ca_file: path(self.ca_file),
            storage_class: self.storage_class,
            encryption,
            object_lock: self.object_lock.map(|lock| ObjectLock {
                mode: match lock.mode {
                    RawLockMode::Governance => ObjectLockMode::Governance,
                    RawLockMode::Compliance => ObjectLockMode::Compliance,
                },
                days: lock.days.0.0,
            }),
            tags: self.tags,
            checksums: match self.checksums {
                RawChecksums::WhenSupported => Checksums::WhenSupported,
                RawChecksums::WhenRequired => Checksums::WhenRequired,
            },
            create_only: match self.create_only {
                RawCreateOnly::Conditional => CreateOnly::Conditional,
                RawCreateOnly::Claims => CreateOnly::Claims,
            },
            upload_concurrency: self.upload_concurrency.0.0,
            request_deadline: self.request_deadline.0.0,
            operation_deadline: self.operation_deadline.0.0,
        })
    }
}
