// A block of 128 codes in the layout P32 (packing.py), as float32 lanes.
//
// The stream of unit q is four words of eight codes, in `Bits` whole bytes each. Word 4 * q + w has
// the eight steps of a lane, but where the table is too long for that (Planes).
#pragma once
#include <algorithm>
#include <type_traits>

#include "lanes.h"
#include "rotation.h"

namespace ISA {

constexpr int UNITS = 4, STEPS = 8;

// The column of a block whose code is the j-th of a word.
constexpr int column_of(int word, int j) {
  return 16 * (2 * (word % 4) + j / 4) + 4 * (word / 4) + j % 4;
}

// Which column each lane of each step holds, and where it is in a rotated block.
struct Columns {
  uint8_t at[BLOCK], rotated[BLOCK];
};

template <int Bytes>
inline void prefetch(const uint8_t* from) {
  for (int at = 0; at < Bytes; at += 64) __builtin_prefetch(from + at);
}

// Where a row's blocks lie in the three planes of a matrix of `rows` rows.
template <int Bits>
struct Row {
  static constexpr int A = 16 * (Bits & 12), B = 16 * (Bits & 2), C = 16 * (Bits & 1);
  const uint8_t *a, *b, *c;
  Row(const uint8_t* codes, int64_t rows, int64_t row, int64_t blocks)
      : a(codes + row * blocks * A),
        b(codes + rows * blocks * A + row * blocks * B),
        c(codes + rows * blocks * (A + B) + row * blocks * C) {}
  // The codes a few rows on, which the processor does not foresee.
  void prefetch(int64_t blocks) const {
    ISA::prefetch<A>(a + blocks * A);
    ISA::prefetch<B>(b + blocks * B);
    ISA::prefetch<C>(c + blocks * C);
  }
  void skip(int64_t blocks) {
    a += blocks * A;
    b += blocks * B;
    c += blocks * C;
  }
};

// Reads a block through its units' streams: eight codes, one by one, of each word.
template <int Bits, class Take>
inline void each_code(const Row<Bits>& row, const Take& take) {
  constexpr int a = 4 * (Bits & 12), b = 4 * (Bits & 2), c = 4 * (Bits & 1);
  for (int q = 0; q < UNITS; q++) {
    uint8_t stream[40] = {};
    memcpy(stream, row.a + q * a, a);
    memcpy(stream + a, row.b + q * b, b);
    memcpy(stream + a + b, row.c + q * c, c);
    for (int w = 0; w < 4; w++) {
      uint64_t word;
      memcpy(&word, stream + Bits * w, 8);
      for (int j = 0; j < 8; j++) take(4 * q + w, j, (int)(word >> (Bits * j) & ((1 << Bits) - 1)));
    }
  }
}

#if defined(__AVX512VBMI__)

// The byte of a block's planes, A before B before C, that is byte `at` of unit `q`'s stream.
template <int Bits>
constexpr int byte_of(int q, int at) {
  constexpr int a = 4 * (Bits & 12), b = 4 * (Bits & 2), c = 4 * (Bits & 1);
  if (at >= a + b + c) return -1;
  if (at < a) return a * q + at;
  if (at < a + b) return 4 * a + b * q + at - a;
  return 4 * (a + b) + c * q + at - a - b;
}

struct Order {
  alignas(64) uint8_t index[64];
  uint64_t mask;
};

// Which bytes of register `which` the lanes of half `h` take: a lane's four bytes from its first.
template <int Bits>
constexpr Order order_of(int h, int which) {
  Order order{};
  for (int lane = 0; lane < LANES; lane++)
    for (int byte = 0; byte < 4; byte++) {
      int at = byte_of<Bits>(lane / 4, Bits * (lane % 4) + Bits * h / 2 + byte);
      if (at < 0 || at / 64 != which) continue;
      order.index[4 * lane + byte] = at % 64;
      order.mask |= 1ull << (4 * lane + byte);
    }
  return order;
}

template <int Bits>
inline constexpr Order ORDERS[2][2] = {{order_of<Bits>(0, 0), order_of<Bits>(0, 1)},
                                       {order_of<Bits>(1, 0), order_of<Bits>(1, 1)}};

inline __m512i order_index(const Order& order) { return _mm512_load_si512(order.index); }

// What the planes B and C have of a block, side by side.
template <int Bits>
inline __m512i tail(const Row<Bits>& row) {
  __m512i found = _mm512_setzero_si512();
  if constexpr ((Bits & 2) != 0)
    found = _mm512_inserti64x4(found, _mm256_loadu_si256((const __m256i*)row.b), 0);
  if constexpr ((Bits & 1) != 0)
    found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i*)row.c), Bits & 2 ? 2 : 0);
  return found;
}

// As Order: which bytes of a block's planes the eight words of half `g` take, 64 bits each.
template <int Bits>
constexpr Order words_of(int g, int which) {
  Order order{};
  for (int word = 0; word < 8; word++)
    for (int byte = 0; byte < Bits; byte++) {
      const int lane = 8 * g + word, at = byte_of<Bits>(lane / 4, Bits * (lane % 4) + byte);
      if (at / 64 != which) continue;
      order.index[8 * word + byte] = at % 64;
      order.mask |= 1ull << (8 * word + byte);
    }
  return order;
}

template <int Bits>
inline constexpr Order WORDS[2][2] = {{words_of<Bits>(0, 0), words_of<Bits>(0, 1)},
                                      {words_of<Bits>(1, 0), words_of<Bits>(1, 1)}};

// The codes of a block, a byte each: `half[g]` has those of words 8 * g to 8 * g + 7. Above a code
// are bits of the next.
template <int Bits>
struct Bytes {
  __m512i half[2];
  explicit Bytes(const Row<Bits>& row) {
    if constexpr (Bits == 8) {
      for (int g = 0; g < 2; g++) half[g] = _mm512_loadu_si512(row.a + 64 * g);
    } else {
      const __m512i rest = tail(row);
      const __m512i front = Bits >= 4 ? _mm512_loadu_si512(row.a) : rest;
      alignas(64) static constexpr auto shifts = [] {
        struct Shifts {
          uint8_t at[64];
        } made{};
        for (int i = 0; i < 64; i++) made.at[i] = (uint8_t)(i % 8 * Bits);
        return made;
      }();
      for (int g = 0; g < 2; g++) {
        __m512i words = _mm512_permutexvar_epi8(order_index(WORDS<Bits>[g][0]), front);
        if constexpr (Bits > 4)
          words = _mm512_mask_permutexvar_epi8(words, WORDS<Bits>[g][1].mask,
                                               order_index(WORDS<Bits>[g][1]), rest);
        half[g] = _mm512_multishift_epi64_epi8(_mm512_load_si512(shifts.at), words);
      }
    }
  }
};

inline __m512i among_bytes(const __m512i* part, int count, __m512i code) {
  if (count == 1) return _mm512_permutexvar_epi8(code, part[0]);
  if (count == 2) return _mm512_permutex2var_epi8(part[0], code, part[1]);
  const __m512i below = _mm512_permutex2var_epi8(part[0], code, part[1]);
  const __m512i above = _mm512_permutex2var_epi8(part[2], code, part[3]);
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(code), below, above);
}

// The codes of a block: for either half, a lane's four codes from bit `first(h)` of its word on.
template <int Bits>
struct Codes {
  __m512i half[2];
  static constexpr int first(int h) {
    return Bits <= 4 ? 4 * Bits * h : 4 * Bits * h % 8;
  }
  explicit Codes(const Row<Bits>& row) {
    if constexpr (Bits == 1) {
      half[0] = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)row.c));
    } else if constexpr (Bits == 2) {
      half[0] = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)row.b));
    } else if constexpr (Bits == 3) {
      half[0] = _mm512_permutexvar_epi8(order_index(ORDERS<3>[0][0]), tail(row));
    } else if constexpr (Bits == 4) {
      half[0] = _mm512_loadu_si512(row.a);
    } else {
      const __m512i a = _mm512_loadu_si512(row.a), rest = tail(row);
      for (int h = 0; h < 2; h++) {
        const Order &from_a = ORDERS<Bits>[h][0], &from_rest = ORDERS<Bits>[h][1];
        const __m512i part = _mm512_permutexvar_epi8(order_index(from_a), a);
        half[h] = _mm512_mask_permutexvar_epi8(part, from_rest.mask, order_index(from_rest), rest);
      }
    }
    if constexpr (Bits <= 4) half[1] = half[0];
  }
};

// Up to 32 centroids, in one or two registers. Shorter tables repeat, so that bits of the next code
// do no harm.
template <int Bits>
struct Floats {
  static constexpr int COUNT = Bits <= 4 ? 1 : 2;
  __m512 part[COUNT];
  explicit Floats(const float* centroids) {
    alignas(64) float all[LANES * COUNT];
    for (int i = 0; i < LANES * COUNT; i++) all[i] = centroids[i & ((1 << Bits) - 1)];
    for (int i = 0; i < COUNT; i++) part[i] = _mm512_load_ps(all + LANES * i);
  }
  Floats(const Floats& table, __m512 scale) {
    for (int i = 0; i < COUNT; i++) part[i] = _mm512_mul_ps(table.part[i], scale);
  }
  // `word` has the codes in its lowest bits.
  __m512 operator()(__m512i word) const {
    if constexpr (COUNT == 1) return _mm512_permutexvar_ps(word, part[0]);
    if constexpr (COUNT == 2) return _mm512_permutex2var_ps(part[0], word, part[1]);
  }
};

// More centroids: each of a float's four bytes is looked up by itself, of 64 codes at once. Where
// the upper half of a table mirrors the lower, the lower is enough.
template <int Bits>
struct Planes {
  static constexpr int COUNT = 1 << (Bits - 6), HALF = COUNT / 2;
  __m512i part[4][COUNT];
  bool is_mirrored = HALF > 0;
  explicit Planes(const float* centroids) {
    constexpr int ALL = 1 << Bits;
    alignas(64) uint8_t bytes[4][ALL];
    uint32_t words[ALL];
    memcpy(words, centroids, sizeof words);
    for (int i = 0; i < ALL; i++) {
      for (int byte = 0; byte < 4; byte++) bytes[byte][i] = (uint8_t)(words[i] >> 8 * byte);
      is_mirrored = is_mirrored && (words[i] ^ words[ALL - 1 - i]) == 1u << 31;
    }
    for (int byte = 0; byte < 4; byte++)
      for (int i = 0; i < COUNT; i++) part[byte][i] = _mm512_load_si512(bytes[byte] + 64 * i);
  }
  // The centroids of a half of Bytes, as four steps of Columns.
  void look_up(__m512i codes, __m512 scale, Lanes* steps) const {
    __m512i bytes[4];
    if (HALF && is_mirrored) {
      const __m512i most = _mm512_set1_epi8((char)((1 << Bits) - 1));
      const __m512i places =
          _mm512_min_epu8(_mm512_and_si512(codes, most), _mm512_andnot_si512(codes, most));
      for (int byte = 0; byte < 4; byte++) bytes[byte] = among_bytes(part[byte], HALF, places);
      const __m512i signs = Bits == 8 ? codes : _mm512_slli_epi16(codes, 8 - Bits);
      // 0x78: the sign is turned where it is that of the upper half.
      bytes[3] = _mm512_ternarylogic_epi32(bytes[3], signs, _mm512_set1_epi8(-128), 0x78);
    } else {
      for (int byte = 0; byte < 4; byte++) bytes[byte] = among_bytes(part[byte], COUNT, codes);
    }
    const __m512i low[] = {_mm512_unpacklo_epi8(bytes[0], bytes[1]),
                           _mm512_unpackhi_epi8(bytes[0], bytes[1])};
    const __m512i high[] = {_mm512_unpacklo_epi8(bytes[2], bytes[3]),
                            _mm512_unpackhi_epi8(bytes[2], bytes[3])};
    for (int i = 0; i < 2; i++) {
      const __m512 even = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low[i], high[i]));
      const __m512 odd = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low[i], high[i]));
      steps[2 * i] = {_mm512_mul_ps(even, scale)};
      steps[2 * i + 1] = {_mm512_mul_ps(odd, scale)};
    }
  }
};

constexpr bool is_long(int bits) { return bits > 5; }

template <int Bits>
using Table = std::conditional_t<is_long(Bits), Planes<Bits>, Floats<Bits>>;

// A block of one row, times its norm. Of a short table that is what is scaled, and steps are decoded
// when they are asked for.
template <int Bits, bool IsLong = is_long(Bits)>
struct Block {
  const Codes<Bits> codes;
  const Floats<Bits> table;
  Block(const Row<Bits>& row, const Floats<Bits>& of, float norm)
      : codes(row), table(of, _mm512_set1_ps(norm)) {}
  Lanes step(int step) const {
    const int shift = Codes<Bits>::first(step / 4) + Bits * (step % 4);
    return {table(_mm512_srli_epi32(codes.half[step / 4], shift))};
  }
};

template <int Bits>
struct Block<Bits, true> {
  Lanes steps[STEPS];
  Block(const Row<Bits>& row, const Planes<Bits>& table, float norm) {
    const Bytes<Bits> codes(row);
    for (int g = 0; g < 2; g++) table.look_up(codes.half[g], _mm512_set1_ps(norm), steps + 4 * g);
  }
  Lanes step(int step) const { return steps[step]; }
};

#else

constexpr bool is_long(int) { return false; }

template <int Bits>
struct Table {
  float centroids[1 << Bits];
  explicit Table(const float* all) { memcpy(centroids, all, sizeof centroids); }
};

template <int Bits>
struct Block {
  alignas(64) float values[STEPS][LANES];
  Block(const Row<Bits>& row, const Table<Bits>& table, float norm) {
    each_code<Bits>(row, [&](int lane, int step, int code) {
      values[step][lane] = table.centroids[code] * norm;
    });
  }
  Lanes step(int step) const { return load(values[step]); }
};

#endif

constexpr Columns make_columns(bool of_planes) {
  Columns made{};
  for (int at = 0; at < BLOCK; at++) {
    const int step = at / LANES, lane = at % LANES;
    const int word = 8 * (step / 4) + 2 * (lane / 4) + step % 4 / 2;
    made.at[at] = (uint8_t)(of_planes ? column_of(word, 4 * (step % 2) + lane % 4)
                                      : column_of(lane, step));
    made.rotated[at] = (uint8_t)turned(made.at[at]);
  }
  return made;
}

inline const Columns& columns_of(int bits) {
  static constexpr Columns of_lanes = make_columns(false), of_planes = make_columns(true);
  return is_long(bits) ? of_planes : of_lanes;
}

}  // namespace ISA
