//! Holding a file against what is stored under its name.

use std::sync::{Arc, Mutex, PoisonError};

use walden_model::{HeadKind, IdentityDocument, Writer, keys};

use super::source::WalSource;
use crate::codec::Expected;
use crate::repository::{Repository, RepositoryError};

pub(super) enum Comparison {
    Same,
    Different { offset: u64, writer: Writer },
}

/// Reads the whole object: a push that finds "the same bytes" lets PostgreSQL throw its copy away, so the bytes must really be there.
pub(super) async fn compare(
    repository: &Repository,
    identity: &IdentityDocument,
    key: &str,
    source: &Arc<WalSource>,
) -> Result<Comparison, RepositoryError> {
    let expected = Expected {
        kind: HeadKind::Wal,
        archive_id: identity.archive_id,
        key: keys::below_cluster(key).to_owned(),
    };
    let found = Arc::new(Mutex::new((0_u64, None)));
    let object = repository
        .read_object(key, expected, {
            let (found, source) = (found.clone(), source.clone());
            move |content| {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.1.is_none() {
                    found.1 = source.first_difference(&content, found.0)?;
                }
                found.0 += content.len() as u64;
                Ok(())
            }
        })
        .await?;
    let (length, difference) = *found.lock().unwrap_or_else(PoisonError::into_inner);
    let shorter = (length < source.size).then_some(length);
    Ok(match difference.or(shorter) {
        None => Comparison::Same,
        Some(offset) => Comparison::Different {
            offset,
            writer: object.head.writer,
        },
    })
}
