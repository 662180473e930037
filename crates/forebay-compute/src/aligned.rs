//! Scratch memory that begins where a cache line does.

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Floats of which the first is the first of a cache line: a register loaded from across a line's
/// border costs twice.
#[derive(Default)]
pub(crate) struct Aligned {
    /// The floats, and some before and behind them.
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Makes room for `len` floats, whose values don't matter.
    pub(crate) fn resize(&mut self, len: usize) -> &mut [f32] {
        if self.len != len {
            self.memory.resize(len + LINE_BYTES / size_of::<f32>(), 0.0);
            // Where it can't be told, any start is right, only slower.
            let start = self.memory.as_ptr().align_offset(LINE_BYTES);
            self.start = start.min(LINE_BYTES / size_of::<f32>());
            self.len = len;
        }
        &mut self.memory[self.start..][..len]
    }

    /// All of them.
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.memory[self.start..][..self.len]
    }
}
