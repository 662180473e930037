// Inputs for the tensor cores: f32 rounded to bf16 or f16, each row padded with zeros to a multiple
// of 128 elements. Once for all products with the same inputs.
//
// Too large for f16 is infinite there, and so will be the products: never silently wrong.
#include "gemm_mma.cuh"

namespace forebay {

template <class Operand>
struct Activations {
  static constexpr int kThreads = 256;
  // Inputs a block takes; elements are divided by blocks.
  static constexpr int kRows = 2 * kThreads;

  static __device__ __forceinline__ void run(const float* x, u32* rounded, u32 k) {
    const u32 padded = (k + 127) / 128 * 128;
    const u32 element = blockIdx.x * kRows + 2 * threadIdx.x;
    if (element >= padded) return;
    const float* row = x + static_cast<u64>(blockIdx.y) * k;
    const float first = element < k ? row[element] : 0.0f;
    const float second = element + 1 < k ? row[element + 1] : 0.0f;
    rounded[(static_cast<u64>(blockIdx.y) * padded + element) / 2] = Operand::pack(first, second);
  }
};

}  // namespace forebay

#define FOREBAY_ACTIVATIONS(name, Operand)                                                       \
  extern "C" __global__ void __launch_bounds__(256) name(const float* x, void* rounded, int k) { \
    forebay::Activations<forebay::Operand>::run(x, static_cast<forebay::u32*>(rounded), k);      \
  }

#if __CUDA_ARCH__ >= 800
FOREBAY_ACTIVATIONS(activations_bf16, BFloat)
FOREBAY_ACTIVATIONS(activations_f16, Half)
#endif
