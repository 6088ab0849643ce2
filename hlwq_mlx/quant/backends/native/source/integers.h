// The integer mode: codes as 16-bit levels, blocks of x as 13-bit numbers with a scale of their own.
//
// Within a block the sums are exact, and a row's blocks are summed in sixteen chains as in the exact
// mode. The result is within 5e-4 of it, relative to its length; wide codes are read faster.
#pragma once
#include "codes.h"

namespace ISA {

constexpr int LEVELS = 32767, MOST = 4095, STEPS16 = 4, WIDE = 32;

// The column of a block that element `e` of step `s` holds.
inline int column16(int s, int e) {
  return column_of(8 * (s / 2) + 2 * (e / 8) + s % 2, e % 8);
}

#if defined(__AVX512VBMI__)
struct Sums16 {
  __m512i v;
};
struct Wide {
  __m512i v;
};
inline Sums16 none16() { return {_mm512_setzero_si512()}; }
inline Wide load16(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store16(int16_t* p, Wide a) { _mm512_storeu_si512(p, a.v); }
inline Sums16 add_products(Sums16 sums, Wide a, Wide b) {
  return {_mm512_dpwssd_epi32(sums.v, a.v, b.v)};
}
inline Lanes as_floats(Sums16 sums) { return {_mm512_cvtepi32_ps(sums.v)}; }
#elif defined(__AVX2__)
struct Sums16 {
  __m256i v[2];
};
using Wide = Sums16;
inline Sums16 none16() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
inline Wide load16(const int16_t* p) {
  const __m256i* q = (const __m256i*)p;
  return {{_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)}};
}
inline void store16(int16_t* p, Wide a) { memcpy(p, a.v, sizeof a.v); }
inline Sums16 add_products(Sums16 sums, Wide a, Wide b) {
  for (int i = 0; i < 2; i++)
    sums.v[i] = _mm256_add_epi32(sums.v[i], _mm256_madd_epi16(a.v[i], b.v[i]));
  return sums;
}
inline Lanes as_floats(Sums16 sums) {
  return {{_mm256_cvtepi32_ps(sums.v[0]), _mm256_cvtepi32_ps(sums.v[1])}};
}
#else
struct Sums16 {
  int32_t v[LANES];
};
struct Wide {
  int16_t v[WIDE];
};
inline Sums16 none16() { return {}; }
inline Wide load16(const int16_t* p) {
  Wide found;
  memcpy(found.v, p, sizeof found.v);
  return found;
}
inline void store16(int16_t* p, Wide a) { memcpy(p, a.v, sizeof a.v); }
inline Sums16 add_products(Sums16 sums, Wide a, Wide b) {
  for (int i = 0; i < LANES; i++)
    sums.v[i] += a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1];
  return sums;
}
inline Lanes as_floats(Sums16 sums) {
  float x[LANES];
  for (int i = 0; i < LANES; i++) x[i] = (float)sums.v[i];
  return load(x);
}
#endif

// A row of x: its numbers in the order of `column16`, then each block's scale.
inline void arrange16(const float* rotated, int64_t columns, float* arranged) {
  int16_t* numbers = (int16_t*)arranged;
  float* scales = arranged + columns / 2;
  for (int64_t block = 0; block < columns / BLOCK; block++, rotated += BLOCK) {
    float most = 0;
    // What is no number is in all of a rotated block, and stays in its scale.
    for (int i = 0; i < BLOCK; i++) most = std::max(std::fabs(rotated[i]), most);
    const float whole = MOST / most, factor = std::isfinite(whole) ? whole : 0;
    scales[block] = most / MOST;
    for (int s = 0; s < STEPS16; s++)
      for (int e = 0; e < WIDE; e++)
        numbers[block * BLOCK + s * WIDE + e] =
            (int16_t)std::nearbyint(rotated[column16(s, e)] * factor);
  }
}

// The levels of a table, and what one of them is worth.
template <int Bits>
struct Levels {
  float worth;
#if defined(__AVX512VBMI__)
  static constexpr int COUNT = Bits <= 6 ? 1 : 1 << (Bits - 6);
  __m512i low[COUNT], high[COUNT];
#else
  int16_t level[1 << Bits];
#endif

  explicit Levels(const float* centroids) {
    float most = 0;
    for (int i = 0; i < 1 << Bits; i++) most = std::max(most, std::fabs(centroids[i]));
    worth = most / LEVELS;
    const auto level_of = [&](int i) {
      return (int16_t)std::nearbyint(most > 0 ? centroids[i & ((1 << Bits) - 1)] / worth : 0);
    };
#if defined(__AVX512VBMI__)
    alignas(64) uint8_t bytes[2][64 * COUNT];
    for (int i = 0; i < 64 * COUNT; i++) {
      bytes[0][i] = (uint8_t)(level_of(i) & 255);
      bytes[1][i] = (uint8_t)(level_of(i) >> 8 & 255);
    }
    for (int i = 0; i < COUNT; i++) {
      low[i] = _mm512_load_si512(bytes[0] + 64 * i);
      high[i] = _mm512_load_si512(bytes[1] + 64 * i);
    }
#else
    for (int i = 0; i < 1 << Bits; i++) level[i] = level_of(i);
#endif
  }
};

#if defined(__AVX512VBMI__)

// A block of one row as levels: step by step to `take(step, levels)`.
template <int Bits, class Take>
inline void decode16(const Row<Bits>& row, const Levels<Bits>& levels, const Take& take) {
  const Bytes<Bits> codes(row);
#pragma GCC unroll 2
  for (int g = 0; g < 2; g++) {
    const __m512i low = among_bytes(levels.low, Levels<Bits>::COUNT, codes.half[g]);
    const __m512i high = among_bytes(levels.high, Levels<Bits>::COUNT, codes.half[g]);
    take(2 * g, Wide{_mm512_unpacklo_epi8(low, high)});
    take(2 * g + 1, Wide{_mm512_unpackhi_epi8(low, high)});
  }
}

#else

template <int Bits, class Take>
inline void decode16(const Row<Bits>& row, const Levels<Bits>& levels, const Take& take) {
  alignas(64) int16_t found[STEPS16][WIDE];
  each_code<Bits>(row, [&](int lane, int j, int code) {
    found[2 * (lane / 8) + lane % 2][8 * (lane % 8 / 2) + j] = levels.level[code];
  });
  for (int step = 0; step < STEPS16; step++) take(step, load16(found[step]));
}

#endif

}  // namespace ISA
