// Tiles of decoded weights, for products with many inputs: a step's elements of every row, from the
// pieces that a stage holds.
#pragma once

#include "stage.cuh"

namespace forebay {

// How a step of `Elements` elements is cut out of a row of `Type`.
template <class Type, int Elements>
struct Step {
  static constexpr bool kDense = Type::kBlockElements == 1;
  static constexpr bool kWholeBlocks = Type::kBlockElements <= Elements;
  // Blocks of 256 elements are copied whole and serve two steps.
  static constexpr int kStepsPerPiece = kWholeBlocks ? 1 : Type::kBlockElements / Elements;
  static constexpr int kPieceBytes =
      kWholeBlocks ? Elements / Type::kBlockElements * Type::kBlockBytes : Type::kBlockBytes;
  // Dense types have all of their eight parts in each 64 elements, an octet each; the others have
  // 32 neighbours in a part, or at least its half of a block.
  static constexpr int kParts = kDense ? 8 : Elements / 32;
  static constexpr int kOctets = kDense ? Elements / 64 : Type::kOctets;

  // Decodes `Rows` rows. `put(row, element, four)` is called for each run of four elements.
  template <int Rows, int Threads, class Pieces, class Put>
  static __device__ __forceinline__ void decode(const Product& product, const u8* stage,
                                                u32 first_row, u32 step, Put put) {
    const u32 element = step * Elements, k = product.k;
    const u32 offset = step / kStepsPerPiece * kPieceBytes;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < Rows * kParts; i += Threads) {
      const u32 row = i / kParts, part = i % kParts;
      if (first_row + row >= static_cast<u32>(product.m)) break;
      // Behind the last block there is nothing that could be decoded.
      const bool exists = kDense || !kWholeBlocks || element + 32 * part < k;
      typename Type::Unit unit;
      if (exists) {
        const Cursor piece = Pieces::row(product, stage, first_row, row, offset);
        if constexpr (kDense) {
          Type::template load<kOctets>(piece, part, unit);
        } else {
          Type::load(piece, part + kParts * (step % kStepsPerPiece), unit);
        }
      }
      u32 at = Type::first(part);
#pragma unroll 1
      for (int octet = 0; octet < kOctets; ++octet) {
        float w[8] = {};
        if (exists) {
          take_octet<Type>(unit, w);
#pragma unroll
          for (int side = 0; side < 2; ++side) {
#pragma unroll
            for (int j = 4 * side; j < 4 * side + 4; ++j) {
              if constexpr (Type::kOffset) {
                w[j] = fmaf(Type::scale(unit, side), w[j], Type::offset(unit, side));
              } else if constexpr (Type::kScales != Scales::kNone) {
                w[j] *= Type::scale(unit, side);
              }
            }
          }
          if constexpr (Type::kScales == Scales::kOctet) Type::advance_scales(unit);
        }
        put(row, at, make_float4(w[0], w[1], w[2], w[3]));
        put(row, at + Type::run(0, 1), make_float4(w[4], w[5], w[6], w[7]));
        at += Type::run(1, 0);
      }
    }
  }
};

}  // namespace forebay
