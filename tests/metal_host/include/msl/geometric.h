// <metal_geometric> and <metal_pack>.
#pragma once

namespace metal {
template <class T, int N> MSL_INLINE T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++)
    sum += a[i] * b[i];
  return sum;
}
template <class T, int N> MSL_INLINE T length_squared(vec<T, N> a) { return dot(a, a); }
template <class T, int N> MSL_INLINE T length(vec<T, N> a) { return sqrt(dot(a, a)); }
template <class T, int N> MSL_INLINE vec<T, N> normalize(vec<T, N> a) {
  return a * rsqrt(dot(a, a));
}
template <class T, int N> MSL_INLINE T distance(vec<T, N> a, vec<T, N> b) { return length(a - b); }
template <class T> MSL_INLINE vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
  return a.yzx * b.zxy - a.zxy * b.yzx;
}

MSL_INLINE float4 unpack_unorm4x8_to_float(uint x) {
  return make<float4>(x & 255, (x >> 8) & 255, (x >> 16) & 255, x >> 24) / 255.0f;
}
MSL_INLINE half4 unpack_unorm4x8_to_half(uint x) {
  return make<half4>(unpack_unorm4x8_to_float(x));
}
MSL_INLINE float4 unpack_snorm4x8_to_float(uint x) {
  float4 r;
  for (int i = 0; i < 4; i++)
    r[i] = fmax((float)(char)(x >> (8 * i)) / 127.0f, -1.0f);
  return r;
}
} // namespace metal
