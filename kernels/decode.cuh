// Every type's blocks, as lanes take them.
//
// A row is cut into chunks, a chunk into eight parts, one for each of eight lanes; a part is
// `kOctets` octets, an octet two runs of four neighbouring elements ("sides"). This shape fits all
// types, because in all of them a 32-bit word of low bits holds four neighbours at a time: its
// lower half bytes are one run, its upper ones another further on.
//
//   type::Unit              a part of one row in registers: integers still packed, scales decoded
//   type::load              reads it from shared memory
//   type::bytes             the first octet's integers, each kBias more than it means and of kBits
//                           bits; the next octet becomes the first, so that a loop over octets may
//                           be one in the code as well. Dense types have `octet`, floats at once
//   type::scale, offset     w = scale * integer + offset, for the first octet and a side
//   type::first, run         where in the chunk a run begins: a part's first element, and how far
//   from
//                           it an octet's side is. Adding them carries nothing over a multiple of
//                           32
//
// The layouts are those of crates/forebay-compute/src/decode, which has the byte diagrams.
#pragma once

#include "blocks256.cuh"
#include "blocks32.cuh"
#include "dense.cuh"

namespace forebay {

// The first octet's integers, or a dense type's elements, as floats, exactly.
template <class Type>
static __device__ __forceinline__ void take_octet(typename Type::Unit& unit, float (&w)[8]) {
  if constexpr (Type::kBits == 0) {
    Type::octet(unit, w);
  } else {
    u32 lower, upper;
    Type::bytes(unit, lower, upper);
    bytes_to_floats<Type::kBias>(lower, w);
    bytes_to_floats<Type::kBias>(upper, w + 4);
  }
}

// Whether a type's integers fit into the upper seven bits of a mantissa.
template <class Type>
static constexpr bool kFolds = Type::kBits > 0 && Type::kBits < 8;

// The same, each put into the mantissa of a half: (1 + (integer + kBias) / 2^kBits) / 2, exactly.
// It saves an addition for each element where the sum of the inputs is known, a multiple of which
// is to be subtracted then. The sums are of terms some five times larger than what is left, which
// costs two bits.
template <class Type>
static __device__ __forceinline__ void take_folded(typename Type::Unit& unit, float (&w)[8]) {
  u32 bytes[2];
  Type::bytes(unit, bytes[0], bytes[1]);
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const u32 mantissas = bytes[side] << (7 - Type::kBits);
    float* four = w + 4 * side;
    asm("prmt.b32 %0, %1, 0x3f000000, 0x7044;" : "=f"(four[0]) : "r"(mantissas));
    asm("prmt.b32 %0, %1, 0x3f000000, 0x7144;" : "=f"(four[1]) : "r"(mantissas));
    asm("prmt.b32 %0, %1, 0x3f000000, 0x7244;" : "=f"(four[2]) : "r"(mantissas));
    asm("prmt.b32 %0, %1, 0x3f000000, 0x7344;" : "=f"(four[3]) : "r"(mantissas));
  }
}

// What `take_folded`'s floats are multiplied with to give weights, and what is added for each
// input.
template <class Type>
static __device__ __forceinline__ float folded_scale(const typename Type::Unit& unit, int side) {
  return Type::scale(unit, side) * (2 << Type::kBits);
}
template <class Type>
static __device__ __forceinline__ float folded_offset(const typename Type::Unit& unit, int side) {
  const float offset =
      Type::scale(unit, side) * -static_cast<float>((1 << Type::kBits) + Type::kBias);
  return Type::kOffset ? offset + Type::offset(unit, side) : offset;
}

}  // namespace forebay
