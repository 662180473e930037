//! The options of a load, spelt as on the command line.

use crate::errors;
use forebay::Options;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyTuple};

/// All but those that make no sense where every tensor becomes one of Python's: parts of tensors,
/// and weights laid out anew.
const NAMES: [&str; 12] = [
    "load_mode",
    "device",
    "gpu_layers",
    "place",
    "engine",
    "chunk",
    "queue_depth",
    "staging",
    "no_fallback",
    "reclaim",
    "prefetch",
    "numa",
];

/// Options from keyword arguments.
///
/// # Errors
/// `TypeError` for an option that there is not, `ValueError` for a value that it does not take.
pub(crate) fn parse(given: &Bound<'_, PyDict>) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in given {
        let name: String = name.extract()?;
        if !NAMES.contains(&&*name) {
            let names = NAMES.join(", ");
            let message = format!("there is no option '{name}'; the options are {names}");
            return Err(PyTypeError::new_err(message));
        }
        if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
            for value in value.try_iter()? {
                set(&mut options, &name, &value?)?;
            }
        } else if !value.is_none() {
            set(&mut options, &name, &value)?;
        }
    }
    Ok(options)
}

/// Refuses what no load would take.
#[pyfunction]
#[pyo3(signature = (**given))]
pub(crate) fn check_options(given: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    given.map_or(Ok(()), |given| parse(given).map(drop))
}

/// A word, or a number or switch that is written as one.
fn set(options: &mut Options, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    let text: String = match value.cast::<PyBool>() {
        Ok(switch) => if switch.is_true() { "on" } else { "off" }.to_owned(),
        Err(_) => value.str()?.extract()?,
    };
    options.set(&name.replace('_', "-"), &text).map_err(|error| errors::raise(&error))
}
