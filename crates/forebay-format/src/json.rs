//! JSON objects whose keys are data, and where in the file an error in them lies.

use crate::error::{FormatError, Quoted};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;

/// A string, borrowed from the JSON unless it had escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Name<'de>(pub(crate) Cow<'de, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// An object in its own order, with no key twice. (A map would keep the last and say nothing.)
pub(crate) struct Object<'de, V>(pub(crate) Vec<(Name<'de>, V)>);

impl<'de: 'a, 'a, V: Deserialize<'de>> Deserialize<'de> for Object<'a, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for ObjectVisitor<V> {
            type Value = Object<'de, V>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut keys = HashSet::new();
                let mut entries = Vec::new();
                while let Some(key) = map.next_key::<Name<'de>>()? {
                    if !keys.insert(key.clone()) {
                        return Err(twice(&key.0));
                    }
                    entries.push((key, map.next_value()?));
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

pub(crate) fn twice<E: Error>(key: &str) -> E {
    E::custom(format_args!("key {} is there twice", Quoted(key)))
}

/// Says what is wrong with `json`, which lies at byte `json_at` of its file.
pub(crate) fn refused(json: &[u8], json_at: u64, error: &serde_json::Error) -> FormatError {
    let text = error.to_string();
    // serde_json ends its messages with line and column; here the offset says it better.
    let cause = text.rsplit_once(" at line ").map_or(text.as_str(), |(cause, _)| cause);
    let refused = FormatError::malformed(shortened(cause));
    if error.line() == 0 {
        return refused;
    }
    let line_start = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line() - 1)
        .map(<[u8]>::len)
        .sum::<usize>();
    refused.at(json_at + (line_start + error.column().saturating_sub(1)) as u64)
}

/// A message of serde's without the middle of it, where it quotes a long text from the file: what was
/// found stands at its start, what was expected at its end.
fn shortened(cause: &str) -> Cow<'_, str> {
    const START_CHARS_MAX: usize = 160;
    const END_CHARS_MAX: usize = 80;
    let at = |(at, _): (usize, char)| at;
    let start = cause.char_indices().nth(START_CHARS_MAX).map(at);
    let end = cause.char_indices().rev().nth(END_CHARS_MAX - 1).map(at);
    match (start, end) {
        (Some(start), Some(end)) if start < end => {
            Cow::Owned(format!("{}…{}", &cause[..start], &cause[end..]))
        }
        _ => Cow::Borrowed(cause),
    }
}
