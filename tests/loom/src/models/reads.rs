//! What is asked of an engine while it runs: `forebay-io`.

use crate::cancel::Cancel;
use crate::channel::TryRecvError;
use crate::feed::Feed;
use crate::free::slot_channel;
use crate::schedule::ReadSpec;
use crate::slab::Slab;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use loom::future::block_on;
use loom::thread::spawn;
use std::future::poll_fn;
use std::task::Poll;

fn reads(numbers: impl IntoIterator<Item = usize>) -> Vec<(usize, ReadSpec)> {
    numbers.into_iter().map(|read| (read, ReadSpec { bytes: 1, need_bytes: 1 })).collect()
}

/// The C interface writes down that a callback has stopped the load, and cancels it; when the load has
/// ended by that, it is there to be read. The load may heed a flag of its own as well.
pub(super) fn whoever_hears_of_a_cancel_knows_why() {
    let cancel = Cancel::default();
    let why = Arc::new(AtomicBool::new(false));
    let (setter, reason) = (cancel.clone(), Arc::clone(&why));
    let callback = spawn(move || {
        reason.store(true, Ordering::Relaxed);
        setter.cancel();
    });
    if cancel.child().is_cancelled() {
        assert!(why.load(Ordering::Relaxed));
    }
    callback.join().unwrap();
    assert!(cancel.is_cancelled());
}

/// Two threads begin what a third asks for and takes back: each read is begun by one of them or taken
/// back, never both.
pub(super) fn every_read_of_a_feed_is_begun_once() {
    let feed = Feed::default();
    feed.push(0, reads([0, 1]));
    let begin = |feed: Feed| move || feed.next().map(|(read, _)| read);
    let (one, two) = (spawn(begin(feed.clone())), spawn(begin(feed.clone())));
    let mut all = feed.take_back(|read| read == 1);
    all.extend(one.join().unwrap());
    all.extend(two.join().unwrap());
    all.extend(feed.next().map(|(read, _)| read));
    all.sort_unstable();
    assert_eq!(all, [0, 1]);
}

/// Two threads sleep until there is a read for each; nothing but the bell wakes them.
pub(super) fn a_bell_for_one_wakes_another() {
    let feed = Feed::default();
    let begin = |feed: Feed| {
        move || loop {
            if let Some((read, _)) = feed.next() {
                return read;
            }
            feed.bell().recv().unwrap();
        }
    };
    let (one, two) = (spawn(begin(feed.clone())), spawn(begin(feed.clone())));
    feed.push(0, reads([0, 1]));
    assert_eq!(one.join().unwrap() + two.join().unwrap(), 1);
}

/// An engine that is a task sleeps until there is a read or the end, and misses neither.
pub(super) fn a_task_hears_of_reads_and_of_the_end() {
    let feed = Feed::default();
    let asker = feed.clone();
    let asks = spawn(move || {
        asker.push(0, reads([0]));
        asker.push(0, reads([1]));
        asker.close();
    });
    let mut begun = Vec::new();
    while !feed.is_over() {
        begun.extend(feed.next().map(|(read, _)| read));
        block_on(poll_fn(|context| match feed.poll(context.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }));
    }
    assert_eq!(begun, [0, 1]);
    asks.join().unwrap();
}

/// The same for slots that come back, while more may come; and then for the end.
pub(super) fn a_task_hears_of_slots_and_of_the_end() {
    let (slab, tokens) = Slab::new(8, 2).unwrap();
    let (back, mut free) = slot_channel(2);
    let uploader = spawn(move || {
        tokens.into_iter().for_each(|slot| back.send(slot).unwrap());
        back
    });
    let mut next = || loop {
        match free.take(None) {
            Ok(slot) => return Some(slot),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) => block_on(poll_fn(|context| {
                if free.poll(context.waker()) { Poll::Ready(()) } else { Poll::Pending }
            })),
        }
    };
    let taken = [next(), next()].map(Option::unwrap);
    let back = uploader.join().unwrap();
    let ends = spawn(move || drop(back));
    assert!(next().is_none());
    ends.join().unwrap();
    drop((taken, slab));
}
