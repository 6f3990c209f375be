//! Content in, compressed frames out in the same order, on as many blocking threads as asked for.

use std::sync::{Arc, Mutex, PoisonError, mpsc as blocking};

use tokio::sync::{mpsc, oneshot};

use crate::codec::{CodecError, Frame, FrameCompressor};

type Work = (Vec<u8>, oneshot::Sender<Result<Frame, CodecError>>);

/// Where content goes in. Dropping it ends the stream of frames.
pub struct ContentSink {
    work: blocking::SyncSender<Work>,
    order: mpsc::Sender<oneshot::Receiver<Result<Frame, CodecError>>>,
}

/// Where frames come out.
pub struct FrameSource {
    order: mpsc::Receiver<oneshot::Receiver<Result<Frame, CodecError>>>,
}

/// The other side is gone; it has the reason.
#[derive(Debug, thiserror::Error)]
#[error("the frames are no longer taken")]
pub struct Closed;

/// Threads that compress, and keep zstd's memory from one frame to the next. They end when this and every sink is dropped.
#[derive(Debug, Clone)]
pub struct Compressors {
    work: blocking::SyncSender<Work>,
}

impl Compressors {
    /// Starts `workers` threads.
    pub fn start(level: i32, workers: usize) -> Self {
        let (work, queue) = blocking::sync_channel::<Work>(workers);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..workers {
            let queue = queue.clone();
            tokio::task::spawn_blocking(move || {
                let mut compressor = FrameCompressor::new(level);
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((content, reply)) = next else { return };
                    let frame = match &mut compressor {
                        Ok(compressor) => compressor.compress(&content),
                        Err(_) => FrameCompressor::new(level)
                            .and_then(|mut compressor| compressor.compress(&content)),
                    };
                    // A receiver that is gone has given up on the whole stream.
                    let _ = reply.send(frame);
                }
            });
        }
        Compressors { work }
    }

    /// Begins a stream that has at most `depth + 2` contents or frames in memory between its two ends.
    pub fn stream(&self, depth: usize) -> (ContentSink, FrameSource) {
        let (order, frames) = mpsc::channel(depth);
        let work = self.work.clone();
        (ContentSink { work, order }, FrameSource { order: frames })
    }
}

/// One stream, and `workers` threads for it alone.
pub fn start(level: i32, workers: usize) -> (ContentSink, FrameSource) {
    Compressors::start(level, workers).stream(workers + 1)
}

impl ContentSink {
    /// Hands over one frame's content. Blocks while the queue is full: for blocking threads only.
    pub fn push(&self, content: Vec<u8>) -> Result<(), Closed> {
        let (reply, frame) = oneshot::channel();
        self.order.blocking_send(frame).map_err(|_| Closed)?;
        self.work.send((content, reply)).map_err(|_| Closed)
    }
}

impl FrameSource {
    /// The next frame, in the order of the contents; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Frame, CodecError>> {
        let frame = self.order.recv().await?;
        Some(frame.await.unwrap_or_else(|_| {
            Err(CodecError::Damaged {
                what: "a compressor broke off".into(),
            })
        }))
    }
}
