//! The interleaved layout: a permutation that can be made and undone in any pieces, and products
//! that are those of the file's layout.

mod common;

use common::{assert_products, random_inputs, random_weights};
use fastrand::Rng;
use forebay_compute::{ComputeError, Interleaved, Operand, Shape, matmul_interleaved};
use forebay_format::Dtype;
use proptest::prelude::*;

/// A layout of few rows and blocks.
fn layouts() -> impl Strategy<Value = Interleaved> {
    let dtype = prop_oneof![Just(Dtype::Q4_0), Just(Dtype::Q8_0)];
    (dtype, 0_usize..70, 0_usize..6).prop_map(|(dtype, rows, blocks)| {
        let shape = Shape { rows, columns: 32 * blocks };
        Interleaved::new(dtype, shape).expect("a small matrix")
    })
}

/// A layout, and a range of its bytes.
fn pieces() -> impl Strategy<Value = (Interleaved, usize, usize)> {
    layouts().prop_flat_map(|layout| {
        (0..=layout.bytes())
            .prop_flat_map(move |start| (Just(layout), Just(start), 0..=layout.bytes() - start))
    })
}

/// Random bytes: not weights, but it's bytes that are moved.
fn file_of(layout: &Interleaved) -> Vec<u8> {
    let mut file = vec![0; layout.bytes()];
    Rng::with_seed(layout.bytes() as u64).fill(&mut file);
    file
}

fn scattered(layout: &Interleaved, file: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; layout.bytes()];
    layout.scatter(0, file, &mut packed).expect("the whole tensor");
    packed
}

/// Where each byte goes, by the words of the layout's description.
fn place(layout: &Interleaved, byte: usize) -> usize {
    let block_bytes = usize::try_from(layout.dtype().block_bytes()).expect("small");
    let row_bytes = layout.shape().columns / 32 * block_bytes;
    let (row, in_row) = (byte / row_bytes, byte % row_bytes);
    if row >= layout.shape().rows / 16 * 16 {
        return byte;
    }
    let (block, in_block) = (in_row / block_bytes, in_row % block_bytes);
    let (group, lane) = (row / 16, row % 16);
    let start = (group * row_bytes + block * block_bytes) * 16;
    match in_block {
        0 | 1 => start + 2 * lane + in_block,
        _ => start + 32 + (in_block - 2) / 4 * 64 + 4 * lane + (in_block - 2) % 4,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_goes_where_the_description_says(layout in layouts()) {
        let file = file_of(&layout);
        let packed = scattered(&layout, &file);
        prop_assert_eq!(packed.len(), file.len());
        for (byte, value) in file.iter().enumerate() {
            prop_assert_eq!(packed[place(&layout, byte)], *value, "byte {}", byte);
        }
    }

    #[test]
    fn pieces_in_any_order_make_the_whole(
        layout in layouts(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        seed: u64,
    ) {
        let file = file_of(&layout);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
        cuts.extend([0, file.len()]);
        cuts.sort_unstable();
        let mut pieces: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        Rng::with_seed(seed).shuffle(&mut pieces);
        let mut packed = vec![0; file.len()];
        for piece in pieces {
            let bytes = &file[piece.clone()];
            layout.scatter(piece.start as u64, bytes, &mut packed).expect("a piece");
        }
        prop_assert_eq!(packed, scattered(&layout, &file));
    }

    #[test]
    fn a_gathered_piece_is_the_files((layout, start, len) in pieces()) {
        let file = file_of(&layout);
        let mut out = vec![0; len];
        layout.gather(start as u64, &scattered(&layout, &file), &mut out).expect("a piece");
        prop_assert_eq!(&out, &file[start..start + len]);
    }

    #[test]
    fn what_a_piece_writes_is_touched((layout, start, len) in pieces()) {
        let touched = layout.touched(start as u64, len);
        prop_assert!(touched.end <= layout.bytes() as u64);
        // Once onto zeros and once onto ones, every byte written differs from one of them.
        for (under, over) in [(0, 255), (255, 0)] {
            let mut packed = vec![under; layout.bytes()];
            layout.scatter(start as u64, &vec![over; len], &mut packed).expect("a piece");
            let written = packed.iter().filter(|&&byte| byte == over).count();
            prop_assert_eq!(written, len);
            for (byte, value) in (0_u64..).zip(&packed) {
                prop_assert!(*value == under || touched.contains(&byte), "byte {}", byte);
            }
        }
    }
}

#[test]
fn touched_is_narrow_within_a_row_and_clipped_at_the_end() {
    let layout = Interleaved::new(Dtype::Q4_0, Shape { rows: 40, columns: 320 }).expect("fits");
    let (row, group) = (180, 2_880);
    // Two blocks of a row in the second group, of which the first is cut.
    assert_eq!(layout.touched(group + 3 * row + 20, 30), group + 288..group + 3 * 288);
    // From a group's last row into the next group's first.
    assert_eq!(layout.touched(group - 18, 36), group - 288..group + 288);
    // From one row into the next.
    assert_eq!(layout.touched(row - 1, 2), 0..group);
    // From woven rows into the rest, which are as in the file.
    assert_eq!(layout.touched(2 * group - 1, 11), 2 * group - 288..2 * group + 10);
    let bytes = layout.bytes() as u64;
    assert_eq!(layout.touched(bytes - 5, 100), bytes - 5..bytes);
    assert_eq!(layout.touched(u64::MAX, 100), bytes..bytes);
    assert_eq!(layout.touched(7, 0), 7..7);
}

#[test]
fn products_are_within_the_tolerance() {
    let mut random = Rng::with_seed(11);
    for dtype in [Dtype::Q4_0, Dtype::Q8_0] {
        for columns in [32, 96, 1_056] {
            for rows in [1, 15, 16, 17, 33, 64] {
                let shape = Shape { rows, columns };
                let file = random_weights(dtype, shape, &mut random);
                let layout = Interleaved::new(dtype, shape).expect("whole blocks");
                let packed = scattered(&layout, &file);
                for batch in [1, 2, 3, 4, 5, 17] {
                    let x = random_inputs(batch * columns, &mut random);
                    let mut y = vec![f32::NAN; batch * rows];
                    matmul_interleaved(&layout, &packed, &x, batch, &mut y).expect("fits");
                    assert_products(dtype, shape, &file, &x, &y, "interleaved");
                }
            }
        }
    }
}

#[test]
fn bad_operands_are_refused() {
    let shape = Shape { rows: 17, columns: 64 };
    let refused = Interleaved::new(Dtype::Q4_K, shape);
    assert_eq!(refused, Err(ComputeError::NotInterleavable { dtype: Dtype::Q4_K }));
    assert!(!Interleaved::supports(Dtype::Q4_K));
    let refused = Interleaved::new(Dtype::Q8_0, Shape { rows: 17, columns: 63 });
    assert!(matches!(refused, Err(ComputeError::PartialBlock { columns: 63, .. })), "{refused:?}");
    let refused = Interleaved::new(Dtype::Q8_0, Shape { rows: usize::MAX / 34, columns: 64 });
    assert!(matches!(refused, Err(ComputeError::TooLarge { .. })), "{refused:?}");

    let layout = Interleaved::new(Dtype::Q8_0, shape).expect("whole blocks");
    let tensor_bytes = layout.bytes();
    let mut packed = vec![0; tensor_bytes];
    for (offset, piece_bytes) in [(tensor_bytes as u64, 1), (1, tensor_bytes), (u64::MAX, 1)] {
        let expected = Err(ComputeError::OutOfRange { offset, piece_bytes, tensor_bytes });
        let mut piece = vec![0; piece_bytes];
        assert_eq!(layout.scatter(offset, &piece, &mut packed), expected);
        assert_eq!(layout.gather(offset, &packed, &mut piece), expected);
    }
    let too_long = |refused: Result<(), ComputeError>, operand| {
        let Err(ComputeError::Length { operand: found, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(found, operand);
    };
    let mut longer = vec![0; tensor_bytes + 1];
    too_long(layout.scatter(0, &[1], &mut longer), Operand::Packed);
    too_long(layout.gather(0, &longer, &mut [1]), Operand::Packed);
    let (x, mut y) = ([1.0; 64], [0.5; 17]);
    too_long(matmul_interleaved(&layout, &longer, &x, 1, &mut y), Operand::Packed);
    too_long(matmul_interleaved(&layout, &packed, &x[1..], 1, &mut y), Operand::Input);
    too_long(matmul_interleaved(&layout, &packed, &x, 1, &mut y[1..]), Operand::Output);
    assert_eq!(y, [0.5; 17]);
}
