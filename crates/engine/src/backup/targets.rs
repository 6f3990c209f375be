//! The repositories of one backup. It is made once, and stays in those that took every piece of it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use futures::future::join_all;
use walden_model::{Document, IdentityDocument, SystemKeys};
use walden_store::{ListOptions, PutMode};

use super::server::ServerFacts;
use super::{BackupError, BackupRequest, Lacking, check_segment_size, wal};
use crate::repository::{Repository, RepositoryError, RepositorySettings};

/// A repository that took everything so far, or why it did not.
pub(super) struct Target {
    pub repository: Repository,
    pub required: bool,
    whole: AtomicBool,
    failed: Mutex<Option<BackupError>>,
}

/// All that there are.
pub(super) struct Targets {
    list: Vec<Target>,
    /// Those that could not even be begun with.
    unfit: Mutex<VecDeque<Lacking>>,
}

impl Target {
    fn new(repository: Repository, required: bool) -> Self {
        Target {
            repository,
            required,
            whole: AtomicBool::new(true),
            failed: Mutex::new(None),
        }
    }

    /// Nothing more gets here, and the backup is not committed here.
    pub fn fail(&self, error: BackupError) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "repository \"{}\" drops out of this backup",
            self.repository.name()
        );
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.whole.store(false, Ordering::Release);
    }

    fn take_failure(&self) -> Option<BackupError> {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Targets {
    /// Opens those that can take a backup which can be restored: the cluster is registered there and archives there.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn open(
        request: &BackupRequest,
        keys: &SystemKeys,
        facts: &ServerFacts,
    ) -> Result<(Targets, IdentityDocument), BackupError> {
        let opened = request
            .repositories
            .iter()
            .map(|settings| open(settings, request, keys, facts));
        let (mut list, mut unfit) = (Vec::new(), VecDeque::new());
        let mut archive: Option<(String, IdentityDocument)> = None;
        // The archive is that of the first required repository.
        let mut opened: Vec<_> = request
            .repositories
            .iter()
            .zip(join_all(opened).await)
            .collect();
        opened.sort_by_key(|(settings, _)| !settings.required);
        for (settings, opened) in opened {
            let fit = match (opened, &archive) {
                (Ok((repository, theirs)), Some((other, archive)))
                    if theirs.archive_id != archive.archive_id =>
                {
                    Err(RepositoryError::OtherArchive {
                        name: repository.name().to_owned(),
                        other: other.clone(),
                        cluster: request.cluster.clone(),
                        system: facts.system,
                        found: theirs.archive_id,
                        expected: archive.archive_id,
                    }
                    .into())
                }
                (opened, _) => opened,
            };
            match fit {
                Ok((repository, identity)) => {
                    archive.get_or_insert_with(|| (settings.name.clone(), identity));
                    list.push(Target::new(repository, settings.required));
                }
                Err(why) => unfit.push_back(Lacking {
                    repository: settings.name.clone(),
                    required: settings.required,
                    why,
                }),
            }
        }
        let targets = Targets {
            list,
            unfit: Mutex::new(unfit),
        };
        match archive {
            Some((_, archive)) => Ok((targets, archive)),
            None => Err(targets.first_failure()),
        }
    }

    /// Over a test's own repository.
    #[cfg(test)]
    pub fn over(repository: Repository) -> Targets {
        Targets {
            list: vec![Target::new(repository, true)],
            unfit: Mutex::default(),
        }
    }

    /// An object's bytes as every repository gets them: the recipients are the same for all.
    pub async fn sealed(&self, key: &str, object: Vec<u8>) -> Result<Bytes, BackupError> {
        match self.list.first() {
            Some(first) => Ok(first.repository.sealed(key, object).await?),
            None => Ok(object.into()),
        }
    }

    /// Those that have everything so far.
    pub fn whole(&self) -> impl Iterator<Item = &Target> {
        self.list
            .iter()
            .filter(|target| target.whole.load(Ordering::Acquire))
    }

    /// Puts an object into each, create-only: keys hold the backup's random id, so a taken one is somebody's mistake.
    ///
    /// # Errors
    /// Where the last one failed.
    pub async fn put(&self, key: &str, object: Bytes) -> Result<(), BackupError> {
        let puts = self.whole().map(|target| {
            let object = object.clone();
            async move {
                let repository = &target.repository;
                let put = async {
                    let key = repository.key(key)?;
                    let put = repository.store().put(&key, object, PutMode::Create).await;
                    put.map_err(|e| repository.failed(e))
                };
                if let Err(e) = put.await {
                    target.fail(e.into());
                }
            }
        });
        join_all(puts).await;
        self.any()
    }

    /// Writes a document into each, create-only.
    ///
    /// # Errors
    /// Where the last one failed.
    pub async fn put_document<T: Document>(&self, key: &str, value: &T) -> Result<(), BackupError> {
        let puts = self.whole().map(|target| async move {
            if let Err(e) = target.repository.put_document(key, value).await {
                target.fail(e.into());
            }
        });
        join_all(puts).await;
        self.any()
    }

    /// That there is one left.
    ///
    /// # Errors
    /// Where there is none.
    pub fn any(&self) -> Result<(), BackupError> {
        match self.whole().next() {
            Some(_) => Ok(()),
            None => Err(self.first_failure()),
        }
    }

    /// What ends a backup that gets into no repository; those that are required come first.
    fn first_failure(&self) -> BackupError {
        let failures = self.list.iter().filter_map(Target::take_failure);
        let unfit = self
            .unfit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front();
        failures
            .chain(unfit.map(|lacking| lacking.why))
            .next()
            .unwrap_or_else(|| RepositoryError::NoRepository.into())
    }

    /// What became of the backup: the repositories that have it, and those that lack it.
    pub fn finish(&self) -> (Vec<String>, Vec<Lacking>) {
        let committed = self
            .whole()
            .map(|target| target.repository.name().to_owned())
            .collect();
        let mut lacking: Vec<_> = self
            .unfit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect();
        lacking.extend(self.list.iter().filter_map(|target| {
            Some(Lacking {
                repository: target.repository.name().to_owned(),
                required: target.required,
                why: target.take_failure()?,
            })
        }));
        (committed, lacking)
    }
}

async fn open(
    settings: &RepositorySettings,
    request: &BackupRequest,
    keys: &SystemKeys,
    facts: &ServerFacts,
) -> Result<(Repository, IdentityDocument), BackupError> {
    let repository = Repository::open(settings).await?;
    repository.root().await?;
    let identity = repository
        .registration(&request.cluster, facts.system)
        .await?;
    repository.recipients(&identity)?;
    check_segment_size(request, &identity, facts)?;
    check_archive(&repository, keys, request, facts).await?;
    wal::check_history(&repository, keys, facts).await?;
    Ok((repository, identity))
}

/// An archive that holds nothing is most likely one that nothing writes to.
async fn check_archive(
    repository: &Repository,
    keys: &SystemKeys,
    request: &BackupRequest,
    facts: &ServerFacts,
) -> Result<(), BackupError> {
    let prefix = keys.wal_prefix();
    let options = ListOptions {
        prefix: &prefix,
        start_after: None,
        delimiter: false,
        limit: 1,
    };
    let page = repository
        .store()
        .list(options)
        .await
        .map_err(|e| repository.failed(e))?;
    if page.objects.is_empty() {
        let archive_command = facts.archive_command.clone();
        return Err(BackupError::NothingArchived {
            cluster: request.cluster.clone(),
            archive_command,
        });
    }
    Ok(())
}
