//! Free slots, and which of them a read had better take.

use crate::bell::Bell;
use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, Sender, TryRecvError, bounded};
use forebay_mem::{Free, Slot};
use std::time::Duration;

/// A way for free slots from who has emptied them to the engine, with room for so many.
#[must_use]
pub fn slot_channel(slots: usize) -> (SlotReturn, FreeSlots) {
    let (sender, channel) = bounded(slots);
    let free = FreeSlots::from(channel);
    (SlotReturn { sender: Some(sender), bell: free.bell.clone() }, free)
}

/// Where slots are given back.
#[derive(Debug)]
pub struct SlotReturn {
    /// `None` once it is being dropped.
    sender: Option<Sender<Slot<Free>>>,
    bell: Bell,
}

impl SlotReturn {
    /// Gives a slot back. Never waits, as there is room for all of them.
    ///
    /// # Errors
    /// The slot, if the engine has ended.
    pub fn send(&self, slot: Slot<Free>) -> Result<(), SendError<Slot<Free>>> {
        match &self.sender {
            Some(sender) => sender.send(slot)?,
            None => return Err(SendError(slot)),
        }
        self.bell.ring();
        Ok(())
    }
}

impl Drop for SlotReturn {
    fn drop(&mut self) {
        // Before the engine is woken, which looks whether the channel is closed.
        drop(self.sender.take());
        self.bell.ring();
    }
}

/// Where free slots come from. Slots may be of several groups, each near to some of the places
/// that bytes go to, say the slots on one NUMA node; a read then takes one of its own group if
/// there is one, and else any: a copy over a longer way beats a wait.
#[derive(Debug)]
pub struct FreeSlots {
    channel: Receiver<Slot<Free>>,
    /// By slot; empty where all are alike.
    group_of_slot: Vec<usize>,
    /// By read.
    group_of_read: Vec<usize>,
    /// Came out of the channel and are not taken yet.
    waiting: Vec<Slot<Free>>,
    /// Rings when one comes, if it comes from [`slot_channel`].
    bell: Bell,
}

impl From<Receiver<Slot<Free>>> for FreeSlots {
    /// Slots that are all alike.
    fn from(channel: Receiver<Slot<Free>>) -> Self {
        let (group_of_slot, group_of_read) = (Vec::new(), Vec::new());
        Self { channel, group_of_slot, group_of_read, waiting: Vec::new(), bell: Bell::default() }
    }
}

impl FreeSlots {
    /// Slots in groups, by the index of the slot, and the group that each read prefers.
    #[must_use]
    pub fn grouped(self, group_of_slot: Vec<usize>, group_of_read: Vec<usize>) -> Self {
        Self { group_of_slot, group_of_read, ..self }
    }

    /// The channel that they come through, for waiting on it.
    pub(super) fn channel(&self) -> &Receiver<Slot<Free>> {
        &self.channel
    }

    /// Any free slot. For engines of several threads: they wait at the channel, so none may keep
    /// back there what another waits for.
    pub(super) fn take_any(&mut self) -> Result<Slot<Free>, TryRecvError> {
        self.waiting.pop().map_or_else(|| self.channel.try_recv(), Ok)
    }

    /// A free slot for `read`. For engines of one thread.
    pub(super) fn take(&mut self, read: Option<usize>) -> Result<Slot<Free>, TryRecvError> {
        let wanted = read.and_then(|read| self.group_of_read.get(read)).copied();
        let Some(wanted) = wanted else { return self.take_any() };
        self.waiting.extend(self.channel.try_iter());
        let is_near = |slot: &Slot<Free>| self.group_of_slot.get(slot.index()) == Some(&wanted);
        match self.waiting.iter().position(is_near) {
            Some(index) => Ok(self.waiting.swap_remove(index)),
            None => self.take_any(),
        }
    }

    /// One that was taken for a read that is not there any more.
    pub(super) fn put_back(&mut self, slot: Slot<Free>) {
        self.waiting.push(slot);
    }

    /// Whether one can be taken, or it is known that none ever will. If not, `waker` is woken when
    /// that changes.
    #[cfg(feature = "tokio-uring")]
    pub(super) fn poll(&mut self, waker: &std::task::Waker) -> bool {
        self.bell.listen(waker);
        match self.channel.try_recv() {
            Ok(slot) => self.waiting.push(slot),
            Err(TryRecvError::Disconnected) => return true,
            Err(TryRecvError::Empty) => {}
        }
        !self.waiting.is_empty()
    }

    /// The next one that becomes free; to be asked when [`FreeSlots::take`] found none.
    pub(super) fn wait(&self, timeout: Duration) -> Result<Slot<Free>, RecvTimeoutError> {
        self.channel.recv_timeout(timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use forebay_mem::Slab;

    #[test]
    fn a_read_takes_a_slot_of_its_group_and_else_any() {
        let (_slab, tokens) = Slab::new(4096, 4).unwrap();
        let (sender, channel) = bounded(4);
        tokens.into_iter().for_each(|token| sender.send(token).unwrap());
        let free = FreeSlots::from(channel);
        let mut free = free.grouped(vec![0, 0, 1, 1], vec![1, 1, 1, 0, 0]);
        let taken: Vec<_> = (0..4).map(|read| free.take(Some(read)).unwrap()).collect();
        let groups: Vec<usize> = taken.iter().map(|slot| slot.index() / 2).collect();
        assert_eq!(groups, [1, 1, 0, 0], "the third finds none of its own");
        assert_eq!(free.take(Some(4)).unwrap_err(), TryRecvError::Empty);
        taken.into_iter().for_each(|slot| sender.send(slot).unwrap());
        assert_eq!(free.take(Some(4)).unwrap().index() / 2, 0);
        let rest: Vec<_> = std::iter::from_fn(|| free.take_any().ok()).collect();
        assert_eq!(rest.len(), 3, "what was kept back is not lost");
        drop(sender);
        assert_eq!(free.take(Some(4)).unwrap_err(), TryRecvError::Disconnected);
    }
}
