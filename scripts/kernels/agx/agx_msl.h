// The part of the Metal library that our kernels use, for clang's C++ for OpenCL -> SPIR-V -> NIR -> AGX.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define MSL_INLINE inline __attribute__((always_inline))
#define MSL_CONVERGENT __attribute__((convergent))
#define MSL_UNROLL _Pragma("clang loop unroll(full)")
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef char int8_t; typedef unsigned char uint8_t; typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t; typedef long int64_t; typedef unsigned long uint64_t;
typedef unsigned long size_t;
// bf16 in software, as on the M1, which has none
struct bfloat {
  ushort bits;
  bfloat() = default;
  explicit bfloat(float v) {
    uint u = __builtin_bit_cast(uint, v);
    bits = (ushort)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
  operator float() const __constant { return __builtin_bit_cast(float, (uint)bits << 16); }
  operator float() const { return __builtin_bit_cast(float, (uint)bits << 16); }
};
#define MSL_EACH_INTEGER(X) X(char) X(uchar) X(short) X(ushort) X(int) X(uint) X(long) X(ulong)
#define MSL_EACH_FLOAT(X) X(half) X(float)
#define MSL_VECTORS(T)                                                                             \
  typedef T T##2 __attribute__((ext_vector_type(2)));                                              \
  typedef T T##3 __attribute__((ext_vector_type(3)));                                              \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_EACH_INTEGER(MSL_VECTORS)
MSL_EACH_FLOAT(MSL_VECTORS)
typedef half float16_t;
typedef bfloat bfloat16_t;
#include "msl/traits.h"
#include "msl/vectors.h"

// Mesa: a function nir_X becomes the NIR instruction X
extern "C" {
MSL_CONVERGENT uint nir_load_subgroup_invocation(void);
MSL_CONVERGENT uint nir_load_subgroup_id(void);
uint3 nir_load_workgroup_id(void);
MSL_CONVERGENT void nir_barrier(uint execution, uint memory, uint semantics, uint modes);
MSL_CONVERGENT float nir_reduce(float v, uint op, uint cluster);
MSL_CONVERGENT uint nir_load_local_invocation_index(void);
// One instruction (quad_shuffle_xor), as simd_shuffle_xor is for Apple: Mesa itself lowers a general
// shuffle_xor to four shuffles and selects. Counted, never run.
MSL_CONVERGENT float nir_quad_swap_horizontal(float);
float nir_frsq(float);
float nir_frcp(float);
float nir_fexp2(float);
}

#define NIR_OP_FADD 158u  // its place in nir_opcodes.h of this Mesa
MSL_INLINE size_t get_group_id(uint d) { return d == 0u ? nir_load_workgroup_id().x : nir_load_workgroup_id().y; }
namespace metal {
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
MSL_INLINE MSL_CONVERGENT void threadgroup_barrier(mem_flags) { nir_barrier(4u, 4u, 3u, 1u << 19); }
MSL_INLINE MSL_CONVERGENT void simdgroup_barrier(mem_flags) { nir_barrier(2u, 2u, 3u, 1u << 19); }  // Mesa emits no instruction for it
MSL_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MSL_INLINE float4 fma(float4 a, float4 b, float4 c) { return __builtin_elementwise_fma(a, b, c); }
MSL_INLINE uint min(uint a, uint b) { return a < b ? a : b; }
MSL_INLINE int min(int a, int b) { return a < b ? a : b; }
MSL_INLINE float min(float a, float b) { return __builtin_fminf(a, b); }
MSL_INLINE float max(float a, float b) { return __builtin_fmaxf(a, b); }
MSL_INLINE float4 max(float4 a, float4 b) { return __builtin_elementwise_max(a, b); }
MSL_INLINE float4 abs(float4 v) { return __builtin_elementwise_abs(v); }
MSL_INLINE float select(float a, float b, bool c) { return c ? b : a; }
MSL_INLINE uint max(uint a, uint b) { return a > b ? a : b; }
MSL_INLINE uint clamp(uint x, uint l, uint h) { return min(max(x, l), h); }
MSL_INLINE float clamp(float x, float l, float h) { return min(max(x, l), h); }
MSL_INLINE float dot(float4 a, float4 b) { return fma(a.x, b.x, fma(a.y, b.y, fma(a.z, b.z, a.w * b.w))); }
MSL_INLINE MSL_CONVERGENT float simd_shuffle_xor(float v, ushort) { return nir_quad_swap_horizontal(v); }
MSL_INLINE MSL_CONVERGENT float4 simd_shuffle_xor(float4 v, ushort n) {
  float4 r;
  r.x = simd_shuffle_xor(v.x, n); r.y = simd_shuffle_xor(v.y, n);
  r.z = simd_shuffle_xor(v.z, n); r.w = simd_shuffle_xor(v.w, n);
  return r;
}
MSL_INLINE MSL_CONVERGENT float simd_sum(float v) { return nir_reduce(v, NIR_OP_FADD, 0u); }
MSL_INLINE uint extract_bits(uint v, uint at, uint n) { return (v >> at) & ((1u << n) - 1u); }

// A matrix of a simdgroup is two elements a lane. Mesa has no instruction that multiplies two: the 16
// FMAs that this takes a lane, 8 * 8 * 8 / 32, stand for it, nested so that none is saved. Counted,
// never run.
template <class T, int R, int C> struct simdgroup_matrix { vec<T, 2> elements; };
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
template <class T, int R, int C>
MSL_INLINE simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  return {vec<T, 2>{value, value}};
}
MSL_INLINE void simdgroup_load(simdgroup_half8x8 &m, const __local half *source, ulong) {
  const __local uint *pairs = (const __local uint *)source;
  m.elements = __builtin_bit_cast(half2, pairs[nir_load_subgroup_invocation()]);
}
MSL_INLINE void simdgroup_store(const simdgroup_float8x8 &m, __local float *target, ulong) {
  ((__local float2 *)target)[nir_load_subgroup_invocation()] = m.elements;
}
MSL_INLINE void simdgroup_multiply_accumulate(simdgroup_float8x8 &d, const simdgroup_half8x8 &a,
                                              const simdgroup_half8x8 &b,
                                              const simdgroup_float8x8 &c) {
  float2 sum = c.elements;
  MSL_UNROLL
  for (int i = 0; i < 8; i++) {
    sum.x = fma(sum.x, (float)a.elements[i % 2], (float)b.elements[0]);
    sum.y = fma(sum.y, (float)a.elements[i % 2], (float)b.elements[1]);
  }
  d.elements = sum;
}

namespace precise {
MSL_INLINE float rsqrt(float v) { return nir_frsq(v); }
// stand-in: 1 - 2 / (exp(2x) + 1); Apple's precise one is longer
MSL_INLINE float tanh(float v) { return 1.0f - 2.0f * nir_frcp(nir_fexp2(v * 2.885390082f) + 1.0f); }
}
}
using namespace metal;
