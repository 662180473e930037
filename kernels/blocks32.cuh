// Types of 32 elements under one scale: a part is a block (decode.cuh tells what parts are).
#pragma once

#include "integers.cuh"

namespace forebay {

template <int Bytes, int Bits, int Bias, bool Offset>
struct Blocks32 {
  static constexpr int kBlockElements = 32, kBlockBytes = Bytes, kBits = Bits, kBias = Bias;
  static constexpr int kChunkElements = 256, kChunkBytes = 8 * Bytes;
  static constexpr int kOctets = 4;
  static constexpr Scales kScales = Scales::kPart;
  static constexpr bool kOffset = Offset;

  struct Unit {
    u32 q[4];
    float d, m;
  };

  static __device__ __forceinline__ float scale(const Unit& unit, int) { return unit.d; }
  static __device__ __forceinline__ float offset(const Unit& unit, int) { return unit.m; }
  static __device__ __forceinline__ u32 first(u32 part) { return 32 * part; }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 4 * octet + 16 * side;
  }
};

struct Q4_0 : Blocks32<18, 4, 8, false> {
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    const Cursor block = chunk + 18 * part;
    unit.d = read_half(block);
    read_words(block + 2, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = lower_halves(unit.q[0]);
    upper = upper_halves(unit.q[0]);
    advance<1>(unit.q);
  }
};

struct Q4_1 : Blocks32<20, 4, 0, true> {
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    const Cursor block = chunk + 20 * part;
    unit.d = read_half(block);
    unit.m = read_half(block + 2);
    read_words(block + 4, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = lower_halves(unit.q[0]);
    upper = upper_halves(unit.q[0]);
    advance<1>(unit.q);
  }
};

template <int Bytes, int Bias, bool Offset>
struct FiveBits : Blocks32<Bytes, 5, Bias, Offset> {
  struct Unit : Blocks32<Bytes, 5, Bias, Offset>::Unit {
    u32 fifth;
  };
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    const Cursor block = chunk + Bytes * part;
    unit.d = read_half(block);
    if (Offset) unit.m = read_half(block + 2);
    u32 words[5];
    read_words(block + (Offset ? 4 : 2), words);
    unit.fifth = words[0];
#pragma unroll
    for (int i = 0; i < 4; ++i) unit.q[i] = words[i + 1];
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = lower_halves(unit.q[0]) | spread_fifth_bits(unit.fifth);
    upper = upper_halves(unit.q[0]) | spread_fifth_bits(unit.fifth >> 16);
    advance<1>(unit.q);
    unit.fifth >>= 4;
  }
};
struct Q5_0 : FiveBits<22, 16, false> {};
struct Q5_1 : FiveBits<24, 0, true> {};

struct Q8_0 : Blocks32<34, 8, 128, false> {
  struct Unit {
    u32 q[8];
    float d, m;
  };
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    const Cursor block = chunk + 34 * part;
    unit.d = read_half(block);
    read_words(block + 2, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = unit.q[0] ^ 0x80808080;
    upper = unit.q[1] ^ 0x80808080;
    advance<2>(unit.q);
  }
  static __device__ __forceinline__ float scale(const Unit& unit, int) { return unit.d; }
  static __device__ __forceinline__ float offset(const Unit& unit, int) { return unit.m; }
  static __device__ __forceinline__ u32 first(u32 part) { return 32 * part; }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 8 * octet + 4 * side;
  }
};

// Four bits that stand for values of a table.
struct IQ4_NL : Blocks32<18, 8, 128, false> {
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    const Cursor block = chunk + 18 * part;
    unit.d = read_half(block);
    read_words(block + 2, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    look_up(kIq4, unit.q[0], lower, upper);
    advance<1>(unit.q);
  }
};

struct MXFP4 : Blocks32<17, 8, 128, false> {
  static __device__ __forceinline__ void load(Cursor chunk, u32 part, Unit& unit) {
    const Cursor block = chunk + 17 * part;
    // Half of 2^(e - 127), since the table has everything twice; the two smallest are subnormal.
    const u32 e = block.as<u8>();
    unit.d = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    read_words(block + 1, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    look_up(kE2m1, unit.q[0], lower, upper);
    advance<1>(unit.q);
  }
};

}  // namespace forebay
