// <metal_type_traits>.
#pragma once

namespace metal {
template <class T, T v> struct integral_constant {
  static constexpr __constant T value = v;
  typedef T value_type;
  typedef integral_constant type;
  constexpr operator T() const { return v; }
};
template <bool B> using bool_constant = integral_constant<bool, B>;
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <class T, class U> struct is_same : false_type {};
template <class T> struct is_same<T, T> : true_type {};
template <class T, class U> constexpr __constant bool is_same_v = is_same<T, U>::value;
template <bool B, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> {
  typedef T type;
};
template <bool B, class T = void> using enable_if_t = typename enable_if<B, T>::type;
template <bool B, class T, class U> struct conditional {
  typedef T type;
};
template <class T, class U> struct conditional<false, T, U> {
  typedef U type;
};
template <bool B, class T, class U> using conditional_t = typename conditional<B, T, U>::type;
template <class T> struct remove_const {
  typedef T type;
};
template <class T> struct remove_const<const T> {
  typedef T type;
};
template <class T> struct remove_volatile {
  typedef T type;
};
template <class T> struct remove_volatile<volatile T> {
  typedef T type;
};
template <class T> struct remove_cv {
  typedef typename remove_const<typename remove_volatile<T>::type>::type type;
};
template <class T> using remove_const_t = typename remove_const<T>::type;
template <class T> using remove_volatile_t = typename remove_volatile<T>::type;
template <class T> using remove_cv_t = typename remove_cv<T>::type;
template <class T> struct remove_reference {
  typedef T type;
};
template <class T> struct remove_reference<T &> {
  typedef T type;
};
template <class T> struct remove_reference<T &&> {
  typedef T type;
};
template <class T> using remove_reference_t = typename remove_reference<T>::type;
template <class T> struct remove_addrspace {
  typedef T type;
};
template <class T> struct remove_addrspace<__global T> {
  typedef T type;
};
template <class T> struct remove_addrspace<__local T> {
  typedef T type;
};
template <class T> struct remove_addrspace<__constant T> {
  typedef T type;
};
template <class T> struct remove_addrspace<__private T> {
  typedef T type;
};
template <class T> struct remove_addrspace<__generic T> {
  typedef T type;
};
template <class T> using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T> struct remove_pointer {
  typedef T type;
};
template <class T> struct remove_pointer<T *> {
  typedef T type;
};
template <class T> using remove_pointer_t = typename remove_pointer<T>::type;
template <class T> struct decay {
  typedef remove_cv_t<remove_addrspace_t<remove_reference_t<T>>> type;
};
template <class T> using decay_t = typename decay<T>::type;
template <class... B> struct _disjunction : false_type {};
template <class B> struct _disjunction<B> : B {};
template <class B, class... R>
struct _disjunction<B, R...> : conditional_t<bool(B::value), B, _disjunction<R...>> {};
template <class... B> struct _conjunction : true_type {};
template <class B> struct _conjunction<B> : B {};
template <class B, class... R>
struct _conjunction<B, R...> : conditional_t<bool(B::value), _conjunction<R...>, B> {};
template <class B> struct _negation : bool_constant<!bool(B::value)> {};
template <class T> struct is_integral : bool_constant<__is_integral(T)> {};
template <class T> constexpr __constant bool is_integral_v = __is_integral(T);
template <class T>
struct is_floating_point
    : bool_constant<__is_floating_point(T) || is_same<remove_cv_t<T>, half>::value ||
                    is_same<remove_cv_t<T>, bfloat>::value> {};
template <class T> constexpr __constant bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
struct is_arithmetic : bool_constant<is_integral<T>::value || is_floating_point<T>::value> {};
template <class T> constexpr __constant bool is_arithmetic_v = is_arithmetic<T>::value;
template <class T>
struct is_signed : bool_constant<__is_signed(T) || is_floating_point<T>::value> {};
template <class T> constexpr __constant bool is_signed_v = is_signed<T>::value;
template <class T> struct is_unsigned : bool_constant<__is_unsigned(T)> {};
template <class T> constexpr __constant bool is_unsigned_v = is_unsigned<T>::value;
template <class T> struct is_const : false_type {};
template <class T> struct is_const<const T> : true_type {};
template <class T> constexpr __constant bool is_const_v = is_const<T>::value;
template <class T> struct is_pointer : false_type {};
template <class T> struct is_pointer<T *> : true_type {};
template <class T> constexpr __constant bool is_pointer_v = is_pointer<T>::value;
template <class T, class U> struct is_convertible : bool_constant<__is_convertible_to(T, U)> {};
// In MSL only bfloat converts to bfloat by itself, and bfloat does not become half either.
template <class T>
struct is_convertible<T, bfloat> : bool_constant<is_same<remove_cv_t<T>, bfloat>::value> {};
template <> struct is_convertible<bfloat, half> : false_type {};
template <class T, class U>
constexpr __constant bool is_convertible_v = is_convertible<T, U>::value;
template <class T> struct make_signed;
template <class T> struct make_unsigned;
#define MSL_SIGNEDNESS(SIGNED, UNSIGNED)                                                           \
  template <> struct make_signed<SIGNED> {                                                         \
    typedef SIGNED type;                                                                           \
  };                                                                                               \
  template <> struct make_signed<UNSIGNED> {                                                       \
    typedef SIGNED type;                                                                           \
  };                                                                                               \
  template <> struct make_unsigned<SIGNED> {                                                       \
    typedef UNSIGNED type;                                                                         \
  };                                                                                               \
  template <> struct make_unsigned<UNSIGNED> {                                                     \
    typedef UNSIGNED type;                                                                         \
  };
MSL_SIGNEDNESS(char, uchar)
MSL_SIGNEDNESS(short, ushort)
MSL_SIGNEDNESS(int, uint)
MSL_SIGNEDNESS(long, ulong)
template <class T> using make_signed_t = typename make_signed<T>::type;
template <class T> using make_unsigned_t = typename make_unsigned<T>::type;
template <class T> typename remove_reference<T>::type &&declval();
} // namespace metal
