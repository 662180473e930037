//! Memory that tensors of Python lie in.

use forebay::{Error, Tensor};
use forebay_mem::{MemoryError, Region, page_bytes};
use pyo3::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// What every tensor is aligned to: a line of the processor's cache.
const LINE_BYTES: usize = 64;
/// Less than this comes from the heap: a process has only so many mappings.
const REGION_BYTES_MIN: usize = 128 << 10;

/// Memory that nobody else has, zeroed.
pub(crate) struct Block {
    kind: Kind,
}

enum Kind {
    Pages(Region),
    Heap(NonNull<u8>, Layout),
}

// SAFETY: a block is an address range that it owns until `drop`; it gives out addresses, never a
// reference that outlives a borrow of the block, and no thread is special to it.
unsafe impl Send for Block {}
// SAFETY: `&Block` only tells the address.
unsafe impl Sync for Block {}

impl Block {
    pub(crate) fn new(bytes: usize) -> Result<Self, MemoryError> {
        if bytes >= REGION_BYTES_MIN {
            return Ok(Self { kind: Kind::Pages(Region::new(bytes)?) });
        }
        let layout = Layout::from_size_align(bytes.max(1), LINE_BYTES)
            .expect("less than REGION_BYTES_MIN, and a power of two");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Self { kind: Kind::Heap(start, layout) })
    }

    fn start(&self) -> *mut u8 {
        match &self.kind {
            Kind::Pages(region) => region.start(),
            Kind::Heap(start, _) => start.as_ptr(),
        }
    }

    /// The first `bytes` of it, for whoever fills it before anybody else has it, and its pages.
    ///
    /// # Panics
    /// If it has less.
    pub(crate) fn filling(&mut self, bytes: usize) -> (&mut [u8], Pages<'_>) {
        let (region, has_bytes) = match &self.kind {
            Kind::Pages(region) => (Some(region), region.bytes()),
            Kind::Heap(_, layout) => (None, layout.size()),
        };
        assert!(bytes <= has_bytes, "{bytes} bytes of a block of {has_bytes}");
        // SAFETY: the block owns these bytes, which are zeroed or written, and is borrowed
        // exclusively: addresses are handed out only once it is in a `Memory`. A region gives out
        // no reference to them.
        let target = unsafe { std::slice::from_raw_parts_mut(self.start(), bytes) };
        (target, Pages(region))
    }
}

/// The pages of a block, for whoever fills it.
#[derive(Clone, Copy)]
pub(crate) struct Pages<'block>(Option<&'block Region>);

impl Pages<'_> {
    /// Gives the `bytes` from `at` on their pages: ahead of use, in steps that several threads share,
    /// of the kind that is fast on this machine.
    pub(crate) fn ensure(self, at: usize, bytes: usize) {
        if let Self(Some(region)) = self {
            region.ensure_populated(&(at..at + bytes));
        }
    }
}

/// Gives lent memory that is about to be filled its pages, in one call instead of a fault for each.
pub(crate) fn populate(part: &mut [u8]) {
    /// Linux 5.14; `libc` has it on glibc only.
    const MADV_POPULATE_WRITE: libc::c_int = 23;
    let page = page_bytes();
    let before = part.as_ptr().addr() % page;
    if part.len() >= page {
        let start = part.as_mut_ptr().wrapping_sub(before);
        // SAFETY: the pages that hold `part` are the process's, and populating them changes no
        // byte, neither of `part` nor of its neighbours. A refusal costs speed only.
        unsafe { libc::madvise(start.cast(), part.len() + before, MADV_POPULATE_WRITE) };
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Kind::Heap(start, layout) = self.kind {
            // SAFETY: allocated in `new` with this layout, and freed nowhere else.
            unsafe { dealloc(start.as_ptr(), layout) };
        }
    }
}

/// The bytes of one tensor. They are its user's alone, to read and to write.
#[pyclass(frozen, module = "forebay._forebay")]
pub(crate) struct Memory {
    owner: Owner,
    address: usize,
    bytes: usize,
}

/// What keeps the bytes.
enum Owner {
    Block {
        _block: Block,
    },
    /// A tensor that a load has put into a mapping, or into memory of its own.
    Tensor {
        _tensor: Tensor,
    },
}

impl Memory {
    /// All of a block.
    pub(crate) fn whole(block: Block, bytes: usize) -> Self {
        let address = block.start().expose_provenance();
        Self { owner: Owner::Block { _block: block }, address, bytes }
    }

    /// What a load has landed: where it is; or a copy, if it does not lie as its elements must, or
    /// lies in a mapping where others share its bytes, which would see what is written to it.
    ///
    /// # Errors
    /// [`Error::Memory`] where there is no memory for the copy, or it can't be made.
    pub(crate) fn landed(tensor: Tensor, shares: bool) -> Result<Self, Error> {
        let dtype = tensor.dtype();
        // Blocks are bytes to the frameworks.
        let alignment = if dtype.block_elements() == 1 { dtype.block_bytes() } else { 1 };
        let bytes = usize::try_from(tensor.bytes()).expect("what has landed fits into memory");
        let is_own = !(shares && tensor.mapped().is_some());
        let start = tensor.as_mut_ptr().map(NonNull::as_ptr).filter(|_| is_own);
        match start.filter(|start| (start.addr() as u64).is_multiple_of(alignment)) {
            Some(start) => {
                let address = start.expose_provenance();
                Ok(Self { owner: Owner::Tensor { _tensor: tensor }, address, bytes })
            }
            None => {
                let what = format!("no room for a copy of tensor '{}'", tensor.name());
                let block = Block::new(bytes);
                let mut block = block.map_err(|source| Error::Memory { what, source })?;
                tensor.read_into(0, block.filling(bytes).0)?;
                Ok(Self::whole(block, bytes))
            }
        }
    }
}

#[pymethods]
impl Memory {
    /// The address of its first byte, valid as long as this object lives.
    #[getter]
    fn address(&self) -> usize {
        self.address
    }

    /// Its length.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    /// Gives back the pages that only it had, whatever else of the load is in use.
    fn drop(&mut self) {
        let Owner::Tensor { .. } = self.owner else { return };
        let page = page_bytes();
        let start = self.address.next_multiple_of(page);
        let end = (self.address + self.bytes) / page * page;
        if start < end {
            let first = std::ptr::with_exposed_provenance_mut(start);
            // SAFETY: the pages lie inside the tensor's memory, which is private to this process and
            // is there until the fields are dropped; this was its one user, so nobody reads
            // them again. What else lies on pages of its ends is left alone. Locked pages stay, and
            // go with the load.
            unsafe { libc::madvise(first, end - start, libc::MADV_DONTNEED) };
        }
    }
}
