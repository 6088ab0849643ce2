// <metal_simdgroup>: every operation is a meeting of the lanes, after which each reads.
#pragma once

namespace metal {
// Metal has these for scalars and vectors of up to 32 bits an element; MLX adds the rest.
template <class T>
using if_shuffles = enable_if_t<sizeof(element_t<T>) <= 4 && is_arithmetic<element_t<T>>::value &&
                                    !is_same<element_t<T>, bfloat>::value,
                                int>;
template <class T>
using if_reduces =
    enable_if_t<sizeof(element_t<T>) <= 4 && is_arithmetic<element_t<T>>::value &&
                    !is_same<element_t<T>, bfloat>::value && !is_same<element_t<T>, bool>::value,
                int>;

template <class T> MSL_INLINE MSL_CONVERGENT msl_exchange *meet(const T &value) {
  static_assert(sizeof(T) <= 8 * MSL_SLOT_WORDS, "too large for a slot");
  return msl_meet(&value, sizeof(T));
}
MSL_INLINE bool came(msl_exchange *m, uint lane) {
  return lane < MSL_LANES && ((m->mask >> lane) & 1);
}
template <class T> MSL_INLINE T slot_value(msl_exchange *m, uint lane) {
  T value;
  __builtin_memcpy(&value, (void *)m->slot[lane], sizeof value);
  return value;
}
// What another lane brought; undefined in Metal, reported here, when it did not come.
template <class T> MSL_INLINE T value_of_lane(msl_exchange *m, uint lane) {
  if (came(m, lane))
    return slot_value<T>(m, lane);
  msl_complain(KIND_INACTIVE_LANE, lane);
  T garbage;
  __builtin_memset(&garbage, 0xCB, sizeof garbage);
  return garbage;
}

#define MSL_OPERATION(NAME, VALUE)                                                                 \
  struct NAME {                                                                                    \
    template <class T> static MSL_INLINE T apply(T a, T b) { return VALUE; }                       \
  };
MSL_OPERATION(op_sum, a + b)
MSL_OPERATION(op_product, a *b)
MSL_OPERATION(op_min, metal::min(a, b))
MSL_OPERATION(op_max, metal::max(a, b))
MSL_OPERATION(op_and, a &b)
MSL_OPERATION(op_or, a | b)
MSL_OPERATION(op_xor, a ^ b)

// Combine all lanes in butterfly order (Metal leaves the order open); the first lane out does it.
template <class Op, class T> MSL_OUTLINE void combine(msl_exchange *m) {
  T v[MSL_LANES];
  bool present[MSL_LANES];
  for (uint i = 0; i < MSL_LANES; i++) {
    present[i] = came(m, i);
    if (present[i])
      v[i] = slot_value<T>(m, i);
  }
  for (uint stride = 1; stride < MSL_LANES; stride <<= 1)
    for (uint i = 0; i < MSL_LANES; i += 2 * stride) {
      if (!present[i + stride])
        continue;
      v[i] = present[i] ? Op::template apply<T>(v[i], v[i + stride]) : v[i + stride];
      present[i] = true;
    }
  *(T *)(void *)m->result = v[0];
  m->done = 1;
}
template <class Op, class T> MSL_INLINE MSL_CONVERGENT T reduce(T x) {
  msl_exchange *m = meet(x);
  if (!m->done)
    combine<Op, T>(m);
  return *(T *)(void *)m->result;
}
#define MSL_REDUCTION(F, OP)                                                                       \
  template <class T, if_reduces<T> = 0> MSL_INLINE MSL_CONVERGENT T F(T x) { return reduce<OP>(x); }
MSL_REDUCTION(simd_sum, op_sum)
MSL_REDUCTION(simd_product, op_product)
MSL_REDUCTION(simd_min, op_min)
MSL_REDUCTION(simd_max, op_max)
MSL_REDUCTION(simd_and, op_and)
MSL_REDUCTION(simd_or, op_or)
MSL_REDUCTION(simd_xor, op_xor)

// Combine the lanes below this one; `identity` for the lowest.
template <class Op, class T> MSL_INLINE T scan(msl_exchange *m, T identity) {
  T total = identity;
  bool started = false;
  for (uint i = 0; i < msl_lane(); i++) {
    if (!came(m, i))
      continue;
    total = started ? Op::template apply<T>(total, slot_value<T>(m, i)) : slot_value<T>(m, i);
    started = true;
  }
  return total;
}
#define MSL_SCAN(NAME, OP, IDENTITY)                                                               \
  template <class T, if_reduces<T> = 0>                                                            \
  MSL_INLINE MSL_CONVERGENT T simd_prefix_exclusive_##NAME(T x) {                                  \
    return scan<OP, T>(meet(x), (T)IDENTITY);                                                      \
  }                                                                                                \
  template <class T, if_reduces<T> = 0>                                                            \
  MSL_INLINE MSL_CONVERGENT T simd_prefix_inclusive_##NAME(T x) {                                  \
    return OP::template apply<T>(scan<OP, T>(meet(x), (T)IDENTITY), x);                            \
  }
MSL_SCAN(sum, op_sum, 0)
MSL_SCAN(product, op_product, 1)

// Metal reduces no 64-bit integers; without these, the overloads for bfloat would take them.
template <class T>
using if_too_wide = enable_if_t<is_integral<element_t<T>>::value && sizeof(element_t<T>) == 8, int>;
#define MSL_TOO_WIDE(F) template <class T, if_too_wide<T> = 0> T F(T x) = delete;
MSL_TOO_WIDE(simd_sum)
MSL_TOO_WIDE(simd_product)
MSL_TOO_WIDE(simd_min)
MSL_TOO_WIDE(simd_max)
MSL_TOO_WIDE(simd_and)
MSL_TOO_WIDE(simd_or)
MSL_TOO_WIDE(simd_xor)
MSL_TOO_WIDE(simd_prefix_inclusive_sum)
MSL_TOO_WIDE(simd_prefix_exclusive_sum)
MSL_TOO_WIDE(simd_prefix_inclusive_product)
MSL_TOO_WIDE(simd_prefix_exclusive_product)

#define MSL_SHUFFLE(F, LANE)                                                                       \
  template <class T, if_shuffles<T> = 0> MSL_INLINE MSL_CONVERGENT T F(T x, ushort n) {            \
    msl_exchange *m = meet(x);                                                                     \
    uint self = msl_lane();                                                                        \
    (void)self;                                                                                    \
    return value_of_lane<T>(m, LANE);                                                              \
  }
MSL_SHUFFLE(simd_shuffle, n)
MSL_SHUFFLE(simd_broadcast, n)
MSL_SHUFFLE(simd_shuffle_xor, self ^ n)
MSL_SHUFFLE(simd_shuffle_down, self + n < MSL_LANES ? self + n : self)
MSL_SHUFFLE(simd_shuffle_up, self >= n ? self - n : self)
MSL_SHUFFLE(simd_shuffle_rotate_down, (self + n) % MSL_LANES)
MSL_SHUFFLE(simd_shuffle_rotate_up, (self - n) % MSL_LANES)

template <class T, if_shuffles<T> = 0> MSL_INLINE MSL_CONVERGENT T simd_broadcast_first(T x) {
  msl_exchange *m = meet(x);
  return slot_value<T>(m, __builtin_ctz(m->mask));
}

template <class T> struct value_and_fill {
  T value, fill;
};
template <class T, if_shuffles<T> = 0>
MSL_INLINE MSL_CONVERGENT T simd_shuffle_and_fill_down(T x, T fill, ushort n, ushort width = 32) {
  value_and_fill<T> mine = {x, fill};
  msl_exchange *m = meet(mine);
  uint base = msl_lane() & ~(uint)(width - 1);
  uint from = (msl_lane() & (width - 1)) + n;
  if (from < width)
    return value_of_lane<value_and_fill<T>>(m, base + from).value;
  return value_of_lane<value_and_fill<T>>(m, base + (from & (width - 1))).fill;
}
template <class T, if_shuffles<T> = 0>
MSL_INLINE MSL_CONVERGENT T simd_shuffle_and_fill_up(T x, T fill, ushort n, ushort width = 32) {
  value_and_fill<T> mine = {x, fill};
  msl_exchange *m = meet(mine);
  uint base = msl_lane() & ~(uint)(width - 1);
  uint position = msl_lane() & (width - 1);
  if (position >= n)
    return value_of_lane<value_and_fill<T>>(m, base + position - n).value;
  return value_of_lane<value_and_fill<T>>(m, base + ((position - n) & (width - 1))).fill;
}

struct simd_vote {
  typedef ulong vote_t;
  ulong votes;
  simd_vote(ulong x = 0) : votes(x) {}
  bool all() const { return votes == 0xffffffffUL; }
  bool any() const { return votes != 0; }
  explicit operator ulong() const { return votes; }
};
MSL_INLINE MSL_CONVERGENT simd_vote simd_ballot(bool vote) {
  uint mine = vote;
  msl_exchange *m = meet(mine);
  ulong votes = 0;
  for (uint i = 0; i < MSL_LANES; i++)
    if (came(m, i) && slot_value<uint>(m, i))
      votes |= 1ul << i;
  return simd_vote(votes);
}
MSL_INLINE MSL_CONVERGENT simd_vote simd_active_threads_mask() {
  uint mine = 0;
  return simd_vote(meet(mine)->mask);
}
MSL_INLINE MSL_CONVERGENT bool simd_any(bool vote) { return simd_ballot(vote).any(); }
MSL_INLINE MSL_CONVERGENT bool simd_all(bool vote) { return !simd_ballot(!vote).any(); }
MSL_INLINE MSL_CONVERGENT bool simd_is_first() {
  uint mine = 0;
  return (uint)__builtin_ctz(meet(mine)->mask) == msl_lane();
}
} // namespace metal
