// The kernels of one type, by name, and how they are to be launched.
#pragma once

#include "gemm_fma.cuh"
#include "gemm_mma.cuh"
#include "gemv.cuh"

namespace forebay {

// What inputs are, in the table.
enum InputType { kF32 = 0, kBf16 = 1, kF16 = 2 };

}  // namespace forebay

#define FOREBAY_PARAMETERS \
  const void *w, const void *x, float *y, int m, int k, long long row_bytes, int batch
#define FOREBAY_PRODUCT \
  {static_cast<const forebay::u8*>(w), static_cast<const float*>(x), y, m, k, row_bytes, batch}

// What `kernels/build` moves to the table: threads, rows and inputs of a block, the batches that
// the kernel is meant for, dynamic shared memory, and what its inputs are.
#define FOREBAY_TABLE(name, Kernel, columns, batch_min, batch_max, dynamic, inputs) \
  extern "C" __device__ const int table_##name[] = {                                \
      Kernel::kThreads, Kernel::kRows, columns, batch_min, batch_max, dynamic, inputs};

#define FOREBAY_STATIC(name, Kernel, columns, batch_min, batch_max)               \
  FOREBAY_TABLE(name, Kernel, columns, batch_min, batch_max, 0, forebay::kF32)    \
  extern "C" __global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks) \
      name(FOREBAY_PARAMETERS) {                                                  \
    __shared__ __align__(16) forebay::u8 shared[Kernel::kSharedBytes];            \
    Kernel::run(FOREBAY_PRODUCT, shared);                                         \
  }

#define FOREBAY_DYNAMIC(name, Kernel, batch_min, batch_max, inputs)                         \
  FOREBAY_TABLE(name, Kernel, Kernel::kColumns, batch_min, batch_max, Kernel::kSharedBytes, \
                inputs)                                                                     \
  extern "C" __global__ void __launch_bounds__(Kernel::kThreads, Kernel::kBlocks)           \
      name(FOREBAY_PARAMETERS) {                                                            \
    extern __shared__ __align__(16) forebay::u8 dynamic[];                                  \
    Kernel::run(FOREBAY_PRODUCT, dynamic);                                                  \
  }

#define FOREBAY_GEMV(name, Type, Batch, batch_min, batch_max) \
  using Gemv##Batch = forebay::Gemv<forebay::Type, Batch>;    \
  FOREBAY_STATIC(gemv_##name##_b##Batch, Gemv##Batch, Batch, batch_min, batch_max)

#define FOREBAY_GEMM_FMA(name, Type, batch_min) \
  using Fma = forebay::GemmFma<forebay::Type>;  \
  FOREBAY_STATIC(gemm_##name, Fma, Fma::kColumns, batch_min, 512)

#define FOREBAY_GEMM_MMA(name, Type, Operand, inputs)                     \
  using Mma##Operand = forebay::GemmMma<forebay::Type, forebay::Operand>; \
  FOREBAY_DYNAMIC(name, Mma##Operand, 9, 512, forebay::inputs)

#if __CUDA_ARCH__ >= 800

#define FOREBAY_VECTORS(name, Type) \
  FOREBAY_GEMV(name, Type, 1, 1, 1) \
  FOREBAY_GEMV(name, Type, 4, 2, 8)

#define FOREBAY_F32(name, Type) \
  FOREBAY_VECTORS(name, Type)   \
  FOREBAY_GEMM_FMA(name, Type, 9)

// For f16 weights f16 inputs, and bf16 inputs for those that f16 can't hold.
#define FOREBAY_F16(name, Type)                   \
  FOREBAY_VECTORS(name, Type)                     \
  FOREBAY_GEMM_MMA(gemm_##name, Type, Half, kF16) \
  FOREBAY_GEMM_MMA(gemm_##name##_wide, Type, BFloat, kBf16)

#define FOREBAY_TYPE(name, Type) \
  FOREBAY_VECTORS(name, Type)    \
  FOREBAY_GEMM_MMA(gemm_##name, Type, BFloat, kBf16)

#else

#define FOREBAY_TYPE(name, Type)    \
  FOREBAY_GEMV(name, Type, 1, 1, 1) \
  FOREBAY_GEMM_FMA(name, Type, 2)
#define FOREBAY_F16 FOREBAY_TYPE
#define FOREBAY_F32 FOREBAY_TYPE

#endif
