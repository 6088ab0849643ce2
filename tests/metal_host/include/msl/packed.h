// packed_float3 and its relatives, and array.
#pragma once

namespace metal {
#define MSL_PACKED(T, N)                                                                           \
  struct packed_##T##N {                                                                           \
    T elements[N];                                                                                 \
    packed_##T##N() {}                                                                             \
    packed_##T##N(T##N v) {                                                                        \
      for (int i = 0; i < N; i++)                                                                  \
        elements[i] = v[i];                                                                        \
    }                                                                                              \
    template <class... Parts, class = enable_if_t<(sizeof...(Parts) > 1)>>                         \
    packed_##T##N(Parts... parts) : packed_##T##N(make<T##N>(parts...)) {}                         \
    operator T##N() const {                                                                        \
      T##N v;                                                                                      \
      for (int i = 0; i < N; i++)                                                                  \
        v[i] = elements[i];                                                                        \
      return v;                                                                                    \
    }                                                                                              \
    operator T##N() const __constant {                                                             \
      T##N v;                                                                                      \
      for (int i = 0; i < N; i++)                                                                  \
        v[i] = elements[i];                                                                        \
      return v;                                                                                    \
    }                                                                                              \
    T &operator[](int i) { return elements[i]; }                                                   \
    T operator[](int i) const { return elements[i]; }                                              \
    T operator[](int i) const __constant { return elements[i]; }                                   \
  };
#define MSL_PACKED_SIZES(T) MSL_PACKED(T, 2) MSL_PACKED(T, 3) MSL_PACKED(T, 4)
MSL_EACH_INTEGER(MSL_PACKED_SIZES)
MSL_EACH_FLOAT(MSL_PACKED_SIZES)

template <class T, size_t N> struct array {
  T elements[N];
  T &operator[](size_t i) { return elements[i]; }
  const T &operator[](size_t i) const { return elements[i]; }
  constexpr size_t size() const { return N; }
};
} // namespace metal
