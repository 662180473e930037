//! A safetensors file.
#![no_main]

use forebay_format::safetensors::SafetensorsFile;
use forebay_fuzz::headers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    headers::check::<SafetensorsFile>(input);
});
