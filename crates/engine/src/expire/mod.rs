//! `walden expire`: removes what retention does not keep.
//!
//! Order of what becomes durable, each step whole before the next: documents in `retired/` that say what goes, and an event; commit documents;
//! packs, maps and names that nobody else needs, and `started.json`; WAL and roll-ups; the documents in `retired/` again. A backup is none
//! any more as soon as the first stands, so whatever ends the program in between leaves nothing that looks whole and is not. What is left
//! then, the next expiry finds by the documents in `retired/` and removes.
//!
//! Between telling and removing it looks again at who has come meanwhile (docs/FORMAT.md, "Deleting").

mod carry;
mod look;
mod remove;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use walden_model::retention::{CannotExpire, ExpireFacts, ExpirePlan, Pin, RetentionPolicy};
use walden_model::{BackupId, BackupRecord, ClusterName, IdentityDocument, SystemKeys};
use walden_pg::SystemIdentifier;

pub use remove::{Left, Removed};

use crate::catalog::{self, CatalogError, SystemCatalog};
use crate::index::mark_breaks;
use crate::repository::{Repository, RepositoryError, RepositorySettings};
use look::Look;

/// What to expire.
#[derive(Debug, Clone)]
pub struct ExpireRequest {
    /// The repository: each is looked at by itself.
    pub repository: RepositorySettings,
    /// The cluster's name in it.
    pub cluster: ClusterName,
    /// One of its system identifiers; else all, each by itself.
    pub system: Option<SystemIdentifier>,
    /// What is kept.
    pub policy: RetentionPolicy,
    /// A backup without a commit document whose newest object is older does not run any more.
    pub abandoned_after: Duration,
    /// Only plan.
    pub dry_run: bool,
}

/// What was expired of one repository.
#[derive(Debug)]
pub struct ExpireReport {
    /// The repository's name.
    pub repository: String,
    /// The cluster.
    pub cluster: ClusterName,
    /// One for each system identifier, in the order of registration.
    pub systems: Vec<SystemExpiry>,
    /// Why the next one failed, and none behind it was looked at.
    pub failed: Option<ExpireError>,
}

/// What was expired of one system identifier.
#[derive(Debug)]
pub struct SystemExpiry {
    /// Its registration.
    pub identity: IdentityDocument,
    /// The plan, or why there is none.
    pub plan: Result<ExpirePlan, CannotExpire>,
    /// The commit documents of which the plan speaks.
    pub records: BTreeMap<BackupId, BackupRecord>,
    /// Pins.
    pub pins: BTreeMap<BackupId, Pin>,
    /// What became of it; `None` where it was only planned.
    pub done: Option<Removed>,
}

/// Why nothing, or not all, was expired.
#[derive(Debug, thiserror::Error)]
pub enum ExpireError {
    /// The repository cannot be opened or asked.
    #[error("repository \"{name}\" cannot be expired")]
    Repository {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
    /// The repository cannot be listed.
    #[error("repository \"{name}\" cannot be expired")]
    Catalog {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: CatalogError,
    },
    /// It was begun, and goes on when expire runs again.
    #[error(
        "expiring repository \"{name}\" was cut short; what it had begun to remove is no backup any more, and walden expire goes on with it"
    )]
    CutShort {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
}

/// Expires a cluster's backups and WAL in one repository.
///
/// # Errors
/// The repository cannot be asked. What it refuses to remove, and where it broke off, is in the report.
pub async fn expire(request: &ExpireRequest) -> Result<ExpireReport, ExpireError> {
    let failed = |source| ExpireError::Repository {
        name: request.repository.name.clone(),
        source,
    };
    let repository = Repository::open(&request.repository)
        .await
        .map_err(failed)?;
    expire_in(&repository, request).await
}

/// Expires in an open repository.
///
/// # Errors
/// As [`expire`].
pub async fn expire_in(
    repository: &Repository,
    request: &ExpireRequest,
) -> Result<ExpireReport, ExpireError> {
    let name = || repository.name().to_owned();
    let loaded = catalog::load(repository, &request.cluster, request.system).await;
    let loaded = loaded.map_err(|source| ExpireError::Catalog {
        name: name(),
        source,
    })?;
    let mut report = ExpireReport {
        repository: name(),
        cluster: request.cluster.clone(),
        systems: Vec::new(),
        failed: None,
    };
    for system in loaded {
        let keys = SystemKeys {
            cluster: request.cluster.clone(),
            system: system.identity.system_identifier,
        };
        let mut expiry = match plan(repository, &keys, request, system).await {
            Ok(expiry) => expiry,
            Err(source) => {
                report.failed = Some(ExpireError::Repository {
                    name: name(),
                    source,
                });
                break;
            }
        };
        if let Ok(plan) = &expiry.plan
            && !request.dry_run
        {
            let run = carry::Run::new(repository, &keys, &expiry, request.abandoned_after);
            match run.carry_out(plan).await {
                Ok(done) => expiry.done = Some(done),
                Err(source) => {
                    report.failed = Some(ExpireError::CutShort {
                        name: name(),
                        source,
                    });
                    break;
                }
            }
        }
        report.systems.push(expiry);
    }
    Ok(report)
}

fn span(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

async fn plan(
    repository: &Repository,
    keys: &SystemKeys,
    request: &ExpireRequest,
    system: SystemCatalog,
) -> Result<SystemExpiry, RepositoryError> {
    let SystemCatalog {
        identity,
        mut catalog,
        ..
    } = system;
    let mut expiry = SystemExpiry {
        plan: Err(CannotExpire::NoPolicy),
        records: catalog
            .backups
            .iter()
            .map(|record| (record.backup_id.clone(), record.clone()))
            .collect(),
        pins: BTreeMap::new(),
        identity,
        done: None,
    };
    if request.policy.is_empty() {
        return Ok(expiry);
    }
    mark_breaks(repository, &mut catalog).await?;
    let known = expiry.records.keys().chain(&catalog.retiring);
    let known: BTreeSet<BackupId> = known.cloned().collect();
    let look = match Look::new(repository, keys, &expiry.identity, &known).await? {
        Ok(look) => look,
        Err(unreadable) => {
            expiry.plan = Err(CannotExpire::Unreadable {
                key: unreadable.key,
                why: unreadable.why,
            });
            return Ok(expiry);
        }
    };
    let store_now = look.store_now(repository, keys, &catalog).await?;
    let (proven, damaged) = look.verified(repository, keys, &expiry.identity).await?;
    expiry.pins = look.pins.all();
    expiry.plan = ExpirePlan::build(&ExpireFacts {
        catalog: &catalog,
        policy: &request.policy,
        pins: &expiry.pins,
        proven: &proven,
        damaged: &damaged,
        open: &look.open,
        now: Timestamp::now(),
        store_now,
        abandoned_after: span(request.abandoned_after),
    });
    Ok(expiry)
}
