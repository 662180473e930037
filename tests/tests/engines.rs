//! One conformance suite, mounted on every engine.
//!
//! A case says what is to be read, what goes wrong, and what must come of it; it knows the engine
//! only by the rung that it begins on. After every load, [`forebay_tests::Load::run`] has checked
//! that no slot is lost, and each case that every byte is the file's.

mod cases;

use cases::Mount;
use forebay_io::{Access, Performer};

#[allow(non_upper_case_globals, reason = "words of the table below")]
const by_slot: bool = false;
#[allow(non_upper_case_globals, reason = "words of the table below")]
const in_place: bool = true;

/// Mounts the listed cases on each engine.
macro_rules! mount {
    ($($module:ident: $performer:ident, $access:ident, $place:ident;)*) => {
        $(mod $module {
            const MOUNT: crate::Mount = crate::Mount {
                performer: crate::Performer::$performer,
                access: crate::Access::$access,
                in_place: crate::$place,
            };
            every_case! {}
        })*
    };
}

/// The suite: a test for each case, in the module that it stands in.
macro_rules! every_case {
    () => {
        every_case! {
            sizes: aligned, odd_tail, many_files, tiny_file, empty_job, one_slot,
                more_slots_than_reads, uploader_that_keeps_almost_all;
            faults: short_and_aligned, short_and_odd, short_at_random, einval, efault, eopnotsupp,
                eperm, enosys, eperm_from_all_in_flight, interrupted_all_the_time,
                put_off_all_the_time, short_then_efault, refusals_at_every_rung,
                refusal_where_fallback_is_forbidden;
            ends: eio, file_cut_short, cancelled_before_the_start, cancelled_at_random_moments,
                nothing_is_written_after_the_end,
                receiver_gone, put_off_without_end;
        }
    };
    ($($group:ident: $($case:ident),*;)*) => {
        $($(
            #[test]
            fn $case() {
                crate::cases::$group::$case(MOUNT);
            }
        )*)*
    };
}

mount! {
    uring_direct: Uring, Direct, by_slot;
    uring_dontcache: Uring, DontCache, by_slot;
    uring_buffered: Uring, Buffered, by_slot;
    uring_direct_in_place: Uring, Direct, in_place;
    uring_buffered_in_place: Uring, Buffered, in_place;
    threads_direct: Threads, Direct, by_slot;
    threads_dontcache: Threads, DontCache, by_slot;
    threads_buffered: Threads, Buffered, by_slot;
    threads_mapped: Threads, Mapped, by_slot;
    threads_direct_in_place: Threads, Direct, in_place;
    threads_buffered_in_place: Threads, Buffered, in_place;
}
