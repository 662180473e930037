//! The host device: ordinary memory, reached by the very path that a GPU is.

use crate::arena::HostWriter;
use crate::error::DeviceError;
use crate::uploader::{Segment, Uploader};
use forebay_mem::{Draining, Free, Slot};
use std::collections::VecDeque;

/// The uploader of the host device: copies at once what is not there already.
#[derive(Debug, Default)]
pub struct HostUploader {
    arenas: Vec<HostWriter>,
    done: VecDeque<(Slot<Free>, usize)>,
}

impl HostUploader {
    /// An uploader into these arenas, which segments name by their place in the list.
    #[must_use]
    pub fn new(arenas: Vec<HostWriter>) -> Self {
        Self { arenas, done: VecDeque::new() }
    }
}

impl Uploader for HostUploader {
    fn upload(
        &mut self,
        slot: Slot<Draining>,
        read: usize,
        segments: &[Segment],
    ) -> Result<(), DeviceError> {
        let bytes = slot.bytes();
        for segment in segments.iter().filter(|_| !slot.is_aimed()) {
            let start = segment.slot_offset as usize;
            let piece = &bytes[start..start + segment.bytes as usize];
            self.arenas[segment.arena].write(segment.tensor, segment.tensor_offset, piece);
        }
        self.done.push_back((slot.release(), read));
        Ok(())
    }

    fn completed(&mut self, _wait: bool) -> Result<Option<(Slot<Free>, usize)>, DeviceError> {
        Ok(self.done.pop_front())
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn publish(&mut self, arena: usize, tensor: usize) {
        self.arenas[arena].publish(tensor);
    }
}
