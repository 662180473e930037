//! One conformance suite, mounted on every engine.
//!
//! A case says what is to be read, what goes wrong, and what must come of it; it knows the engine
//! only by the rung that it begins on. After every load, [`forebay_tests::Load::run`] has checked
//! that no slot is lost, and each case that every byte is the file's.

mod cases;

use cases::{Destination, Mount};
use forebay_io::{Access, Performer};

/// Mounts the listed cases on each engine.
macro_rules! mount {
    ($($module:ident: $performer:ident, $access:ident, $to:ident;)*) => {
        $(mod $module {
            const MOUNT: crate::Mount = crate::Mount {
                performer: crate::Performer::$performer,
                access: crate::Access::$access,
                to: crate::Destination::$to,
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
            lab: anything;
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
    uring_direct: Uring, Direct, Slots;
    uring_dontcache: Uring, DontCache, Slots;
    uring_buffered: Uring, Buffered, Slots;
    uring_direct_in_place: Uring, Direct, Places;
    uring_buffered_in_place: Uring, Buffered, Places;
    tokio_uring_direct: TokioUring, Direct, Slots;
    tokio_uring_buffered: TokioUring, Buffered, Slots;
    tokio_uring_direct_in_place: TokioUring, Direct, Places;
    tokio_uring_buffered_in_place: TokioUring, Buffered, Places;
    tokio_uring_direct_to_device: TokioUring, Direct, Device;
    tokio_uring_direct_as_task: TokioUring, Direct, SlotsOfTask;
    threads_direct: Threads, Direct, Slots;
    threads_dontcache: Threads, DontCache, Slots;
    threads_buffered: Threads, Buffered, Slots;
    threads_mapped: Threads, Mapped, Slots;
    uring_buffered_by_workers: Uring, Buffered, SlotsByWorkers;
    uring_direct_to_device: Uring, Direct, Device;
    uring_buffered_to_device: Uring, Buffered, Device;
    threads_direct_to_device: Threads, Direct, Device;
    threads_mapped_to_device: Threads, Mapped, Device;
    threads_direct_in_place: Threads, Direct, Places;
    threads_buffered_in_place: Threads, Buffered, Places;
}

/// Takes a drive with queues to poll (tests/vm/kernels has some). The cases that are left out count
/// the steps of accesses, and here polling is left, too, at the first read that is not direct.
macro_rules! mount_polled {
    ($($module:ident: $to:ident;)*) => {
        $(mod $module {
            const MOUNT: crate::Mount = crate::Mount {
                performer: crate::Performer::UringPolled,
                access: crate::Access::Direct,
                to: crate::Destination::$to,
            };
            every_case! {
                sizes: aligned, odd_tail, many_files, tiny_file, empty_job, one_slot,
                    more_slots_than_reads, uploader_that_keeps_almost_all;
                faults: short_and_aligned, short_at_random, eopnotsupp, eperm, enosys,
                    eperm_from_all_in_flight, interrupted_all_the_time, put_off_all_the_time,
                    refusal_where_fallback_is_forbidden;
                ends: eio, file_cut_short, cancelled_before_the_start,
                    cancelled_at_random_moments, nothing_is_written_after_the_end,
                    receiver_gone, put_off_without_end;
                lab: anything;
            }
        })*
    };
}

mount_polled! {
    uring_polled_direct: Slots;
    uring_polled_direct_in_place: Places;
    uring_polled_direct_to_device: Device;
}
