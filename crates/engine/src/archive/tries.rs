//! Asking one repository after the other.

use super::{Member, Served};
use crate::repository::{Repository, RepositoryError, Trouble};

/// An error that says whether another repository may help.
pub trait Troubled: std::error::Error + Sized + 'static {
    /// What it means.
    fn trouble(&self) -> Trouble;
}

impl Troubled for RepositoryError {
    fn trouble(&self) -> Trouble {
        RepositoryError::trouble(self)
    }
}

/// The repositories that were not asked yet, and the failure that counts so far.
#[derive(Debug)]
pub struct Tries<'a, E> {
    now: &'a Member,
    rest: std::vec::IntoIter<&'a Member>,
    worst: Option<E>,
}

impl<'a, E: Troubled> Tries<'a, E> {
    /// `first` stands in for no members at all, which there never are.
    pub(super) fn begin(members: Vec<&'a Member>, first: &'a Member) -> (&'a Repository, Self) {
        let mut rest = members.into_iter();
        let now = rest.next().unwrap_or(first);
        let worst = None;
        (&now.repository, Self { now, rest, worst })
    }

    /// The repository that comes next after the one that was asked last failed.
    ///
    /// # Errors
    /// None is left, or none can help: the failure that counts. An outage counts for more than what a person has to mend, that for more than
    /// damage, and an absence only where nothing else was met: it takes every repository to prove one.
    pub fn after(&mut self, error: E) -> Result<&'a Repository, E> {
        let trouble = error.trouble();
        if trouble == Trouble::Local {
            return Err(error);
        }
        let next = self.rest.next();
        if next.is_some() {
            self.tell(&error, trouble);
        }
        let counts = match self.worst.take() {
            Some(worst) if weight(worst.trouble()) >= weight(trouble) => worst,
            _ => error,
        };
        let Some(next) = next else {
            return Err(counts);
        };
        self.worst = Some(counts);
        self.now = next;
        Ok(&next.repository)
    }

    fn tell(&self, error: &(dyn std::error::Error + 'static), trouble: Trouble) {
        let name = self.now.repository.name();
        match trouble {
            Trouble::Outage => self.now.has_failed(error),
            Trouble::Damage | Trouble::Configuration => {
                tracing::warn!(
                    error,
                    "repository \"{name}\" has nothing usable; going on with the others"
                );
            }
            Trouble::Absent | Trouble::Local => {
                tracing::debug!(error, "repository \"{name}\" lacks it");
            }
        }
    }

    /// What the repository that was asked last gave.
    pub fn served<T>(&self, value: T) -> Served<T> {
        Served {
            value,
            repository: self.now.repository.name().to_owned(),
        }
    }
}

fn weight(trouble: Trouble) -> u8 {
    match trouble {
        Trouble::Absent => 0,
        Trouble::Damage => 1,
        Trouble::Configuration => 2,
        Trouble::Outage | Trouble::Local => 3,
    }
}
