//! Writing encrypted objects.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use age::Encryptor;
use age::stream::StreamWriter;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use walden_model::{Head, KeyedDigest, RandomId, Seal, Sha256Digest};

use super::meta::{decode_head, encode_envelope, encode_seal, frame_length};
use super::{CodecError, encode_head};
use crate::encryption::Recipient;

/// By what the same content is known in an encrypted archive.
pub fn keyed(archive_id: RandomId, content: &Sha256Digest) -> KeyedDigest {
    // HMAC fills a short key up with zeroes (RFC 2104), so this is the key of 16 bytes.
    let mut key = [0; 64];
    key.iter_mut()
        .zip(archive_id.0)
        .for_each(|(to, from)| *to = from);
    let mut hmac = Hmac::<Sha256>::new(&key.into());
    hmac.update(&content.0);
    KeyedDigest(hmac.finalize().into_bytes().into())
}

/// Encrypts an object as its bytes come.
pub struct Sealer {
    age: StreamWriter<Outgoing>,
    out: Outgoing,
    hash: Sha256,
    size: u64,
}

/// What is encrypted and not yet taken.
#[derive(Clone, Default)]
struct Outgoing(Arc<Mutex<Vec<u8>>>);

impl Outgoing {
    fn with<T>(&self, what: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|out| out.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encrypt_error(error: impl Into<age::EncryptError>) -> CodecError {
    CodecError::Encrypt(error.into())
}

impl Sealer {
    /// Begins an object whose head is `head`, which is written first.
    pub fn new(head: &Head, recipients: &[Recipient]) -> Result<Self, CodecError> {
        let out = Outgoing::default();
        let envelope = encode_envelope(&head.envelope())?;
        out.with(|out| *out = envelope);
        let recipients = recipients
            .iter()
            .map(|recipient| recipient.key() as &dyn age::Recipient);
        let encryptor = Encryptor::with_recipients(recipients).map_err(encrypt_error)?;
        let mut sealer = Sealer {
            age: encryptor.wrap_output(out.clone()).map_err(encrypt_error)?,
            out,
            hash: Sha256::new(),
            size: 0,
        };
        sealer.encrypt(&encode_head(head)?)?;
        Ok(sealer)
    }

    /// Takes the object's next bytes, and gives those that are to be stored next.
    pub fn write(&mut self, plain: &[u8]) -> Result<Vec<u8>, CodecError> {
        self.encrypt(plain)?;
        let stored = self.out.with(std::mem::take);
        self.hash.update(&stored);
        self.size += stored.len() as u64;
        Ok(stored)
    }

    fn encrypt(&mut self, plain: &[u8]) -> Result<(), CodecError> {
        self.age.write_all(plain).map_err(encrypt_error)
    }

    /// Gives the last bytes. `content` is what a WAL file is known by.
    pub fn finish(mut self, content: Option<KeyedDigest>) -> Result<Vec<u8>, CodecError> {
        self.age.finish().map_err(encrypt_error)?;
        let mut stored = self.out.with(std::mem::take);
        self.hash.update(&stored);
        self.size += stored.len() as u64;
        stored.extend(encode_seal(&Seal {
            size: self.size,
            sha256: Sha256Digest(self.hash.finalize().into()),
            content_hmac: content,
        })?);
        Ok(stored)
    }
}

/// Encrypts a whole object.
pub fn seal(object: &[u8], recipients: &[Recipient]) -> Result<Vec<u8>, CodecError> {
    const NO_HEAD: CodecError = CodecError::Truncated { what: "the head" };
    let head = frame_length(object)?.ok_or(NO_HEAD)?;
    let (head, rest) = object.split_at_checked(head).ok_or(NO_HEAD)?;
    let mut sealer = Sealer::new(&decode_head(head)?, recipients)?;
    // At once as large as it gets: 16 bytes more for each 64 KiB, and what stands around it.
    let more = object.len() / 4096 + 16 * 1024;
    sealer.out.with(|out| out.reserve(object.len() + more));
    let mut stored = sealer.write(rest)?;
    stored.extend(sealer.finish(None)?);
    Ok(stored)
}
