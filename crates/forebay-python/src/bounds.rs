//! Boxes of tensors: which stretches of a file they are.

/// Runs with less between them than this are read as one: storage is read by pages anyway.
const GAP_BYTES_MAX: u64 = 4096;

/// One dimension of a selection: the first index, the distance to the next, and how many.
pub(crate) type Bounds = (u64, u64, u64);

/// A box of a tensor: runs of equal length, at file offsets that are sums of multiples.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    start: u64,
    run_bytes: u64,
    /// Outermost first: how many, and how far apart.
    dimensions: Vec<(u64, u64)>,
}

impl Selection {
    /// The box `bounds` of a tensor whose bytes begin at `offset`; `None` if it does not lie in
    /// the shape.
    pub(crate) fn new(
        offset: u64,
        item_bytes: u64,
        shape: &[u64],
        bounds: &[Bounds],
    ) -> Option<Self> {
        if shape.len() != bounds.len() {
            return None;
        }
        let mut selection = Self { start: offset, run_bytes: item_bytes, dimensions: Vec::new() };
        let mut stride = item_bytes;
        let mut is_inner = true;
        for (&extent, &(first, step, count)) in shape.iter().zip(bounds).rev() {
            let last = count.saturating_sub(1).checked_mul(step)?.checked_add(first)?;
            if step == 0 || (count > 0 && last >= extent) {
                return None;
            }
            selection.start = selection.start.checked_add(first.checked_mul(stride)?)?;
            if is_inner && (step == 1 || count <= 1) {
                selection.run_bytes = selection.run_bytes.checked_mul(count)?;
            } else {
                selection.dimensions.insert(0, (count, step.checked_mul(stride)?));
            }
            is_inner &= first == 0 && step == 1 && count == extent;
            stride = stride.checked_mul(extent)?;
        }
        selection.bytes()?;
        Some(selection)
    }

    /// How many bytes it has; `None` on overflow.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.runs()?.checked_mul(self.run_bytes)
    }

    pub(crate) fn run_bytes(&self) -> u64 {
        self.run_bytes
    }

    /// How many runs; `None` on overflow.
    pub(crate) fn runs(&self) -> Option<u64> {
        self.dimensions.iter().try_fold(1_u64, |product, &(count, _)| product.checked_mul(count))
    }

    /// Where in the file the run with this number begins.
    pub(crate) fn run(&self, mut number: u64) -> u64 {
        let mut offset = self.start;
        for &(count, distance) in self.dimensions.iter().rev() {
            offset += number % count * distance;
            number /= count;
        }
        offset
    }

    /// How many runs from this number on, up to `limit`, lie close enough together to be read as
    /// one stretch of at most `bytes_max`.
    pub(crate) fn neighbours(&self, first: u64, limit: u64, bytes_max: u64) -> u64 {
        let start = self.run(first);
        let mut end = start + self.run_bytes;
        let mut count = 1;
        while first + count < limit {
            let next = self.run(first + count);
            if next < end || next - end > GAP_BYTES_MAX || next + self.run_bytes - start > bytes_max
            {
                break;
            }
            end = next + self.run_bytes;
            count += 1;
        }
        count
    }
}
