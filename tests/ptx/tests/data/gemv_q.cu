// y[rows] = W[rows,cols](GGUF-quantised) * x[cols].  One warp per row, 4 rows per block.
#include <cuda_fp16.h>
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
struct block_q4_0 { __half d; u8 qs[16]; };                                   // 18 B / 32
struct block_q8_0 { __half d; signed char qs[32]; };                          // 34 B / 32
struct block_q4_K { __half d; __half dmin; u8 scales[12]; u8 qs[128]; };      // 144 B / 256
struct block_q6_K { u8 ql[128]; u8 qh[64]; signed char scales[16]; __half d; }; // 210 B / 256
static_assert(sizeof(block_q4_0) == 18 && sizeof(block_q8_0) == 34, "gguf layout");
static_assert(sizeof(block_q4_K) == 144 && sizeof(block_q6_K) == 210, "gguf layout");

static __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int m = 16; m > 0; m >>= 1) v += __shfl_xor_sync(0xffffffffu, v, m, 32);
  return v;
}
#define ROW_LANE                                                      \
  const int row = blockIdx.x * blockDim.y + threadIdx.y;              \
  if (row >= rows) return;                                            \
  const int lane = threadIdx.x;

extern "C" __global__ void gemv_q4_0(const block_q4_0* __restrict__ W, const float* __restrict__ x,
                                     float* __restrict__ y, int rows, int cols) {
  ROW_LANE
  const int nb = cols / 32;
  float acc = 0.f;
  for (int b = lane; b < nb; b += 32) {
    const block_q4_0* blk = W + (size_t)row * nb + b;
    const float d = __half2float(blk->d);
    const float* xb = x + b * 32;
    float s = 0.f;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int q = blk->qs[i];
      s = fmaf((float)((q & 15) - 8), xb[i], s);
      s = fmaf((float)((q >> 4) - 8), xb[i + 16], s);
    }
    acc = fmaf(d, s, acc);
  }
  acc = warp_sum(acc);
  if (lane == 0) y[row] = acc;
}

extern "C" __global__ void gemv_q8_0(const block_q8_0* __restrict__ W, const float* __restrict__ x,
                                     float* __restrict__ y, int rows, int cols) {
  ROW_LANE
  const int nb = cols / 32;
  float acc = 0.f;
  for (int b = 0; b < nb; ++b) {            // lane = element
    const block_q8_0* blk = W + (size_t)row * nb + b;
    acc = fmaf(__half2float(blk->d) * (float)blk->qs[lane], x[b * 32 + lane], acc);
  }
  acc = warp_sum(acc);
  if (lane == 0) y[row] = acc;
}

static __device__ __forceinline__ void q4k_scale_min(int j, const u8* s, int& sc, int& mn) {
  if (j < 4) { sc = s[j] & 63; mn = s[j + 4] & 63; }
  else { sc = (s[j + 4] & 0xF) | ((s[j - 4] >> 6) << 4); mn = (s[j + 4] >> 4) | ((s[j] >> 6) << 4); }
}
extern "C" __global__ void gemv_q4_K(const block_q4_K* __restrict__ W, const float* __restrict__ x,
                                     float* __restrict__ y, int rows, int cols) {
  ROW_LANE
  const int nb = cols / 256;
  float acc = 0.f;
  for (int b = 0; b < nb; ++b) {
    const block_q4_K* blk = W + (size_t)row * nb + b;
    const float d = __half2float(blk->d), dm = __half2float(blk->dmin);
    const float* xb = x + b * 256;
#pragma unroll
    for (int j = 0; j < 4; ++j) {           // 64-element groups: low nibbles then high nibbles
      int sc, mn;
      const int q = blk->qs[j * 32 + lane];
      q4k_scale_min(2 * j, blk->scales, sc, mn);
      acc = fmaf(d * sc * (q & 15) - dm * mn, xb[j * 64 + lane], acc);
      q4k_scale_min(2 * j + 1, blk->scales, sc, mn);
      acc = fmaf(d * sc * (q >> 4) - dm * mn, xb[j * 64 + 32 + lane], acc);
    }
  }
  acc = warp_sum(acc);
  if (lane == 0) y[row] = acc;
}
extern "C" __global__ void gemv_q6_K(const block_q6_K* __restrict__ W, const float* __restrict__ x,
                                     float* __restrict__ y, int rows, int cols) {
  ROW_LANE
  const int nb = cols / 256;
  float acc = 0.f;
  for (int b = 0; b < nb; ++b) {
    const block_q6_K* blk = W + (size_t)row * nb + b;
    const float d = __half2float(blk->d);
    const float* xb = x + b * 256;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const u8 *ql = blk->ql + 64 * h, *qh = blk->qh + 32 * h;
      const signed char* sc = blk->scales + 8 * h;
      const int is = lane / 16;
      const int q1 = (int)((ql[lane] & 0xF) | (((qh[lane] >> 0) & 3) << 4)) - 32;
      const int q2 = (int)((ql[lane + 32] & 0xF) | (((qh[lane] >> 2) & 3) << 4)) - 32;
      const int q3 = (int)((ql[lane] >> 4) | (((qh[lane] >> 4) & 3) << 4)) - 32;
      const int q4 = (int)((ql[lane + 32] >> 4) | (((qh[lane] >> 6) & 3) << 4)) - 32;
      acc = fmaf(d * sc[is + 0] * q1, xb[128 * h + lane], acc);
      acc = fmaf(d * sc[is + 2] * q2, xb[128 * h + lane + 32], acc);
      acc = fmaf(d * sc[is + 4] * q3, xb[128 * h + lane + 64], acc);
      acc = fmaf(d * sc[is + 6] * q4, xb[128 * h + lane + 96], acc);
    }
  }
  acc = warp_sum(acc);
  if (lane == 0) y[row] = acc;
}
