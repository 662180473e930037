// Products with one to eight inputs: bound by the bytes of the weights.
//
// A block has eight warps. Eight lanes share a row, a warp has four such rows at a time and
// `kRowsEach` times in turn, and `Across` warps divide a row's chunks among them:
//
//            ── k ──▶  warp 0   warp 1   warp 2   warp 3   (Across = 4)
//   rows 0 to 3        chunk 0  chunk 1  chunk 2  chunk 3    lane: row lane / 8, part lane % 8
//   rows 4 to 7           ″        ″        ″        ″      the same warps, the same inputs
//   rows 8 to 15       warp 4   warp 5   warp 6   warp 7
//
// Weights and inputs of the next steps are on their way to shared memory while one is multiplied.
// Nothing is rounded but the sums, which are of f32.
#pragma once

#include "stage.cuh"

namespace forebay {

// How a block's warps share its tile.
struct Shape {
  int across;     // Warps that divide a row's chunks.
  int rows_each;  // Rows that a group of eight lanes takes with the same inputs.

  constexpr __device__ int rows() const { return 8 / across * 4 * rows_each; }
};

template <class Type, int Batch>
static constexpr __device__ __forceinline__ int stage_bytes(Shape shape) {
  return shape.rows() * row_pitch(shape.across * Type::kChunkBytes) +
         4 * Batch * input_pitch(shape.across * Type::kChunkElements);
}

// What a block may have without asking.
static constexpr int kSharedBytesMax = 48 * 1024;

// The shape with the fewest rows, which gives the most blocks, of which two stages fit: more inputs
// take more shared memory for each element of k, so that fewer elements are taken at once.
template <class Type, int Batch>
static constexpr __device__ __forceinline__ Shape best_shape() {
  const Shape shapes[] = {{4, 2}, {2, 2}, {1, 2}};
  for (Shape shape : shapes) {
    if (2 * stage_bytes<Type, Batch>(shape) <= kSharedBytesMax) return shape;
  }
  return Shape{1, 1};
}

template <class Type, int Batch>
struct Gemv {
  static constexpr int kThreads = 256;
  // Blocks of a multiprocessor that registers must suffice for.
  static constexpr int kBlocks = Batch == 1 ? 4 : 2;
  static constexpr Shape kShape = best_shape<Type, Batch>();
  static constexpr int kAcross = kShape.across, kRowsEach = kShape.rows_each, kRows = kShape.rows();
  static constexpr int kElements = kAcross * Type::kChunkElements;
  static constexpr int kPieceBytes = kAcross * Type::kChunkBytes;

  using Rows = RowPieces<Type, kRows, kPieceBytes>;
  using X = Inputs<Batch, kElements>;
  static constexpr int kStageBytes = Rows::kBytes + 4 * X::kFloats;
  static constexpr int kFit = kSharedBytesMax / kStageBytes;
#if __CUDA_ARCH__ >= 800
  static constexpr int kStages = kFit > 4 ? 4 : kFit;
  static_assert(kStages >= 2, "static shared memory");
#else
  // Copies are done when they return; other blocks fill the time.
  static constexpr int kStages = 1;
#endif
  static constexpr int kSharedBytes = kStages * kStageBytes;
  // For one input the octets are unrolled; elsewhere it would only make the code longer.
  static constexpr int kUnrolled = Batch == 1 && kStages > 1 ? Type::kOctets : 1;
  static_assert(4 * kAcross * kRows * Batch <= kSharedBytes, "sums are exchanged there");

  using Sums = float[kRowsEach][Batch];

  Product product;
  u8* shared;
  u32 first_row;

  __device__ __forceinline__ u8* stage(u32 step) const {
    return shared + (step % kStages) * kStageBytes;
  }

  using Copier = typename Rows::template Copier<kThreads>;

  __device__ __forceinline__ void copy(u32 step, Copier& copier) const {
    u8* to = stage(step);
    copier.copy(to);
    X::template copy<kThreads>(product, reinterpret_cast<float*>(to + Rows::kBytes),
                               step * kElements);
  }

  // One octet of the rows of this lane with one octet of each input.
  static __device__ __forceinline__ void multiply_octet(typename Type::Unit (&units)[kRowsEach],
                                                        const float* x,
                                                        float (&sums)[2][kRowsEach][Batch],
                                                        float (&inputs)[2][Batch]) {
    float w[kRowsEach][8];
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
      if constexpr (kFolds<Type>) {
        take_folded<Type>(units[r], w[r]);
      } else {
        take_octet<Type>(units[r], w[r]);
      }
    }
#pragma unroll
    for (int b = 0; b < Batch; ++b) {
      const float* lower = x + b * X::kPitch + X::index(Type::run(0, 0));
      const float* upper = x + b * X::kPitch + X::index(Type::run(0, 1));
      const float4 low = *reinterpret_cast<const float4*>(lower);
      const float4 high = *reinterpret_cast<const float4*>(upper);
      if constexpr (kFolds<Type>) {
        inputs[0][b] += (low.x + low.y) + (low.z + low.w);
        inputs[1][b] += (high.x + high.y) + (high.z + high.w);
      }
#pragma unroll
      for (int r = 0; r < kRowsEach; ++r) {
        float& below = sums[0][r][b];
        float& above = sums[1][r][b];
        below = fmaf(w[r][0], low.x, below);
        above = fmaf(w[r][4], high.x, above);
        below = fmaf(w[r][1], low.y, below);
        above = fmaf(w[r][5], high.y, above);
        below = fmaf(w[r][2], low.z, below);
        above = fmaf(w[r][6], high.z, above);
        below = fmaf(w[r][3], low.w, below);
        above = fmaf(w[r][7], high.w, above);
      }
    }
  }

  // Adds what has been summed under the same scales to `total`, and begins again.
  static __device__ __forceinline__ void scale(const typename Type::Unit (&units)[kRowsEach],
                                               float (&sums)[2][kRowsEach][Batch],
                                               float (&inputs)[2][Batch], Sums& total) {
    // Both sides have their own scales, or the same.
    constexpr int kSides = Type::kScales == Scales::kSide ? 2 : 1;
#pragma unroll
    for (int b = 0; b < Batch; ++b) {
      if constexpr (kSides == 1) inputs[0][b] += inputs[1][b];
#pragma unroll
      for (int r = 0; r < kRowsEach; ++r) {
        if constexpr (kSides == 1) sums[0][r][b] += sums[1][r][b];
#pragma unroll
        for (int side = 0; side < kSides; ++side) {
          const float sum = sums[side][r][b];
          if constexpr (kFolds<Type>) {
            // Nearly opposite, so they are added up first.
            const float folded = folded_scale<Type>(units[r], side) * sum;
            total[r][b] += fmaf(folded_offset<Type>(units[r], side), inputs[side][b], folded);
          } else if constexpr (Type::kScales == Scales::kNone) {
            total[r][b] += sum;
          } else {
            total[r][b] = fmaf(Type::scale(units[r], side), sum, total[r][b]);
          }
        }
        sums[0][r][b] = sums[1][r][b] = 0.0f;
      }
      inputs[0][b] = inputs[1][b] = 0.0f;
    }
  }

  __device__ __forceinline__ void multiply(u32 step, Sums& total) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 part = lane % 8, slot = lane / 8, across = warp % kAcross, down = warp / kAcross;
    const u32 element = step * kElements + across * Type::kChunkElements;
    const u32 k = product.k;
    if (element >= k) return;
    // Where blocks are shorter than chunks, the last chunk may have fewer.
    if (Type::kBlockElements > 1 && Type::kBlockElements < Type::kChunkElements &&
        element + Type::kBlockElements * part >= k) {
      return;
    }
    const u8* rows = stage(step);
    const float* x = reinterpret_cast<const float*>(rows + Rows::kBytes) +
                     X::index(across * Type::kChunkElements) + X::index(Type::first(part));
    typename Type::Unit units[kRowsEach];
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
      const u32 row = 4 * (kRowsEach * down + r) + slot;
      const Cursor piece = Rows::row(product, rows, first_row, row, step * kPieceBytes);
      Type::load(piece + across * Type::kChunkBytes, part, units[r]);
    }
    float sums[2][kRowsEach][Batch] = {}, inputs[2][Batch] = {};
#pragma unroll(kUnrolled)
    for (int octet = 0; octet < Type::kOctets; ++octet) {
      multiply_octet(units, x, sums, inputs);
      if constexpr (Type::kScales == Scales::kOctet) {
        scale(units, sums, inputs, total);
#pragma unroll
        for (int r = 0; r < kRowsEach; ++r) Type::advance_scales(units[r]);
      }
      x += X::index(Type::run(1, 0));
    }
    if constexpr (Type::kScales != Scales::kOctet) scale(units, sums, inputs, total);
  }

  // Adds the lanes of a row up, then the warps that divided it.
  __device__ __forceinline__ void store(const Sums& total) const {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 across = warp % kAcross, down = warp / kAcross;
    float* exchanged = reinterpret_cast<float*>(shared);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) {
#pragma unroll
      for (int b = 0; b < Batch; ++b) {
        float sum = total[r][b];
        sum += __shfl_xor_sync(0xffffffff, sum, 4);
        sum += __shfl_xor_sync(0xffffffff, sum, 2);
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
        const u32 row = 4 * (kRowsEach * down + r) + lane / 8;
        if (lane % 8 == 0) exchanged[(across * Batch + b) * kRows + row] = sum;
      }
    }
    __syncthreads();
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kRows * Batch; i += kThreads) {
      const u32 b = i / kRows, row = i % kRows;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kAcross; ++w) sum += exchanged[(w * Batch + b) * kRows + row];
      if (first_row + row < static_cast<u32>(product.m) && b < static_cast<u32>(product.batch)) {
        product.y[static_cast<u64>(b) * product.m + (first_row + row)] = sum;
      }
    }
  }

  // Block x takes the x-th tile of rows, block y the y-th `Batch` inputs.
  static __device__ __forceinline__ void run(Product product, u8* shared) {
    product.x += static_cast<u64>(blockIdx.y) * Batch * product.k;
    product.y += static_cast<u64>(blockIdx.y) * Batch * product.m;
    product.batch -= blockIdx.y * Batch;
    Gemv{product, shared, blockIdx.x * kRows}.run();
  }

  __device__ __forceinline__ void run() const {
    const int steps = (product.k + kElements - 1) / kElements;
    Copier copier(product, first_row);
    Sums total = {};
    if constexpr (kStages == 1) {
      for (int step = 0; step < steps; ++step) {
        __syncthreads();
        copy(step, copier);
        __syncthreads();
        multiply(step, total);
      }
    } else {
      // The first rounds only begin copies.
      for (int step = 1 - kStages; step < steps; ++step) {
        if (step >= 0) wait_for_copies<kStages - 2>();
        // After it all copies of the step are seen, and nobody reads the stage that comes free.
        __syncthreads();
        if (step + kStages - 1 < steps) copy(step + kStages - 1, copier);
        commit_copies();
        if (step >= 0) multiply(step, total);
      }
      wait_for_copies<0>();
    }
    store(total);
  }
};

}  // namespace forebay
