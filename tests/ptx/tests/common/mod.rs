//! Running small pieces of PTX over many inputs.
#![allow(clippy::cast_possible_truncation, reason = "counts are small")]
#![allow(clippy::precedence, reason = "bit fields read better so")]
#![allow(dead_code, reason = "each test file uses some of it")]

use forebay_ptx::{Allocations, Fault, Limits, Module, Stats};

pub(crate) const HEAD: &str = ".version 8.0\n.target sm_90\n.address_size 64\n";

/// Runs entry `k` of a module whose parameters are addresses: first of 8 bytes a thread for
/// results, then of each input. Returns the results' bytes.
pub(crate) fn run_module(
    text: &str,
    grid: u32,
    block: u32,
    dynamic_shared_bytes: u32,
    out_bytes: usize,
    inputs: &[&[u8]],
    limits: &Limits,
) -> Result<(Vec<u8>, Stats), Fault> {
    let module = Module::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut memory = Allocations::new();
    let out = memory.allocate(&vec![0; out_bytes]);
    let mut parameters = out.to_le_bytes().to_vec();
    for input in inputs {
        parameters.extend(memory.allocate(input).to_le_bytes());
    }
    let (grid, block) = ([grid, 1, 1], [block, 1, 1]);
    let stats =
        module.launch("k", grid, block, dynamic_shared_bytes, &parameters, &memory, limits)?;
    Ok((memory.read(out), stats))
}

/// A kernel in which `%i` is the thread's number in the block, `%out` the address of its 8 bytes
/// of result and `%in` the start of the input.
pub(crate) fn kernel(body: &str) -> String {
    format!(
        "{HEAD}.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .b32 %i, %n; .reg .b64 %out, %in, %at;\n\
         ld.param.u64 %out, [out]; ld.param.u64 %in, [in];\n\
         mov.u32 %i, %tid.x; mov.u32 %n, %ntid.x; \
         {{ .reg .b32 %c; mov.u32 %c, %ctaid.x; mad.lo.u32 %c, %c, %n, %i;\n\
         mad.wide.u32 %out, %c, 8, %out; }}\n{body}\n}}\n"
    )
}

/// The 8 bytes that each thread of one block leaves as result.
pub(crate) fn run(body: &str, threads: u32) -> Vec<u64> {
    try_run(body, threads, &[0; 64]).unwrap_or_else(|fault| panic!("{fault}\n{}", kernel(body)))
}

pub(crate) fn try_run(body: &str, threads: u32, input: &[u8]) -> Result<Vec<u64>, Fault> {
    let limits = Limits { warp_instructions_max: 1 << 20, ..Limits::default() };
    let out_bytes = threads as usize * 8;
    let (out, _) = run_module(&kernel(body), 1, threads, 0, out_bytes, &[input], &limits)?;
    Ok(words(&out))
}

pub(crate) fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap())).collect()
}

pub(crate) fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| bytes(*value)).collect()
}

/// Runs `instructions` from `%a %b %c` (of the first three types) to `%d` (of the last) for every
/// input, and compares with `expected`.
pub(crate) fn check(
    instructions: &str,
    [a, b, c, d]: [&str; 4],
    inputs: &[[u64; 3]],
    expected: impl Fn(u64, u64, u64) -> u64,
) {
    let body = format!(
        ".reg .{a} %a; .reg .{b} %b; .reg .{c} %c; .reg .{d} %d; .reg .pred %p, %q;\n\
         mad.wide.u32 %at, %i, 24, %in;\n\
         ld.global.{a} %a, [%at]; ld.global.{b} %b, [%at+8]; ld.global.{c} %c, [%at+16];\n\
         {instructions}\n st.global.{d} [%out], %d; ret;"
    );
    for inputs in inputs.chunks(96) {
        let raw: Vec<u8> = inputs.iter().flatten().flat_map(|one| one.to_le_bytes()).collect();
        let out = try_run(&body, inputs.len() as u32, &raw)
            .unwrap_or_else(|fault| panic!("{fault}\n{}", kernel(&body)));
        for (out, [a, b, c]) in out.iter().zip(inputs) {
            let expected = expected(*a, *b, *c);
            assert_eq!(
                *out, expected,
                "{instructions} of {a:#x}, {b:#x}, {c:#x}: {out:#x}, expected {expected:#x}"
            );
        }
    }
}

/// Bits that provoke: random ones, small ones, extremes of every width, floats of every kind.
pub(crate) fn inputs(seed: u64, count: usize) -> Vec<[u64; 3]> {
    let mut random = fastrand::Rng::with_seed(seed);
    let special = [
        0,
        1,
        0x7F,
        0x80,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        i64::MAX as u64,
        i64::MIN as u64,
        u64::MAX,
        0x3F80_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0x0000_0007,
        0x8000_0123,
        0x3C00_BC00,
        0x7C00_0001,
        1.0_f64.to_bits(),
        f64::INFINITY.to_bits(),
        f64::NAN.to_bits(),
    ];
    (0..count)
        .map(|_| {
            std::array::from_fn(|_| match random.u32(0..6) {
                0 => special[random.usize(..special.len())],
                1 => random.u64(0..40),
                2 => u64::from(((random.f32() - 0.5) * 100.0).to_bits()),
                3 => ((random.f64() - 0.5) * 1e5).to_bits(),
                _ => random.u64(..),
            })
        })
        .collect()
}

/// Inputs whose low halves are ordinary floats, so that no NaN's payload is in question.
pub(crate) fn float_inputs(seed: u64) -> Vec<[u64; 3]> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut one = || {
        let exponent = random.i32(-20..20);
        u64::from(((random.f32() - 0.5) * 2.0_f32.powi(exponent)).to_bits())
    };
    (0..500).map(|_| [one(), one(), one()]).collect()
}

/// The value of an IEEE half, by its definition.
pub(crate) fn half(bits: u64) -> f64 {
    let (exponent, mantissa) = (bits >> 10 & 31, bits & 1023);
    let value = match exponent {
        0 => mantissa as f64 * 2.0_f64.powi(-24),
        31 if mantissa == 0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024 + mantissa) as f64 * 2.0_f64.powi(exponent as i32 - 25),
    };
    if bits >> 15 & 1 == 1 { -value } else { value }
}

/// The half nearest to `value`, by looking at all of them.
pub(crate) fn nearest_half(value: f64) -> u64 {
    if value.is_nan() {
        return 0x7FFF;
    }
    let magnitude = value.abs();
    // What is halfway to the first value that is too large overflows.
    if magnitude >= 65520.0 {
        return if value > 0.0 { 0x7C00 } else { 0xFC00 };
    }
    let position =
        (0..0x7C00_u64).collect::<Vec<_>>().partition_point(|bits| half(*bits) <= magnitude);
    let (low, high) = (position as u64 - 1, (position as u64).min(0x7BFF));
    let (down, up) = (magnitude - half(low), half(high) - magnitude);
    let bits = if up < down || up == down && low & 1 == 1 { high } else { low };
    bits | if value.is_sign_negative() { 0x8000 } else { 0 }
}
