// <metal_atomic>: plain operations, for one CPU thread runs all GPU threads and none is preempted.
#pragma once

namespace metal {
template <class T> struct atomic_ {
  T value;
};
template <class T> using atomic = atomic_<T>;

enum { ATOMIC_LOAD = 0, ATOMIC_STORE = 1, ATOMIC_UPDATE = 2 };
template <class T> MSL_INLINE T *atomic_access(volatile atomic_<T> *p, uint kind) {
  msl_atomic_access((void *)p, sizeof(T), kind);
  return (T *)&p->value;
}

template <class T> MSL_INLINE T atomic_load_explicit(const volatile atomic_<T> *p, memory_order) {
  return *atomic_access((volatile atomic_<T> *)p, ATOMIC_LOAD);
}
template <class T>
MSL_INLINE void atomic_store_explicit(volatile atomic_<T> *p, T x, memory_order) {
  *atomic_access(p, ATOMIC_STORE) = x;
}
template <class T>
MSL_INLINE T atomic_exchange_explicit(volatile atomic_<T> *p, T x, memory_order) {
  T *place = atomic_access(p, ATOMIC_UPDATE);
  T old = *place;
  *place = x;
  return old;
}
template <class T>
MSL_INLINE bool atomic_compare_exchange_weak_explicit(volatile atomic_<T> *p, __private T *expected,
                                                      T x, memory_order, memory_order) {
  T *place = atomic_access(p, ATOMIC_UPDATE);
  T old = *place;
  bool same;
  if constexpr (sizeof(T) == 4)
    same = as_type_<uint>(old) == as_type_<uint>((T)*expected);
  else
    same = old == *expected;
  if (same)
    *place = x;
  else
    *expected = old;
  return same;
}

#define MSL_ATOMIC_FETCH(NAME, VALUE)                                                              \
  template <class T, class U>                                                                      \
  MSL_INLINE T atomic_fetch_##NAME##_explicit(volatile atomic_<T> *p, U operand, memory_order) {   \
    T y = (T)operand;                                                                              \
    T *place = atomic_access(p, ATOMIC_UPDATE);                                                    \
    T old = *place;                                                                                \
    *place = (T)(VALUE);                                                                           \
    return old;                                                                                    \
  }
MSL_ATOMIC_FETCH(add, old + y)
MSL_ATOMIC_FETCH(sub, old - y)
MSL_ATOMIC_FETCH(and, old &y)
MSL_ATOMIC_FETCH(or, old | y)
MSL_ATOMIC_FETCH(xor, old ^ y)
MSL_ATOMIC_FETCH(min, old < y ? old : y)
MSL_ATOMIC_FETCH(max, old > y ? old : y)
} // namespace metal

// Macros, because OpenCL has types of these names.
#define atomic_int metal::atomic_<int>
#define atomic_uint metal::atomic_<uint>
#define atomic_float metal::atomic_<float>
#define atomic_ulong metal::atomic_<ulong>
#define atomic_bool metal::atomic_<bool>
