// Products with many inputs without tensor cores: f32 weights, and every type before Ampere.
//
// A block makes 32 × 32 outputs: weights are decoded to f32 in shared memory, each of 128 threads
// multiplies two rows with four inputs. Nothing is rounded but the sums.
#pragma once

#include "tile.cuh"

namespace forebay {

template <class Type>
struct GemmFma {
  static constexpr int kThreads = 128;
  // Blocks of a multiprocessor that registers must suffice for.
  static constexpr int kBlocks = 4;
  static constexpr int kRows = 32, kColumns = 32;
  static constexpr int kElements = Type::kBlockBytes == 4 ? 64 : 128;
  // A word of padding for every row: eight threads that read eight rows use different banks.
  static constexpr int kPitch = kElements + 4;
  using Cut = Step<Type, kElements>;
  using Pieces = RowPieces<Type, kRows, Cut::kPieceBytes>;
  static constexpr int kWeightsAt = Pieces::kBytes;
  static constexpr int kInputsAt = kWeightsAt + 4 * kRows * kPitch;
  static constexpr int kSharedBytes = kInputsAt + 4 * kColumns * kPitch;
  static_assert(kSharedBytes <= 48 * 1024, "static shared memory");

  static __device__ __forceinline__ void copy_inputs(const Product& product, float* inputs,
                                                     u32 column, u32 element) {
    const u32 k = product.k, batch = product.batch;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < kColumns * kElements; i += kThreads) {
      const u32 row = i / kElements, at = i % kElements;
      const bool exists = column + row < batch && element + at < k;
      inputs[row * kPitch + at] =
          exists ? __ldg(product.x + static_cast<u64>(column + row) * k + (element + at)) : 0.0f;
    }
  }

  static __device__ __forceinline__ float4 four(const float* row, u32 at) {
    return *reinterpret_cast<const float4*>(row + at);
  }

  // Rows `lane`, `lane + 16` with inputs `group`, `group + 8` and so on.
  static __device__ __forceinline__ void multiply(const float* weights, const float* inputs,
                                                  float (&sums)[2][4]) {
    const u32 lane = threadIdx.x % 16, group = threadIdx.x / 16;
#pragma unroll 1
    for (u32 at = 0; at < kElements; at += 4) {
      float4 w[2], x[4];
#pragma unroll
      for (int r = 0; r < 2; ++r) w[r] = four(weights + (lane + 16 * r) * kPitch, at);
#pragma unroll
      for (int c = 0; c < 4; ++c) x[c] = four(inputs + (group + 8 * c) * kPitch, at);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float& sum = sums[r][c];
          sum = fmaf(w[r].x, x[c].x, sum);
          sum = fmaf(w[r].y, x[c].y, sum);
          sum = fmaf(w[r].z, x[c].z, sum);
          sum = fmaf(w[r].w, x[c].w, sum);
        }
      }
    }
  }

  static __device__ __forceinline__ void run(const Product& product, u8* shared) {
    const u32 first_row = blockIdx.x * kRows, first_column = blockIdx.y * kColumns;
    float* weights = reinterpret_cast<float*>(shared + kWeightsAt);
    float* inputs = reinterpret_cast<float*>(shared + kInputsAt);
    const u32 k = product.k, steps = (k + kElements - 1) / kElements;
    typename Pieces::template Copier<kThreads> copier(product, first_row);
    float sums[2][4] = {};
    for (u32 step = 0; step < steps; ++step) {
      if (step % Cut::kStepsPerPiece == 0) {
        copier.copy(shared);
        commit_copies();
      }
      copy_inputs(product, inputs, first_column, step * kElements);
      wait_for_copies<0>();
      __syncthreads();
      Cut::template decode<kRows, kThreads, Pieces>(
          product, shared, first_row, step, [&](u32 row, u32 element, float4 four) {
            *reinterpret_cast<float4*>(weights + row * kPitch + element) = four;
          });
      __syncthreads();
      multiply(weights, inputs, sums);
      __syncthreads();
    }
    store(product, first_row, first_column, sums);
  }

  static __device__ __forceinline__ void store(const Product& product, u32 first_row,
                                               u32 first_column, const float (&sums)[2][4]) {
    const u32 lane = threadIdx.x % 16, group = threadIdx.x / 16, m = product.m;
    const u32 row = first_row + lane, column = first_column + group;
    float* y = product.y + static_cast<u64>(column) * m + row;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (column + 8 * c < static_cast<u32>(product.batch)) {
        if (row < m) y[0] = sums[0][c];
        if (row + 16 < m) y[16] = sums[1][c];
      }
      y += static_cast<u64>(8) * m;
    }
  }
};

}  // namespace forebay
