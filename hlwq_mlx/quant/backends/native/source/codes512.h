// The codes of a block by AVX-512: words in the lanes of a register, or 64 codes a byte each.
#pragma once

namespace ISA {

// A short table is in registers whole.
constexpr bool by_bytes(int bits) { return bits > 5; }

using Octets = __m512i;
using Bank = __m512i;  // of bytes that are looked up
constexpr int BANK = 64;
inline Bank bank_of(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
inline Octets all_bytes(int x) { return _mm512_set1_epi8((char)x); }
// Codes up to `most`, of the upper half as those that they mirror.
inline Octets fold(Octets codes, Octets most) {
  return _mm512_min_epu8(_mm512_and_si512(codes, most), _mm512_andnot_si512(codes, most));
}
// a ^ (b & c)
inline Octets turn(Octets a, Octets b, Octets c) {
  return _mm512_ternarylogic_epi32(a, b, c, 0x78);
}
template <int Bits>
inline Octets shift(Octets a) {
  return Bits ? _mm512_slli_epi16(a, Bits) : a;
}
inline Octets low8(Octets a, Octets b) { return _mm512_unpacklo_epi8(a, b); }
inline Octets high8(Octets a, Octets b) { return _mm512_unpackhi_epi8(a, b); }
inline Octets low16(Octets a, Octets b) { return _mm512_unpacklo_epi16(a, b); }
inline Octets high16(Octets a, Octets b) { return _mm512_unpackhi_epi16(a, b); }
inline Part as_part(Octets a) { return {_mm512_castsi512_ps(a)}; }
inline Lanes join(const Part (*parts)[4], int which) { return parts[0][which]; }

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

// Which bytes of register `which` the words from `word` on take, each `Count` from its byte `first`
// on; `Stride` bytes are for a word.
template <int Bits, int Stride, int Count>
constexpr Order order_of(int which, int word, int first) {
  Order order{};
  for (int i = 0; i < 64 / Stride; i++, word++)
    for (int byte = 0; byte < Count; byte++) {
      const int at = byte_of<Bits>(word / 4, Bits * (word % 4) + first + byte);
      if (at < 0 || at / 64 != which) continue;
      order.index[Stride * i + byte] = at % 64;
      order.mask |= 1ull << (Stride * i + byte);
    }
  return order;
}

// Of all words what has the four codes of a half, 32 bits each.
template <int Bits>
constexpr Order half_of(int h, int which) {
  return order_of<Bits, 4, 4>(which, 0, Bits * h / 2);
}

template <int Bits>
inline constexpr Order ORDERS[2][2] = {{half_of<Bits>(0, 0), half_of<Bits>(0, 1)},
                                       {half_of<Bits>(1, 0), half_of<Bits>(1, 1)}};

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

// The eight words of half `g` whole, 64 bits each.
template <int Bits>
constexpr Order words_of(int g, int which) {
  return order_of<Bits, 8, Bits>(which, 8 * g, 0);
}

template <int Bits>
inline constexpr Order WORDS[2][2] = {{words_of<Bits>(0, 0), words_of<Bits>(0, 1)},
                                      {words_of<Bits>(1, 0), words_of<Bits>(1, 1)}};

// The codes of words 8 * g to 8 * g + 7, a byte each; above a code are bits of the next.
template <int Bits>
inline Octets bytes_of(const Row<Bits>& row, int g) {
  if constexpr (Bits == 8) {
    return _mm512_loadu_si512(row.a + 64 * g);
  } else {
    alignas(64) static constexpr auto shifts = [] {
      struct Shifts {
        uint8_t at[64];
      } made{};
      for (int i = 0; i < 64; i++) made.at[i] = (uint8_t)(i % 8 * Bits);
      return made;
    }();
    const __m512i rest = tail(row), front = Bits >= 4 ? _mm512_loadu_si512(row.a) : rest;
    __m512i words = _mm512_permutexvar_epi8(order_index(WORDS<Bits>[g][0]), front);
    if constexpr (Bits > 4)
      words = _mm512_mask_permutexvar_epi8(words, WORDS<Bits>[g][1].mask,
                                           order_index(WORDS<Bits>[g][1]), rest);
    return _mm512_multishift_epi64_epi8(_mm512_load_si512(shifts.at), words);
  }
}

// The byte of each code, among `Count` times 64.
template <int Count>
inline Octets among_bytes(const Bank* part, Octets codes) {
  if constexpr (Count <= 1) return _mm512_permutexvar_epi8(codes, part[0]);
  if constexpr (Count == 2) return _mm512_permutex2var_epi8(part[0], codes, part[1]);
  if constexpr (Count == 4) {
    const Octets below = among_bytes<2>(part, codes), above = among_bytes<2>(part + 2, codes);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), below, above);
  }
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

// A block of one row, times its norm, which scales the table; steps are decoded when asked for.
template <int Bits, bool ByBytes = by_bytes(Bits)>
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

}  // namespace ISA
