// <metal_limits>.
#pragma once

namespace metal {
template <class T> struct numeric_limits;
#define MSL_INTEGER_LIMITS(T, LOW, HIGH, SIGNED)                                                   \
  template <> struct numeric_limits<T> {                                                           \
    static constexpr __constant bool is_signed = SIGNED;                                           \
    static constexpr __constant bool is_integer = true;                                            \
    static constexpr __constant bool is_specialized = true;                                        \
    static constexpr __constant int digits = sizeof(T) * 8 - SIGNED;                               \
    static constexpr T max() { return (T)(HIGH); }                                                 \
    static constexpr T min() { return (T)(LOW); }                                                  \
    static constexpr T lowest() { return (T)(LOW); }                                               \
    static constexpr T infinity() { return 0; }                                                    \
    static constexpr T epsilon() { return 0; }                                                     \
  };
MSL_INTEGER_LIMITS(bool, 0, 1, 0)
MSL_INTEGER_LIMITS(char, -128, 127, 1)
MSL_INTEGER_LIMITS(uchar, 0, 255, 0)
MSL_INTEGER_LIMITS(short, -32768, 32767, 1)
MSL_INTEGER_LIMITS(ushort, 0, 65535, 0)
MSL_INTEGER_LIMITS(int, (-2147483647 - 1), 2147483647, 1)
MSL_INTEGER_LIMITS(uint, 0, 0xffffffffu, 0)
MSL_INTEGER_LIMITS(long, (-0x7fffffffffffffffL - 1), 0x7fffffffffffffffL, 1)
MSL_INTEGER_LIMITS(ulong, 0, 0xffffffffffffffffUL, 0)

#define MSL_FLOAT_LIMITS(T, DIGITS, HIGH, SMALLEST, EPSILON, DENORM)                               \
  template <> struct numeric_limits<T> {                                                           \
    static constexpr __constant bool is_signed = true;                                             \
    static constexpr __constant bool is_integer = false;                                           \
    static constexpr __constant bool is_specialized = true;                                        \
    static constexpr __constant bool has_infinity = true;                                          \
    static constexpr __constant int digits = DIGITS;                                               \
    static constexpr T max() { return (T)(HIGH); }                                                 \
    static constexpr T min() { return (T)(SMALLEST); }                                             \
    static constexpr T lowest() { return (T)(-(HIGH)); }                                           \
    static constexpr T epsilon() { return (T)(EPSILON); }                                          \
    static constexpr T denorm_min() { return (T)(DENORM); }                                        \
    static constexpr T infinity() { return (T)__builtin_inff(); }                                  \
    static constexpr T quiet_NaN() { return (T)__builtin_nanf(""); }                               \
    static constexpr T signaling_NaN() { return (T)__builtin_nanf(""); }                           \
  };
MSL_FLOAT_LIMITS(float, 24, 0x1.fffffep127f, 0x1.0p-126f, 0x1.0p-23f, 0x1.0p-149f)
MSL_FLOAT_LIMITS(half, 11, 0x1.ffcp15f, 0x1.0p-14f, 0x1.0p-10f, 0x1.0p-24f)
MSL_FLOAT_LIMITS(bfloat, 8, 0x1.fep127f, 0x1.0p-126f, 0x1.0p-7f, 0x1.0p-133f)
} // namespace metal
