// Building and converting vectors: the rewriter sends every functional cast to make or scast.
#pragma once

namespace metal {
template <class T, int N> using vec = T __attribute__((ext_vector_type(N)));

template <class V> struct shape_of {
  typedef V element;
  static constexpr __constant int size = 1;
  static constexpr __constant bool is_vector = false;
};
#define MSL_SHAPE(T, N)                                                                            \
  template <> struct shape_of<T##N> {                                                              \
    typedef T element;                                                                             \
    static constexpr __constant int size = N;                                                      \
    static constexpr __constant bool is_vector = true;                                             \
  };
#define MSL_SHAPES(T) MSL_SHAPE(T, 2) MSL_SHAPE(T, 3) MSL_SHAPE(T, 4)
MSL_EACH_INTEGER(MSL_SHAPES)
MSL_EACH_FLOAT(MSL_SHAPES)

template <class V> using element_t = typename shape_of<remove_cv_t<V>>::element;
template <class V> constexpr __constant int size_of = shape_of<remove_cv_t<V>>::size;
template <class V> constexpr __constant bool is_vector = shape_of<remove_cv_t<V>>::is_vector;

template <class... Parts> struct count_elements {
  static constexpr __constant int value = 0;
};
template <class First, class... Rest> struct count_elements<First, Rest...> {
  static constexpr __constant int value = size_of<First> + count_elements<Rest...>::value;
};

template <class T, class U> MSL_INLINE constexpr T scast(U u);

// Write `parts` into v one after the other, from element I on.
template <class V, int I> MSL_INLINE constexpr void fill_from(V &) {}
template <class V, int I, class First, class... Rest>
MSL_INLINE constexpr void fill_from(V &v, First first, Rest... rest) {
  typedef element_t<V> E;
  if constexpr (is_vector<First>) {
    MSL_UNROLL
    for (int i = 0; i < size_of<First>; i++)
      v[I + i] = scast<E>(first[i]);
  } else {
    v[I] = scast<E>(first);
  }
  fill_from<V, I + size_of<First>, Rest...>(v, rest...);
}

// float4(a, b.xy, c): V(parts...) for a vector V, a scalar is repeated; for another type,
// V(parts...).
template <class V, class... Parts> MSL_INLINE constexpr V make(Parts... parts) {
  if constexpr (!shape_of<V>::is_vector) {
    return V(parts...);
  } else if constexpr (sizeof...(Parts) == 0) {
    return (V)(element_t<V>)0;
  } else if constexpr (count_elements<Parts...>::value == 1) {
    V v{};
    element_t<V> value = scast<element_t<V>>(parts...);
    for (int i = 0; i < shape_of<V>::size; i++)
      v[i] = value;
    return v;
  } else {
    static_assert(count_elements<Parts...>::value == shape_of<V>::size,
                  "wrong number of vector components");
    V v{};
    fill_from<V, 0, Parts...>(v, parts...);
    return v;
  }
}

// static_cast<T>(u), also between half and bfloat, which clang does not convert directly.
template <class T, class U> MSL_INLINE constexpr T scast(U u) {
  typedef remove_cv_t<T> To;
  typedef remove_cv_t<U> From;
  if constexpr (is_same<To, bfloat>::value && is_same<From, half>::value)
    return static_cast<T>(static_cast<float>(u));
  else if constexpr (is_same<To, half>::value && is_same<From, bfloat>::value)
    return static_cast<T>(static_cast<float>(u));
  else if constexpr (is_vector<T>)
    return make<To>(u);
  else
    return static_cast<T>(u);
}

template <class T, class U> MSL_INLINE constexpr T as_type_(U u) {
  static_assert(sizeof(T) == sizeof(U), "as_type: sizes differ");
  return __builtin_bit_cast(T, u);
}
} // namespace metal

// A function of scalars applied to each element of vectors of equal length.
#define MSL_LANEWISE_1(F)                                                                          \
  template <class T, int N> MSL_INLINE vec<T, N> F(vec<T, N> a) {                                  \
    vec<T, N> r;                                                                                   \
    for (int i = 0; i < N; i++)                                                                    \
      r[i] = F((T)a[i]);                                                                           \
    return r;                                                                                      \
  }
#define MSL_LANEWISE_2(F)                                                                          \
  template <class T, int N> MSL_INLINE vec<T, N> F(vec<T, N> a, vec<T, N> b) {                     \
    vec<T, N> r;                                                                                   \
    for (int i = 0; i < N; i++)                                                                    \
      r[i] = F((T)a[i], (T)b[i]);                                                                  \
    return r;                                                                                      \
  }
#define MSL_LANEWISE_3(F)                                                                          \
  template <class T, int N> MSL_INLINE vec<T, N> F(vec<T, N> a, vec<T, N> b, vec<T, N> c) {        \
    vec<T, N> r;                                                                                   \
    for (int i = 0; i < N; i++)                                                                    \
      r[i] = F((T)a[i], (T)b[i], (T)c[i]);                                                         \
    return r;                                                                                      \
  }
