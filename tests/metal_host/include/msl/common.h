// <metal_common> and <metal_relational>: minimum, maximum, clamp, select, classification.
// One overload a scalar type, as in metal_stdlib, so that mixed arguments stay ambiguous.
#pragma once

namespace metal {
#define MSL_ORDER_OF_THREE(T)                                                                      \
  MSL_INLINE constexpr T clamp(T x, T low, T high) { return min(max(x, low), high); }              \
  MSL_INLINE constexpr T max3(T a, T b, T c) { return max(a, max(b, c)); }                         \
  MSL_INLINE constexpr T min3(T a, T b, T c) { return min(a, min(b, c)); }                         \
  MSL_INLINE constexpr T median3(T a, T b, T c) { return max(min(a, b), min(max(a, b), c)); }
#define MSL_ORDER_OF_INTEGERS(T)                                                                   \
  MSL_INLINE constexpr T max(T a, T b) { return a < b ? b : a; }                                   \
  MSL_INLINE constexpr T min(T a, T b) { return b < a ? b : a; }                                   \
  MSL_ORDER_OF_THREE(T)
MSL_EACH_INTEGER(MSL_ORDER_OF_INTEGERS)
MSL_INLINE constexpr float max(float a, float b) { return __builtin_fmaxf(a, b); }
MSL_INLINE constexpr float min(float a, float b) { return __builtin_fminf(a, b); }
MSL_ORDER_OF_THREE(float)

#define MSL_HALF_1(F)                                                                              \
  template <class T, if_half<T> = 0> MSL_INLINE T F(T a) { return (T)F((float)a); }
#define MSL_HALF_2(F)                                                                              \
  template <class T, if_half<T> = 0> MSL_INLINE T F(T a, T b) { return (T)F((float)a, (float)b); }
#define MSL_HALF_3(F)                                                                              \
  template <class T, if_half<T> = 0> MSL_INLINE T F(T a, T b, T c) {                               \
    return (T)F((float)a, (float)b, (float)c);                                                     \
  }
MSL_HALF_2(max)
MSL_HALF_2(min)
MSL_HALF_3(clamp)
MSL_HALF_3(max3)
MSL_HALF_3(min3)
MSL_HALF_3(median3)

MSL_LANEWISE_2(max)
MSL_LANEWISE_2(min)
MSL_LANEWISE_3(clamp)
template <class T, int N> MSL_INLINE vec<T, N> max(vec<T, N> a, T b) {
  return max(a, (vec<T, N>)b);
}
template <class T, int N> MSL_INLINE vec<T, N> min(vec<T, N> a, T b) {
  return min(a, (vec<T, N>)b);
}
template <class T, int N> MSL_INLINE vec<T, N> clamp(vec<T, N> x, T low, T high) {
  return clamp(x, (vec<T, N>)low, (vec<T, N>)high);
}

#define MSL_SIGNED_ABS(T)                                                                          \
  MSL_INLINE T abs(T x) { return x < 0 ? (T) - x : x; }
#define MSL_UNSIGNED_ABS(T)                                                                        \
  MSL_INLINE T abs(T x) { return x; }
MSL_SIGNED_ABS(char)
MSL_SIGNED_ABS(short)
MSL_SIGNED_ABS(int)
MSL_SIGNED_ABS(long)
MSL_UNSIGNED_ABS(uchar)
MSL_UNSIGNED_ABS(ushort)
MSL_UNSIGNED_ABS(uint)
MSL_UNSIGNED_ABS(ulong)
MSL_INLINE float abs(float x) { return __builtin_fabsf(x); }
MSL_HALF_1(abs)
MSL_LANEWISE_1(abs)

MSL_INLINE float saturate(float x) { return fmin(fmax(x, 0.0f), 1.0f); }
MSL_HALF_1(saturate)
MSL_LANEWISE_1(saturate)

MSL_INLINE float sign(float x) { return x > 0 ? 1.0f : (x < 0 ? -1.0f : (x == 0 ? x : 0.0f)); }
MSL_HALF_1(sign)
MSL_LANEWISE_1(sign)

MSL_INLINE float mix(float a, float b, float t) { return a + (b - a) * t; }
template <class T, if_half<T> = 0> MSL_INLINE T mix(T a, T b, T t) { return a + (b - a) * t; }
MSL_LANEWISE_3(mix)
template <class T, int N> MSL_INLINE vec<T, N> mix(vec<T, N> a, vec<T, N> b, T t) {
  return mix(a, b, (vec<T, N>)t);
}

MSL_INLINE float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
MSL_INLINE float smoothstep(float low, float high, float x) {
  float t = saturate((x - low) / (high - low));
  return t * t * (3.0f - 2.0f * t);
}

#define MSL_CLASSIFY(F)                                                                            \
  MSL_INLINE bool F(float x) { return __builtin_##F(x); }                                          \
  template <class T, if_half<T> = 0> MSL_INLINE bool F(T x) { return F((float)x); }                \
  template <class T, int N> MSL_INLINE vec<char, N> F(vec<T, N> v) {                               \
    vec<char, N> r;                                                                                \
    for (int i = 0; i < N; i++)                                                                    \
      r[i] = F((T)v[i]) ? -1 : 0;                                                                  \
    return r;                                                                                      \
  }
MSL_CLASSIFY(isnan)
MSL_CLASSIFY(isinf)
MSL_CLASSIFY(isfinite)
MSL_CLASSIFY(isnormal)
MSL_CLASSIFY(signbit)

#define MSL_SELECT(T)                                                                              \
  MSL_INLINE T select(T a, T b, bool c) { return c ? b : a; }
MSL_EACH_INTEGER(MSL_SELECT)
MSL_SELECT(float)
template <class T, if_half<T> = 0> MSL_INLINE T select(T a, T b, bool c) { return c ? b : a; }
template <class T, class C, int N>
MSL_INLINE vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<C, N> c) {
  vec<T, N> r;
  for (int i = 0; i < N; i++)
    r[i] = c[i] ? b[i] : a[i];
  return r;
}

MSL_INLINE bool any(bool c) { return c; }
MSL_INLINE bool all(bool c) { return c; }
template <class C, int N> MSL_INLINE bool any(vec<C, N> c) {
  bool r = false;
  for (int i = 0; i < N; i++)
    r = r || c[i];
  return r;
}
template <class C, int N> MSL_INLINE bool all(vec<C, N> c) {
  bool r = true;
  for (int i = 0; i < N; i++)
    r = r && c[i];
  return r;
}
} // namespace metal
