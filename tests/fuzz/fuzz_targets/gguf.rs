//! A GGUF file, or the name of a part of one.
#![no_main]

use forebay_format::gguf::{GgufFile, split_name};
use forebay_fuzz::headers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    headers::check::<GgufFile>(input);
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(name) = split_name(text)
    {
        assert!((1..=name.count).contains(&name.number));
        assert_eq!(name.file_name(name.number), text);
        assert_eq!(
            split_name(&name.file_name(name.count)).map(|last| last.count),
            Some(name.count)
        );
    }
});
