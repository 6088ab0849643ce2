// Sixteen float32 lanes, in whatever registers the processor has.
//
// A dot product sums in sixteen chains of fused multiply-adds and folds them in one order, so that
// its bits do not depend on how many rows are multiplied at once. Where the compiler has no fused
// multiply-add (ISA portable) a product is rounded before it is added.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ISA {

constexpr int LANES = 16;

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline Lanes all(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))};
}
#define LOAD_SOME
// The first `count` of them, up to all, and zeros.
inline Lanes load_f16(const uint16_t* p, int64_t count) {
  const __mmask16 those = count < LANES ? (1 << count) - 1 : 0xffff;
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(those, p))};
}
inline Lanes load_bf16(const uint16_t* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline float sum(Lanes a) {
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The sum of each of sixteen vectors, a stride apart: halves are added in the order of `sum`.
#define SUMS_OF_EACH
inline Lanes sums_of_each(const float* vectors, int64_t stride) {
  __m512 quarters[4];
  for (int i = 0; i < 4; i++) {
    const auto at = [&](int k) { return _mm512_loadu_ps(vectors + (i + 4 * k) * stride); };
    const auto halves = [](__m512 a, __m512 b) {
      return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const __m512 a = halves(at(0), at(1)), b = halves(at(2), at(3));
    quarters[i] =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  const auto pairs = [](__m512 a, __m512 b) {
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
  };
  const __m512 a = pairs(quarters[0], quarters[1]), b = pairs(quarters[2], quarters[3]);
  return {_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd))};
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 v[2];
};
inline Lanes zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
inline Lanes load(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
inline void store(float* p, Lanes a) {
  _mm256_storeu_ps(p, a.v[0]);
  _mm256_storeu_ps(p + 8, a.v[1]);
}
inline Lanes all(float x) { return {{_mm256_set1_ps(x), _mm256_set1_ps(x)}}; }
// Half of the lanes: with all of them a tile of sums would need too many registers.
#define HAS_PARTS
struct Part {
  __m256 v;
};
inline Part load_part(const float* p) {
  __m256 found = _mm256_loadu_ps(p);
  asm("" : "+x"(found));  // or the compiler loads it for each of its uses
  return {found};
}
inline void store(float* p, Part a) { _mm256_storeu_ps(p, a.v); }
inline Part all_part(float x) { return {_mm256_set1_ps(x)}; }
inline Part mul(Part a, Part b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Part fma(Part a, Part b, Part c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
#define EACH(name, of) \
  inline Lanes name(Lanes a, Lanes b) { return {{of(a.v[0], b.v[0]), of(a.v[1], b.v[1])}}; }
EACH(add, _mm256_add_ps)
EACH(sub, _mm256_sub_ps)
EACH(mul, _mm256_mul_ps)
EACH(max, _mm256_max_ps)
#undef EACH
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
}
inline Lanes load_f16(const uint16_t* p) {
  const __m128i* q = (const __m128i*)p;
  return {{_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))}};
}
inline __m256 widen_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Lanes load_bf16(const uint16_t* p) {
  const __m128i* q = (const __m128i*)p;
  return {{widen_bf16(_mm_loadu_si128(q)), widen_bf16(_mm_loadu_si128(q + 1))}};
}
inline float sum(Lanes a) {
  __m256 eight = _mm256_add_ps(a.v[0], a.v[1]);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

#else

// Quarters of four lanes: NEON's registers, or what a compiler makes of four floats.
#if defined(__ARM_NEON) && defined(__aarch64__)
using Four = float32x4_t;
inline Four four(const float* p) { return vld1q_f32(p); }
inline void put(float* p, Four a) { vst1q_f32(p, a); }
inline Four four_of(float x) { return vdupq_n_f32(x); }
inline Four fma4(Four a, Four b, Four c) { return vfmaq_f32(c, a, b); }
#define FOUR(name, by_neon, plain) \
  inline Four name##4(Four a, Four b) { return by_neon(a, b); }
#else
struct Four {
  float v[4];
};
inline Four four(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline void put(float* p, Four a) { memcpy(p, a.v, sizeof a.v); }
inline Four four_of(float x) { return {{x, x, x, x}}; }
inline Four fma4(Four a, Four b, Four c) {
  for (int i = 0; i < 4; i++) c.v[i] += a.v[i] * b.v[i];
  return c;
}
#define FOUR(name, by_neon, plain)          \
  inline Four name##4(Four a, Four b) {     \
    for (int i = 0; i < 4; i++) {           \
      float x = a.v[i], y = b.v[i];         \
      a.v[i] = plain;                       \
    }                                       \
    return a;                               \
  }
#endif
FOUR(add, vaddq_f32, x + y)
FOUR(sub, vsubq_f32, x - y)
FOUR(mul, vmulq_f32, x * y)
FOUR(max, vmaxq_f32, x > y ? x : y)
#undef FOUR

struct Lanes {
  Four v[4];
};
inline Lanes load(const float* p) { return {{four(p), four(p + 4), four(p + 8), four(p + 12)}}; }
inline void store(float* p, Lanes a) {
  for (int i = 0; i < 4; i++) put(p + 4 * i, a.v[i]);
}
inline Lanes all(float x) { return {{four_of(x), four_of(x), four_of(x), four_of(x)}}; }
inline Lanes zero() { return all(0); }
#define EACH(name)                                                \
  inline Lanes name(Lanes a, Lanes b) {                           \
    for (int i = 0; i < 4; i++) a.v[i] = name##4(a.v[i], b.v[i]); \
    return a;                                                     \
  }
EACH(add)
EACH(sub)
EACH(mul)
EACH(max)
#undef EACH
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  for (int i = 0; i < 4; i++) c.v[i] = fma4(a.v[i], b.v[i], c.v[i]);
  return c;
}
inline float float_of_half(uint16_t half) {
  // Shifting a float's exponent by 112 also brings subnormal halves out right.
  uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000u;
  float x;
  memcpy(&x, &bits, 4);
  if ((half & 0x7c00) != 0x7c00) x *= 5.192296858534828e+33f;
  return half & 0x8000 ? -x : x;
}
inline float float_of_bfloat(uint16_t word) {
  uint32_t bits = (uint32_t)word << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline Lanes load_f16(const uint16_t* p) {
  float x[LANES];
  for (int i = 0; i < LANES; i++) x[i] = float_of_half(p[i]);
  return load(x);
}
inline Lanes load_bf16(const uint16_t* p) {
  float x[LANES];
  for (int i = 0; i < LANES; i++) x[i] = float_of_bfloat(p[i]);
  return load(x);
}
inline float sum(Lanes a) {
  float x[LANES];
  store(x, a);
  for (int half = 8; half >= 1; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

#endif

#ifndef HAS_PARTS
using Part = Lanes;
inline Part load_part(const float* p) { return load(p); }
inline Part all_part(float x) { return all(x); }
#endif
constexpr int PART = sizeof(Part) / sizeof(float), PARTS = LANES / PART;

#ifndef LOAD_SOME
inline Lanes load_f16(const uint16_t* p, int64_t count) {
  uint16_t those[LANES] = {};
  memcpy(those, p, std::min<int64_t>(count, LANES) * sizeof *those);
  return load_f16(those);
}
#endif

#ifndef SUMS_OF_EACH
inline Lanes sums_of_each(const float* vectors, int64_t stride) {
  float y[LANES];
  for (int i = 0; i < LANES; i++) y[i] = sum(load(vectors + i * stride));
  return load(y);
}
#endif

inline float largest(Lanes a) {
  float x[LANES];
  store(x, a);
  for (int half = LANES / 2; half >= 1; half /= 2)
    for (int i = 0; i < half; i++) x[i] = std::max(x[i], x[i + half]);
  return x[0];
}

}  // namespace ISA
