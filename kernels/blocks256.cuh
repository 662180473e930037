// Types of 256 elements: a block is a chunk (decode.cuh tells what chunks and parts are).
#pragma once

#include "integers.cuh"

namespace forebay {

template <int Bytes, int Bits, int Bias, Scales Kind, bool Offset>
struct Blocks256 {
  static constexpr int kBlockElements = 256, kBlockBytes = Bytes, kBits = Bits, kBias = Bias;
  static constexpr int kChunkElements = 256, kChunkBytes = Bytes;
  static constexpr int kOctets = 4;
  static constexpr Scales kScales = Kind;
  static constexpr bool kOffset = Offset;
};

// A part's scale and minimum for each side.
struct TwoScales {
  float scale[2], minimum[2];
};

// Groups 2 * `pair` and the next of Q4_K and Q5_K, whose blocks both begin with d, dmin and twelve
// bytes of six-bit scales and minima.
static __device__ __forceinline__ TwoScales six_bit_scales(Cursor block, u32 pair) {
  u32 s[3];
  read_words(block + 4, s);
  const bool first_half = pair < 2;
  const u32 scales =
      first_half ? s[0] & 0x3f3f3f3f : lower_halves(s[2]) | ((s[0] >> 2) & 0x30303030);
  const u32 minima =
      first_half ? s[1] & 0x3f3f3f3f : upper_halves(s[2]) | ((s[1] >> 2) & 0x30303030);
  const float d = read_half(block), dmin = read_half(block + 2);
  TwoScales two;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    two.scale[side] = d * byte_of(scales, (2 * pair + side) & 3);
    two.minimum[side] = dmin * byte_of(minima, (2 * pair + side) & 3);
  }
  return two;
}

struct Q4_K : Blocks256<144, 4, 0, Scales::kSide, true> {
  struct Unit {
    u32 q[4];
    TwoScales two;
  };
  static __device__ __forceinline__ void load(Cursor block, u32 part, Unit& unit) {
    unit.two = six_bit_scales(block, part / 2);
    read_wide(block + 16 + 16 * part, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = lower_halves(unit.q[0]);
    upper = upper_halves(unit.q[0]);
    advance<1>(unit.q);
  }
  static __device__ __forceinline__ float scale(const Unit& unit, int side) {
    return unit.two.scale[side];
  }
  static __device__ __forceinline__ float offset(const Unit& unit, int side) {
    return -unit.two.minimum[side];
  }
  static __device__ __forceinline__ u32 first(u32 part) {
    return 64 * (part / 2) + 16 * (part % 2);
  }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 4 * octet + 32 * side;
  }
};

struct Q5_K : Blocks256<176, 5, 0, Scales::kSide, true> {
  struct Unit {
    u32 q[4], fifth[4];
    TwoScales two;
  };
  static __device__ __forceinline__ void load(Cursor block, u32 part, Unit& unit) {
    unit.two = six_bit_scales(block, part / 2);
    read_wide(block + 16 + 16 * (part % 2), unit.fifth);
    read_wide(block + 48 + 16 * part, unit.q);
    // The two bits of this pair of groups come first.
#pragma unroll
    for (int i = 0; i < 4; ++i) unit.fifth[i] >>= 2 * (part / 2);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = lower_halves(unit.q[0]) | ((unit.fifth[0] & 0x01010101) << 4);
    upper = upper_halves(unit.q[0]) | ((unit.fifth[0] & 0x02020202) << 3);
    advance<1>(unit.q);
    advance<1>(unit.fifth);
  }
  static __device__ __forceinline__ float scale(const Unit& unit, int side) {
    return unit.two.scale[side];
  }
  static __device__ __forceinline__ float offset(const Unit& unit, int side) {
    return -unit.two.minimum[side];
  }
  static __device__ __forceinline__ u32 first(u32 part) { return Q4_K::first(part); }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return Q4_K::run(octet, side);
  }
};

// Parts are (half of the block, which 32 bytes of its 64 low bytes, which 16 of those).
struct Q6_K : Blocks256<210, 6, 32, Scales::kSide, false> {
  struct Unit {
    u32 low[4], high[4];
    float d[2];
  };
  static __device__ __forceinline__ void load(Cursor block, u32 part, Unit& unit) {
    const u32 half = part / 4, run = part / 2 % 2, piece = part % 2;
    read_words(block + 16 * part, unit.low);
    read_words(block + 128 + 32 * half + 16 * piece, unit.high);
#pragma unroll
    for (int i = 0; i < 4; ++i) unit.high[i] >>= 2 * run;
    const float d = read_half(block + 208);
    const Cursor scales = block + 192 + 8 * half + 2 * run + piece;
    unit.d[0] = d * scales.as<signed char>();
    unit.d[1] = d * (scales + 4).as<signed char>();
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    const u32 high = unit.high[0];
    lower = lower_halves(unit.low[0]) | ((high & 0x03030303) << 4);
    upper = upper_halves(unit.low[0]) | (high & 0x30303030);
    advance<1>(unit.low);
    advance<1>(unit.high);
  }
  static __device__ __forceinline__ float scale(const Unit& unit, int side) { return unit.d[side]; }
  static __device__ __forceinline__ float offset(const Unit&, int) { return 0.0f; }
  static __device__ __forceinline__ u32 first(u32 part) {
    return 128 * (part / 4) + 16 * (part % 4);
  }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 4 * octet + 64 * side;
  }
};

// Two bits: a word has four neighbours of each of four runs; an octet is a run of eight.
template <int Bytes, int Bits, int Bias, bool Offset>
struct TwoBits : Blocks256<Bytes, Bits, Bias, Scales::kOctet, Offset> {
  static __device__ __forceinline__ u32 first(u32 part) {
    return 128 * (part / 4) + 8 * (part % 4);
  }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 32 * octet + 4 * side;
  }
};

struct Q2_K : TwoBits<84, 2, 0, true> {
  struct Unit {
    u32 q[2];
    float d[4], m[4];
  };
  static __device__ __forceinline__ void load(Cursor block, u32 part, Unit& unit) {
    read_words(block + 16 + 8 * part, unit.q);
    u32 packed[2];
    read_words(block + 8 * (part / 4), packed);
    const float d = read_half(block + 80), dmin = read_half(block + 82);
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      const u32 both = packed[run / 2] >> (16 * (run % 2) + 8 * (part / 2 % 2));
      unit.d[run] = d * static_cast<float>(both & 15);
      unit.m[run] = -dmin * static_cast<float>((both >> 4) & 15);
    }
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    lower = unit.q[0] & 0x03030303;
    upper = unit.q[1] & 0x03030303;
    unit.q[0] >>= 2;
    unit.q[1] >>= 2;
  }
  static __device__ __forceinline__ void advance_scales(Unit& unit) {
    advance<1>(unit.d);
    advance<1>(unit.m);
  }
  static __device__ __forceinline__ float scale(const Unit& unit, int) { return unit.d[0]; }
  static __device__ __forceinline__ float offset(const Unit& unit, int) { return unit.m[0]; }
};

struct Q3_K : TwoBits<110, 3, 4, false> {
  struct Unit {
    u32 q[2], third[2];
    float d[4];
  };
  static __device__ __forceinline__ void load(Cursor block, u32 part, Unit& unit) {
    const u32 half = part / 4;
    read_words(block + 32 + 8 * part, unit.q);
    read_words(block + 8 * (part % 4), unit.third);
    unit.third[0] >>= 4 * half;
    unit.third[1] >>= 4 * half;
    u32 packed[3];
    read_words(block + 96, packed);
    const float d = read_half(block + 108);
#pragma unroll
    for (int run = 0; run < 4; ++run) {
      // Groups are 8 * half + group: four low bits in the first eight bytes, two in the last four.
      const u32 byte = 16 * (run % 2) + 8 * (part / 2 % 2);
      const u32 low = packed[run / 2] >> (byte + 4 * half);
      const u32 high = packed[2] >> (byte + 2 * (2 * half + run / 2));
      unit.d[run] = d * static_cast<float>(static_cast<int>((low & 15) | ((high & 3) << 4)) - 32);
    }
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const u32 third = (unit.third[side] & 0x01010101) << 2;
      (side == 0 ? lower : upper) = (unit.q[side] & 0x03030303) | third;
      unit.q[side] >>= 2;
      unit.third[side] >>= 1;
    }
  }
  static __device__ __forceinline__ void advance_scales(Unit& unit) { advance<1>(unit.d); }
  static __device__ __forceinline__ float scale(const Unit& unit, int) { return unit.d[0]; }
  static __device__ __forceinline__ float offset(const Unit&, int) { return 0.0f; }
};

struct IQ4_XS : Blocks256<136, 8, 128, Scales::kPart, false> {
  struct Unit {
    u32 q[4];
    float d;
  };
  static __device__ __forceinline__ void load(Cursor block, u32 part, Unit& unit) {
    const u32 low = (block + 4 + part / 2).as<u8>() >> (4 * (part % 2));
    const u32 high = (block + 2).as<u16>() >> (2 * part);
    const int scale = static_cast<int>((low & 15) | ((high & 3) << 4)) - 32;
    unit.d = read_half(block) * static_cast<float>(scale);
    read_words(block + 8 + 16 * part, unit.q);
  }
  static __device__ __forceinline__ void bytes(Unit& unit, u32& lower, u32& upper) {
    look_up(kIq4, unit.q[0], lower, upper);
    advance<1>(unit.q);
  }
  static __device__ __forceinline__ float scale(const Unit& unit, int) { return unit.d; }
  static __device__ __forceinline__ float offset(const Unit&, int) { return 0.0f; }
  static __device__ __forceinline__ u32 first(u32 part) { return 32 * part; }
  static constexpr __device__ __forceinline__ int run(int octet, int side) {
    return 4 * octet + 16 * side;
  }
};

}  // namespace forebay
