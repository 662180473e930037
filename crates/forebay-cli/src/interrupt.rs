//! Ctrl-C and SIGTERM: a clean end while there is something to clean up, else the end at once.

use forebay::Cancel;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Nothing is left to be drained or removed: a signal may end the process where it is.
static AT_ONCE: AtomicBool = AtomicBool::new(false);

/// A flag that a signal sets; whoever asks for it looks at it and ends in order. The second
/// signal ends the process at once.
pub(crate) fn flag() -> Cancel {
    static FLAG: OnceLock<Cancel> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Cancel::default();
        let set = flag.clone();
        // Refused only if another handler is set, which nobody does; without one, a signal ends
        // the process as ever.
        let _ = ctrlc::set_handler(move || {
            if set.is_cancelled() || AT_ONCE.load(Ordering::Acquire) {
                crate::output::notice("error: cancelled");
                std::process::exit(1);
            }
            set.cancel();
        });
        flag
    })
    .clone()
}

/// From here on a signal ends the process at once.
pub(crate) fn end_at_once() {
    AT_ONCE.store(true, Ordering::Release);
}
