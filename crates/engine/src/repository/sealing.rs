//! Writing framed objects, encrypted where there are recipients.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use walden_model::{Encryption, Head, IdentityDocument, KeyedDigest};

use super::reading::{blocking, unusable};
use super::{Repository, RepositoryError};
use crate::codec::{CodecError, Sealer, encode_head, seal};
use crate::encryption::{AgeKeys, Recipient};

/// Turns a framed object's bytes into those that are stored: the same, or encrypted. Each step works on a blocking thread.
pub struct ObjectEncoder(Option<Box<Sealer>>);

impl ObjectEncoder {
    /// Begins with the head. Gives the first bytes to store.
    ///
    /// # Errors
    /// [`CodecError::Encrypt`], as of all that follows.
    pub async fn begin(
        head: Head,
        recipients: Option<Arc<[Recipient]>>,
    ) -> Result<(Self, Bytes), CodecError> {
        let Some(recipients) = recipients else {
            return Ok((ObjectEncoder(None), encode_head(&head)?.into()));
        };
        let (sealer, stored) = blocking(move || {
            let mut sealer = Sealer::new(&head, &recipients)?;
            let stored = sealer.write(&[])?;
            Ok((sealer, stored))
        })
        .await?;
        Ok((ObjectEncoder(Some(Box::new(sealer))), stored.into()))
    }

    /// Takes the next bytes, and gives those to store, which may be later or earlier ones.
    ///
    /// # Errors
    /// As [`Self::begin`]; then the object is lost.
    pub async fn write(&mut self, plain: Vec<u8>) -> Result<Bytes, CodecError> {
        let Some(mut sealer) = self.0.take() else {
            return Ok(plain.into());
        };
        let (sealer, stored) = blocking(move || {
            let stored = sealer.write(&plain)?;
            Ok((sealer, stored))
        })
        .await?;
        self.0 = Some(sealer);
        Ok(stored.into())
    }

    /// Ends with the tail. `content` is what a WAL file is known by where it is encrypted.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn end(self, tail: Vec<u8>, content: KeyedDigest) -> Result<Bytes, CodecError> {
        let Some(mut sealer) = self.0 else {
            return Ok(tail.into());
        };
        let stored = blocking(move || {
            let mut stored = sealer.write(&tail)?;
            stored.extend(sealer.finish(Some(content))?);
            Ok(stored)
        })
        .await?;
        Ok(stored.into())
    }
}

impl Repository {
    /// The keys that the configuration names.
    pub fn keys(&self) -> &AgeKeys {
        &self.keys
    }

    /// For whom what is written to this archive is encrypted; `None`: for nobody, and it stays plain.
    ///
    /// # Errors
    /// The archive is registered as encrypted and there are no recipients: nothing may be written. Or the recipients cannot be had.
    pub fn recipients(
        &self,
        identity: &IdentityDocument,
    ) -> Result<Option<Arc<[Recipient]>>, RepositoryError> {
        let recipients = self
            .keys
            .recipients()
            .map_err(RepositoryError::Recipients)?;
        match (&recipients, identity.encryption) {
            (None, Encryption::Age) => Err(RepositoryError::NoRecipients {
                name: self.name.clone(),
                cluster: identity.cluster.clone(),
            }),
            _ => Ok(recipients),
        }
    }

    /// Whether an encrypted object was met that cannot be opened, so that asking for more of them is in vain.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }

    /// The bytes to store of a framed object that is not a WAL file's: encrypted, where there are recipients. Who writes asks
    /// [`Self::recipients`] first, whether plain is right.
    ///
    /// # Errors
    /// The recipients cannot be had.
    pub async fn sealed(&self, key: &str, object: Vec<u8>) -> Result<Bytes, RepositoryError> {
        let recipients = self
            .keys
            .recipients()
            .map_err(RepositoryError::Recipients)?;
        let Some(recipients) = recipients else {
            return Ok(object.into());
        };
        let sealed = blocking(move || seal(&object, &recipients)).await;
        sealed.map(Bytes::from).map_err(unusable(key))
    }
}
