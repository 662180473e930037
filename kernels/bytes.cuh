// Bytes of weights on their way to the registers: global memory to shared memory in aligned
// 16-byte words, shared memory to registers from any byte on.
//
// Blocks of 17, 18, 22, 34, 110 and 210 bytes begin anywhere, so a row's span is rounded outward to
// 16-byte words and its phase (address mod 16) is kept in shared memory. Words that reach over an
// end of the weights are copied byte by byte: nothing outside is ever touched.
#pragma once

namespace forebay {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

static __device__ __forceinline__ u64 address_of(const void* p) { return reinterpret_cast<u64>(p); }

static __device__ __forceinline__ u32 shared_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

// One of the copies that a later `wait_for_copies` waits for. Turing has none: there it is done at
// once.
static __device__ __forceinline__ void copy_16(void* to, u64 from) {
#if __CUDA_ARCH__ >= 800
  // Past the first-level cache: weights are read once.
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
#else
  *static_cast<uint4*>(to) = __ldg(reinterpret_cast<const uint4*>(from));
#endif
}

// As `copy_16`, of four bytes, through the first-level cache.
static __device__ __forceinline__ void copy_4(void* to, const float* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
#else
  *static_cast<float*>(to) = __ldg(from);
#endif
}

// As `copy_16`, through the first-level cache: all blocks of a multiprocessor read the same inputs.
static __device__ __forceinline__ void copy_16_cached(void* to, const float* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
               : "memory");
#else
  *static_cast<float4*>(to) = __ldg(reinterpret_cast<const float4*>(from));
#endif
}

// Ends a group of copies.
static __device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but those of the last `Groups` groups.
template <int Groups>
static __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Groups) : "memory");
#endif
}

// Sixteen bytes of which only those in [first, end) exist; the others become zero.
static __device__ __forceinline__ void copy_partly(u8* to, u64 from, u64 first, u64 end) {
#pragma unroll 1
  for (int i = 0; i < 16; ++i) {
    const u64 at = from + i;
    to[i] = at >= first && at < end ? *reinterpret_cast<const u8*>(at) : 0;
  }
}

// A place in shared memory: bytes behind a 16-byte aligned beginning.
struct Cursor {
  const u8* base;
  u32 at;

  __device__ __forceinline__ Cursor operator+(u32 bytes) const { return {base, at + bytes}; }
  template <class Value>
  __device__ __forceinline__ const Value& as() const {
    return *reinterpret_cast<const Value*>(base + at);
  }
};

// `Count` words from any byte on. Reads up to three bytes before and a word behind them, which must
// be shared memory, whatever is in it.
template <int Count>
static __device__ __forceinline__ void read_words(Cursor from, u32 (&words)[Count]) {
  const u32 shift = 8 * (from.at & 3);
  const u32* aligned = &Cursor{from.base, from.at & ~3u}.as<u32>();
  u32 low = aligned[0];
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const u32 high = aligned[i + 1];
    words[i] = __funnelshift_r(low, high, shift);
    low = high;
  }
}

// The same, in 16-byte words where the address allows it: for types whose rows are so aligned in
// practice.
template <int Count>
static __device__ __forceinline__ void read_wide(Cursor from, u32 (&words)[Count]) {
  static_assert(Count % 4 == 0, "whole 16-byte words");
  if ((from.at & 15) != 0) {
    read_words(from, words);
    return;
  }
#pragma unroll
  for (int i = 0; i < Count / 4; ++i) {
    const uint4 four = (from + 16 * i).as<uint4>();
    words[4 * i] = four.x;
    words[4 * i + 1] = four.y;
    words[4 * i + 2] = four.z;
    words[4 * i + 3] = four.w;
  }
}

// The half-precision float at an even address.
static __device__ __forceinline__ float read_half(Cursor from) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(from.as<u16>()));
  return value;
}

}  // namespace forebay
