// Products with many inputs on tensor cores, from Ampere on.
//
// A block of four warps makes 64 rows × 64 inputs, a warp 32 × 32. A step is 128 elements of k:
//
//   raw weights ──cp.async──▶ stage ──decode──▶ tile of 64 × 128 ──ldmatrix──▶ mma.sync m16n8k16
//   inputs      ──cp.async──▶ tile of 64 × 128 ─────────────────────ldmatrix──▶
//
// The next step's copies are in flight while one is decoded and multiplied. Inputs come rounded
// already, by activations.cu, in rows padded with zeros to whole steps. Decoded weights are rounded
// to the same type: bf16, whose range is that of f32, so that neither a scale nor an input can
// overflow; f16 only for weights that are f16 themselves. Sums are of f32.
#pragma once

#include "tile.cuh"

namespace forebay {

// Types of operands.
struct BFloat {
  // The first is the lower half.
  static __device__ __forceinline__ u32 pack(float first, float second) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static __device__ __forceinline__ void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0,
                                                      u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct Half {
  static __device__ __forceinline__ u32 pack(float first, float second) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
  }
  static __device__ __forceinline__ void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0,
                                                      u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// A tile of 64 rows of 128 operands, 256 bytes a row. The sixteen 16-byte words of a row are
// permuted by the row's number, so that eight rows' words of the same place are in different banks.
struct OperandTile {
  static constexpr int kRows = 64, kElements = 128, kBytes = kRows * kElements * 2;

  static __device__ __forceinline__ u32 word_at(u32 row, u32 word) {
    return 256 * row + 16 * (word ^ (row & 7));
  }

  // Four 8 × 8 matrices: lanes 0 to 7 give the rows of the first, and so on.
  static __device__ __forceinline__ void load_four(u32 address, u32 (&matrices)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(address)
                 : "memory");
  }
};

template <class Type, class Operand>
struct GemmMma {
  static constexpr int kThreads = 128;
  // Blocks of a multiprocessor that registers must suffice for.
  static constexpr int kBlocks = 4;
  static constexpr int kRows = OperandTile::kRows, kColumns = OperandTile::kRows;
  static constexpr int kElements = OperandTile::kElements;
  using Cut = Step<Type, kElements>;
  using Pieces = RowPieces<Type, kRows, Cut::kPieceBytes>;
  static constexpr int kInputsAt = OperandTile::kBytes;
  static constexpr int kPiecesAt = kInputsAt + 2 * OperandTile::kBytes;
  // More than a block may have unasked: dynamic.
  static constexpr int kSharedBytes = kPiecesAt + 2 * Pieces::kBytes;

  Product product;
  u8* shared;
  u32 first_row, first_column;

  __device__ __forceinline__ u8* inputs(u32 step) const {
    return shared + kInputsAt + step % 2 * OperandTile::kBytes;
  }
  __device__ __forceinline__ u8* pieces(u32 step) const {
    return shared + kPiecesAt + step / Cut::kStepsPerPiece % 2 * Pieces::kBytes;
  }

  using Copier = typename Pieces::template Copier<kThreads>;

  __device__ __forceinline__ void copy(u32 step, Copier& copier) const {
    const u32 padded = (product.k + kElements - 1) / kElements * kElements;
    const u32 words = min(product.batch - first_column, kColumns) * (kElements / 8);
    const u64 from =
        address_of(product.x) + 2 * (static_cast<u64>(first_column) * padded + step * kElements);
    u8* tile = inputs(step);
#pragma unroll 1
    for (u32 i = threadIdx.x; i < words; i += kThreads) {
      const u32 row = i / (kElements / 8), word = i % (kElements / 8);
      copy_16(tile + OperandTile::word_at(row, word),
              from + 2 * static_cast<u64>(row) * padded + 16 * word);
    }
    if (step % Cut::kStepsPerPiece == 0) {
      copier.copy(pieces(step));
    }
  }

  __device__ __forceinline__ void decode(u32 step) const {
    u8* tile = shared;
    Cut::template decode<kRows, kThreads, Pieces>(
        product, pieces(step), first_row, step, [=](u32 row, u32 element, float4 four) {
          u8* to = tile + OperandTile::word_at(row, element / 8) + element % 8 * 2;
          *reinterpret_cast<uint2*>(to) =
              make_uint2(Operand::pack(four.x, four.y), Operand::pack(four.z, four.w));
        });
  }

  // Two times sixteen rows with four times eight inputs.
  __device__ __forceinline__ void multiply(u32 step, float (&sums)[2][4][4]) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 row = 32 * (warp / 2), column = 32 * (warp % 2);
    if (first_column + column >= static_cast<u32>(product.batch)) return;
    // Matrices of the weights: lower and upper eight rows, then the next eight of k. Of the inputs:
    // eight of k and the next eight, then the next eight inputs.
    const u32 matrix = lane / 8, in_matrix = lane % 8;
    const u32 weights_row = row + in_matrix + 8 * (matrix % 2), weights_word = matrix / 2;
    const u32 inputs_row = column + in_matrix + 8 * (matrix / 2), inputs_word = matrix % 2;
    const u32 weights = shared_address(shared), tile = shared_address(inputs(step));
#pragma unroll 2
    for (u32 word = 0; word < kElements / 8; word += 2) {
      u32 a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        OperandTile::load_four(
            weights + OperandTile::word_at(weights_row + 16 * i, word + weights_word), a[i]);
        OperandTile::load_four(tile + OperandTile::word_at(inputs_row + 16 * i, word + inputs_word),
                               b[i]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          Operand::multiply_add(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }

  // Through shared memory, so that neighbouring threads store neighbouring rows.
  __device__ __forceinline__ void store(const float (&sums)[2][4][4]) const {
    constexpr u32 kPitch = kRows + 4;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* outputs = reinterpret_cast<float*>(shared);
    float* own = outputs + (32 * (warp % 2) + lane % 4 * 2) * kPitch + 32 * (warp / 2) + lane / 4;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int n = 0; n < 4; ++n)
          own[(8 * j + n % 2) * kPitch + 16 * i + 8 * (n / 2)] = sums[i][j][n];
      }
    }
    __syncthreads();
    const u32 row = threadIdx.x % kRows;
    if (first_row + row >= static_cast<u32>(product.m)) return;
    const u32 columns = min(product.batch - first_column, kColumns);
    float* y = product.y + static_cast<u64>(first_column) * product.m + (first_row + row);
#pragma unroll 1
    for (u32 column = threadIdx.x / kRows; column < columns; column += kThreads / kRows) {
      y[static_cast<u64>(column) * product.m] = outputs[column * kPitch + row];
    }
  }

  static __device__ __forceinline__ void run(const Product& product, u8* shared) {
    // Neighbours in time share rows of the weights, which are then read once.
    const u32 block = blockIdx.y * gridDim.x + blockIdx.x;
    const u32 row = block / gridDim.y * kRows, column = block % gridDim.y * kColumns;
    GemmMma{product, shared, row, column}.run();
  }

  __device__ __forceinline__ void run() const {
    const u32 steps = (product.k + kElements - 1) / kElements;
    Copier copier(product, first_row);
    float sums[2][4][4] = {};
    for (int step = -1; step < static_cast<int>(steps); ++step) {
      wait_for_copies<0>();
      // Everybody's copies are there, and nobody multiplies any more.
      __syncthreads();
      if (step + 1 < static_cast<int>(steps)) copy(step + 1, copier);
      commit_copies();
      if (step < 0) continue;
      decode(step);
      __syncthreads();
      multiply(step, sums);
    }
    store(sums);
  }
};

}  // namespace forebay
