// Many instructions, in few kernels: what NVRTC makes of math functions, conversions, atomics, tables,
// local arrays, calls, warp functions, cp.async, ldmatrix and mma. Not meant to compute anything useful.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

__constant__ signed char steps[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static __device__ const float scales[4] = {1.f, 2.5f, -3.f, 1e-20f};

extern "C" __global__ void math(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float v = x[i], w = x[(i + 1) % n];
  float* out = y + i * 16;
  out[0] = expf(v);
  out[1] = sinf(w);
  out[2] = tanhf(v);
  out[3] = logf(fabsf(v) + 1.f);
  out[4] = powf(fabsf(w), 1.5f);
  out[5] = rsqrtf(fabsf(v) + 1.f);
  out[6] = v / w;
  out[7] = erff(v);
  out[8] = scales[i & 3] + steps[i & 15];
  out[9] = roundf(v) + floorf(w);
  out[10] = fmodf(v, w);
  out[11] = sqrtf(fabsf(w));
  out[12] = v / (1.f + __expf(-v));
  out[13] = (float)((double)v * (double)w + (double)(i * 37 / (n + 1)));
  out[14] = __fdividef(v, w) + __fadd_rz(v, w) - __fmul_ru(v, w);
  out[15] = (float)(__popc(i) + __clz(i) + __ffs(i) + __byte_perm(i, n, 0x5410) % 7 + __brev(i) % 5 +
                    __funnelshift_l(i, n, 3) + __mulhi(i, n) + __vsubss4(i, n) % 3);
}

extern "C" __global__ void small(const float* x, __half* h, __nv_bfloat16* b, unsigned char* f8, float* y, int n) {
  extern __shared__ __align__(16) float staged[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) staged[threadIdx.x] = x[i];
  __syncthreads();
  if (i >= n) return;
  const float v = staged[threadIdx.x], w = staged[threadIdx.x ^ 1];
  h[i] = __hadd(__hmul(__float2half_rn(v), __float2half(w)), __float2half(1.f));
#if __CUDA_ARCH__ >= 800
  b[i] = __hfma(__float2bfloat16(v), __float2bfloat16(w), __float2bfloat16(1.f));
#else
  b[i] = __float2bfloat16(v * w + 1.f);
#endif
  f8[i] = __nv_fp8_e4m3(v).__x;
  const __nv_fp8x4_e4m3 four(make_float4(v, w, v * w, v + w));
  const float4 wide = float4(four);
  __half2 pair = __floats2half2_rn(v, w);
  pair = __hmax2(h2exp(__hfma2(pair, pair, pair)), __hneg2(pair));
  y[i] = wide.x + wide.y * wide.z + wide.w + __low2float(pair) + (__hgt(__low2half(pair), __high2half(pair)) ? 1 : 2);
}

extern "C" __global__ void counters(int* c, float v) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(c, 1);
  atomicMax(c + 1, i);
  atomicAdd((float*)c + 2, v);
  atomicCAS(c + 3, 0, i);
  atomicAdd((__half2*)(c + 4), __floats2half2_rn(v, v));
  atomicAdd((unsigned long long*)(c + 6), 5ull);
  int dot;  // __dp4a wants NVRTC 12.4
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(dot) : "r"(i), "r"(0x01020304), "r"(7));
  unsigned votes = __ballot_sync(0xffffffffu, i & 1), same = __match_any_sync(0xffffffffu, i & 3);
  int sum = __shfl_down_sync(0xffffffffu, i, 4) + __any_sync(0xffffffffu, i > 3) + __popc(votes) + __popc(same);
#if __CUDA_ARCH__ >= 800
  sum += __reduce_add_sync(0xffffffffu, i);
#endif
  c[8 + i] = sum + __syncthreads_count(i & 1) + dot;
}

__device__ __noinline__ int helper(int a, int b, float* f) {
  if (a > b) return a * b;
  *f += 2.f;
  return a - b;
}

extern "C" __global__ void locals(const int* x, int* y, float* f, int n, int choice) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int a[32], r = 0;
  for (int k = 0; k < 32; k++) a[k] = x[(i + k) % n];
  for (int k = 0; k < choice; k++) a[a[k & 31] & 31] += k;
  switch (choice) {
    case 0: r = 1; break;
    case 1: r = a[3] * 7; break;
    case 2: r = a[5] / 3; break;
    case 3: r = a[1] % 5; break;
    case 4: r = a[9] ^ 3; break;
    default: r = a[choice & 31];
  }
  y[i] = helper(r, 5, f + i) + helper(i, r, f + i);
}

#if __CUDA_ARCH__ >= 800
// One warp: C[16, 8] = A[16, 16] * B[8, 16]^T through cp.async, ldmatrix and mma.
extern "C" __global__ void tile(const __half* a, const __half* b, float* c) {
  __shared__ __align__(16) __half as[16 * 16], bs[8 * 16];
  const int lane = threadIdx.x;
  const unsigned at = (unsigned)__cvta_generic_to_shared(as), bt = (unsigned)__cvta_generic_to_shared(bs);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at + lane * 16), "l"(a + lane * 8));
  if (lane < 16) asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(bt + lane * 16), "l"(b + lane * 8));
  asm volatile("cp.async.commit_group;");
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncwarp();
  unsigned ra[4], rb[2];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3])
               : "r"(at + (lane & 15) * 32 + (lane >> 4) * 16));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(rb[0]), "=r"(rb[1])
               : "r"(bt + (lane & 7) * 32 + ((lane >> 3) & 1) * 16));
  float d[4] = {0.f, 0.f, 0.f, 0.f};
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
  float* row = c + (lane >> 2) * 8 + (lane & 3) * 2;
  row[0] = d[0]; row[1] = d[1]; row[64] = d[2]; row[65] = d[3];
}
#endif
