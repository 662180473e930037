// Small integers, packed in words, to floats: what the decoders of all block types share.
#pragma once

#include "bytes.cuh"

namespace forebay {

// What scales belong to.
enum class Scales { kNone, kPart, kSide, kOctet };

// Bytes of two words, by four selectors. (`__byte_perm` moves constants to registers first.)
template <u32 Selectors>
static __device__ __forceinline__ u32 permute(u32 low, u32 high) {
  u32 bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "n"(Selectors));
  return bytes;
}

// Byte `Index` of a word as a float, less `Bias`, exactly: put into the mantissa of 2^23.
// (Converting integers has a quarter of the rate on most architectures.)
template <int Index, int Bias>
static __device__ __forceinline__ float byte_to_float(u32 bytes) {
  float biased;
  asm("prmt.b32 %0, %1, 0x4b000000, %2;" : "=f"(biased) : "r"(bytes), "n"(0x7440 | Index));
  return biased - (8388608.0f + Bias);
}

// Puts words `By` places nearer to the front.
template <int By, class Word, int Count>
static __device__ __forceinline__ void advance(Word (&words)[Count]) {
#pragma unroll
  for (int i = 0; i + By < Count; ++i) words[i] = words[i + By];
}

// Four bytes to four floats.
template <int Bias>
static __device__ __forceinline__ void bytes_to_floats(u32 bytes, float* out) {
  out[0] = byte_to_float<0, Bias>(bytes);
  out[1] = byte_to_float<1, Bias>(bytes);
  out[2] = byte_to_float<2, Bias>(bytes);
  out[3] = byte_to_float<3, Bias>(bytes);
}

static __device__ __forceinline__ u32 lower_halves(u32 word) { return word & 0x0f0f0f0f; }
static __device__ __forceinline__ u32 upper_halves(u32 word) { return (word >> 4) & 0x0f0f0f0f; }

// Bits 0 to 3 to bit 4 of four bytes.
static __device__ __forceinline__ u32 spread_fifth_bits(u32 bits) {
  return (((bits & 15) * 0x00204081) & 0x01010101) << 4;
}

static __device__ __forceinline__ float byte_of(u32 word, u32 index) {
  return static_cast<float>((word >> (8 * index)) & 255);
}

// Sixteen signed bytes, each 128 more than it means.
struct Table {
  u32 words[4];
};

// Looks up four half bytes at once: both halves of the table, then the right one of the two.
static __device__ __forceinline__ u32 look_up_four(const Table& table, u32 indices) {
  const u32 low_bits = indices & 0x7777;
  const u32 first = __byte_perm(table.words[0], table.words[1], low_bits);
  const u32 second = __byte_perm(table.words[2], table.words[3], low_bits);
  return __byte_perm(first, second, 0x3210 | ((indices & 0x8888) >> 1));
}

// The eight half bytes of a word: lower ones, upper ones.
static __device__ __forceinline__ void look_up(const Table& table, u32 word, u32& lower,
                                               u32& upper) {
  const u32 first = look_up_four(table, word), second = look_up_four(table, word >> 16);
  lower = permute<0x6420>(first, second);
  upper = permute<0x7531>(first, second);
}

// -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
static constexpr Table kIq4 = {{0x3f2d1801, 0x766a5d4f, 0xa6998d81, 0xf1d9c5b5}};
// Twice the values of E2M1: 0 1 2 3 4 6 8 12 0 -1 -2 -3 -4 -6 -8 -12
static constexpr Table kE2m1 = {{0x83828180, 0x8c888684, 0x7d7e7f80, 0x74787a7c}};

}  // namespace forebay
