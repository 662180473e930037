// C[M,N](f32) = A[M,K](f16|bf16, row-major) * B[N,K]^T (f16|bf16, row-major weights).
// One warp per 16x8 tile, mma.sync.m16n8k16 through inline PTX. M%16==0,N%8==0,K%16==0. sm_80+.
#include <cuda_fp16.h>
#include <cuda_bf16.h>
template <bool BF> static __device__ __forceinline__ void mma16816(float c[4], const unsigned a[4], const unsigned b[2]) {
  if constexpr (BF)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <bool BF, typename H>
static __device__ __forceinline__ void body(const H* A, const H* B, float* C, int M, int N, int K) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  const int m0 = blockIdx.y * 16, n0 = blockIdx.x * 8;
  float c[4] = {0.f, 0.f, 0.f, 0.f};
  for (int k0 = 0; k0 < K; k0 += 16) {
    unsigned a[4], b[2];
    const unsigned* A0 = (const unsigned*)(A + (size_t)(m0 + g) * K + k0) + t;
    const unsigned* A1 = (const unsigned*)(A + (size_t)(m0 + g + 8) * K + k0) + t;
    const unsigned* B0 = (const unsigned*)(B + (size_t)(n0 + g) * K + k0) + t;
    a[0] = A0[0]; a[1] = A1[0]; a[2] = A0[4]; a[3] = A1[4];
    b[0] = B0[0]; b[1] = B0[4];
    mma16816<BF>(c, a, b);
  }
  float* C0 = C + (size_t)(m0 + g) * N + n0 + 2 * t;
  float* C1 = C + (size_t)(m0 + g + 8) * N + n0 + 2 * t;
  C0[0] = c[0]; C0[1] = c[1]; C1[0] = c[2]; C1[1] = c[3];
}
extern "C" __global__ void matmul_f16(const __half* A, const __half* B, float* C, int M, int N, int K) { body<false>(A, B, C, M, N, K); }
extern "C" __global__ void matmul_bf16(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int M, int N, int K) { body<true>(A, B, C, M, N, K); }
