// <metal_integer>.
#pragma once

namespace metal {
template <class T> using if_integer = enable_if_t<is_integral<T>::value, int>;
template <class T> constexpr __constant uint width_of = 8 * sizeof(T);

// The bits of x, without those that sign extension would add.
template <class T> MSL_INLINE ulong bits_of(T x) { return (ulong)x & (~0ul >> (64 - width_of<T>)); }

template <class T, if_integer<T> = 0> MSL_INLINE T popcount(T x) {
  return (T)__builtin_popcountl(bits_of(x));
}
template <class T, if_integer<T> = 0> MSL_INLINE T clz(T x) {
  ulong bits = bits_of(x);
  return (T)(bits ? __builtin_clzl(bits) - (64 - width_of<T>) : width_of<T>);
}
template <class T, if_integer<T> = 0> MSL_INLINE T ctz(T x) {
  ulong bits = bits_of(x);
  return (T)(bits ? __builtin_ctzl(bits) : width_of<T>);
}
template <class T, if_integer<T> = 0> MSL_INLINE T reverse_bits(T x) {
  T r = 0;
  for (uint i = 0; i < width_of<T>; i++)
    if ((bits_of(x) >> i) & 1)
      r |= (T)1 << (width_of<T> - 1 - i);
  return r;
}
template <class T, if_integer<T> = 0> MSL_INLINE T rotate(T x, T count) {
  uint left = (uint)count % width_of<T>;
  ulong bits = bits_of(x);
  return left ? (T)((bits << left) | (bits >> (width_of<T> - left))) : x;
}
template <class T, if_integer<T> = 0> MSL_INLINE T extract_bits(T x, uint offset, uint count) {
  if (!count)
    return 0;
  if (offset + count > width_of<T>)
    msl_complain(KIND_BIT_FIELD_RANGE, offset * 256 + count);
  T top = (T)(x << (width_of<T> - offset - count));
  return (T)(top >> (width_of<T> - count));
}
template <class T, if_integer<T> = 0>
MSL_INLINE T insert_bits(T base, T inserted, uint offset, uint count) {
  T mask = count >= width_of<T> ? (T) ~(T)0 : (T)((((T)1 << count) - 1) << offset);
  return (base & ~mask) | ((T)(inserted << offset) & mask);
}
MSL_LANEWISE_1(popcount)
MSL_LANEWISE_1(clz)
MSL_LANEWISE_1(ctz)

MSL_INLINE int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
MSL_INLINE uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
MSL_INLINE ulong mulhi(ulong a, ulong b) { return (ulong)(((unsigned __int128)a * b) >> 64); }
MSL_INLINE int mul24(int a, int b) { return a * b; }
MSL_INLINE uint mul24(uint a, uint b) { return a * b; }
MSL_INLINE int mad24(int a, int b, int c) { return a * b + c; }
MSL_INLINE uint mad24(uint a, uint b, uint c) { return a * b + c; }

template <class T, if_integer<T> = 0> MSL_INLINE T absdiff(T a, T b) {
  return a > b ? a - b : b - a;
}
template <class T, if_integer<T> = 0> MSL_INLINE T addsat(T a, T b) {
  T r;
  if (!__builtin_add_overflow(a, b, &r))
    return r;
  return is_signed<T>::value && a < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <class T, if_integer<T> = 0> MSL_INLINE T subsat(T a, T b) {
  T r;
  if (!__builtin_sub_overflow(a, b, &r))
    return r;
  return !is_signed<T>::value || a < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
} // namespace metal
