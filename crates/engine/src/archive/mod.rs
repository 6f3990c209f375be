//! The configured repositories as one archive, for those who read.
//!
//! An object has the same key, and what it holds the same archive id, in every repository. So each read asks the repositories in the order of
//! the configuration and goes on to the next after an outage, a damage *or an absence*: what one lacks, another gives. What a repository
//! gave of an object that it did not give whole is never joined with what the next gives.

mod listing;
#[cfg(test)]
mod tests;
mod tries;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use walden_model::Sha256Digest;

pub use self::tries::{Tries, Troubled};

use crate::codec::{DecodedObject, Expected, ReadTail};
use crate::repository::{Repository, RepositoryError, RepositorySettings, Trouble};

/// For so long after an outage a repository is asked last.
const ASKED_LAST: Duration = Duration::from_secs(300);

/// The repositories that are read, in the order of the configuration, and those that are not.
#[derive(Debug, Clone)]
pub struct Archive {
    first: Member,
    others: Vec<Member>,
    out: Vec<OutRepository>,
}

#[derive(Debug, Clone)]
struct Member {
    repository: Repository,
    state: Arc<State>,
}

/// What was seen of a repository; shared by an archive's clones.
#[derive(Debug, Default)]
struct State {
    /// When it failed to answer for the last time.
    failed: Mutex<Option<Instant>>,
    warned: AtomicBool,
}

/// A configured repository that is not read, so that nobody can tell what it holds.
#[derive(Debug, Clone)]
pub struct OutRepository {
    /// Its name in the configuration.
    pub name: String,
    /// Why.
    pub error: Arc<RepositoryError>,
}

impl OutRepository {
    pub(crate) fn new(name: &str, error: RepositoryError) -> Self {
        let error = Arc::new(error);
        tracing::warn!(
            error = &*error as &dyn std::error::Error,
            "repository \"{name}\" is left out"
        );
        Self {
            name: name.to_owned(),
            error,
        }
    }

    /// Why, with all causes.
    #[must_use]
    pub fn why(&self) -> String {
        crate::catalog::whole_text(&*self.error)
    }
}

/// What was read, and where.
#[derive(Debug, Clone)]
pub struct Served<T> {
    /// What was read.
    pub value: T,
    /// The name of the repository that gave it.
    pub repository: String,
}

impl From<&Repository> for Archive {
    fn from(repository: &Repository) -> Self {
        Self {
            first: Member::new(repository.clone()),
            others: Vec::new(),
            out: Vec::new(),
        }
    }
}

impl From<&Archive> for Archive {
    fn from(archive: &Archive) -> Self {
        archive.clone()
    }
}

impl Member {
    fn new(repository: Repository) -> Self {
        Self {
            repository,
            state: Arc::default(),
        }
    }

    fn fails(&self) -> bool {
        let failed = self.state.failed.lock();
        let failed = failed.unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|failed| failed.elapsed() < ASKED_LAST)
    }

    /// Keeps in mind that it did not answer. The first time is worth a warning.
    fn has_failed(&self, error: &(dyn std::error::Error + 'static)) {
        let failed = self.state.failed.lock();
        *failed.unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let name = self.repository.name();
        match self.state.warned.swap(true, Ordering::Relaxed) {
            false => tracing::warn!(
                error,
                "repository \"{name}\" does not answer; going on with the others"
            ),
            true => tracing::debug!(error, "repository \"{name}\" does not answer"),
        }
    }
}

impl Archive {
    /// Opens the configured repositories. One that cannot be opened does not prevent the rest ([`Archive::out`]).
    ///
    /// # Errors
    /// None can be opened: the first one's error.
    pub async fn open(repositories: &[RepositorySettings]) -> Result<Self, RepositoryError> {
        let opened = join_all(repositories.iter().map(Repository::open)).await;
        let (mut members, mut failed) = (Vec::new(), Vec::new());
        for (settings, opened) in repositories.iter().zip(opened) {
            match opened {
                Ok(repository) => members.push(Member::new(repository)),
                Err(error) => failed.push((&settings.name, error)),
            }
        }
        let mut members = members.into_iter();
        let Some(first) = members.next() else {
            let mut failed = failed.into_iter().map(|(_, error)| error);
            return Err(failed.next().unwrap_or(RepositoryError::NoRepository));
        };
        Ok(Self {
            first,
            others: members.collect(),
            out: failed
                .into_iter()
                .map(|(name, error)| OutRepository::new(name, error))
                .collect(),
        })
    }

    /// The repositories that are read, in the order of the configuration.
    pub fn repositories(&self) -> impl Iterator<Item = &Repository> {
        self.members().map(|member| &member.repository)
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self) -> &Repository {
        &self.first.repository
    }

    /// Whether there is more than one.
    #[must_use]
    pub fn has_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether more than one is configured.
    #[must_use]
    pub fn is_one_of_several(&self) -> bool {
        self.has_several() || !self.out.is_empty()
    }

    /// Whether every repository has encrypted objects that cannot be opened ([`Repository::is_locked`]).
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.repositories().all(Repository::is_locked)
    }

    /// Those that are not read.
    #[must_use]
    pub fn out(&self) -> &[OutRepository] {
        &self.out
    }

    /// The same archive without some of its repositories.
    ///
    /// # Errors
    /// None is left: the first one's error, or of those that were out before.
    pub fn without(&self, out: Vec<OutRepository>) -> Result<Self, Arc<RepositoryError>> {
        let mut left = self.members().filter(|member| {
            let name = member.repository.name();
            !out.iter().any(|out| out.name == name)
        });
        let Some(first) = left.next().cloned() else {
            let mut out = out.into_iter().chain(self.out.iter().cloned());
            let none = || Arc::new(RepositoryError::NoRepository);
            return Err(out.next().map_or_else(none, |out| out.error));
        };
        let others = left.cloned().collect();
        Ok(Self {
            first,
            others,
            out: self.out.iter().cloned().chain(out).collect(),
        })
    }

    /// What each repository answered, in their order; those that did not answer are left out from then on.
    ///
    /// # Errors
    /// None answered: the first one's error. Or this machine failed.
    pub fn answering<T>(
        &self,
        answers: Vec<Result<T, RepositoryError>>,
    ) -> Result<(Self, Vec<T>), Arc<RepositoryError>> {
        let (mut answered, mut out) = (Vec::new(), Vec::new());
        for (repository, answer) in self.repositories().zip(answers) {
            match answer {
                Ok(answer) => answered.push(answer),
                Err(e) if !self.has_several() || e.trouble() == Trouble::Local => {
                    return Err(Arc::new(e));
                }
                Err(e) => out.push(OutRepository::new(repository.name(), e)),
            }
        }
        Ok((self.without(out)?, answered))
    }

    /// The same archive, in which the repositories of these names are asked before the others.
    #[must_use]
    pub fn preferring(&self, preferred: &[String]) -> Self {
        let mut members: Vec<&Member> = self.members().collect();
        members.sort_by_key(|member| {
            let name = member.repository.name();
            !preferred.iter().any(|preferred| preferred == name)
        });
        let mut members = members.into_iter().cloned();
        Self {
            first: members.next().unwrap_or_else(|| self.first.clone()),
            others: members.collect(),
            out: self.out.clone(),
        }
    }

    /// Keeps in mind that a repository did not answer, where that is no reason to ask another.
    pub(crate) fn is_silent(
        &self,
        repository: &Repository,
        error: &(dyn std::error::Error + 'static),
    ) {
        let mut members = self.members();
        if let Some(member) = members.find(|one| one.repository.name() == repository.name()) {
            member.has_failed(error);
        }
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Begins to ask the repositories, one after the other: gives the first, and what gives the next.
    #[must_use]
    pub fn tries<E: Troubled>(&self) -> (&Repository, Tries<'_, E>) {
        // Those that just failed to answer would only cost time. The sort keeps the order of the rest.
        let mut members: Vec<&Member> = self.members().collect();
        members.sort_by_key(|member| member.fails());
        Tries::begin(members, &self.first)
    }

    /// Reads a framed object from the first repository that has it whole. `sink` makes one for each attempt: what the one before it got does
    /// not count. With `table`, only the object of this tail digest ([`DecodedObject::table`]) will do.
    ///
    /// # Errors
    /// As [`Repository::read_object`]; of several failures the one that leaves most hope.
    pub async fn read_object<S>(
        &self,
        key: &str,
        expected: &Expected,
        table: Option<Sha256Digest>,
        mut sink: impl FnMut() -> S,
    ) -> Result<Served<DecodedObject>, RepositoryError>
    where
        S: FnMut(Vec<u8>) -> std::io::Result<()> + Send + 'static,
    {
        let (mut repository, mut tries) = self.tries();
        loop {
            let read = repository.read_object(key, expected.clone(), sink()).await;
            let proven = read.and_then(|object| match table {
                Some(table) if object.table != table => Err(RepositoryError::NotNamed {
                    key: key.to_owned(),
                    found: object.table,
                    expected: table,
                }),
                _ => Ok(object),
            });
            match proven {
                Ok(value) => return Ok(tries.served(value)),
                Err(e) => repository = tries.after(e)?,
            }
        }
    }

    /// As [`Repository::read_small`].
    ///
    /// # Errors
    /// As [`Archive::read_object`].
    pub async fn read_small(
        &self,
        key: &str,
        expected: &Expected,
        most: usize,
    ) -> Result<Vec<u8>, RepositoryError> {
        let (mut repository, mut tries) = self.tries();
        loop {
            match repository.read_small(key, expected.clone(), most).await {
                Ok(content) => return Ok(content),
                Err(e) => repository = tries.after(e)?,
            }
        }
    }

    /// As [`Repository::read_tail`].
    ///
    /// # Errors
    /// As [`Archive::read_object`].
    pub async fn read_tail(&self, key: &str) -> Result<(u64, ReadTail), RepositoryError> {
        let (mut repository, mut tries) = self.tries();
        loop {
            match repository.read_tail(key).await {
                Ok(read) => return Ok(read),
                Err(e) => repository = tries.after(e)?,
            }
        }
    }
}
