//! Who hears that a tensor is there: the library.

use crate::channel::TryRecvError;
use crate::landing::Announcer;
use crate::resident::Resident;
use crate::sync::Arc;
use loom::future::block_on;
use loom::thread::spawn;
use std::future::poll_fn;
use std::task::Poll;

/// Two announcers, a stream that sleeps between tensors: it gets each, while more may land, and then
/// the end.
pub(super) fn a_stream_hears_of_every_tensor() {
    let (announcer, landed, landings) = Announcer::new(2);
    let announcers = [announcer.clone(), announcer];
    let threads = announcers.into_iter().enumerate().map(|(tensor, announcer)| {
        spawn(move || {
            announcer.announce(tensor);
            announcer
        })
    });
    let threads: Vec<_> = threads.collect();
    // As `Load::poll_landed`.
    let next = || {
        block_on(poll_fn(|context| {
            landings.wake_stream(context.waker());
            match landed.try_recv() {
                Ok(landed) => Poll::Ready(Some(landed.0)),
                Err(TryRecvError::Empty) => Poll::Pending,
                Err(TryRecvError::Disconnected) => Poll::Ready(None),
            }
        }))
    };
    assert_eq!(next().unwrap() + next().unwrap(), 1);
    let announcers: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let ends = spawn(move || drop(announcers));
    assert_eq!(next(), None);
    ends.join().unwrap();
}

/// A task that waits for one tensor while others land.
pub(super) fn a_task_hears_of_its_tensor() {
    let (announcer, landed, landings) = Announcer::new(2);
    let uploader = spawn(move || (0..2).for_each(|tensor| announcer.announce(tensor)));
    assert_eq!(block_on(poll_fn(|context| landings.poll(1, context.waker()))), Some(()));
    uploader.join().unwrap();
    drop(landed);
}

/// A load that ends without it.
pub(super) fn a_task_hears_that_its_tensor_never_comes() {
    let (announcer, landed, landings) = Announcer::new(2);
    let other = announcer.clone();
    let threads = [spawn(move || drop(announcer)), spawn(move || other.announce(0))];
    assert_eq!(block_on(poll_fn(|context| landings.poll(1, context.waker()))), None);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    drop(landed);
}

/// One waits until its tensor is there, the other until it is known that nobody brings it.
pub(super) fn whoever_waits_for_a_mapped_tensor_goes_on() {
    let resident = Arc::new(Resident::new(&[(0, 8), (1, 16)], true));
    let waits = |tensor: usize, resident: &Arc<Resident>| {
        let resident = Arc::clone(resident);
        spawn(move || resident.wait_for(tensor))
    };
    let (here, never) = (waits(0, &resident), waits(1, &resident));
    resident.advance(8);
    here.join().unwrap();
    resident.end();
    never.join().unwrap();
}
