//! What a model's headers say, laid out for C.

use crate::edge::Text;
use forebay::Catalog;
use std::ffi::c_char;

/// A tensor as the model's headers describe it.
#[repr(C)]
pub struct TensorInfo {
    /// Its place among the model's tensors, which are in file order.
    pub index: usize,
    /// The name, in UTF-8.
    pub name: *const c_char,
    /// The length of the name without the NUL behind it.
    pub name_bytes: usize,
    /// The element or block type, spelt as the format spells it: "Q4_K", "F16", "BF16".
    pub dtype: *const c_char,
    /// Elements per dimension, outermost first. (ggml's `ne` has them the other way round. Where a
    /// `.ptd` file has them in another order, the metadata's `ptd.dim_order.NAME` says so.)
    pub shape: *const u64,
    /// How many dimensions there are; 0 for a scalar.
    pub rank: usize,
    /// How many bytes it has.
    pub bytes: u64,
    /// Which of the model's files it is in.
    pub file: usize,
    /// Where its bytes begin in that file.
    pub offset: u64,
}

/// A file of a model.
#[repr(C)]
pub struct File {
    /// Its path: bytes, as the system has them.
    pub path: *const c_char,
    /// Its length.
    pub bytes: u64,
}

/// The infos of all tensors, and what they point at.
pub(crate) struct Infos {
    entries: Box<[TensorInfo]>,
    _names: Vec<Text>,
    _dtypes: Vec<Text>,
    _shapes: Vec<Box<[u64]>>,
}

// SAFETY: the pointers lead to memory that the value owns and that nobody writes to.
unsafe impl Send for Infos {}
// SAFETY: as above.
unsafe impl Sync for Infos {}

impl Infos {
    pub(crate) fn of(catalog: &Catalog) -> Self {
        let tensors = catalog.tensors();
        let names: Vec<Text> = tensors.iter().map(|it| Text::new(it.name.as_str())).collect();
        let dtypes: Vec<Text> = tensors.iter().map(|it| Text::new(it.dtype.name())).collect();
        let shapes: Vec<Box<[u64]>> = tensors.iter().map(|it| it.shape.clone().into()).collect();
        let entry = |index: usize| {
            let tensor = &tensors[index];
            TensorInfo {
                index,
                name: names[index].as_ptr(),
                name_bytes: names[index].bytes(),
                dtype: dtypes[index].as_ptr(),
                shape: shapes[index].as_ptr(),
                rank: shapes[index].len(),
                bytes: tensor.bytes,
                file: tensor.file,
                offset: tensor.offset,
            }
        };
        let entries = (0..tensors.len()).map(entry).collect();
        Self { entries, _names: names, _dtypes: dtypes, _shapes: shapes }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<&TensorInfo> {
        self.entries.get(index)
    }
}
