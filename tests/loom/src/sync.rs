//! What the library has from `std::sync`, from loom; but for atomics, which count how they are used,
//! and of which one use may be weakened.

pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
pub(crate) use loom::thread::yield_now;
// Nothing that is modelled waits for it.
pub(crate) use std::sync::OnceLock;
pub(crate) use std::sync::PoisonError;

pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::Ordering;

    use std::collections::BTreeSet;
    use std::panic::Location;
    use std::sync::{LazyLock, Mutex};

    /// The place in the library whose ordering is `Relaxed` in this process.
    pub(crate) const RELAXED: &str = "FOREBAY_LOOM_RELAXED";

    static WEAKENED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var(RELAXED).ok());
    static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

    /// The places that have asked for more than `Relaxed`.
    pub(crate) fn asked() -> BTreeSet<String> {
        ASKED.lock().unwrap().clone()
    }

    #[track_caller]
    fn ordering(asked: Ordering) -> Ordering {
        let at = Location::caller();
        let Some((_, file)) = at.file().split_once("crates/") else { return asked };
        if asked == Ordering::Relaxed {
            return asked;
        }
        let place = format!("{file}:{}:{} {asked:?}", at.line(), at.column());
        if WEAKENED.as_ref() == Some(&place) {
            return Ordering::Relaxed;
        }
        ASKED.lock().unwrap().insert(place);
        asked
    }

    macro_rules! atomic {
        ($name:ident, $value:ty) => {
            #[derive(Debug, Default)]
            pub(crate) struct $name(loom::sync::atomic::$name);

            #[allow(dead_code, reason = "not all are used in all these ways")]
            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                #[track_caller]
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(ordering(order))
                }

                #[track_caller]
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, ordering(order));
                }
            }
        };
    }

    atomic!(AtomicBool, bool);
    atomic!(AtomicU8, u8);
    atomic!(AtomicU64, u64);
    atomic!(AtomicUsize, usize);

    impl AtomicBool {
        #[track_caller]
        pub(crate) fn swap(&self, value: bool, order: Ordering) -> bool {
            self.0.swap(value, ordering(order))
        }
    }

    impl AtomicU64 {
        #[track_caller]
        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, ordering(order))
        }
    }

    impl AtomicUsize {
        #[track_caller]
        pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
            self.0.fetch_add(value, ordering(order))
        }
    }
}
