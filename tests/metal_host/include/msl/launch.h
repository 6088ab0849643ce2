// What the launch adapter (see runtime.py) needs to call a kernel with what it declares.
#pragma once

// The type of parameter I of a function.
template <class Function> struct msl_function;
template <class R, class... A> struct msl_function<R(A...)> {
  template <int I, class First, class... Rest> struct at {
    typedef typename at<I - 1, Rest...>::type type;
  };
  template <class First, class... Rest> struct at<0, First, Rest...> {
    typedef First type;
  };
  template <int I> struct parameter {
    typedef typename at<I, A...>::type type;
  };
};

// An address as the pointer or reference that a kernel declares.
template <class T> struct msl_buffer {
  static_assert(sizeof(T) == 0, "a buffer parameter must be a pointer or a reference");
};
template <class T> struct msl_buffer<T *> {
  static MSL_INLINE T *at(ulong address) { return (T *)address; }
};
template <class T> struct msl_buffer<T &> {
  static MSL_INLINE T &at(ulong address) { return *(T *)address; }
};

// A position or size as the scalar or vector that a kernel declares.
template <class T> MSL_INLINE T msl_id(const __generic uint *value) {
  T r;
  if constexpr (metal::is_vector<T>)
    for (int i = 0; i < metal::size_of<T>; i++)
      r[i] = (metal::element_t<T>)value[i];
  else
    r = (T)value[0];
  return r;
}
