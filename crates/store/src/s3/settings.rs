//! What a person sets about a bucket.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::client::without_password;

/// Where the bucket is, and how it is spoken to. [`S3Settings::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The bucket's name; it exists already.
    pub bucket: String,
    /// Every object's name in the bucket begins with this and a `/`; empty: the whole bucket. At most
    /// [`S3Settings::MAX_PREFIX`] bytes, of the form of a [`Key`](crate::Key).
    pub prefix: String,
    /// The region; `None`: what AWS's chain says, or `us-east-1` where there is an endpoint.
    pub region: Option<String>,
    /// The URL of a store that is not AWS's, such as `https://s3.example.net:3900`.
    pub endpoint: Option<String>,
    /// The bucket's name stands in the path, not in the host's name. Most stores other than AWS's want it.
    pub path_style: bool,
    /// Who asks.
    pub credentials: S3Credentials,
    /// Certificates in PEM that are believed, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Such as `STANDARD_IA`; `None`: the bucket's.
    pub storage_class: Option<String>,
    /// Encryption by the store; `None`: the bucket's.
    pub encryption: Option<ServerEncryption>,
    /// How long each object cannot be removed; `None`: as the bucket says.
    pub object_lock: Option<ObjectLock>,
    /// Each object's tags.
    pub tags: BTreeMap<String, String>,
    /// When checksums go along.
    pub checksums: Checksums,
    /// How an object is put only where none is. [`S3Store::probe_create_only`](crate::S3Store::probe_create_only) finds out which of
    /// them holds; all writers of a bucket use the same.
    pub create_only: CreateOnly,
    /// Parts of one large upload that are under way at once; 0 counts as 1.
    pub upload_concurrency: usize,
    /// Longest time without an answer to a request, or between two pieces of an answer. A request that sends bytes has a second more
    /// for each 256 KiB.
    pub request_deadline: Duration,
    /// Longest time for an operation with all that is tried again, plus a second for each 256 KiB that it moves. What a reader of a
    /// stream does between two pieces does not count.
    pub operation_deadline: Duration,
}

impl S3Settings {
    /// In bytes. With Walden's own folders the longest key then stays within the 1024 that stores allow.
    pub const MAX_PREFIX: usize = 80;

    /// The bucket with every default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            region: None,
            endpoint: None,
            path_style: false,
            credentials: S3Credentials::Chain {
                profile: None,
                credentials_file: None,
            },
            ca_file: None,
            storage_class: None,
            encryption: None,
            object_lock: None,
            tags: BTreeMap::new(),
            checksums: Checksums::WhenSupported,
            create_only: CreateOnly::Conditional,
            upload_concurrency: 4,
            request_deadline: Duration::from_secs(10),
            operation_deadline: Duration::from_secs(40),
        }
    }

    /// Where that is, for people.
    pub fn location(&self) -> String {
        let Self {
            bucket,
            prefix,
            endpoint,
            ..
        } = self;
        let slash = if prefix.is_empty() { "" } else { "/" };
        let at = endpoint.as_deref().map_or(String::new(), |endpoint| {
            format!(" at {}", without_password(endpoint))
        });
        format!("s3://{bucket}{slash}{prefix}{at}")
    }

    /// S3 demands a checksum with Object Lock, whatever is set; the SDK knows nothing of that.
    pub(super) fn sends_checksums(&self) -> bool {
        self.object_lock.is_some() || self.checksums == Checksums::WhenSupported
    }
}

/// Where the access key comes from.
#[derive(Debug, Clone)]
pub enum S3Credentials {
    /// AWS's chain: environment, profiles, web identity, container, instance.
    Chain {
        /// In AWS's own files; `None`: `AWS_PROFILE`, else `default`.
        profile: Option<String>,
        /// In place of what `AWS_SHARED_CREDENTIALS_FILE` names, else `~/.aws/credentials`.
        credentials_file: Option<PathBuf>,
    },
    /// Given outright.
    Static {
        /// Names the key; no secret.
        access_key_id: String,
        /// Its secret.
        secret_access_key: Secret,
        /// With temporary keys.
        session_token: Option<Secret>,
    },
}

impl S3Credentials {
    /// What must never be shown, as far as it is known here.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        let (key, token) = match self {
            Self::Chain { .. } => (None, None),
            Self::Static {
                secret_access_key,
                session_token,
                ..
            } => (Some(secret_access_key), session_token.as_ref()),
        };
        key.into_iter().chain(token).map(Secret::reveal)
    }
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Encryption of the stored bytes by the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEncryption {
    /// With the store's own keys (SSE-S3).
    S3,
    /// With a key of AWS's KMS (SSE-KMS).
    Kms {
        /// Its id or ARN; `None`: the account's default.
        key: Option<String>,
    },
}

/// Retention of every object that is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLock {
    /// Whether anybody may lift it.
    pub mode: ObjectLockMode,
    /// From the moment of the put, by this machine's clock.
    pub days: u32,
}

/// Who may lift a retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectLockMode {
    /// Whoever has `s3:BypassGovernanceRetention`.
    Governance,
    /// Nobody.
    Compliance,
}

/// When checksums (CRC32) go along with what is put and are asked for with what is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Always.
    WhenSupported,
    /// Only where S3 demands one, as Object Lock does: for stores that refuse the headers.
    WhenRequired,
}

/// How an object is put only where none is; FORMAT.md, "Create-only".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreateOnly {
    /// `If-None-Match: *`, which the store honours.
    Conditional,
    /// Each writer leaves a claim with its bytes' digest, and puts only where its claim stands alone. For stores that answer 200 to
    /// `If-None-Match: *` and overwrite.
    Claims,
}
