//! GGUF's tensor descriptions, and the checks of where they say the data lies.

use super::NAME_BYTES_MAX;
use super::cursor::{Cursor, Step};
use crate::catalog::elements;
use crate::error::{FormatError, Quoted};
use crate::{Dtype, Tensor};
use std::collections::HashSet;

/// Least a description can take: length and one byte of the name, number of dimensions, no
/// dimension, type, offset.
const ENTRY_BYTES_MIN: u64 = 8 + 1 + 4 + 4 + 8;

/// `GGML_MAX_DIMS`.
const DIMENSIONS_MAX: u32 = 4;

/// Reads all descriptions. The offsets are still relative to the data section, as stored.
pub(super) fn read_all(cursor: &mut Cursor<'_>, count: u64, count_at: u64) -> Step<Vec<Tensor>> {
    let capacity = cursor.expect("tensors", count, ENTRY_BYTES_MIN, count_at)?;
    let mut tensors = Vec::with_capacity(capacity);
    let mut names = HashSet::with_capacity(capacity);
    for _ in 0..count {
        let at = cursor.position();
        let name = cursor.name("tensor name", NAME_BYTES_MAX)?;
        if !names.insert(name) {
            let error = FormatError::malformed("a tensor of this name is there already");
            return Err(error.in_tensor(name).at(at).into());
        }
        let dimensions = read_dimensions(cursor, name)?;
        let dtype_at = cursor.position();
        let dtype_id = cursor.scalar::<u32>()?;
        let offset = cursor.scalar::<u64>()?;
        let dtype = dtype(dtype_id).map_err(|error| error.in_tensor(name).at(dtype_at))?;
        let (shape, bytes) =
            size(dimensions, dtype).map_err(|error| error.in_tensor(name).at(at))?;
        tensors.push(Tensor { name: name.to_owned(), dtype, shape, file: 0, offset, bytes });
    }
    Ok(tensors)
}

/// Dimensions as stored: innermost first.
fn read_dimensions(cursor: &mut Cursor<'_>, name: &str) -> Step<Vec<u64>> {
    let at = cursor.position();
    let count = cursor.scalar::<u32>()?;
    if count > DIMENSIONS_MAX {
        let cause = format!("{count} dimensions are more than the {DIMENSIONS_MAX} of GGUF");
        return Err(FormatError::malformed(cause).in_tensor(name).at(at).into());
    }
    let capacity = cursor.expect("dimensions", count.into(), 8, at)?;
    cursor.scalars(capacity)
}

fn dtype(id: u32) -> Result<Dtype, FormatError> {
    let removed = match id {
        4 => "Q4_2",
        5 => "Q4_3",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        _ => {
            return Dtype::from_gguf_id(id).ok_or_else(|| {
                FormatError::unsupported(format!("type {id} is not known to this version"))
                    .with_remedy("the file is damaged, or newer than this version of forebay")
            });
        }
    };
    Err(FormatError::unsupported(format!("type {id} ({removed}) was removed from GGUF"))
        .with_remedy("quantise or convert the model anew with a current llama.cpp"))
}

/// The shape outermost first, and the bytes it takes.
fn size(mut shape: Vec<u64>, dtype: Dtype) -> Result<(Vec<u64>, u64), FormatError> {
    // A scalar is one element, so a type of larger blocks cannot make one.
    let innermost = shape.first().copied().unwrap_or(1);
    if !innermost.is_multiple_of(dtype.block_elements()) {
        return Err(FormatError::malformed(format!(
            "its innermost dimension {innermost} is not a multiple of {}, the block of {dtype}",
            dtype.block_elements()
        )));
    }
    shape.reverse();
    let bytes = elements(&shape).and_then(|elements| dtype.bytes_for(elements));
    bytes
        .ok_or_else(|| FormatError::malformed(format!("the size of its shape {shape:?} overflows")))
        .map(|bytes| (shape, bytes))
}

/// Makes the offsets absolute and checks that every tensor lies in the file and none on another.
///
/// Stricter readers also want tensors in order, aligned and without holes. Nothing here depends
/// on that, so holes, disorder and odd offsets pass.
pub(super) fn locate(
    tensors: &mut [Tensor],
    data_offset: u64,
    file_bytes: u64,
) -> Result<(), FormatError> {
    for tensor in &mut *tensors {
        let start = data_offset.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes));
        let (Some(start), Some(_)) = (start, end) else {
            let cause = format!("its offset {} overflows: the file is damaged", tensor.offset);
            return Err(FormatError::malformed(cause).in_tensor(&tensor.name));
        };
        tensor.offset = start;
    }
    // No data, no place: an empty tensor at the end may point past the file's unpadded end.
    let mut in_order: Vec<&Tensor> = tensors.iter().filter(|tensor| tensor.bytes > 0).collect();
    in_order.sort_by_key(|tensor| tensor.offset);
    if let Some(beyond) = in_order.iter().find(|tensor| tensor.end() > file_bytes) {
        let wanted = in_order.iter().map(|tensor| tensor.end()).max().unwrap_or(0);
        return Err(FormatError::truncated(format!(
            "data ends at byte {} but the file has {file_bytes} bytes: the file is truncated, \
             it should have {wanted}",
            beyond.end()
        ))
        .in_tensor(&beyond.name)
        .at(beyond.offset));
    }
    for pair in in_order.windows(2) {
        if pair[0].end() > pair[1].offset {
            return Err(FormatError::malformed(format!(
                "its data overlaps that of {}, which ends at byte {}",
                Quoted(&pair[0].name),
                pair[0].end()
            ))
            .in_tensor(&pair[1].name)
            .at(pair[1].offset));
        }
    }
    Ok(())
}
