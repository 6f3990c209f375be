//! `walden copy`: makes one repository hold what another holds.
//!
//! A killed copy is made good by the next: what stands is skipped, and nothing is ever written over. A backup's commit document is put only
//! once everything that it names stands there, so that the copy never shows a backup that is not whole.

mod backups;
mod object;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;

use futures::stream::{Peekable, TryStreamExt};
use futures::{Stream, StreamExt, stream};
use walden_model::copy::{Action, Class, Content, Stage, action};
use walden_model::{BackupId, ClusterName, HeadKind, IdentityDocument, RandomId, SystemKeys, keys};
use walden_pg::SystemIdentifier;
use walden_store::{ObjectMeta, list_all, list_folders};

use self::object::{Outcome, Pair};
use crate::catalog::{CatalogError, identities};
use crate::progress::Progress;
use crate::repository::{Repository, RepositoryError, RepositorySettings};

/// Findings that a report names; it counts all.
const MOST_FINDINGS: usize = 1000;

/// Folders of a system identifier that are not for copying: what one repository is about to remove, and how its writers agree.
const OWN: [&str; 3] = ["claims", "partial", "retired"];

/// What to copy, from where to where.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// Whence.
    pub from: RepositorySettings,
    /// Whereto. It must be a repository already.
    pub to: RepositorySettings,
    /// The clusters.
    pub clusters: Vec<ClusterName>,
    /// Look, and put nothing.
    pub dry_run: bool,
    /// Also hold objects of the same key and size against each other.
    pub thorough: bool,
    /// Objects that are on their way at the same time.
    pub jobs: usize,
}

/// What a copy did, or would do.
#[derive(Debug, Clone)]
pub struct CopyReport {
    /// Whence.
    pub from: String,
    /// Whereto.
    pub to: String,
    /// Nothing was put.
    pub dry_run: bool,
    /// One for each cluster.
    pub clusters: Vec<ClusterCopy>,
}

impl CopyReport {
    /// Whether the one repository now holds all that the other does.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.clusters.iter().all(|cluster| cluster.found == 0)
    }
}

/// What was done for a cluster.
#[derive(Debug, Clone)]
pub struct ClusterCopy {
    /// The cluster.
    pub cluster: ClusterName,
    /// WAL files, those in quarantine included.
    pub wal: Tally,
    /// Packs, file maps and names of backups.
    pub contents: Tally,
    /// Registrations, events, and documents of backups.
    pub documents: Tally,
    /// Roll-ups.
    pub roll_ups: Tally,
    /// Backups that the other repository has now, and had not.
    pub backups: Vec<BackupId>,
    /// Objects that it had.
    pub there: u64,
    /// What was not copied and why: the first 1000.
    pub findings: Vec<Finding>,
    /// How many there are in all.
    pub found: u64,
    /// Folders and keys that this version does not know, and left alone: the first 1000.
    pub unknown: Vec<String>,
}

/// How much was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Objects.
    pub objects: u64,
    /// Their bytes, as they are stored.
    pub bytes: u64,
}

/// Why something was not copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What sort of thing.
    pub kind: FindingKind,
    /// The object.
    pub key: String,
    /// In words.
    pub why: String,
}

/// What sort of thing keeps an object from being copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// It cannot be believed where it comes from.
    Damaged,
    /// Something else stands under its key.
    Conflict,
    /// A commit document that names what the other repository has not.
    Incomplete,
}

/// Why a copy broke off. What was copied until then stays, and the next copy goes on behind it.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The repository it comes from.
    #[error("cannot copy from repository \"{name}\"")]
    From {
        /// The repository.
        name: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
    /// The repository it goes to.
    #[error("cannot copy to repository \"{name}\"")]
    To {
        /// The repository.
        name: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
    /// The repository it goes to is not to be found.
    #[error(
        "repository \"{name}\" is not there to be copied to; mount it, or make it with: walden init"
    )]
    NotThere {
        /// The repository.
        name: String,
        /// Why.
        #[source]
        source: RepositoryError,
    },
    /// What is to be copied cannot be told.
    #[error("cannot see what is to be copied from repository \"{name}\"")]
    Catalog {
        /// The repository.
        name: String,
        /// Why.
        #[source]
        source: CatalogError,
    },
    /// Both are one.
    #[error("\"{from}\" and \"{to}\" are the same repository, {id}: there is nothing to copy")]
    Same {
        /// Whence.
        from: String,
        /// Whereto.
        to: String,
        /// The id of both.
        id: RandomId,
    },
    /// The cluster was registered in each of them without regard to the other.
    #[error(
        "cluster \"{cluster}\", system identifier {system}, is archive {from_id} in repository \"{from}\" and archive {to_id} in \
         repository \"{to}\". Every object names its archive, so objects of the one can not be read in the other: copy into a repository in which \
         the cluster is not registered yet, or was registered while \"{from}\" was configured, too"
    )]
    OtherArchive {
        /// The cluster.
        cluster: ClusterName,
        /// Its system identifier.
        system: SystemIdentifier,
        /// Whence.
        from: String,
        /// The archive id there.
        from_id: RandomId,
        /// Whereto.
        to: String,
        /// The archive id there.
        to_id: RandomId,
    },
}

/// Makes `to` hold what `from` holds.
///
/// # Errors
/// What stops a copy. Objects that cannot be copied do not: the report names them.
pub async fn copy(
    request: &CopyRequest,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    let reading = |source| CopyError::From {
        name: request.from.name.clone(),
        source,
    };
    let missing = |source| CopyError::NotThere {
        name: request.to.name.clone(),
        source,
    };
    let from = Repository::open(&request.from).await.map_err(reading)?;
    let to = Repository::open(&request.to).await.map_err(missing)?;
    copy_between(&from, &to, request, progress).await
}

/// Between open repositories.
async fn copy_between(
    from: &Repository,
    to: &Repository,
    request: &CopyRequest,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    let pair = Pair {
        from,
        to,
        dry_run: request.dry_run,
        thorough: request.thorough,
        jobs: request.jobs.max(1),
        progress: progress.as_ref(),
    };
    let root = from.root().await.map_err(|e| pair.reading(e))?;
    let other = to.root().await.map_err(|e| pair.writing(e))?;
    if root.repository_id == other.repository_id {
        return Err(CopyError::Same {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            id: root.repository_id,
        });
    }
    let mut clusters = Vec::new();
    for cluster in &request.clusters {
        clusters.push(copy_cluster(&pair, cluster).await?);
    }
    Ok(CopyReport {
        from: from.name().to_owned(),
        to: to.name().to_owned(),
        dry_run: request.dry_run,
        clusters,
    })
}

async fn copy_cluster(pair: &Pair<'_>, cluster: &ClusterName) -> Result<ClusterCopy, CopyError> {
    let mut report = ClusterCopy {
        cluster: cluster.clone(),
        wal: Tally::default(),
        contents: Tally::default(),
        documents: Tally::default(),
        roll_ups: Tally::default(),
        backups: Vec::new(),
        there: 0,
        findings: Vec::new(),
        found: 0,
        unknown: Vec::new(),
    };
    let identities = identities(pair.from, cluster).await;
    let (identities, damaged) = identities.map_err(|source| CopyError::Catalog {
        name: pair.from.name().to_owned(),
        source,
    })?;
    for document in damaged {
        report.finding(FindingKind::Damaged, document.key, document.why);
    }
    // All of them first: where one does not fit nothing is copied.
    for identity in &identities {
        let key = keys::identity(cluster, identity.system_identifier);
        let outcome = pair.registration(&key, identity).await?;
        report.add(Content::Document, &key, outcome);
    }
    for identity in &identities {
        let system = System {
            pair,
            identity,
            keys: SystemKeys {
                cluster: cluster.clone(),
                system: identity.system_identifier,
            },
        };
        system.copy(&mut report).await?;
    }
    Ok(report)
}

/// One system identifier on its way.
struct System<'a> {
    pair: &'a Pair<'a>,
    identity: &'a IdentityDocument,
    keys: SystemKeys,
}

impl System<'_> {
    async fn copy(&self, report: &mut ClusterCopy) -> Result<(), CopyError> {
        self.strangers(report).await?;
        self.pair
            .progress
            .phase(&format!("copying WAL of {}", self.keys.cluster), None);
        for stage in Stage::BEFORE_BACKUPS {
            self.stage(stage, report).await?;
        }
        self.pair
            .progress
            .phase(&format!("copying backups of {}", self.keys.cluster), None);
        self.backups(report).await?;
        self.stage(Stage::RollUps, report).await
    }

    /// Names folders that this version does not know.
    async fn strangers(&self, report: &mut ClusterCopy) -> Result<(), CopyError> {
        let prefix = self.keys.prefix();
        let known: BTreeSet<String> = Stage::BEFORE_BACKUPS
            .into_iter()
            .chain([Stage::RollUps])
            .map(|stage| stage.prefix(&self.keys))
            .chain([self.keys.commits_prefix(), self.keys.backups_prefix()])
            .chain(OWN.map(|folder| format!("{prefix}{folder}/")))
            .collect();
        let folders = list_folders(self.pair.from.store().as_ref(), &prefix);
        let folders: Vec<String> = folders
            .try_collect()
            .await
            .map_err(|e| self.pair.reading(self.pair.from.failed(e)))?;
        for folder in folders {
            if !known.contains(&folder) {
                report.unknown(folder);
            }
        }
        Ok(())
    }

    /// Copies what one listing shows and the other does not.
    async fn stage(&self, stage: Stage, report: &mut ClusterCopy) -> Result<(), CopyError> {
        let prefix = stage.prefix(&self.keys);
        let size = self.identity.wal_segment_size;
        let mut done = pin!(
            self.joined(&prefix)
                .map_ok(|(object, there)| async move {
                    let key = object.key.as_str();
                    let class = stage.class(&self.keys, size, key);
                    let outcome = match class {
                        Class::Object(content) => {
                            Some((content, self.one(content, &object, there).await?))
                        }
                        Class::Own | Class::Unknown => None,
                    };
                    Ok((object, class, outcome))
                })
                .try_buffer_unordered(self.pair.jobs)
        );
        while let Some((object, class, outcome)) = done.try_next().await? {
            let key = object.key.as_str();
            if let Some((content, outcome)) = outcome {
                report.add(content, key, outcome);
            } else if class == Class::Unknown {
                report.unknown(key.to_owned());
            }
        }
        Ok(())
    }

    async fn one(
        &self,
        content: Content,
        object: &ObjectMeta,
        there: Option<u64>,
    ) -> Result<Outcome, CopyError> {
        let key = object.key.as_str();
        match action(content, object.size, there, self.pair.thorough) {
            Action::Nothing => Ok(Outcome::There),
            Action::Compare => self.pair.compare(key, content).await,
            Action::Copy if self.pair.dry_run => Ok(Outcome::Copied(object.size)),
            Action::Copy => match content {
                Content::Document => self.pair.document(key).await,
                Content::Framed(kind) => {
                    let archive_id = self.identity.archive_id;
                    let size = object.size;
                    self.pair.framed(key, kind, archive_id, size, None).await
                }
            },
        }
    }

    /// The one repository's objects in byte order, each with its size in the other. Both listings are read side by side, so that a million
    /// objects need no more memory than a page of each.
    fn joined<'b>(
        &'b self,
        prefix: &'b str,
    ) -> impl Stream<Item = Result<(ObjectMeta, Option<u64>), CopyError>> + 'b {
        let pair = self.pair;
        let from = list_all(pair.from.store().as_ref(), prefix)
            .map_err(|e| pair.reading(pair.from.failed(e)));
        let to =
            list_all(pair.to.store().as_ref(), prefix).map_err(|e| pair.writing(pair.to.failed(e)));
        stream::try_unfold(
            (Box::pin(from), Box::pin(to.peekable())),
            |(mut from, mut to)| async move {
                let Some(object) = from.try_next().await? else {
                    return Ok(None);
                };
                let there = size_there(to.as_mut(), &object).await?;
                Ok(Some(((object, there), (from, to))))
            },
        )
    }
}

/// The size of the other listing's object of that key; takes what comes before it.
async fn size_there<S>(
    mut to: std::pin::Pin<&mut Peekable<S>>,
    object: &ObjectMeta,
) -> Result<Option<u64>, CopyError>
where
    S: Stream<Item = Result<ObjectMeta, CopyError>>,
{
    loop {
        let order = match to.as_mut().peek().await {
            None => return Ok(None),
            Some(Err(_)) => Ordering::Less,
            Some(Ok(there)) => there.key.cmp(&object.key),
        };
        match order {
            Ordering::Greater => return Ok(None),
            order => {
                let there = to.try_next().await?;
                if order == Ordering::Equal {
                    return Ok(there.map(|there| there.size));
                }
            }
        }
    }
}

impl ClusterCopy {
    fn add(&mut self, content: Content, key: &str, outcome: Outcome) {
        match outcome {
            Outcome::Copied(bytes) => {
                let tally = match content {
                    Content::Document => &mut self.documents,
                    Content::Framed(HeadKind::Wal) => &mut self.wal,
                    Content::Framed(HeadKind::RollUp) => &mut self.roll_ups,
                    Content::Framed(_) => &mut self.contents,
                };
                tally.objects += 1;
                tally.bytes += bytes;
            }
            Outcome::There => self.there += 1,
            // Expired there meanwhile.
            Outcome::Gone => {}
            Outcome::Damaged(why) => self.finding(FindingKind::Damaged, key.to_owned(), why),
            Outcome::Conflict(why) => self.finding(FindingKind::Conflict, key.to_owned(), why),
        }
    }

    fn finding(&mut self, kind: FindingKind, key: String, why: String) {
        self.found += 1;
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(Finding { kind, key, why });
        }
    }

    fn unknown(&mut self, key: String) {
        if self.unknown.len() < MOST_FINDINGS {
            self.unknown.push(key);
        }
    }
}
