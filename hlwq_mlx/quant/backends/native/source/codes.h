// A block of 128 codes in the layout P32 (packing.py), as float32 lanes.
//
// Lane 4 * q + w of step 4 * h + c is column 16 * (2 * w + h) + 4 * q + c of the block: then the
// codes of a lane lie side by side in the stream of a unit, eight of them in `Bits` whole bytes.
#pragma once
#include <type_traits>

#include "lanes.h"

namespace ISA {

constexpr int BLOCK = 128, UNITS = 4, STEPS = 8;

inline int column_of(int step, int lane) {
  return 16 * (2 * (lane % 4) + step / 4) + 4 * (lane / 4) + step % 4;
}

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

// Reads a block through its units' streams: eight codes, one by one, of each lane.
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

// The codes of a block: for either half, a lane's four codes from bit `first(h)` of its word on.
template <int Bits>
struct Codes {
  __m512i half[2];
  static constexpr int first(int h) {
    return Bits <= 4 ? 4 * Bits * h : Bits == 8 ? 0 : 4 * Bits * h % 8;
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
    } else if constexpr (Bits == 8) {
      const __m512i low = _mm512_loadu_si512(row.a), high = _mm512_loadu_si512(row.a + 64);
      const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
      const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
      half[0] = _mm512_permutex2var_epi32(low, even, high);
      half[1] = _mm512_permutex2var_epi32(low, odd, high);
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
  // What the planes B and C have of a block, side by side.
  static __m512i tail(const Row<Bits>& row) {
    __m512i found = _mm512_setzero_si512();
    if constexpr ((Bits & 2) != 0)
      found = _mm512_inserti64x4(found, _mm256_loadu_si256((const __m256i*)row.b), 0);
    if constexpr (Bits == 5) found = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)row.c));
    if constexpr (Bits == 3 || Bits == 7)
      found = _mm512_inserti32x4(found, _mm_loadu_si128((const __m128i*)row.c), 2);
    return found;
  }
};

// The centroids in registers. Shorter tables repeat, so that bits of the next code do no harm.
template <int Bits>
struct Table {
  static constexpr int COUNT = Bits <= 4 ? 1 : 1 << (Bits - 4);
  __m512 part[COUNT];
  explicit Table(const float* centroids) {
    alignas(64) float all[LANES * COUNT];
    for (int i = 0; i < LANES * COUNT; i++) all[i] = centroids[i & ((1 << Bits) - 1)];
    for (int i = 0; i < COUNT; i++) part[i] = _mm512_load_ps(all + LANES * i);
  }
  Table(const Table& table, __m512 scale) {
    for (int i = 0; i < COUNT; i++) part[i] = _mm512_mul_ps(table.part[i], scale);
  }
  // `word` has the codes in its lowest bits.
  __m512 operator()(__m512i word) const {
    if constexpr (COUNT == 1) {
      return _mm512_permutexvar_ps(word, part[0]);
    } else {
      return among<0, COUNT>(word);
    }
  }
  template <int First, int Count>
  __m512 among(__m512i word) const {
    if constexpr (Count == 2) {
      return _mm512_permutex2var_ps(part[First], word, part[First + 1]);
    } else {
      const __m512 low = among<First, Count / 2>(word);
      const __m512 high = among<First + Count / 2, Count / 2>(word);
      const __mmask16 upper = _mm512_test_epi32_mask(word, _mm512_set1_epi32(8 * Count));
      return _mm512_mask_blend_ps(upper, low, high);
    }
  }
};

// A block of one row, times its norm, whose steps are decoded when they are asked for.
template <int Bits>
struct Block {
  static constexpr bool IS_SHORT = Table<Bits>::COUNT <= 2;  // then its table is what is scaled
  const Codes<Bits> codes;
  const __m512 scale;
  const std::conditional_t<IS_SHORT, Table<Bits>, const Table<Bits>&> table;
  Block(const Row<Bits>& row, const Table<Bits>& of, float norm)
      : codes(row), scale(_mm512_set1_ps(norm)), table(scaled(of, scale)) {}
  Lanes step(int step) const {
    const int shift = Codes<Bits>::first(step / 4) + Bits * (step % 4);
    const __m512 found = table(_mm512_srli_epi32(codes.half[step / 4], shift));
    if constexpr (IS_SHORT) return {found};
    return {_mm512_mul_ps(found, scale)};
  }

 private:
  static decltype(auto) scaled(const Table<Bits>& of, __m512 scale) {
    if constexpr (IS_SHORT) return Table<Bits>(of, scale);
    else return of;
  }
};

#else

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

}  // namespace ISA
