//! Reading framed objects, whole or their ends.

use std::io::{self, BufRead, Read};
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use tokio::sync::mpsc;
use walden_model::Seal;
use walden_store::Upload;

use super::{PassError, Repository, RepositoryError};
use crate::codec::{
    CodecError, DecodedObject, Expected, Proven, ReadTail, SEAL, SealedTail, prove_object,
    read_object, seal_of, sealed_tail, tail_of,
};

/// First guess at a tail's length; a longer one costs a second request.
const TAIL_GUESS: u64 = 16 * 1024;

/// The same for one that is encrypted, in pieces of 64 KiB, of which two may be needed.
const SEALED_TAIL_GUESS: u64 = TAIL_GUESS + 65 * 1024 + SEAL as u64;

/// What stands before the first encrypted byte takes less.
const FRONT: u64 = 16 * 1024;

/// An object's bytes as they arrive, for a blocking thread.
pub(super) struct Incoming {
    receive: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Incoming {
    pub fn new(receive: mpsc::Receiver<Bytes>) -> Self {
        Incoming {
            receive,
            chunk: Bytes::new(),
        }
    }
}

impl BufRead for Incoming {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty()
            && let Some(next) = self.receive.blocking_recv()
        {
            self.chunk = next;
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, length: usize) {
        self.chunk.advance(length);
    }
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

/// What an object ends in.
#[derive(Debug)]
pub enum End {
    /// A tail.
    Tail(ReadTail),
    /// A seal, behind what is encrypted.
    Seal(Seal),
}

impl Repository {
    /// Reads a framed object from beginning to end on a blocking thread, giving its content to `sink`.
    ///
    /// What `sink` got is proven only once this returns `Ok`. `NotFound` is [`super::Trouble::Absent`]. A sink that refuses content as damaged says
    /// so with [`std::io::ErrorKind::InvalidData`].
    pub async fn read_object<S>(
        &self,
        key: &str,
        expected: Expected,
        mut sink: S,
    ) -> Result<DecodedObject, RepositoryError>
    where
        S: FnMut(Vec<u8>) -> io::Result<()> + Send + 'static,
    {
        let keys = self.keys.clone();
        let decode = move |stored: Incoming| {
            let out = |content| sink(content).map_err(ReadError::Sink);
            let unlock = || keys.identities()?.ok_or(CodecError::NoIdentity);
            read_object(stored, expected, unlock, out)
        };
        let read = self.read_with(key, decode).await;
        if let Err(RepositoryError::Object {
            source: CodecError::NoIdentity,
            ..
        }) = &read
        {
            self.lock();
        }
        read
    }

    /// Reads a framed object from beginning to end without opening it: its stored bytes are proven, and where it is not encrypted, its content
    /// is given to `sink`.
    ///
    /// # Errors
    /// As [`Self::read_object`].
    pub async fn prove_object<S>(
        &self,
        key: &str,
        expected: Expected,
        mut sink: S,
    ) -> Result<Proven, RepositoryError>
    where
        S: FnMut(Vec<u8>) -> io::Result<()> + Send + 'static,
    {
        let prove = move |stored: Incoming| {
            prove_object(stored, expected, |content| {
                sink(content).map_err(ReadError::Sink)
            })
        };
        self.read_with(key, prove).await
    }

    /// Reads a framed object as [`Repository::prove_object`] does, and gives its stored bytes, as they are, to `upload`. Only once this returns
    /// `Ok` is it proven what `upload` got.
    pub async fn pass_object(
        &self,
        key: &str,
        expected: Expected,
        upload: &mut dyn Upload,
    ) -> Result<Proven, PassError> {
        let prove =
            move |stored: Incoming| prove_object(stored, expected, |_| Ok::<_, ReadError>(()));
        self.pass(key, prove, Some(upload)).await
    }

    async fn read_with<T: Send + 'static>(
        &self,
        key: &str,
        read: impl FnOnce(Incoming) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, RepositoryError> {
        match self.pass(key, read, None).await {
            Ok(object) => Ok(object),
            Err(PassError::From(e)) => Err(e),
            Err(PassError::To(e)) => Err(self.failed(e)),
        }
    }

    /// Has a blocking thread read an object's bytes as they arrive.
    async fn pass<T: Send + 'static>(
        &self,
        key: &str,
        read: impl FnOnce(Incoming) -> Result<T, ReadError> + Send + 'static,
        mut upload: Option<&mut dyn Upload>,
    ) -> Result<T, PassError> {
        let from = PassError::From;
        let (_, mut stream) = self
            .store
            .get(&self.key(key).map_err(from)?)
            .await
            .map_err(|e| from(self.failed(e)))?;
        let (send, receive) = mpsc::channel::<Bytes>(4);
        let decoding = tokio::task::spawn_blocking(move || read(Incoming::new(receive)));
        let mut lost = None;
        while let Some(chunk) = stream.next().await {
            match chunk {
                // The decoder hangs up only when it has an error of its own to give.
                Ok(chunk) => {
                    if send.send(chunk.clone()).await.is_err() {
                        break;
                    }
                    if let Some(upload) = &mut upload {
                        upload.write(chunk).await.map_err(PassError::To)?;
                    }
                }
                Err(e) => {
                    lost = Some(e);
                    break;
                }
            }
        }
        drop(send);
        let decoded = decoding.await.map_err(|source| {
            from(RepositoryError::Internal {
                key: key.to_owned(),
                source,
            })
        })?;
        let error = match (lost, decoded) {
            (None, Ok(object)) => return Ok(object),
            (Some(e), _) => self.failed(e),
            (None, Err(ReadError::Codec(source))) => RepositoryError::Object {
                key: key.to_owned(),
                source,
            },
            (None, Err(ReadError::Sink(source))) => RepositoryError::Sink {
                key: key.to_owned(),
                source,
            },
        };
        Err(from(error))
    }

    /// Reads a framed object whose content fits into memory; one with more than `most` bytes is refused.
    pub async fn read_small(
        &self,
        key: &str,
        expected: Expected,
        most: usize,
    ) -> Result<Vec<u8>, RepositoryError> {
        let (send, received) = std::sync::mpsc::channel::<Vec<u8>>();
        let mut size = 0;
        let sink = move |content: Vec<u8>| {
            size += content.len();
            if size > most {
                return Err(io::Error::other(format!("more than {most} bytes")));
            }
            send.send(content).map_err(io::Error::other)
        };
        self.read_object(key, expected, sink).await?;
        Ok(received.try_iter().flatten().collect())
    }

    /// Reads what an object ends in, and its stored size: of an encrypted one the seal.
    ///
    /// # Errors
    /// The object is missing, or ends in neither.
    pub async fn read_end(&self, key: &str) -> Result<(u64, End), RepositoryError> {
        let mut guess = TAIL_GUESS;
        loop {
            let (size, suffix) = self.suffix(key, guess).await?;
            if let Some(seal) = seal_of(&suffix) {
                return Ok((size, End::Seal(seal.map_err(unusable(key))?)));
            }
            match tail_of(&suffix).map_err(unusable(key))? {
                Ok(tail) => return Ok((size, End::Tail(tail))),
                Err(needed) => guess = more(key, guess, needed as u64, size)?,
            }
        }
    }

    /// Reads a framed object's tail, and its stored size. Of an encrypted one that takes a second request.
    ///
    /// # Errors
    /// The object is missing, damaged, or cannot be opened.
    pub async fn read_tail(&self, key: &str) -> Result<(u64, ReadTail), RepositoryError> {
        if self.keys.opens() {
            return self.read_tail_of_either(key).await;
        }
        match self.read_end(key).await? {
            (size, End::Tail(tail)) => Ok((size, tail)),
            (_, End::Seal(_)) => {
                self.lock();
                Err(unusable(key)(CodecError::NoIdentity))
            }
        }
    }

    async fn read_tail_of_either(&self, key: &str) -> Result<(u64, ReadTail), RepositoryError> {
        let mut guess = SEALED_TAIL_GUESS;
        loop {
            let (size, suffix) = self.suffix(key, guess).await?;
            if seal_of(&suffix).is_none() {
                match tail_of(&suffix).map_err(unusable(key))? {
                    Ok(tail) => return Ok((size, tail)),
                    Err(needed) => guess = more(key, guess, needed as u64, size)?,
                }
                continue;
            }
            let front = match suffix.len() as u64 == size {
                true => suffix.clone(),
                false => self.front(key, size).await?,
            };
            let keys = self.keys.clone();
            let read = blocking(move || {
                let identities = keys.identities()?.ok_or(CodecError::NoIdentity)?;
                sealed_tail(&front, &suffix, size, &identities)
            });
            match read.await.map_err(unusable(key))? {
                SealedTail::Read(tail) => return Ok((size, tail)),
                SealedTail::Needs(needed) => guess = more(key, guess, needed, size)?,
            }
        }
    }

    fn lock(&self) {
        if !self.locked.swap(true, Ordering::Relaxed) {
            tracing::info!(
                "repository \"{}\" has encrypted objects, and the configuration names no identity: what WAL says, the last commit among it, \
                 is not known",
                self.name
            );
        }
    }

    async fn suffix(&self, key: &str, length: u64) -> Result<(u64, Bytes), RepositoryError> {
        let suffix = self.store.get_suffix(&self.key(key)?, length).await;
        let (meta, suffix) = suffix.map_err(|e| self.failed(e))?;
        Ok((meta.size, suffix))
    }

    async fn front(&self, key: &str, size: u64) -> Result<Bytes, RepositoryError> {
        let key = self.key(key)?;
        let front = self.store.get_range(&key, 0..FRONT.min(size)).await;
        front.map_err(|e| self.failed(e))
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CodecError> + Send + 'static,
) -> Result<T, CodecError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| {
        Err(CodecError::Damaged {
            what: format!("a thread of ours broke off: {e}"),
        })
    })
}

pub(super) fn unusable(key: &str) -> impl Fn(CodecError) -> RepositoryError {
    let key = key.to_owned();
    move |source| RepositoryError::Object {
        key: key.clone(),
        source,
    }
}

/// How much to ask for next, where the guess was too short and the object is long enough.
fn more(key: &str, guess: u64, needed: u64, size: u64) -> Result<u64, RepositoryError> {
    if guess < needed && guess < size {
        Ok(needed)
    } else {
        Err(unusable(key)(CodecError::Truncated { what: "the tail" }))
    }
}

enum ReadError {
    Codec(CodecError),
    Sink(io::Error),
}

impl From<CodecError> for ReadError {
    fn from(error: CodecError) -> Self {
        ReadError::Codec(error)
    }
}
