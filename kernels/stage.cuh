// A stage: the next piece of every row of a block's tile, and of the inputs, in shared memory.
#pragma once

#include "decode.cuh"

namespace forebay {

// What all kernels are given. Rows of `w` are `row_bytes` apart; `x` is batch rows of k floats, `y`
// batch rows of m.
struct Product {
  const u8* __restrict__ w;
  const float* __restrict__ x;
  float* __restrict__ y;
  int m, k;
  long long row_bytes;
  int batch;
};

// Bytes of a row that are elements.
template <class Type>
static __device__ __forceinline__ long long data_bytes(const Product& product) {
  return static_cast<long long>(product.k / Type::kBlockElements) * Type::kBlockBytes;
}

// 16-byte words that hold `bytes` bytes from any address on, rounded outward at both ends.
static constexpr __device__ __forceinline__ int words_around(int bytes) {
  return (bytes + 15 + 15) / 16;
}

// From one row's bytes to the next one's: four bytes more, for reads that reach beyond, and an odd
// number of 16-byte words, so that rows begin in different banks.
static constexpr __device__ __forceinline__ int row_pitch(int bytes) {
  return 16 * (words_around(bytes + 4) | 1);
}

// From one row's inputs to the next one's, in floats. Four are left free behind every 32, so that
// lanes that read 32 elements apart use different banks.
static constexpr __device__ __forceinline__ int input_pitch(int elements) {
  return elements / 32 * 36;
}

// Pieces of `Rows` rows, `Bytes` of each: where they lie in shared memory.
template <class Type, int Rows, int Bytes>
struct RowPieces {
  static constexpr int kWords = words_around(Bytes);
  static constexpr int kPitch = row_pitch(Bytes);
  static constexpr int kBytes = Rows * kPitch;

  // Copies the pieces of a row one after the other. Each row has the same threads every time, so
  // that what depends on the row is computed once.
  template <int Threads>
  struct Copier {
    static constexpr u32 kThreadsEach = Threads / Rows;
    static_assert(Threads % Rows == 0, "as many threads for each row");

    u64 piece, begin, end;
    u32 thread, to;

    __device__ __forceinline__ Copier(const Product& product, u32 first_row) {
      const u32 row = threadIdx.x / kThreadsEach;
      thread = threadIdx.x % kThreadsEach;
      to = row * kPitch + 16 * thread;
      begin = address_of(product.w);
      piece = begin + static_cast<u64>(first_row + row) * product.row_bytes;
      // Dense rows end in zeros, so that their chunks need no end of their own. Otherwise a word
      // may hold what belongs to a neighbouring row, but nothing that belongs to nobody.
      const u64 last = begin + static_cast<u64>(product.m - 1) * product.row_bytes;
      end = (Type::kBlockElements == 1 ? piece : last) + data_bytes<Type>(product);
      // Threads of rows that don't exist have nothing to copy, ever.
      if (first_row + row >= static_cast<u32>(product.m)) thread = kWords;
    }

    // Begins copying the next piece.
    __device__ __forceinline__ void copy(u8* stage) {
      const u32 phase = static_cast<u32>(piece) & 15;
      const u64 first = piece - phase;
      if (first >= begin && piece + (Bytes + 15) <= end) {
        const u64 from = first + 16 * thread;
        const int words = static_cast<int>((phase + Bytes + 15) / 16 - thread);
#pragma unroll
        for (int i = 0; i < static_cast<int>((kWords + kThreadsEach - 1) / kThreadsEach); ++i) {
          if (words > static_cast<int>(i * kThreadsEach)) {
            copy_16(stage + to + 16 * i * kThreadsEach, from + 16 * i * kThreadsEach);
          }
        }
      } else {
#pragma unroll 1
        for (u32 i = thread; i < kWords; i += kThreadsEach) {
          copy_partly(stage + to + 16 * (i - thread), first + 16 * i, begin, end);
        }
      }
      piece += Bytes;
    }
  };

  // Where the piece of a row begins in the stage, which is 16-byte aligned. Only the lowest bits of
  // its address in global memory matter.
  static __device__ __forceinline__ Cursor row(const Product& product, const u8* stage,
                                               u32 first_row, u32 row, u32 offset) {
    const u32 piece = static_cast<u32>(address_of(product.w)) +
                      (first_row + row) * static_cast<u32>(product.row_bytes) + offset;
    return {stage, row * kPitch + (piece & 15)};
  }
};

// Inputs of `Batch` rows, `Elements` of each.
template <int Batch, int Elements>
struct Inputs {
  static constexpr int kPitch = input_pitch(Elements);
  static constexpr int kFloats = Batch * kPitch;

  static constexpr __device__ __forceinline__ int index(u32 element) {
    return element + element / 32 * 4;
  }

  // Begins copying from element `first` on; zeros beyond k, nothing beyond the batch.
  template <int Threads>
  static __device__ __forceinline__ void copy(const Product& product, float* stage, u32 first) {
    const u32 k = product.k, batch = product.batch;
    const float* x = product.x + first;
    // Words of four floats while there are whole ones.
    if (((address_of(product.x) | (4ull * k)) & 15) == 0 && first + Elements <= k) {
      constexpr u32 kWords = Elements / 4;
#pragma unroll
      for (u32 i = 0; i < (Batch * kWords + Threads - 1) / Threads; ++i) {
        const u32 at = threadIdx.x + i * Threads, row = at / kWords, element = at % kWords * 4;
        if (at < Batch * kWords && (Batch == 1 || row < batch)) {
          copy_16_cached(stage + row * kPitch + index(element),
                         x + static_cast<u64>(row) * k + element);
        }
      }
      return;
    }
#pragma unroll 1
    for (u32 at = threadIdx.x; at < Batch * Elements; at += Threads) {
      const u32 row = at / Elements, element = at % Elements;
      float* to = stage + row * kPitch + index(element);
      if (first + element >= k) {
        *to = 0.0f;
      } else if (Batch == 1 || row < batch) {
        copy_4(to, x + static_cast<u64>(row) * k + element);
      }
    }
  }
};

}  // namespace forebay
