// <metal_math>: each function for float, half and vectors, also in precise:: and fast::.
#pragma once

namespace metal {
template <class T> using if_half = enable_if_t<is_same<T, half>::value, int>;

// half computes in float and rounds once; a constrained template, so that integers and bfloat
// pick the overload for float.
#define MSL_MATH_1(F, VALUE)                                                                       \
  MSL_INLINE float F(float x) { return VALUE; }                                                    \
  template <class T, if_half<T> = 0> MSL_INLINE T F(T x) { return (T)F((float)x); }                \
  MSL_LANEWISE_1(F)
#define MSL_MATH_2(F, VALUE)                                                                       \
  MSL_INLINE float F(float x, float y) { return VALUE; }                                           \
  template <class T, if_half<T> = 0> MSL_INLINE T F(T x, T y) { return (T)F((float)x, (float)y); } \
  MSL_LANEWISE_2(F)
#define MSL_MATH_3(F, VALUE)                                                                       \
  MSL_INLINE float F(float x, float y, float z) { return VALUE; }                                  \
  template <class T, if_half<T> = 0> MSL_INLINE T F(T x, T y, T z) {                               \
    return (T)F((float)x, (float)y, (float)z);                                                     \
  }                                                                                                \
  MSL_LANEWISE_3(F)

// APPROXIMATE marks what a GPU computes to a few units in the last place only. Compiled with
// MSL_JITTER such results are moved at random by as much as Checks.jitter_ulp asks for.
#ifdef MSL_JITTER
#define MSL_APPROXIMATE(x) msl_jitter(x)
#else
#define MSL_APPROXIMATE(x) (x)
#endif

#define MSL_PI 3.14159265358979f
#define MSL_TWO_TURNS(x) (MSL_PI * (x - 2.0f * __builtin_floorf(x * 0.5f)))
#define MSL_ONE_TURN(x) (MSL_PI * (x - __builtin_floorf(x)))

#define MSL_EXACT_FUNCTIONS                                                                        \
  MSL_MATH_1(ceil, __builtin_ceilf(x))                                                             \
  MSL_MATH_1(fabs, __builtin_fabsf(x))                                                             \
  MSL_MATH_1(floor, __builtin_floorf(x))                                                           \
  MSL_MATH_1(fract, x - __builtin_floorf(x))                                                       \
  MSL_MATH_1(rint, __builtin_rintf(x))                                                             \
  MSL_MATH_1(round, __builtin_roundf(x))                                                           \
  MSL_MATH_1(trunc, __builtin_truncf(x))                                                           \
  MSL_MATH_1(sqrt, __builtin_sqrtf(x))                                                             \
  MSL_MATH_2(copysign, __builtin_copysignf(x, y))                                                  \
  MSL_MATH_2(fdim, __builtin_fdimf(x, y))                                                          \
  MSL_MATH_2(fmax, __builtin_fmaxf(x, y))                                                          \
  MSL_MATH_2(fmin, __builtin_fminf(x, y))                                                          \
  MSL_MATH_2(fmod, __builtin_fmodf(x, y))                                                          \
  MSL_MATH_2(divide, x / y)                                                                        \
  MSL_MATH_2(nextafter, __builtin_nextafterf(x, y))                                                \
  MSL_MATH_3(fma, __builtin_fmaf(x, y, z))                                                         \
  MSL_MATH_3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))                                     \
  MSL_MATH_3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))                                     \
  MSL_INLINE float ldexp(float x, int e) { return __builtin_ldexpf(x, e); }                        \
  template <class T, if_half<T> = 0> MSL_INLINE T ldexp(T x, int e) {                              \
    return (T)__builtin_ldexpf((float)x, e);                                                       \
  }                                                                                                \
  MSL_INLINE float frexp(float x, __private int &e) {                                              \
    int exponent;                                                                                  \
    float fraction = __builtin_frexpf(x, &exponent);                                               \
    e = exponent;                                                                                  \
    return fraction;                                                                               \
  }                                                                                                \
  MSL_INLINE float modf(float x, __private float &whole) {                                         \
    whole = __builtin_truncf(x);                                                                   \
    return x - whole;                                                                              \
  }

#define MSL_APPROXIMATE_FUNCTIONS                                                                  \
  MSL_MATH_1(acos, MSL_APPROXIMATE(__builtin_acosf(x)))                                            \
  MSL_MATH_1(acosh, MSL_APPROXIMATE(__builtin_acoshf(x)))                                          \
  MSL_MATH_1(asin, MSL_APPROXIMATE(__builtin_asinf(x)))                                            \
  MSL_MATH_1(asinh, MSL_APPROXIMATE(__builtin_asinhf(x)))                                          \
  MSL_MATH_1(atan, MSL_APPROXIMATE(__builtin_atanf(x)))                                            \
  MSL_MATH_1(atanh, MSL_APPROXIMATE(__builtin_atanhf(x)))                                          \
  MSL_MATH_1(cos, MSL_APPROXIMATE(__builtin_cosf(x)))                                              \
  MSL_MATH_1(cosh, MSL_APPROXIMATE(__builtin_coshf(x)))                                            \
  MSL_MATH_1(cospi, MSL_APPROXIMATE(__builtin_cosf(MSL_TWO_TURNS(x))))                             \
  MSL_MATH_1(exp, MSL_APPROXIMATE(__builtin_expf(x)))                                              \
  MSL_MATH_1(exp2, MSL_APPROXIMATE(__builtin_exp2f(x)))                                            \
  MSL_MATH_1(exp10, MSL_APPROXIMATE(__builtin_powf(10.0f, x)))                                     \
  MSL_MATH_1(log, MSL_APPROXIMATE(__builtin_logf(x)))                                              \
  MSL_MATH_1(log2, MSL_APPROXIMATE(__builtin_log2f(x)))                                            \
  MSL_MATH_1(log10, MSL_APPROXIMATE(__builtin_log10f(x)))                                          \
  MSL_MATH_1(rsqrt, MSL_APPROXIMATE(1.0f / __builtin_sqrtf(x)))                                    \
  MSL_MATH_1(sin, MSL_APPROXIMATE(__builtin_sinf(x)))                                              \
  MSL_MATH_1(sinh, MSL_APPROXIMATE(__builtin_sinhf(x)))                                            \
  MSL_MATH_1(sinpi, MSL_APPROXIMATE(__builtin_sinf(MSL_TWO_TURNS(x))))                             \
  MSL_MATH_1(tan, MSL_APPROXIMATE(__builtin_tanf(x)))                                              \
  MSL_MATH_1(tanh, MSL_APPROXIMATE(__builtin_tanhf(x)))                                            \
  MSL_MATH_1(tanpi, MSL_APPROXIMATE(__builtin_tanf(MSL_ONE_TURN(x))))                              \
  MSL_MATH_2(atan2, MSL_APPROXIMATE(__builtin_atan2f(x, y)))                                       \
  MSL_MATH_2(pow, MSL_APPROXIMATE(__builtin_powf(x, y)))                                           \
  MSL_MATH_2(powr, MSL_APPROXIMATE(__builtin_powf(x, y)))

MSL_EXACT_FUNCTIONS
MSL_APPROXIMATE_FUNCTIONS
namespace precise {
MSL_EXACT_FUNCTIONS
MSL_APPROXIMATE_FUNCTIONS
} // namespace precise
namespace fast {
MSL_EXACT_FUNCTIONS
MSL_APPROXIMATE_FUNCTIONS
} // namespace fast
} // namespace metal
