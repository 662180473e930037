//! The JSON header of a safetensors file.

use crate::error::FormatError;
use crate::json::{self, Name, Object};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// A tensor's entry. Other fields are ignored, as the reference implementation does.
#[derive(serde::Deserialize)]
pub(super) struct Entry<'a> {
    #[serde(borrow)]
    pub(super) dtype: Name<'a>,
    pub(super) shape: Vec<u64>,
    /// First byte, and one past the last, from the start of the data section.
    pub(super) data_offsets: (u64, u64),
}

/// About what an entry takes, name included.
const ENTRY_BYTES_USUAL: usize = 100;

#[derive(Default)]
pub(super) struct Header<'de> {
    pub(super) metadata: Vec<(Name<'de>, String)>,
    pub(super) tensors: Vec<(Name<'de>, Entry<'de>)>,
}

/// Parses the header, which begins at byte `json_at` of its file.
pub(super) fn parse(json: &[u8], json_at: u64) -> Result<Header<'_>, FormatError> {
    let text = std::str::from_utf8(json).map_err(|error| {
        FormatError::malformed(format!("the header is not valid UTF-8: {error}"))
            .at(json_at + error.valid_up_to() as u64)
    })?;
    let mut key = Name::default();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let header = HeaderSeed { key: &mut key, expected: json.len() / ENTRY_BYTES_USUAL }
        .deserialize(&mut deserializer)
        .and_then(|header| deserializer.end().map(|()| header));
    header.map_err(|error| {
        let refused = json::refused(json, json_at, &error);
        if key.0.is_empty() { refused } else { refused.in_tensor(key.0) }
    })
}

/// Reads the header's object, keeping in `key` the tensor being read, so that an error that serde
/// makes deep inside an entry can still be laid to its tensor.
struct HeaderSeed<'k, 'de> {
    key: &'k mut Name<'de>,
    /// About how many entries there are, so that tables need not grow.
    expected: usize,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_, 'de> {
    type Value = Header<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_, 'de> {
    type Value = Header<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut header = Header::default();
        header.tensors.reserve(self.expected);
        let mut keys = HashSet::with_capacity(self.expected);
        while let Some(key) = map.next_key::<Name<'de>>()? {
            *self.key = key;
            if !keys.insert(self.key.clone()) {
                return Err(json::twice(&self.key.0));
            }
            if self.key.0 == "__metadata__" {
                // `null` stands for none, as in the reference implementation.
                let metadata = map.next_value::<Option<Object<'de, String>>>()?;
                header.metadata = metadata.map_or_else(Vec::new, |object| object.0);
                *self.key = Name::default();
            } else {
                let entry = map.next_value::<Entry<'de>>()?;
                header.tensors.push((std::mem::take(self.key), entry));
            }
        }
        Ok(header)
    }
}
