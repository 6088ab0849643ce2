// <metal_quadgroup>: operations among four neighbouring lanes.
#pragma once

namespace metal {
#define MSL_QUAD_SHUFFLE(F, LANE)                                                                  \
  template <class T, if_shuffles<T> = 0> MSL_INLINE MSL_CONVERGENT T F(T x, ushort n) {            \
    msl_exchange *m = meet(x);                                                                     \
    uint base = msl_lane() & ~3u, self = msl_lane() & 3u;                                          \
    (void)self;                                                                                    \
    return value_of_lane<T>(m, base + (LANE));                                                     \
  }
MSL_QUAD_SHUFFLE(quad_shuffle, n)
MSL_QUAD_SHUFFLE(quad_broadcast, n)
MSL_QUAD_SHUFFLE(quad_shuffle_xor, self ^ (n & 3))
MSL_QUAD_SHUFFLE(quad_shuffle_down, self + n < 4 ? self + n : self)
MSL_QUAD_SHUFFLE(quad_shuffle_up, self >= n ? self - n : self)

template <class Op, class T> MSL_INLINE MSL_CONVERGENT T quad_reduce(T x) {
  msl_exchange *m = meet(x);
  uint base = msl_lane() & ~3u;
  T total{};
  bool started = false;
  for (uint i = base; i < base + 4; i++) {
    if (!came(m, i))
      continue;
    total = started ? Op::template apply<T>(total, slot_value<T>(m, i)) : slot_value<T>(m, i);
    started = true;
  }
  return total;
}
#define MSL_QUAD_REDUCTION(F, OP)                                                                  \
  template <class T, if_reduces<T> = 0> MSL_INLINE MSL_CONVERGENT T F(T x) {                       \
    return quad_reduce<OP>(x);                                                                     \
  }
MSL_QUAD_REDUCTION(quad_sum, op_sum)
MSL_QUAD_REDUCTION(quad_product, op_product)
MSL_QUAD_REDUCTION(quad_min, op_min)
MSL_QUAD_REDUCTION(quad_max, op_max)
} // namespace metal
