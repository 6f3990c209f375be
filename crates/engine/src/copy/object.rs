//! One object from one repository to the other.

use walden_model::copy::{Content, same_backup};
use walden_model::{
    CommitDocument, HeadKind, IdentityDocument, RandomId, Sha256Digest, document, keys,
};
use walden_store::{PutMode, StoreErrorKind};

use super::CopyError;
use crate::catalog::whole_text;
use crate::codec::{Expected, Proven};
use crate::progress::Progress;
use crate::repository::{End, PassError, Repository, RepositoryError, Trouble};

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was put, or would be.
    Copied(u64),
    /// It was there.
    There,
    /// It was removed from the one repository meanwhile.
    Gone,
    /// It cannot be believed in the repository it comes from.
    Damaged(String),
    /// Something else stands under its key.
    Conflict(String),
}

impl Outcome {
    /// Whether the object stands in the other repository.
    pub fn is_there(&self) -> bool {
        matches!(self, Outcome::Copied(_) | Outcome::There)
    }
}

/// The two repositories, and how to copy.
pub(super) struct Pair<'a> {
    pub from: &'a Repository,
    pub to: &'a Repository,
    pub dry_run: bool,
    pub thorough: bool,
    pub jobs: usize,
    pub progress: &'a dyn Progress,
}

/// What one repository says of an object: an answer, or nothing but that it cannot be believed.
enum Read<T> {
    Whole(T),
    Gone,
    Damaged(String),
}

fn sort<T>(read: Result<T, RepositoryError>) -> Result<Read<T>, RepositoryError> {
    match read {
        Ok(value) => Ok(Read::Whole(value)),
        Err(e) => match e.trouble() {
            Trouble::Absent => Ok(Read::Gone),
            Trouble::Damage | Trouble::Configuration => Ok(Read::Damaged(whole_text(&e))),
            Trouble::Outage | Trouble::Local => Err(e),
        },
    }
}

impl Pair<'_> {
    pub fn reading(&self, source: RepositoryError) -> CopyError {
        CopyError::From {
            name: self.from.name().to_owned(),
            source,
        }
    }

    pub fn writing(&self, source: RepositoryError) -> CopyError {
        CopyError::To {
            name: self.to.name().to_owned(),
            source,
        }
    }

    /// Copies a framed object of `size` stored bytes. They go as they are, and it gets its name only once all of them are proven.
    pub async fn framed(
        &self,
        key: &str,
        kind: HeadKind,
        archive_id: RandomId,
        size: u64,
        table: Option<Sha256Digest>,
    ) -> Result<Outcome, CopyError> {
        let failed = |e| self.writing(self.to.failed(e));
        let name = self.to.key(key).map_err(|e| self.writing(e))?;
        let begun = self.to.store().begin(&name, PutMode::Create).await;
        let mut upload = begun.map_err(failed)?;
        let expected = Expected {
            kind,
            archive_id,
            key: keys::below_cluster(key).to_owned(),
        };
        let passed = self.from.pass_object(key, expected, upload.as_mut()).await;
        let read = match passed {
            Ok(object) => Read::Whole(object),
            Err(PassError::To(e)) => return Err(failed(e)),
            Err(PassError::From(e)) => sort(Err(e)).map_err(|e| self.reading(e))?,
        };
        let object = match read {
            Read::Whole(object) => object,
            Read::Gone => return Ok(Outcome::Gone),
            Read::Damaged(why) => return Ok(Outcome::Damaged(why)),
        };
        let content = match object {
            Proven::Plain(object) => {
                if let Some(expected) = table.filter(|expected| *expected != object.table) {
                    return Ok(Outcome::Damaged(format!(
                        "it is another object than the commit document names: its tail has {}, expected {expected}",
                        object.table
                    )));
                }
                object.tail.sha256.map(|digest| digest.0)
            }
            // Its tail is encrypted, too.
            Proven::Sealed { seal, .. } => seal.content_hmac.map(|digest| digest.0),
        };
        // As the push that wrote it claimed the key.
        if kind == HeadKind::Wal
            && let Some(content) = content
        {
            upload.means(content);
        }
        match upload.commit().await {
            Ok(()) => {
                self.progress.advance(size);
                Ok(Outcome::Copied(size))
            }
            Err(e) if e.kind() == StoreErrorKind::AlreadyExists => {
                self.compare(key, Content::Framed(kind)).await
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// Copies a document, byte for byte.
    pub async fn document(&self, key: &str) -> Result<Outcome, CopyError> {
        let read = sort(self.from.document_bytes(key).await).map_err(|e| self.reading(e))?;
        let bytes = match read {
            Read::Whole(Some(bytes)) => bytes,
            Read::Whole(None) | Read::Gone => return Ok(Outcome::Gone),
            Read::Damaged(why) => return Ok(Outcome::Damaged(why)),
        };
        if let Err(e) = document::check(&bytes) {
            return Ok(Outcome::Damaged(whole_text(&e)));
        }
        let size = bytes.len() as u64;
        let name = self.to.key(key).map_err(|e| self.writing(e))?;
        let put = self.to.store().put(&name, bytes.into(), PutMode::Create);
        match put.await {
            Ok(()) => {
                self.progress.advance(size);
                Ok(Outcome::Copied(size))
            }
            Err(e) if e.kind() == StoreErrorKind::AlreadyExists => {
                self.compare(key, Content::Document).await
            }
            Err(e) => Err(self.writing(self.to.failed(e))),
        }
    }

    /// Whether what stands under a key in both repositories is the same. Of framed objects the tails, or seals, are held against each other: they have
    /// the digests of all the rest, which `walden verify` proves. Two pushes of one segment write different heads around the same content.
    pub async fn compare(&self, key: &str, content: Content) -> Result<Outcome, CopyError> {
        match content {
            Content::Document => self.compare_documents(key).await,
            Content::Framed(_) => self.compare_tails(key).await,
        }
    }

    async fn compare_tails(&self, key: &str) -> Result<Outcome, CopyError> {
        let (from, to) = tokio::join!(self.from.read_end(key), self.to.read_end(key));
        let from = sort(from).map_err(|e| self.reading(e))?;
        let to = sort(to).map_err(|e| self.writing(e))?;
        Ok(match (from, to) {
            (Read::Gone, _) => Outcome::Gone,
            (Read::Damaged(why), _) => Outcome::Damaged(why),
            (_, Read::Gone) => Outcome::Conflict(removed(self.to)),
            (_, Read::Damaged(why)) => Outcome::Conflict(damaged_there(self.to, &why)),
            (Read::Whole((_, from)), Read::Whole((_, to))) => match same(&from, &to) {
                true => Outcome::There,
                false => Outcome::Conflict(other(self.to)),
            },
        })
    }

    async fn compare_documents(&self, key: &str) -> Result<Outcome, CopyError> {
        let (from, to) = tokio::join!(self.from.document_bytes(key), self.to.document_bytes(key));
        let from = sort(from).map_err(|e| self.reading(e))?;
        let to = sort(to).map_err(|e| self.writing(e))?;
        Ok(match (from, to) {
            (Read::Gone | Read::Whole(None), _) => Outcome::Gone,
            (Read::Damaged(why), _) => Outcome::Damaged(why),
            (_, Read::Gone | Read::Whole(None)) => Outcome::Conflict(removed(self.to)),
            (_, Read::Damaged(why)) => Outcome::Conflict(damaged_there(self.to, &why)),
            (Read::Whole(Some(from)), Read::Whole(Some(to))) => {
                if from == to {
                    return Ok(Outcome::There);
                }
                if let Err(e) = document::check(&from) {
                    return Ok(Outcome::Damaged(whole_text(&e)));
                }
                if let Err(e) = document::check(&to) {
                    return Ok(Outcome::Conflict(damaged_there(self.to, &whole_text(&e))));
                }
                match (CommitDocument::decode(&from), CommitDocument::decode(&to)) {
                    (Ok(CommitDocument::Backup(from)), Ok(CommitDocument::Backup(to)))
                        if same_backup(&from, &to) =>
                    {
                        Outcome::There
                    }
                    (Ok(CommitDocument::Backup(_)), Ok(CommitDocument::Abandoned(closed))) => {
                        Outcome::Conflict(format!(
                            "{} has closed this backup at {}, as one that never ended: remove that document there, then copy again",
                            self.to.name(),
                            closed.abandoned_at
                        ))
                    }
                    _ => Outcome::Conflict(other(self.to)),
                }
            }
        })
    }

    /// Copies a registration, or finds that the other repository has it: with the same archive id, for that is in the head of each object.
    pub async fn registration(
        &self,
        key: &str,
        identity: &IdentityDocument,
    ) -> Result<Outcome, CopyError> {
        let there = self.to.document::<IdentityDocument>(key).await;
        let Some(there) = there.map_err(|e| self.writing(e))? else {
            return match self.dry_run {
                true => Ok(Outcome::Copied(0)),
                false => self.document(key).await,
            };
        };
        if there.archive_id == identity.archive_id {
            return Ok(Outcome::There);
        }
        Err(CopyError::OtherArchive {
            cluster: identity.cluster.clone(),
            system: identity.system_identifier,
            from: self.from.name().to_owned(),
            from_id: identity.archive_id,
            to: self.to.name().to_owned(),
            to_id: there.archive_id,
        })
    }
}

fn same(from: &End, to: &End) -> bool {
    match (from, to) {
        (End::Tail(from), End::Tail(to)) => match (from.tail.sha256, to.tail.sha256) {
            (Some(from), Some(to)) => from == to,
            _ => from.digest == to.digest,
        },
        (End::Seal(from), End::Seal(to)) => match (from.content_hmac, to.content_hmac) {
            (Some(from), Some(to)) => from == to,
            _ => from == to,
        },
        _ => false,
    }
}

fn removed(to: &Repository) -> String {
    format!("it was removed from {} meanwhile: copy again", to.name())
}

fn other(to: &Repository) -> String {
    format!(
        "{} has something else under this key, which was left as it is",
        to.name()
    )
}

fn damaged_there(to: &Repository, why: &str) -> String {
    format!(
        "what {} has under this key is damaged ({why}): remove it there, then copy again",
        to.name()
    )
}
