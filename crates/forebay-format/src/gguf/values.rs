//! GGUF's key/values.

use super::NAME_BYTES_MAX;
use super::cursor::{Cursor, Scalar, Step, Stop};
use crate::error::{FormatError, Quoted};
use crate::{Array, Metadata, Text, Value};

/// Least a key/value can take: length and one byte of the key, the type, a value of one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 1;

/// Arrays of arrays are in the format, though no known writer makes them. This bounds recursion.
const NESTING_MAX: u32 = 4;

/// Type ids of values, from ggml's `gguf.h`.
mod id {
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
}

pub(super) fn read_all(cursor: &mut Cursor<'_>, count: u64, count_at: u64) -> Step<Metadata> {
    cursor.expect("key/values", count, ENTRY_BYTES_MIN, count_at)?;
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let at = cursor.position();
        let key = cursor.name("key", NAME_BYTES_MAX)?;
        let value = read_value(cursor).map_err(|stop| match stop {
            Stop::Refused(error) if error.offset().is_none() => error.at(at).into(),
            stop => stop,
        })?;
        if !metadata.insert(key, value) {
            let cause = format!("key {} is there twice", Quoted(key));
            return Err(FormatError::malformed(cause).at(at).into());
        }
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor<'_>) -> Step<Value> {
    let at = cursor.position();
    Ok(match cursor.scalar::<u32>()? {
        0 => Value::U8(cursor.scalar()?),
        1 => Value::I8(cursor.scalar()?),
        2 => Value::U16(cursor.scalar()?),
        3 => Value::I16(cursor.scalar()?),
        4 => Value::U32(cursor.scalar()?),
        5 => Value::I32(cursor.scalar()?),
        6 => Value::F32(cursor.scalar()?),
        7 => Value::Bool(cursor.scalar()?),
        id::STRING => Value::String(cursor.string()?.to_vec().into()),
        id::ARRAY => Value::Array(read_array(cursor, 1)?),
        10 => Value::U64(cursor.scalar()?),
        11 => Value::I64(cursor.scalar()?),
        12 => Value::F64(cursor.scalar()?),
        unknown => return Err(unknown_type(unknown, at)),
    })
}

fn read_array(cursor: &mut Cursor<'_>, depth: u32) -> Step<Array> {
    let at = cursor.position();
    Ok(match cursor.scalar::<u32>()? {
        0 => Array::U8(read_scalars(cursor)?),
        1 => Array::I8(read_scalars(cursor)?),
        2 => Array::U16(read_scalars(cursor)?),
        3 => Array::I16(read_scalars(cursor)?),
        4 => Array::U32(read_scalars(cursor)?),
        5 => Array::I32(read_scalars(cursor)?),
        6 => Array::F32(read_scalars(cursor)?),
        7 => Array::Bool(read_scalars(cursor)?),
        id::STRING => {
            let count = cursor.length("strings", 8)?;
            let mut strings = Vec::with_capacity(count);
            for _ in 0..count {
                strings.push(Text::from(cursor.string()?.to_vec()));
            }
            Array::String(strings)
        }
        id::ARRAY if depth == NESTING_MAX => {
            let cause = format!("arrays lie more than {NESTING_MAX} deep in one another");
            return Err(FormatError::malformed(cause).at(at).into());
        }
        id::ARRAY => {
            let count = cursor.length("arrays", 4 + 8)?;
            let mut arrays = Vec::with_capacity(count);
            for _ in 0..count {
                arrays.push(read_array(cursor, depth + 1)?);
            }
            Array::Array(arrays)
        }
        10 => Array::U64(read_scalars(cursor)?),
        11 => Array::I64(read_scalars(cursor)?),
        12 => Array::F64(read_scalars(cursor)?),
        unknown => return Err(unknown_type(unknown, at)),
    })
}

fn read_scalars<T: Scalar>(cursor: &mut Cursor<'_>) -> Step<Vec<T>> {
    let count = cursor.length("array elements", T::BYTES as u64)?;
    cursor.scalars(count)
}

fn unknown_type(id: u32, at: u64) -> Stop {
    FormatError::malformed(format!("value type {id} is not one of GGUF's: the file is damaged"))
        .at(at)
        .into()
}
