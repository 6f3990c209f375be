//! What happens where a file's name is taken, or the file is to be set aside.

use walden_model::{IdentityDocument, WalName};
use walden_store::StoreErrorKind;

use super::compare::{self, Comparison};
use super::destination::Destination;
use super::job::{Job, JobError};
use super::{PushError, PushOutcome};
use crate::host;
use crate::repository::{Repository, Trouble};

impl Job<'_> {
    /// The name is taken. The same bytes are a success once they are surely durable: whoever wrote them may have been killed
    /// before the last fsync. Other bytes are a conflict, unless a person has set the newcomer aside.
    pub(super) async fn settle(
        &self,
        destination: &Destination<'_>,
        identity: &IdentityDocument,
        key: &str,
    ) -> Result<PushOutcome, JobError> {
        let repository = destination.repository().await?;
        let file = self.source.file;
        let comparison = self.compare(repository, identity, key).await?;
        let (offset, theirs) = match comparison {
            Comparison::Same => {
                self.confirm(repository, key).await?;
                return Ok(PushOutcome::AlreadyThere);
            }
            Comparison::Different { offset, writer } => (offset, writer),
        };
        let digest = self.named(identity.archive_id, self.digest().await?);
        let aside = self.keys().quarantine(&file, &digest);
        match self.compare_raw(repository, identity, &aside).await {
            Ok(Comparison::Same) => {
                self.confirm(repository, &aside).await?;
                Ok(PushOutcome::SetAside)
            }
            _ => Err(PushError::Conflict {
                file,
                path: self.path.clone(),
                difference: self.source.difference_at(offset),
                theirs: Box::new(theirs),
                ours: Box::new(host::writer()),
            }
            .into()),
        }
    }

    /// Only what is in conflict may be set aside: everything else would be missing from the archive while PostgreSQL hears that it is safe.
    /// Says whether the same bytes are archived.
    pub(super) async fn not_in_conflict(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
    ) -> Result<bool, JobError> {
        let file = self.source.file;
        let no_conflict = || PushError::NoConflict { file };
        let name = WalName::of_file(file).ok_or_else(no_conflict)?;
        let archived = self.keys().wal(&name);
        match self.compare(repository, identity, &archived).await {
            Ok(Comparison::Same) => {
                self.confirm(repository, &archived).await?;
                Ok(true)
            }
            Ok(Comparison::Different { .. }) => Ok(false),
            Err(JobError::Repository(e)) if e.trouble() == Trouble::Absent => {
                Err(no_conflict().into())
            }
            Err(e) => Err(e),
        }
    }

    pub(super) async fn compare(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
        key: &str,
    ) -> Result<Comparison, JobError> {
        let compared = self.compare_raw(repository, identity, key).await;
        compared.map_err(|error| match error {
            JobError::Repository(source) if source.trouble() == Trouble::Damage => {
                PushError::DamagedObject {
                    file: self.source.file,
                    key: key.to_owned(),
                    source,
                }
                .into()
            }
            error => error,
        })
    }

    async fn compare_raw(
        &self,
        repository: &Repository,
        identity: &IdentityDocument,
        key: &str,
    ) -> Result<Comparison, JobError> {
        compare::compare(repository, identity, key, &self.source, self.digest()).await
    }

    pub(super) async fn confirm(&self, repository: &Repository, key: &str) -> Result<(), JobError> {
        match repository
            .store()
            .confirm_durable(&repository.key(key)?)
            .await
        {
            // Gone in between: the next try stores it.
            Err(e) if e.kind() == StoreErrorKind::NotFound => Err(repository.failed(e).into()),
            other => Ok(other.map_err(|e| repository.failed(e))?),
        }
    }
}
