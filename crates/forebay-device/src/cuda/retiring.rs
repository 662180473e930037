//! Letting go of what a stream uses once the device has come past it, without waiting for that.

use super::error::DriverRefusal;
use super::operands::Owner;
use super::stream::{Event, Stream};
use crate::error::DeviceError;
use crossbeam_channel::{Receiver, Sender, unbounded};
use std::thread::JoinHandle;

struct Used {
    until: Event,
    owners: Vec<Owner>,
}

/// A thread that sleeps until the device has come to an event, then lets go.
#[derive(Debug)]
pub(super) struct Retiring {
    /// `None` once it is being dropped.
    used: Option<Sender<Used>>,
    thread: Option<JoinHandle<()>>,
}

impl Retiring {
    pub(super) fn new(device: u32) -> Result<Self, DeviceError> {
        let (used, queue) = unbounded();
        let thread = std::thread::Builder::new()
            .name(format!("forebay-retire-{device}"))
            .spawn(move || retire(&queue));
        let thread = thread.map_err(|error| DeviceError::Thread { errno: error.raw_os_error() })?;
        Ok(Self { used: Some(used), thread: Some(thread) })
    }

    /// Keeps `owners` until the stream has come past all that is queued on it now.
    pub(super) fn keep(
        &self,
        stream: &Stream,
        owners: &mut Vec<Owner>,
    ) -> Result<(), DriverRefusal> {
        let until = Event::new(stream.context())?;
        until.record(stream)?;
        if let Some(used) = &self.used {
            let owners = std::mem::take(owners);
            // It ends before its stream only by a panic; they would be kept for ever then.
            let _ = used.send(Used { until, owners }).map_err(|lost| std::mem::forget(lost.0));
        }
        Ok(())
    }
}

fn retire(queue: &Receiver<Used>) {
    for Used { until, owners } in queue {
        // After an error nothing of the stream runs any more; whoever waits for it hears of that.
        let _ = until.synchronize();
        drop(owners);
    }
}

impl Drop for Retiring {
    fn drop(&mut self) {
        drop(self.used.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
