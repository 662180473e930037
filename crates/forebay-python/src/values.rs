//! Metadata as Python's values.

use forebay_format::{Array, Text, Value};
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

/// A value of a model's metadata: numbers, `bool`, `str` (`bytes` where it is no UTF-8), `list`.
pub(crate) fn value<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::U8(value) => value.into_bound_py_any(py),
        Value::I8(value) => value.into_bound_py_any(py),
        Value::U16(value) => value.into_bound_py_any(py),
        Value::I16(value) => value.into_bound_py_any(py),
        Value::U32(value) => value.into_bound_py_any(py),
        Value::I32(value) => value.into_bound_py_any(py),
        Value::U64(value) => value.into_bound_py_any(py),
        Value::I64(value) => value.into_bound_py_any(py),
        Value::F32(value) => value.into_bound_py_any(py),
        Value::F64(value) => value.into_bound_py_any(py),
        Value::Bool(value) => value.into_bound_py_any(py),
        Value::String(value) => text(py, value),
        Value::Array(values) => array(py, values),
        other => Err(crate::errors::of_class(
            "Error",
            &format!("metadata of type {} is not known here", other.type_name()),
        )),
    }
}

fn text<'py>(py: Python<'py>, text: &Text) -> PyResult<Bound<'py, PyAny>> {
    match text.to_str() {
        Some(text) => text.into_bound_py_any(py),
        None => Ok(PyBytes::new(py, text.as_bytes()).into_any()),
    }
}

fn array<'py>(py: Python<'py>, array: &Array) -> PyResult<Bound<'py, PyAny>> {
    let values = (0..array.len()).filter_map(|index| array.get(index));
    let values = values.map(|it| value(py, &it)).collect::<PyResult<Vec<_>>>()?;
    Ok(PyList::new(py, values)?.into_any())
}
