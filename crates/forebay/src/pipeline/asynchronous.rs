//! A load for callers on an async runtime, whichever: they are woken by the thread that places
//! tensors; nothing polls by itself.

use super::landing::Landings;
use super::{Load, Progress};
use crate::error::Error;
use crate::loaded::{Loaded, Tensor, Tensors};
use crate::waking::is_waking;
use crossbeam_channel::TryRecvError;
use futures_core::Stream;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A load as a [`Stream`] of tensors as they land. Dropping it stops the load.
///
/// ```no_run
/// use forebay::Loader;
/// use futures_util::StreamExt; // or another crate's
///
/// # async fn example() -> Result<(), forebay::Error> {
/// let mut landing = Loader::new("model.safetensors").start()?.stream();
/// while let Some(tensor) = landing.next().await {
///     println!("{:?}", tensor?);
/// }
/// let loaded = landing.finished().await?;
/// # Ok(())
/// # }
/// ```
pub struct LoadStream {
    load: Load,
}

impl Stream for LoadStream {
    type Item = Result<Tensor, Error>;

    /// As the iterator's [`next`](Iterator::next). The poll that finds the end joins the load's threads,
    /// which have ended by then but for a few milliseconds.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.load.poll_landed(context)
    }
}

impl LoadStream {
    /// As [`Load::tensor`].
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Landing> {
        self.load.tensor(name)
    }

    /// As [`Load::progress`].
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.load.progress()
    }

    /// As [`Load::finished`].
    ///
    /// # Errors
    /// As [`Load::finish`].
    pub async fn finished(self) -> Result<Loaded, Error> {
        self.load.finished().await
    }
}

impl Load {
    /// The same load as a stream, for any async runtime: its tasks are woken by the thread that places
    /// tensors.
    #[must_use]
    pub fn stream(self) -> LoadStream {
        LoadStream { load: self }
    }

    fn poll_landed(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Tensor, Error>>> {
        if self.failed {
            return Poll::Ready(None);
        }
        if let Err(error) = self.check_origin() {
            return Poll::Ready(Some(Err(error)));
        }
        if let Some(index) = self.ready.pop_front() {
            return Poll::Ready(Some(Ok(self.tensors.get(index))));
        }
        // Before looking, so that nothing lands in between unheard.
        self.landings.wake_stream(context.waker());
        match self.landed.try_recv() {
            Ok(landed) => {
                self.report_progress(false);
                Poll::Ready(Some(Ok(self.tensors.get(landed.0))))
            }
            Err(TryRecvError::Empty) => Poll::Pending,
            // The thread that woke this task has not ended yet: another one wakes it again.
            Err(TryRecvError::Disconnected) if is_waking() => {
                let waker = context.waker().clone();
                match std::thread::Builder::new().spawn(move || waker.wake()) {
                    Ok(_) => Poll::Pending,
                    Err(source) => {
                        self.failed = true;
                        Poll::Ready(Some(Err(Error::Thread { source })))
                    }
                }
            }
            Err(TryRecvError::Disconnected) => Poll::Ready(self.end().map(Err)),
        }
    }

    /// The tensor of that name, when it is whole and where it belongs, whoever else takes tensors from
    /// the load meanwhile. `None` if the model has none of that name.
    ///
    /// It yields [`Error::AlreadyReported`] if the load ends without it: the stream, the iterator or
    /// [`Load::finished`] say why.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Landing> {
        let index = self.plan.model.catalog().position(name)?;
        let (tensors, landings) = (Arc::clone(&self.tensors), Arc::clone(&self.landings));
        Some(Landing { index, tensors, landings })
    }

    /// Waits for everything and hands the whole model over, as [`Load::finish`] does for threads.
    /// Dropping the future stops the load, as dropping the load does.
    ///
    /// # Errors
    /// As [`Load::finish`].
    pub async fn finished(mut self) -> Result<Loaded, Error> {
        while let Some(tensor) = poll_fn(|context| self.poll_landed(context)).await {
            tensor?;
        }
        self.finish()
    }
}

/// One tensor of a load under way. May outlive the load.
pub struct Landing {
    index: usize,
    tensors: Arc<Tensors>,
    landings: Arc<Landings>,
}

impl Future for Landing {
    type Output = Result<Tensor, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let landed = self.landings.poll(self.index, context.waker());
        landed.map(|landed| match landed {
            Some(()) => Ok(self.tensors.get(self.index)),
            None => Err(Error::AlreadyReported),
        })
    }
}
