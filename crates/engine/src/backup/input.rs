//! Where the tar streams of a base backup come from.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::child::BaseBackup;
use super::files;
use super::spool::{self, Growing, Spool};
use super::stream::{Extra, StreamError, Streamed, Streamer};

/// Where the tar streams come from.
pub(super) enum Input {
    /// pg_basebackup's standard output.
    Pipe(std::io::Result<Box<dyn Read + Send>>),
    /// Files that grow in the spool folder.
    Spool {
        folder: PathBuf,
        tablespaces: Vec<(u32, String)>,
        ended: Arc<AtomicBool>,
    },
}

impl Input {
    pub fn new(
        child: &mut BaseBackup,
        spool: Option<&Spool>,
        tablespaces: &[(u32, String)],
        ended: Arc<AtomicBool>,
    ) -> Self {
        if let Some(spool) = spool {
            return Input::Spool {
                folder: spool.path().to_path_buf(),
                tablespaces: tablespaces.to_vec(),
                ended,
            };
        }
        let stdout = child
            .stdout()
            .ok_or_else(|| std::io::Error::other("pg_basebackup has no standard output"));
        Input::Pipe(stdout.and_then(|stdout| {
            let pipe = std::fs::File::from(stdout.into_owned_fd()?);
            // A larger pipe spares both sides switches; where the kernel refuses, the usual one does.
            let _ = rustix::pipe::fcntl_setpipe_size(&pipe, 1 << 20);
            Ok(Box::new(pipe) as Box<dyn Read + Send>)
        }))
    }

    pub fn read(self, mut streamer: Streamer, extras: Vec<Extra>) -> Result<Streamed, StreamError> {
        match self {
            Input::Pipe(pipe) => {
                let mut pipe = pipe.map_err(StreamError::Tar)?;
                streamer.tar(&mut pipe, "")?;
                // Whatever the sender pads with: it must not find the pipe closed.
                std::io::copy(&mut pipe, &mut std::io::sink()).map_err(StreamError::Tar)?;
            }
            Input::Spool {
                folder,
                mut tablespaces,
                ended,
            } => {
                let open =
                    |path: &Path| Growing::open(path, ended.clone()).map_err(StreamError::Tar);
                // They come in the order in which the server lists its directory, one after the other.
                while !tablespaces.is_empty() {
                    let paths: Vec<_> = tablespaces
                        .iter()
                        .map(|(oid, _)| folder.join(format!("{oid}.tar")))
                        .collect();
                    let found = spool::first_of(&paths, &ended)
                        .and_then(|at| Some((tablespaces.remove(at), paths.get(at)?)));
                    let ((oid, location), path) =
                        found.ok_or(StreamError::Lacks("tar file for each tablespace"))?;
                    streamer.tar(open(path)?, &format!("pg_tblspc/{oid}"))?;
                    streamer.tablespace_link(oid, &location);
                    // Read to its end, it is only in the way.
                    std::fs::remove_file(path).map_err(StreamError::Tar)?;
                }
                let wait = |name: &'static str| {
                    let path = folder.join(name);
                    spool::first_of(std::slice::from_ref(&path), &ended)
                        .ok_or(StreamError::Lacks(name))?;
                    open(&path)
                };
                streamer.tar(wait("base.tar")?, "")?;
                streamer.manifest(wait("backup_manifest")?, 0o600, files::now())?;
            }
        }
        streamer.finish(extras)
    }
}
