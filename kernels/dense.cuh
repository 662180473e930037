// Dense types: eight lanes take 256 bytes.
#pragma once

#include "integers.cuh"

namespace forebay {

template <int Bytes>
struct Dense {
  static constexpr int kBlockElements = 1, kBlockBytes = Bytes, kBits = 0, kBias = 0;
  static constexpr int kOctets = 4 / Bytes;
  static constexpr int kChunkElements = 64 * kOctets, kChunkBytes = 256;
  static constexpr Scales kScales = Scales::kNone;
  static constexpr bool kOffset = false;

  struct Unit {
    u32 q[8];
  };

  // Neighbouring lanes take neighbouring octets. What is staged may be less than a chunk.
  template <int Octets = kOctets>
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    constexpr int kWords = 2 * Bytes;
#pragma unroll
    for (int octet = 0; octet < Octets; ++octet) {
      u32 words[kWords];
      const Cursor from = chunk + 4 * kWords * (part + 8 * octet);
      if constexpr (kWords % 4 == 0) {
        read_wide(from, words);
      } else {
        read_words(from, words);
      }
#pragma unroll
      for (int i = 0; i < kWords; ++i) unit.q[kWords * octet + i] = words[i];
    }
  }
  static __device__ __forceinline__ float scale(const Unit&, int) { return 1.0f; }
  static __device__ __forceinline__ float offset(const Unit&, int) { return 0.0f; }
  static __device__ __forceinline__ u32 first(u32 part) { return 8 * part; }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 64 * octet + 4 * side;
  }
};

struct F32 : Dense<4> {
  static __device__ __forceinline__ void octet(Unit& unit, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = __uint_as_float(unit.q[i]);
  }
};

struct F16 : Dense<2> {
  static __device__ __forceinline__ void octet(Unit& unit, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 word = unit.q[i];
      asm("cvt.f32.f16 %0, %1;" : "=f"(w[2 * i]) : "h"(static_cast<u16>(word)));
      asm("cvt.f32.f16 %0, %1;" : "=f"(w[2 * i + 1]) : "h"(static_cast<u16>(word >> 16)));
    }
    advance<4>(unit.q);
  }
};

struct BF16 : Dense<2> {
  static __device__ __forceinline__ void octet(Unit& unit, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = __uint_as_float(unit.q[i] << 16);
      w[2 * i + 1] = __uint_as_float(unit.q[i] & 0xffff0000);
    }
    advance<4>(unit.q);
  }
};

// The upper byte of a half-precision float.
struct F8_E5M2 : Dense<1> {
  static __device__ __forceinline__ void octet(Unit& unit, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const u32 word = unit.q[i / 2];
      const u32 pair = i % 2 == 0 ? permute<0x1404>(word, 0) : permute<0x3424>(word, 0);
      asm("cvt.f32.f16 %0, %1;" : "=f"(w[2 * i]) : "h"(static_cast<u16>(pair)));
      asm("cvt.f32.f16 %0, %1;" : "=f"(w[2 * i + 1]) : "h"(static_cast<u16>(pair >> 16)));
    }
    advance<2>(unit.q);
  }
};

// Exponent and mantissa put where a float has them make it 2^120 too small, subnormals too. There
// are no infinities; all ones are NaN.
struct F8_E4M3 : Dense<1> {
  template <int Index>
  static __device__ __forceinline__ float value(u32 word) {
    const int high = static_cast<int>(word << (24 - 8 * Index));
    const u32 bits = static_cast<u32>(high >> 4) & 0x87f00000;
    return __uint_as_float(bits) * 0x1p120f;
  }
  static __device__ __forceinline__ void octet(Unit& unit, float (&w)[8]) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const u32 word = unit.q[side];
      float* four = w + 4 * side;
      four[0] = value<0>(word);
      four[1] = value<1>(word);
      four[2] = value<2>(word);
      four[3] = value<3>(word);
      const u32 all_ones = ((word & 0x7f7f7f7f) + 0x01010101) & 0x80808080;
      if (all_ones != 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if ((all_ones >> (8 * i)) & 0x80) four[i] = __uint_as_float(0x7fffffff);
        }
      }
    }
    advance<2>(unit.q);
  }
};

}  // namespace forebay
