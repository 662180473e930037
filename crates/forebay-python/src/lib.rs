//! `forebay._forebay`: what the Python package `forebay` is built on.
//!
//! It opens models, reads boxes of tensors (`model`), and runs loads into memory that it
//! allocates or that Python code lends (`load`). Tensors of frameworks, indices and everything
//! else that has a shape is Python's business, in `python/forebay`.
//!
//! No load and no read holds the interpreter's lock, and both look at signals while they wait.

mod bounds;
mod errors;
mod load;
mod memory;
mod model;
mod options;
mod parts;
mod values;

use pyo3::prelude::*;

#[pymodule(name = "_forebay")]
fn extension(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::Model>()?;
    module.add_class::<load::Load>()?;
    module.add_class::<memory::Memory>()?;
    module.add_function(wrap_pyfunction!(model::parse, module)?)?;
    module.add_function(wrap_pyfunction!(options::check_options, module)?)
}
