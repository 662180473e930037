//! A model's key/values as candle has them.

use candle_core::quantized::gguf_file::Value as Candles;
use forebay::{Metadata, Value};
use std::collections::HashMap;

/// As candle's own reader gives them: strings without trailing zeros, replaced where they are no
/// UTF-8; arrays as vectors of values.
pub(crate) fn values(metadata: &Metadata) -> HashMap<String, Candles> {
    metadata.iter().filter_map(|(key, value)| Some((key.to_owned(), of_candle(value)?))).collect()
}

/// `None` for what a later version of GGUF may bring.
fn of_candle(value: &Value) -> Option<Candles> {
    Some(match value {
        Value::U8(value) => Candles::U8(*value),
        Value::I8(value) => Candles::I8(*value),
        Value::U16(value) => Candles::U16(*value),
        Value::I16(value) => Candles::I16(*value),
        Value::U32(value) => Candles::U32(*value),
        Value::I32(value) => Candles::I32(*value),
        Value::U64(value) => Candles::U64(*value),
        Value::I64(value) => Candles::I64(*value),
        Value::F32(value) => Candles::F32(*value),
        Value::F64(value) => Candles::F64(*value),
        Value::Bool(value) => Candles::Bool(*value),
        Value::String(text) => {
            Candles::String(text.to_string_lossy().trim_end_matches('\0').to_owned())
        }
        Value::Array(array) => {
            let elements = (0..array.len()).filter_map(|index| of_candle(&array.get(index)?));
            Candles::Array(elements.collect())
        }
        _ => return None,
    })
}
