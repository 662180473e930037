//! A product: its operands in device memory, exactly as large as they must be, and its result.

use crate::table::{Kernel, ROUNDED_COLUMNS, round_inputs};
use fastrand::Rng;
use forebay_compute::{Shape, dequantize};
use forebay_format::Dtype;
use forebay_ptx::{Allocations, Fault, Limits};

/// What outputs hold before a launch, and what surrounds them: a NaN.
const POISON: u32 = 0x7fc0_dead;

/// Where the operands begin.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Bytes from a multiple of 256 to the weights.
    pub weights_offset: usize,
    /// Floats from a multiple of 256 bytes to the inputs.
    pub inputs_offset: usize,
}

/// Random weights and inputs.
#[derive(Debug)]
pub struct Problem {
    /// Of the weights.
    pub dtype: Dtype,
    /// Rows and columns of the weights.
    pub shape: Shape,
    /// How many inputs.
    pub batch: usize,
    /// As a file has them.
    pub weights: Vec<u8>,
    /// One input after the other.
    pub inputs: Vec<f32>,
}

impl Problem {
    /// Weights of whole random blocks whose elements are numbers below 256, inputs between
    /// −1 and 1.
    ///
    /// # Panics
    /// If rows would not be whole blocks.
    #[must_use]
    pub fn random(dtype: Dtype, shape: Shape, batch: usize, random: &mut Rng) -> Self {
        let mut weights = vec![0; shape.bytes(dtype).expect("a small matrix of whole blocks")];
        let size = |size: u64| usize::try_from(size).expect("blocks are small");
        let mut elements = vec![0.0_f32; size(dtype.block_elements())];
        for block in weights.chunks_exact_mut(size(dtype.block_bytes())) {
            loop {
                random.fill(block);
                set_scales(dtype, block, random);
                dequantize(dtype, block, &mut elements).expect("one block");
                if elements.iter().all(|element| element.abs() < 256.0) {
                    break;
                }
            }
        }
        let inputs = (0..batch * shape.columns).map(|_| random.f32() * 2.0 - 1.0).collect();
        Self { dtype, shape, batch, weights, inputs }
    }

    /// Launches a kernel on poisoned outputs and returns them.
    ///
    /// # Errors
    /// What the kernel did wrong.
    ///
    /// # Panics
    /// If the operands don't fit the shape.
    pub fn run(&self, kernel: &Kernel, layout: Layout, limits: &Limits) -> Result<Vec<f32>, Fault> {
        let Shape { rows, columns } = self.shape;
        let mut memory = Allocations::new();
        let inputs: Vec<u8> = self.inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
        let w = place(&mut memory, &self.weights, layout.weights_offset);
        let mut x = place(&mut memory, &inputs, 4 * layout.inputs_offset);
        let poison: Vec<u8> = POISON.to_le_bytes().repeat(rows * self.batch);
        let y = memory.allocate(&poison);
        let cast = |size: usize| u32::try_from(size).expect("small");
        let row_bytes = self.shape.row_bytes(self.dtype).expect("whole blocks") as u64;
        let shape = (cast(rows), cast(columns), row_bytes);
        if kernel.inputs != "f32" {
            let padded = columns.next_multiple_of(ROUNDED_COLUMNS);
            let rounded = memory.allocate(&vec![0xff; 2 * padded * self.batch]);
            let batch = cast(self.batch);
            round_inputs(kernel.inputs, [x, rounded], cast(columns), batch, &memory, limits)?;
            x = rounded;
        }
        kernel.launch([w, x, y], shape, cast(self.batch), &memory, limits)?;
        let outputs = memory.read(y);
        let (outputs, _) = outputs.as_chunks();
        Ok(outputs.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    /// The products in `f64` of the reference's elements and the inputs.
    #[must_use]
    pub fn expected(&self) -> Expected {
        self.products(|w| w, |x| x)
    }

    /// The products in `f64` of operands rounded as a kernel's tensor cores take them: what it must
    /// come to, but for the order of its sums.
    #[must_use]
    pub fn expected_of_rounded(&self, inputs: &str) -> Expected {
        match inputs {
            "f32" => self.expected(),
            "f16" => self.products(|w| w, round_to_half),
            _ => self.products(round_to_bf16, round_to_bf16),
        }
    }

    fn products(&self, weight: fn(f32) -> f32, input: fn(f32) -> f32) -> Expected {
        let Shape { rows, columns } = self.shape;
        let mut elements = vec![0.0; rows * columns];
        dequantize(self.dtype, &self.weights, &mut elements).expect("whole blocks");
        let double = |values: &[f32], round: fn(f32) -> f32| -> Vec<f64> {
            values.iter().map(|&value| f64::from(round(value))).collect()
        };
        let (elements, inputs) = (double(&elements, weight), double(&self.inputs, input));
        let mut expected = Expected { values: Vec::with_capacity(rows * self.batch), squares: 0.0 };
        for x in inputs.chunks_exact(columns) {
            for row in elements.chunks_exact(columns) {
                let terms = row.iter().zip(x).map(|(w, x)| w * x);
                let (sum, squares) = terms
                    .fold((0.0, 0.0), |(sum, squares), term| (sum + term, squares + term * term));
                expected.values.push(sum);
                expected.squares += squares;
            }
        }
        expected
    }
}

/// Products in `f64`.
#[derive(Clone, Debug)]
pub struct Expected {
    /// `batch × rows`.
    pub values: Vec<f64>,
    /// The squares of all terms: how large the norm is when terms don't happen to cancel out.
    pub squares: f64,
}

impl Expected {
    /// ‖y − ŷ‖ / ‖ŷ‖, NaN if any output is. If terms cancel out more than they would by chance,
    /// which few outputs may well do, the norm is the one to be expected by chance.
    ///
    /// # Panics
    /// If there are not as many outputs.
    #[must_use]
    pub fn relative_error(&self, outputs: &[f32]) -> f64 {
        assert_eq!(outputs.len(), self.values.len());
        let square = |value: f64| value * value;
        let pairs = outputs.iter().zip(&self.values);
        let error: f64 = pairs.map(|(y, expected)| square(f64::from(*y) - expected)).sum();
        let norm: f64 = self.values.iter().copied().map(square).sum();
        (error / norm.max(self.squares)).sqrt()
    }
}

/// The nearest of 8 bits, ties to even.
fn round_to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// The nearest of 11 bits; inputs are in the range of normal halves, or too small to matter.
fn round_to_half(value: f32) -> f32 {
    let scaled = value * 8193.0;
    scaled - (scaled - value)
}

/// An allocation whose last bytes are these: whoever reads on is caught. What lies before them in
/// it is `offset` bytes that the interpreter can't tell apart; they are NaN in most types.
fn place(memory: &mut Allocations, bytes: &[u8], offset: usize) -> u64 {
    let mut all = vec![0xff; offset];
    all.extend_from_slice(bytes);
    memory.allocate(&all) + offset as u64
}

/// Gives a block scales near 1/64, so that no block outweighs the others.
fn set_scales(dtype: Dtype, block: &mut [u8], random: &mut Rng) {
    let places: &[usize] = match dtype {
        Dtype::Q4_0 | Dtype::Q5_0 | Dtype::Q8_0 | Dtype::IQ4_NL | Dtype::IQ4_XS => &[0],
        Dtype::Q4_1 | Dtype::Q5_1 | Dtype::Q4_K | Dtype::Q5_K => &[0, 2],
        Dtype::Q2_K => &[80, 82],
        Dtype::Q3_K => &[108],
        Dtype::Q6_K => &[208],
        Dtype::MXFP4 => {
            block[0] = 118 + random.u8(0..8);
            return;
        }
        _ => return,
    };
    for &place in places {
        // A sign, an exponent of 2^-8 to 2^-5, any mantissa.
        let half = random.u16(..) & 0x83ff | random.u16(7..11) << 10;
        block[place..place + 2].copy_from_slice(&half.to_le_bytes());
    }
}
