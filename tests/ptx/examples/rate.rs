//! How many lane-instructions a second the interpreter runs: `cargo run --release --example rate`.

use forebay_ptx::{Allocations, Limits, Module};
use std::time::Instant;

fn main() {
    let cases = [
        ("gemv_q.ptx", include_str!("../tests/data/gemv_q.ptx"), "gemv_q4_0", [512, 1], [32, 4]),
        ("gemv_q.ptx", include_str!("../tests/data/gemv_q.ptx"), "gemv_q4_K", [512, 1], [32, 4]),
        ("gemv_q.ptx", include_str!("../tests/data/gemv_q.ptx"), "gemv_q6_K", [512, 1], [32, 4]),
        (
            "matmul_f32.ptx",
            include_str!("../tests/data/matmul_f32.ptx"),
            "matmul_f32",
            [16; 2],
            [16; 2],
        ),
        (
            "matmul_half.ptx",
            include_str!("../tests/data/matmul_half.ptx"),
            "matmul_f16",
            [32, 16],
            [32, 1],
        ),
    ];
    for races in [false, true] {
        for (file, text, entry, grid, block) in cases {
            let module = Module::parse(text).unwrap_or_else(|error| panic!("{file}: {error}"));
            let mut memory = Allocations::new();
            let buffers = [(); 3].map(|()| memory.allocate(&vec![0; 16 << 20]));
            let mut bytes: Vec<u8> = buffers.iter().flat_map(|one| one.to_le_bytes()).collect();
            // rows and columns, or M, N and K.
            let shape = if entry.starts_with("gemv") { vec![2048, 2048] } else { vec![256_u32; 3] };
            bytes.extend(shape.iter().flat_map(|one| one.to_le_bytes()));
            let limits = Limits { threads: 1, detect_races: races, ..Limits::default() };
            let start = Instant::now();
            let (grid, block) = ([grid[0], grid[1], 1], [block[0], block[1], 1]);
            let stats = module.launch(entry, grid, block, 0, &bytes, &memory, &limits);
            let stats = stats.unwrap_or_else(|fault| panic!("{fault}"));
            let seconds = start.elapsed().as_secs_f64();
            let rate = stats.lane_instructions as f64 / seconds / 1e6;
            println!("{entry}, races {races}: {rate:.0} M lane-instructions/s, {seconds:.3} s");
        }
    }
}
