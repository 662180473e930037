//! A `.ptd` file. Its segments may lie on one another, but their tensors may not ask for any amount
//! of memory.
#![no_main]

use forebay_format::ptd::PtdFile;
use forebay_fuzz::headers;
use libfuzzer_sys::fuzz_target;

/// How often the bytes of a file may be shared on the whole.
const SHARED_TIMES_MAX: u64 = 64;

fuzz_target!(|input: &[u8]| {
    if let Some(catalog) = headers::check::<PtdFile>(input) {
        // The bound is the parser's; one step of it is rounding.
        let bytes_max = (SHARED_TIMES_MAX + 1) * input.len() as u64;
        assert!(catalog.bytes() <= bytes_max, "{} bytes of tensors", catalog.bytes());
    }
});
