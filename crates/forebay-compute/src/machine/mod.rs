//! Eight lanes at a time, on whatever processor this is.
//!
//! Kernels are written once, against [`Machine`]: eight `f32`s or eight 32-bit integers a value.
//! [`dispatch`] picks the best machine that the processor has, at run time, and compiles the
//! kernel for it; everything a kernel calls must be `#[inline(always)]`, or it is left behind in
//! code for the oldest processor (closures too: LLVM doesn't inline them across that border).
//! Only instructions that `pulp` wraps safely are used, so this crate needs no `unsafe`.
//!
//! All machines compute the same thing, save that a [`fused`](Machine::fused) without the
//! instruction rounds twice.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use portable::Portable;

/// Lanes of a value.
pub(crate) const LANES: usize = 8;

/// The operations that kernels are made of.
pub(crate) trait Machine: Copy {
    /// Eight `f32`s.
    type Floats: Copy;
    /// Eight 32-bit integers; signed where they become floats.
    type Integers: Copy;

    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, values: &[f32; LANES]) -> Self::Floats;
    fn store(self, values: Self::Floats) -> [f32; LANES];
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn subtract(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;

    /// `a × b + sum`, rounded once where the processor can.
    fn fused(self, a: Self::Floats, b: Self::Floats, sum: Self::Floats) -> Self::Floats;

    /// Eight little-endian half-precision floats, exactly.
    fn halves(self, bytes: &[u8; 2 * LANES]) -> Self::Floats;

    /// Floats by their bits.
    #[allow(clippy::wrong_self_convention, reason = "`self` is the processor, not the bits")]
    fn from_bits(self, bits: Self::Integers) -> Self::Floats;

    /// The bits of floats.
    fn to_bits(self, values: Self::Floats) -> Self::Integers;

    /// Eight little-endian 32-bit integers.
    fn words(self, bytes: &[u8; 4 * LANES]) -> Self::Integers;

    /// Eight little-endian 16-bit integers, each from 0 to 65535.
    fn widen_pairs(self, bytes: &[u8; 2 * LANES]) -> Self::Integers;

    /// Sixteen bytes, twice: what [`spread`](Self::spread) takes.
    fn twice(self, bytes: &[u8; 2 * LANES]) -> Self::Integers;

    /// The first eight of sixteen bytes, or the others if `half` is 1, each in the uppermost byte
    /// of its lane, over zeros. Faster than widening and shifting.
    fn spread(self, twice: Self::Integers, half: usize) -> Self::Integers;

    /// Eight bytes, each as an integer from 0 to 255.
    fn widen(self, bytes: &[u8; LANES]) -> Self::Integers;

    /// Eight bytes, each as an integer from −128 to 127.
    fn widen_signed(self, bytes: &[u8; LANES]) -> Self::Integers;

    fn splat_integer(self, value: u32) -> Self::Integers;
    fn and(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn or(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn xor(self, a: Self::Integers, b: Self::Integers) -> Self::Integers;
    fn shift_left<const BITS: i32>(self, values: Self::Integers) -> Self::Integers;

    /// Zeros come in from above.
    fn shift_right(self, values: Self::Integers, bits: usize) -> Self::Integers;

    /// Shifts each lane left by a number of its own.
    fn shift_left_each(self, values: Self::Integers, bits: Self::Integers) -> Self::Integers;
    fn convert(self, values: Self::Integers) -> Self::Floats;

    /// Sixteen entries of a table, by the lower half of each index.
    fn look_up(self, table: &[i8; 16], indices: &[u8; 2 * LANES]) -> [u8; 2 * LANES];

    /// The sum of the lanes of each of four, always in the same order: of neighbours, then of
    /// neighbours' sums, then of those.
    fn sums(self, values: [Self::Floats; 4]) -> [f32; 4];

    /// The sum of the lanes, as [`sums`](Self::sums) adds them.
    #[inline(always)]
    fn sum(self, values: Self::Floats) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.store(values);
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}

/// A computation, compiled for each machine.
pub(crate) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]`.
    fn run<M: Machine>(self, machine: M) -> Self::Output;
}

/// Runs `kernel` on the best machine there is.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(test)]
    if tests::ON_PORTABLE.get() {
        return kernel.run(Portable);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(machine) = pulp::x86::V3::try_new() {
        return x86::run(machine, kernel);
    }
    kernel.run(Portable)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Kernel, Machine, Portable, dispatch};
    use std::cell::Cell;

    thread_local! {
        /// Whether this thread's kernels run on the portable machine, whatever there is.
        pub(super) static ON_PORTABLE: Cell<bool> = const { Cell::new(false) };
    }

    /// Computes something on the portable machine alone, by one thread.
    pub(crate) fn on_portable<T: Send>(compute: impl FnOnce() -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
        pool.install(|| {
            ON_PORTABLE.set(true);
            compute()
        })
    }

    /// Every operation once, as bits.
    struct Everything;

    impl Kernel for Everything {
        type Output = Vec<[u32; 8]>;

        #[inline(always)]
        fn run<M: Machine>(self, machine: M) -> Self::Output {
            let a = machine.load(&[1.5, -2.25, 0.0, 3e30, -0.0, 7.0, 1e-30, 5.0]);
            let b = machine.splat(-3.125);
            let words = machine
                .words(b"\x00\xff\x7f\x80forebay and kernels,\x01\x02\x03\xf0\xe0\xd0\xfe\xef");
            let narrow = machine.widen(&[0, 1, 127, 128, 200, 254, 255, 16]);
            let mask = machine.splat_integer(0xf0f0_00ff);
            let count = machine.words(&std::array::from_fn(|i| [5, 0, 0, 0][i % 4]));
            let pairs = [1, 2, 3, 4, 5, 6, 7, 8, 0, 128, 255, 255, 255, 127, 0, 255];
            let table = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
            let found =
                machine.look_up(&table, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
            let [first, second, third, fourth] = machine.sums([a, b, machine.convert(narrow), a]);
            let floats = [
                a,
                machine.add(a, b),
                machine.subtract(a, b),
                machine.multiply(a, b),
                machine.fused(a, b, machine.splat(0.5)),
                machine.splat(machine.sum(a)),
                machine.load(&[first, second, third, fourth, 0.0, 0.0, 0.0, 0.0]),
                machine.from_bits(words),
                machine.convert(machine.to_bits(a)),
                machine.convert(words),
                machine.convert(narrow),
                machine.convert(machine.widen_signed(&[0, 1, 127, 128, 200, 254, 255, 16])),
                machine.convert(machine.widen_signed(found.first_chunk().expect("sixteen"))),
                machine.convert(machine.widen_signed(found.last_chunk().expect("sixteen"))),
                machine.convert(machine.widen_pairs(&pairs)),
                machine.convert(machine.twice(&pairs)),
                machine.convert(machine.spread(machine.twice(&pairs), 0)),
                machine.convert(machine.spread(machine.twice(&pairs), 1)),
                machine.convert(machine.and(words, mask)),
                machine.convert(machine.or(words, mask)),
                machine.convert(machine.xor(words, mask)),
                machine.convert(machine.shift_left::<0>(words)),
                machine.convert(machine.shift_left::<28>(narrow)),
                machine.convert(machine.shift_right(words, 7)),
                machine.convert(machine.shift_left_each(words, count)),
            ];
            floats.iter().map(|&value| machine.store(value).map(f32::to_bits)).collect()
        }
    }

    #[test]
    fn machines_agree() {
        assert_eq!(dispatch(Everything), Everything.run(Portable));
    }

    struct Halves([u8; 16]);

    impl Kernel for Halves {
        type Output = [u32; 8];

        #[inline(always)]
        fn run<M: Machine>(self, machine: M) -> Self::Output {
            machine.store(machine.halves(&self.0)).map(f32::to_bits)
        }
    }

    #[test]
    fn machines_agree_on_every_half() {
        for first in (0..=u16::MAX).step_by(8) {
            let mut bytes = [0; 16];
            for (half, bits) in bytes.as_chunks_mut().0.iter_mut().zip(first..=u16::MAX) {
                *half = bits.to_le_bytes();
            }
            let expected = Halves(bytes).run(Portable);
            assert_eq!(dispatch(Halves(bytes)), expected, "from {first:#06x}");
        }
    }
}
