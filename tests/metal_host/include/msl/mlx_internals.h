// Names that the bfloat overloads in MLX headers take from inside metal_stdlib.
#pragma once

namespace metal {
#define MSL_INTERNAL_1(F)                                                                          \
  MSL_INLINE float __metal_##F(float x, int) { return F(x); }
#define MSL_INTERNAL_2(F)                                                                          \
  MSL_INLINE float __metal_##F(float x, float y, int) { return F(x, y); }
#define MSL_INTERNAL_3(F)                                                                          \
  MSL_INLINE float __metal_##F(float x, float y, float z, int) { return F(x, y, z); }
MSL_INTERNAL_1(fabs)
MSL_INTERNAL_1(acos)
MSL_INTERNAL_1(acosh)
MSL_INTERNAL_1(asin)
MSL_INTERNAL_1(asinh)
MSL_INTERNAL_1(atan)
MSL_INTERNAL_1(atanh)
MSL_INTERNAL_1(ceil)
MSL_INTERNAL_1(cos)
MSL_INTERNAL_1(cosh)
MSL_INTERNAL_1(cospi)
MSL_INTERNAL_1(exp)
MSL_INTERNAL_1(exp2)
MSL_INTERNAL_1(exp10)
MSL_INTERNAL_1(floor)
MSL_INTERNAL_1(fract)
MSL_INTERNAL_1(log)
MSL_INTERNAL_1(log2)
MSL_INTERNAL_1(log10)
MSL_INTERNAL_1(rint)
MSL_INTERNAL_1(round)
MSL_INTERNAL_1(rsqrt)
MSL_INTERNAL_1(sin)
MSL_INTERNAL_1(sinh)
MSL_INTERNAL_1(sinpi)
MSL_INTERNAL_1(sqrt)
MSL_INTERNAL_1(tan)
MSL_INTERNAL_1(tanh)
MSL_INTERNAL_1(tanpi)
MSL_INTERNAL_1(trunc)
MSL_INTERNAL_2(atan2)
MSL_INTERNAL_2(fmax)
MSL_INTERNAL_2(fmin)
MSL_INTERNAL_2(fmod)
MSL_INTERNAL_2(pow)
MSL_INTERNAL_2(powr)
MSL_INTERNAL_2(divide)
MSL_INTERNAL_3(fmax3)
MSL_INTERNAL_3(fmin3)
MSL_INLINE float __metal_fmedian3(float x, float y, float z, int) { return median3(x, y, z); }
MSL_INLINE float __metal_nextafter(float x, float y) { return nextafter(x, y); }
MSL_INLINE float __metal_fma(float x, float y, float z) { return fma(x, y, z); }
MSL_INLINE float __metal_ldexp(float x, int e, int) { return ldexp(x, e); }
MSL_INLINE float __metal_frexp(float x, __generic int *e, int = 0) {
  int exponent;
  float fraction = __builtin_frexpf(x, &exponent);
  *e = exponent;
  return fraction;
}

MSL_INLINE ushort __metal_get_simdgroup_size(ushort) { return MSL_LANES; }
MSL_INLINE uint __metal_get_thread_index_in_simdgroup(ushort) { return msl_lane(); }
#define MSL_INTERNAL_SIMD(F)                                                                       \
  template <class T, class... A> MSL_INLINE MSL_CONVERGENT T __metal_##F(T x, A... a) {            \
    return F(x, a...);                                                                             \
  }
MSL_INTERNAL_SIMD(simd_broadcast)
MSL_INTERNAL_SIMD(simd_shuffle)
MSL_INTERNAL_SIMD(simd_shuffle_and_fill_down)
MSL_INTERNAL_SIMD(simd_shuffle_and_fill_up)
MSL_INTERNAL_SIMD(simd_shuffle_down)
MSL_INTERNAL_SIMD(simd_shuffle_rotate_down)
MSL_INTERNAL_SIMD(simd_shuffle_rotate_up)
MSL_INTERNAL_SIMD(simd_shuffle_up)
MSL_INTERNAL_SIMD(simd_shuffle_xor)
MSL_INTERNAL_SIMD(simd_max)
MSL_INTERNAL_SIMD(simd_min)
MSL_INTERNAL_SIMD(simd_prefix_exclusive_product)
MSL_INTERNAL_SIMD(simd_prefix_exclusive_sum)
MSL_INTERNAL_SIMD(simd_prefix_inclusive_product)
MSL_INTERNAL_SIMD(simd_prefix_inclusive_sum)
MSL_INTERNAL_SIMD(simd_product)
MSL_INTERNAL_SIMD(simd_sum)
MSL_INLINE MSL_CONVERGENT float __metal_simd_xor(float x) {
  return as_type_<float>(reduce<op_xor>(as_type_<uint>(x)));
}
} // namespace metal
