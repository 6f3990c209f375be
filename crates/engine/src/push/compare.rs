//! Holding a file against what is stored under its name.

use std::sync::{Arc, Mutex, PoisonError};

use walden_model::{HeadKind, IdentityDocument, Sha256Digest, Writer, keys};

use super::source::WalSource;
use crate::codec::{Expected, Proven, keyed};
use crate::repository::{Repository, RepositoryError};

pub(super) enum Comparison {
    Same,
    /// `offset` is not known where what is stored is encrypted.
    Different {
        offset: Option<u64>,
        writer: Writer,
    },
}

/// Reads the whole object: a push that finds "the same bytes" lets PostgreSQL throw its copy away, so the bytes must really be there. One that
/// is encrypted is proven by its seal, and its content compared by what the seal says of it; so that takes no identity. `content` gives the
/// file's digest.
pub(super) async fn compare<E: From<RepositoryError>>(
    repository: &Repository,
    identity: &IdentityDocument,
    key: &str,
    source: &Arc<WalSource>,
    content: impl Future<Output = Result<Sha256Digest, E>>,
) -> Result<Comparison, E> {
    let expected = Expected {
        kind: HeadKind::Wal,
        archive_id: identity.archive_id,
        key: keys::below_cluster(key).to_owned(),
    };
    let found = Arc::new(Mutex::new((0_u64, None)));
    let proven = repository
        .prove_object(key, expected, {
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
    let object = match proven {
        Proven::Plain(object) => object,
        Proven::Sealed { head, seal } => {
            let ours = keyed(identity.archive_id, &content.await?);
            return Ok(match seal.content_hmac == Some(ours) {
                true => Comparison::Same,
                false => Comparison::Different {
                    offset: None,
                    writer: head.writer,
                },
            });
        }
    };
    let (length, difference) = *found.lock().unwrap_or_else(PoisonError::into_inner);
    let shorter = (length < source.size).then_some(length);
    Ok(match difference.or(shorter) {
        None => Comparison::Same,
        offset => Comparison::Different {
            offset,
            writer: object.head.writer,
        },
    })
}
