//! How a store fails.

use std::error::Error;
use std::fmt;

/// What a caller can decide on after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The store was reached and has no such object.
    NotFound,
    /// A create-only write found an object under its key.
    AlreadyExists,
    /// The store refuses this to the user or credential at hand.
    PermissionDenied,
    /// The store could not be reached or could not answer. The same call may work later; nothing is known about the object.
    Unavailable,
    /// The store is full, or a quota is used up.
    OutOfSpace,
    /// Asking again will not help: a range beyond the object, something in the object's place that is none, a store
    /// that lacks what is needed.
    Invalid,
}

impl fmt::Display for StoreErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "there is no such object",
            Self::AlreadyExists => "it exists already",
            Self::PermissionDenied => "permission denied",
            Self::Unavailable => "the store is unavailable",
            Self::OutOfSpace => "no space left",
            Self::Invalid => "this can not work",
        })
    }
}

/// A failed operation on a store: what was tried, on what, and the kind of failure. The cause is the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {subject}: {}", reason.clone().unwrap_or_else(|| kind.to_string()))]
pub struct StoreError {
    kind: StoreErrorKind,
    operation: &'static str,
    subject: String,
    reason: Option<String>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// `operation` is a verb ("read"), `subject` what it was tried on: a key and where the store is.
    pub fn new(kind: StoreErrorKind, operation: &'static str, subject: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            subject: subject.into(),
            reason: None,
            source: None,
        }
    }

    /// Says more than the kind does: what is wrong and what to do about it.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What a caller can decide on.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}
