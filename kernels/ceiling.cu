// What a device's arithmetic gives at most, from registers alone: the measure of products where
// there is no cuBLASLt to take it with. A step of a block is 256 times 128 multiply-adds in f32, or
// eight warps' eight mma of 16 × 8 × 16.
//
// Operands are of either sign and of any mantissa, since constant ones take less power. The sums of
// a thread are independent of each other and differ from the start, and all of them are stored, so
// that no compiler leaves any away.
#include "gemm_mma.cuh"

namespace forebay {

constexpr int kCeilingThreads = 256;

// Bits without a pattern.
__device__ __forceinline__ u32 scatter(u32 bits) {
  bits = (bits ^ bits >> 16) * 0x7feb352d;
  bits = (bits ^ bits >> 15) * 0x846ca68b;
  return bits ^ bits >> 16;
}

// Multiply-adds, `kTimes` for each sum in a step.
struct MultiplyAdd {
  static constexpr int kSums = 16, kTimes = 8;

  static __device__ __forceinline__ float run(int steps) {
    // From a half to one, and the second of either sign.
    const float a = __uint_as_float(0x3f000000 | scatter(2 * threadIdx.x) >> 9);
    const u32 bits = scatter(2 * threadIdx.x + 1);
    const float b = __uint_as_float(0x3f000000 | bits >> 9 | bits << 31);
    float sums[kSums], all = 0;
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = i;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int time = 0; time < kTimes; ++time) {
#pragma unroll
        for (int i = 0; i < kSums; ++i) sums[i] = fmaf(a, b, sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) all += sums[i];
    return all;
  }
};

// Products of tensor cores. Of two operands in a word, `kAny` are the bits that may be anything,
// and `kHalf` those that make them half to one.
template <class Operand, u32 kAny, u32 kHalf>
struct TensorCores {
  static constexpr int kSums = 8;

  static __device__ __forceinline__ float run(int steps) {
    u32 a[4], b[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = (scatter(8 * threadIdx.x + i) & kAny) | kHalf;
#pragma unroll
    for (int i = 0; i < 2; ++i) b[i] = (scatter(8 * threadIdx.x + 4 + i) & kAny) | kHalf;
    float sums[kSums][4], all = 0;
#pragma unroll
    for (int i = 0; i < 4 * kSums; ++i) sums[i / 4][i % 4] = i;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) Operand::multiply_add(sums[i], a, b[0], b[1]);
    }
#pragma unroll
    for (int i = 0; i < 4 * kSums; ++i) all += sums[i / 4][i % 4];
    return all;
  }
};

}  // namespace forebay

// `sums` has a place for every thread of the grid.
#define FOREBAY_CEILING(name, ...)                                                                \
  extern "C" __global__ void __launch_bounds__(forebay::kCeilingThreads)                          \
      name(float* sums, int steps) {                                                              \
    sums[blockIdx.x * forebay::kCeilingThreads + threadIdx.x] = forebay::__VA_ARGS__::run(steps); \
  }

FOREBAY_CEILING(ceiling_f32, MultiplyAdd)
#if __CUDA_ARCH__ >= 800
FOREBAY_CEILING(ceiling_bf16, TensorCores<forebay::BFloat, 0x807f807f, 0x3f003f00>)
FOREBAY_CEILING(ceiling_f16, TensorCores<forebay::Half, 0x83ff83ff, 0x38003800>)
#endif
