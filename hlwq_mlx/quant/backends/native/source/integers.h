// The integer mode: codes as 16-bit levels, blocks of x as 14-bit numbers with a scale of their own.
//
// Within a block the sums are exact, and a row's blocks are summed in sixteen chains as in the exact
// mode. The result is within 5e-4 of it, relative to its length. Codes are read faster, but for 8
// bits by AVX2.
#pragma once
#include <utility>

#include "codes.h"
#include "products.h"
#include "tile.h"

namespace ISA {

// Eight products of a lane, each as large as can be, are the most that 32 bits hold.
constexpr int LEVELS = 32767, MOST = 8191;
static_assert(8ll * LEVELS * MOST <= INT32_MAX);
constexpr int WIDE = 2 * PART, STEPS16 = BLOCK / WIDE;  // the steps of the parts take turns

// Where the j-th code of a word is.
constexpr int place16(int word, int j) {
  return 32 * (2 * (word / 8) + word % 2) + 8 * (word % 8 / 2) + j;
}

#if defined(__AVX512VBMI__)
// Of the instruction's own type: of another, the compiler keeps a copy of all sums in memory.
struct Sums16 {
  __v16si v;
};
struct Wide {
  __m512i v;
};
inline Wide load16(const int16_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store16(int16_t* p, Wide a) { _mm512_storeu_si512(p, a.v); }
inline Sums16 add_products(Sums16 sums, Wide a, Wide b) {
  return {(__v16si)_mm512_dpwssd_epi32((__m512i)sums.v, a.v, b.v)};
}
inline Part as_floats(Sums16 sums) { return {_mm512_cvtepi32_ps((__m512i)sums.v)}; }
#elif defined(__AVX2__)
struct Sums16 {
  __v8si v;
};
struct Wide {
  __m256i v;
};
inline Wide load16(const int16_t* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
inline void store16(int16_t* p, Wide a) { _mm256_storeu_si256((__m256i*)p, a.v); }
inline Sums16 add_products(Sums16 sums, Wide a, Wide b) {
  return {sums.v + (__v8si)_mm256_madd_epi16(a.v, b.v)};
}
inline Part as_floats(Sums16 sums) { return {_mm256_cvtepi32_ps((__m256i)sums.v)}; }
#else
struct Sums16 {
  int32_t v[LANES];
};
struct Wide {
  int16_t v[WIDE];
};
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
inline Part as_floats(Sums16 sums) {
  float x[LANES];
  for (int i = 0; i < LANES; i++) x[i] = (float)sums.v[i];
  return load(x);
}
#endif

// A rotated block of x as numbers in the order of `place16`, and their scale.
inline void arrange16(const float* rotated, int16_t* numbers, float* scale) {
  static constexpr auto order = [] {
    Columns made{};
    for (int i = 0; i < BLOCK; i++)
      made.rotated[place16(i / 8, i % 8)] = (uint8_t)turned(column_of(i / 8, i % 8));
    return made;
  }();
  // What is no number is in all of a rotated block, and stays in its scale.
  Lanes found = zero();
  for (int i = 0; i < BLOCK; i += LANES) {
    const Lanes x = load(rotated + i);
    found = max(found, max(x, sub(zero(), x)));
  }
  const float most = largest(found);
  const float whole = MOST / most, factor = std::isfinite(whole) ? whole : 0;
  *scale = most / MOST;
  if (factor == 0) {  // what is no number has no integer
    memset(numbers, 0, BLOCK * sizeof *numbers);
    return;
  }
  int16_t rounded[BLOCK];
  for (int i = 0; i < BLOCK; i++) rounded[i] = (int16_t)std::nearbyint(rotated[i] * factor);
  for (int i = 0; i < BLOCK; i++) numbers[i] = rounded[order.rotated[i]];
}

// The levels of a table, and what one of them is worth.
template <int Bits>
struct Levels {
  float worth;
#if defined(HAS_OCTETS)
  static constexpr int ALL = std::max(BANK, 1 << Bits), COUNT = ALL / BANK;
  Bank low[COUNT], high[COUNT];
#else
  int16_t level[1 << Bits];
#endif

  explicit Levels(const float* centroids) {
    float most = 0;
    for (int i = 0; i < 1 << Bits; i++) most = std::max(most, std::fabs(centroids[i]));
    worth = most / LEVELS;
    const auto level_of = [&](int i) {
      return (int16_t)std::nearbyint(most > 0 ? centroids[i % (1 << Bits)] / worth : 0);
    };
#if defined(HAS_OCTETS)
    uint8_t bytes[2][ALL];
    for (int i = 0; i < ALL; i++) {
      bytes[0][i] = (uint8_t)(level_of(i) & 255);
      bytes[1][i] = (uint8_t)(level_of(i) >> 8 & 255);
    }
    for (int i = 0; i < COUNT; i++) {
      low[i] = bank_of(bytes[0] + BANK * i);
      high[i] = bank_of(bytes[1] + BANK * i);
    }
#else
    for (int i = 0; i < 1 << Bits; i++) level[i] = level_of(i);
#endif
  }
};

// A block of one row as levels: step by step to `take(step, levels)`.
template <int Bits, class Take>
inline void decode16(const Row<Bits>& row, const Levels<Bits>& levels, const Take& take) {
#if defined(HAS_OCTETS)
#pragma GCC unroll 4
  for (int i = 0; i < BLOCK / (4 * PART); i++) {
    const Octets codes = bytes_of(row, i);
    const Octets low = among_bytes<Levels<Bits>::COUNT>(levels.low, codes);
    const Octets high = among_bytes<Levels<Bits>::COUNT>(levels.high, codes);
    const int first = i / PARTS * 2 * PARTS + i % PARTS;
    take(first, Wide{low8(low, high)});
    take(first + PARTS, Wide{high8(low, high)});
  }
#else
  alignas(64) int16_t found[BLOCK];
  each_code<Bits>(row, [&](int word, int j, int code) {
    found[place16(word, j)] = levels.level[code];
  });
  for (int step = 0; step < STEPS16; step++) take(step, load16(found + WIDE * step));
#endif
}

// ---------------------------------------------------------------- products

template <int Bits>
struct Coarse {
  const Weight& weight;
  int64_t blocks;
  Levels<Bits> levels;
  explicit Coarse(const Weight& of)
      : weight(of), blocks(of.columns / BLOCK), levels(of.centroids) {}

  Row<Bits> row(int64_t row, int64_t block) const {
    Row<Bits> found((const uint8_t*)weight.data, weight.rows, row, blocks);
    found.skip(block);
    return found;
  }
  // What the levels of a row's blocks are worth, from `block` on: up to LANES of them.
  Lanes scales(int64_t row, int64_t block) const {
    const uint16_t* const norms = weight.norms + row * blocks + block;
    return mul(load_f16(norms, blocks - block), all(levels.worth * ROOT));
  }
};

inline Lanes whole(const Part* parts) {
  float lanes[LANES];
  for (int i = 0; i < PARTS; i++) store(lanes + PART * i, parts[i]);
  return load(lanes);
}

// One row of x by some rows of a weight at once.
template <int Bits, size_t... Each>
void dot16(const Coarse<Bits>& weight, const float* x, float* y, int64_t begin,
           std::index_sequence<Each...>) {
  const int16_t* numbers = (const int16_t*)x;
  const float* x_scales = x + weight.blocks * BLOCK / 2;
  constexpr int ROWS = sizeof...(Each);
  Part sums[ROWS][PARTS] = {};
  Row<Bits> rows[] = {weight.row(begin + Each, 0)...};
  alignas(64) float scales[ROWS][LANES];
  for (int64_t block = 0; block < weight.blocks; block++, numbers += BLOCK) {
    const int which = block % LANES;
    if (which == 0) (store(scales[Each], weight.scales(begin + Each, block)), ...);
    const auto one = [&](int n) {
      Sums16 exact[PARTS] = {};
      rows[n].prefetch(weight.blocks * ROWS);
      decode16<Bits>(rows[n], weight.levels, [&](int step, Wide w) {
        Sums16& part = exact[step % PARTS];
        part = add_products(part, w, load16(numbers + WIDE * step));
      });
      rows[n].skip(1);
      const Part scale = all_part(scales[n][which] * x_scales[block]);
      for (int i = 0; i < PARTS; i++) sums[n][i] = fma(as_floats(exact[i]), scale, sums[n][i]);
    };
    (one(Each), ...);
  }
  ((y[begin + Each] = sum(whole(sums[Each]))), ...);
}

template <int Bits>
void multiply_one(const Coarse<Bits>& weight, const float* x, float* y, int64_t begin,
                  int64_t end) {
  for (; begin + 2 <= end; begin += 2) dot16(weight, x, y, begin, std::make_index_sequence<2>());
  if (begin < end) dot16(weight, x, y, begin, std::make_index_sequence<1>());
}

constexpr int PASS_BLOCKS16 = 8;

// N rows of levels by M rows of x: the sums of a block stay in registers, those of all in memory.
template <int N, int M>
void tile16(const int16_t* w, const float* w_scales, const float* x, int64_t columns,
            int64_t block, int count, float* sums) {
  const int16_t* numbers = (const int16_t*)x + block * BLOCK;
  // Of all blocks, as one register: a row of x has zeros beyond its last scale.
  alignas(64) float scales[N][M][PASS_BLOCKS16];
  for (int n = 0; n < N; n++)
    for (int m = 0; m < M; m++)
      for (int b = 0; b < PASS_BLOCKS16; b++)
        scales[n][m][b] = w_scales[n * LANES + b] * (x + m * columns + columns / 2)[block + b];
  for (int part = 0; part < PARTS; part++, w += WIDE, numbers += WIDE, sums += PART)
    for (int b = 0; b < count; b++) {
      Sums16 exact[N][M];
      for (int n = 0; n < N; n++)
        for (int m = 0; m < M; m++) exact[n][m] = Sums16{};
      for (int at = b * BLOCK; at < (b + 1) * BLOCK; at += PARTS * WIDE) {
        Wide rows[N];
        for (int n = 0; n < N; n++) rows[n] = load16(w + n * PASS_BLOCKS16 * BLOCK + at);
        for (int m = 0; m < M; m++) {
          const Wide column = load16(numbers + 2 * m * columns + at);
          for (int n = 0; n < N; n++) exact[n][m] = add_products(exact[n][m], rows[n], column);
        }
      }
      for (int n = 0; n < N; n++)
        for (int m = 0; m < M; m++) {
          float* const sum = sums + n * SUMS + m * LANES;
          store(sum, fma(as_floats(exact[n][m]), all_part(scales[n][m][b]),
                         block + b ? load_part(sum) : Part{}));
        }
    }
}

template <int N, int M>
void tile16_of(int rows, const int16_t* w, const float* w_scales, const float* x, int64_t columns,
               int64_t block, int count, float* sums) {
  if (rows == M) return tile16<N, M>(w, w_scales, x, columns, block, count, sums);
  if constexpr (M > 1) tile16_of<N, M - 1>(rows, w, w_scales, x, columns, block, count, sums);
}

}  // namespace ISA
