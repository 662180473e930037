//! The `safetensors` crate and this one accept, refuse and read alike, whatever the header says.

mod common;

use common::{parse_in_steps, safetensors_file};
use forebay_format::safetensors::{SafetensorsFile, parse};
use forebay_format::{Dtype, FormatError, Tensor};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeMap;

/// Reads a file with both and compares. Gives whether it was accepted.
fn agree(file: &[u8]) -> Result<bool, TestCaseError> {
    let ours = parse_in_steps(file, parse);
    match (ours, safetensors::SafeTensors::deserialize(file)) {
        (Ok(ours), Ok(theirs)) => {
            prop_assert_eq!(described(&ours, file), described_by_reference(&theirs));
            Ok(true)
        }
        (Err(_), Err(_)) => Ok(false),
        (Err(error), Ok(_)) => {
            prop_assert!(is_stricter_here(&error, file), "only we refuse: {error}");
            Ok(false)
        }
        (Ok(_), Err(error)) => {
            prop_assert!(false, "only the reference refuses: {error}");
            Ok(true)
        }
    }
}

/// The two things the module's documentation says are refused here alone.
fn is_stricter_here(error: &FormatError, file: &[u8]) -> bool {
    error.cause_text().ends_with("is there twice")
        || file.get(8).is_some_and(|first| b" \t\r\n".contains(first))
}

type Described = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

fn described(header: &SafetensorsFile, file: &[u8]) -> Described {
    let describe = |tensor: &Tensor| {
        let range = usize::try_from(tensor.offset).unwrap()..usize::try_from(tensor.end()).unwrap();
        let description =
            (tensor.dtype.name().to_owned(), tensor.shape.clone(), file[range].to_vec());
        (tensor.name.clone(), description)
    };
    header.tensors().iter().map(describe).collect()
}

fn described_by_reference(tensors: &safetensors::SafeTensors<'_>) -> Described {
    let describe = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let shape = view.shape().iter().map(|dimension| *dimension as u64).collect();
        (name.to_owned(), (view.dtype().to_string(), shape, view.data().to_vec()))
    };
    tensors.iter().map(describe).collect()
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    /// Added to the true offsets: nearly always 0.
    shift: (i64, i64),
}

fn entry() -> impl Strategy<Value = Entry> {
    let all: Vec<_> = Dtype::ALL.to_vec();
    let theirs: Vec<_> = all.iter().copied().filter(|dtype| dtype.in_safetensors()).collect();
    let dtype = prop_oneof![30 => select(theirs), 1 => select(all)].prop_map(Dtype::name);
    let shift = || prop_oneof![30 => Just(0_i64), 1 => -3_i64..9];
    let dimension = prop_oneof![20 => 0_u64..9, 1 => select(vec![1 << 32, u64::MAX, 1 << 61])];
    ("[a-d\\\\\"é]{0,3}", dtype, prop::collection::vec(dimension, 0..4), (shift(), shift()))
        .prop_map(|(name, dtype, shape, shift)| Entry { name, dtype, shape, shift })
}

/// A file of these entries: mostly good, wrong where an entry is.
fn file_of(entries: &[Entry], extra_bytes: i64, metadata: bool) -> Vec<u8> {
    let (mut json, mut position) = (Vec::new(), 0_i64);
    for entry in entries {
        let elements = entry.shape.iter().try_fold(1_u64, |all, next| all.checked_mul(*next));
        let dtype = Dtype::from_name(entry.dtype).expect("from the list");
        let bytes = elements.and_then(|elements| dtype.bytes_for(elements)).unwrap_or(5);
        let end = position + i64::try_from(bytes.min(1 << 20)).expect("small");
        let fields = serde_json::json!({
            "dtype": entry.dtype,
            "shape": entry.shape,
            "data_offsets": [position + entry.shift.0, end + entry.shift.1],
        });
        json.push(format!("{}:{fields}", serde_json::json!(entry.name)));
        position = end;
    }
    if metadata {
        json.push(r#""__metadata__":{"format":"pt"}"#.to_owned());
    }
    let data_bytes = usize::try_from(position + extra_bytes).unwrap_or(0);
    safetensors_file(format!("{{{}}}", json.join(",")), data_bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn headers_made_of_entries(
        entries in prop::collection::vec(entry(), 0..6),
        extra_bytes in prop_oneof![20 => Just(0_i64), 1 => -2_i64..3],
        metadata: bool,
    ) {
        agree(&file_of(&entries, extra_bytes, metadata))?;
    }

    #[test]
    fn headers_with_a_byte_changed(
        name in select(common::fixture_files()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3),
        printable: bool,
    ) {
        let mut file = common::fixture(&name);
        let header = file.len().min(1200);
        for (place, byte) in changes {
            // Characters that JSON means something by say more than noise.
            let meaningful = b"{}[]\",:0123456789 \\un-";
            let choice = meaningful[usize::from(byte) % meaningful.len()];
            file[place.index(header)] = if printable { choice } else { byte };
        }
        agree(&file)?;
    }
}

#[test]
fn fixtures_are_accepted_by_both() {
    for name in common::fixture_files().iter().filter(|name| name.ends_with(".safetensors")) {
        assert!(agree(&common::fixture(name)).expect(name), "{name}");
    }
}

#[test]
fn curious_headers() {
    for json in [
        r#"{"__metadata__":null}"#,
        r#"{"__metadata__":{}}"#,
        r#"{"__metadata__":[]}"#,
        r#"{"__metadata__":{"a":null}}"#,
        r#"{"a":["U8",[1],[0,1]]}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":{"x":[1,null]}}}"#,
        r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"u8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":null,"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#,
        r#"{"a\u0041":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"F\u0038_E4M3","shape":[1],"data_offsets":[0,1]}}"#,
        "{} \n\t ",
        "{}\0",
        "{},",
        "null",
        "",
    ] {
        for data_bytes in [0, 1] {
            if let Err(error) = agree(&safetensors_file(json, data_bytes)) {
                panic!("{json} with {data_bytes} bytes: {error}");
            }
        }
    }
}
