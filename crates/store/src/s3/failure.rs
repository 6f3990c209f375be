//! What went wrong with a request, without a secret in it.

use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// How much of a store's own words is kept: whole, so that a secret in them is recognised.
const MESSAGE: usize = 10_000;

/// How much of it a person is shown.
const SHOWN: usize = 500;

/// What can be decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The store says that this key has no object.
    NoSuchKey,
    /// 404 without a word: no key or no bucket.
    NotFound,
    NoSuchBucket,
    NoSuchUpload,
    /// 403, for the operation.
    Denied,
    /// The access key, its signature or its clock.
    Credentials,
    /// Whoever answers has a certificate that is not believed.
    Untrusted,
    /// Another region's bucket.
    Elsewhere,
    /// 412: the object is there, or is another.
    Precondition,
    /// 409: another write is under way.
    Conflict,
    /// 416.
    Range,
    Full,
    /// The store asks for fewer requests.
    Busy,
    /// No answer, half an answer, or the store's own trouble.
    Transient,
    /// The store does not know the request.
    Unsupported,
    /// Any other refusal.
    Refused,
}

/// A request that failed: its kind, and in words what came back. The SDK's own error is not kept, because it holds the whole answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub(super) struct Failure {
    pub kind: FailureKind,
    pub what: String,
    /// How long the store wants to be left alone.
    pub pause: Option<Duration>,
}

impl Failure {
    pub fn new(kind: FailureKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            pause: None,
        }
    }

    pub fn transient(what: impl Into<String>) -> Self {
        Self::new(FailureKind::Transient, what)
    }

    /// What a person is shown: a store may repeat what it was sent, but not these.
    pub fn without<'a>(mut self, secrets: impl Iterator<Item = &'a str>) -> Self {
        for secret in secrets.filter(|secret| !secret.is_empty()) {
            self.what = self.what.replace(secret, "(secret)");
        }
        self.what = self.what.chars().take(SHOWN).collect();
        self
    }

    /// Whether asking again may help.
    pub fn passes(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::Busy | FailureKind::Transient | FailureKind::Conflict
        )
    }

    pub fn of<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        match &error {
            SdkError::ServiceError(service) => {
                let meta = service.err().meta();
                Self::answered(service.raw(), meta.code(), meta.message())
            }
            SdkError::ResponseError(response) => Self::transient(format!(
                "the answer, with status {}, is not one of S3: {}",
                response.raw().status().as_u16(),
                chain(&error)
            )),
            SdkError::DispatchFailure(failure) => {
                let what = chain(&error);
                let setup = failure.is_user()
                    || (failure.is_other() && failure.as_other().is_none())
                        && (what.contains("credential") || what.contains("identity"));
                let kind = if setup {
                    FailureKind::Credentials
                } else if what.contains("invalid peer certificate") {
                    FailureKind::Untrusted
                } else {
                    FailureKind::Transient
                };
                Self::new(kind, what)
            }
            SdkError::TimeoutError(_) => Self::transient(chain(&error)),
            _ => Self::new(FailureKind::Refused, chain(&error)),
        }
    }

    fn answered(response: &HttpResponse, code: Option<&str>, message: Option<&str>) -> Self {
        let status = response.status().as_u16();
        let kind = kind(status, code);
        let mut what = format!("the store answers {status}");
        if let Some(code) = code {
            what = format!("{what} {}", plain(code));
        }
        if let Some(message) = message {
            what = format!("{what}: {}", plain(message));
        }
        let header = |name: &str| response.headers().get(name);
        if let Some(request) = header("x-amz-request-id") {
            what = format!("{what} (request {})", plain(request));
        }
        // In seconds; the form with a date is not used by any S3.
        let pause = header("retry-after").and_then(|text| text.trim().parse().ok());
        Self {
            kind,
            what,
            pause: pause.map(Duration::from_secs),
        }
    }
}

fn kind(status: u16, code: Option<&str>) -> FailureKind {
    match (status, code.unwrap_or_default()) {
        (_, "NoSuchBucket") => FailureKind::NoSuchBucket,
        (404, "NoSuchUpload") => FailureKind::NoSuchUpload,
        (404, "NoSuchKey") => FailureKind::NoSuchKey,
        (404, _) => FailureKind::NotFound,
        (412, _) | (_, "PreconditionFailed") => FailureKind::Precondition,
        (416, _) | (_, "InvalidRange") => FailureKind::Range,
        (409, _) => FailureKind::Conflict,
        (
            _,
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "RequestTimeTooSkewed",
        ) => FailureKind::Credentials,
        (_, "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull") | (507, _) => {
            FailureKind::Full
        }
        (
            _,
            "SlowDown"
            | "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "TooManyRequests",
        )
        | (429 | 503, _) => FailureKind::Busy,
        (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") | (301 | 307, _) => {
            FailureKind::Elsewhere
        }
        (401 | 403, _) => FailureKind::Denied,
        // Some stores answer 400 to a body that came incompletely.
        (_, "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch")
        | (408, _) => FailureKind::Transient,
        (501, _) | (_, "NotImplemented") => FailureKind::Unsupported,
        (200..=299 | 500.., _) => FailureKind::Transient,
        _ => FailureKind::Refused,
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    plain(&text)
}

/// One line of bounded length without control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars()
        .take(MESSAGE)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect()
}
