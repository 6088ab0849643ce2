// The codes of a block by AVX2: 32 of them at a time, the four words of a unit.
#pragma once

namespace ISA {

// Of eight bits, all the banks take longer than one code after the other.
constexpr bool by_bytes(int bits) { return bits < 8; }

using Octets = __m256i;
constexpr int BANK = 16;
struct Bank {  // of bytes that are looked up
  alignas(BANK) uint8_t at[BANK];
};
inline Bank bank_of(const uint8_t* bytes) {
  Bank found;
  memcpy(found.at, bytes, BANK);
  return found;
}
inline Octets all_bytes(int x) { return _mm256_set1_epi8((char)x); }
// Codes up to `most`, of the upper half as those that they mirror.
inline Octets fold(Octets codes, Octets most) { return _mm256_min_epu8(codes, codes ^ most); }
inline Octets turn(Octets a, Octets b, Octets c) { return a ^ (b & c); }
template <int Bits>
inline Octets shift(Octets a) {
  return Bits ? _mm256_slli_epi16(a, Bits) : a;
}
inline Octets low8(Octets a, Octets b) { return _mm256_unpacklo_epi8(a, b); }
inline Octets high8(Octets a, Octets b) { return _mm256_unpackhi_epi8(a, b); }
inline Octets low16(Octets a, Octets b) { return _mm256_unpacklo_epi16(a, b); }
inline Octets high16(Octets a, Octets b) { return _mm256_unpackhi_epi16(a, b); }
inline Part as_part(Octets a) { return {_mm256_castsi256_ps(a)}; }
inline Lanes join(const Part (*parts)[4], int which) {
  return {{parts[0][which].v, parts[1][which].v}};
}

// Which bytes of a unit's plane A its words take, or of B and C side by side; 128 is none.
struct Order {
  alignas(32) uint8_t index[32];
};

template <int Bits>
constexpr Order order_of(bool of_a) {
  constexpr int a = 4 * (Bits & 12);
  Order order{};
  for (int i = 0; i < 32; i++) {
    const int at = Bits * (i / 8) + i % 8;
    order.index[i] = (uint8_t)(i % 8 >= Bits || (at < a) != of_a ? 128 : at < a ? at : at - a);
  }
  return order;
}

template <int Bits>
inline constexpr Order ORDERS[2] = {order_of<Bits>(true), order_of<Bits>(false)};

inline __m256i in_order(__m128i bytes, const Order& order) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes),
                             _mm256_load_si256((const __m256i*)order.index));
}

// The codes of words 4 * q to 4 * q + 3, those of a unit, a byte each.
template <int Bits>
inline Octets bytes_of(const Row<Bits>& row, int q) {
  if constexpr (Bits == 8) return _mm256_loadu_si256((const __m256i*)(row.a + 32 * q));
  __m256i codes = _mm256_setzero_si256();
  if constexpr ((Bits & 4) != 0)
    codes = in_order(_mm_loadu_si128((const __m128i*)(row.a + 16 * q)), ORDERS<Bits>[0]);
  if constexpr ((Bits & 3) != 0) {
    __m128i rest = _mm_setzero_si128();
    int32_t last;
    if constexpr ((Bits & 2) != 0) rest = _mm_loadl_epi64((const __m128i*)(row.b + 8 * q));
    if constexpr ((Bits & 1) != 0) {
      memcpy(&last, row.c + 4 * q, 4);
      rest = _mm_insert_epi32(rest, last, Bits & 2 ? 2 : 0);
    }
    codes = _mm256_or_si256(codes, in_order(rest, ORDERS<Bits>[1]));
  }
  // The upper half of a word's codes moves up, then that of each half, and that of each quarter.
  const auto halves = [](__m256i x, __m256i moved, __m256i lower, __m256i upper) {
    return _mm256_or_si256(_mm256_and_si256(x, lower), _mm256_and_si256(moved, upper));
  };
  constexpr int64_t four = (1ll << 4 * Bits) - 1, two = (1 << 2 * Bits) - 1, one = (1 << Bits) - 1;
  codes = halves(codes, _mm256_slli_epi64(codes, 32 - 4 * Bits), _mm256_set1_epi64x(four),
                 _mm256_set1_epi64x(four << 32));
  codes = halves(codes, _mm256_slli_epi32(codes, 16 - 2 * Bits), _mm256_set1_epi32((int)two),
                 _mm256_set1_epi32((int)(two << 16)));
  return halves(codes, _mm256_slli_epi16(codes, 8 - Bits), _mm256_set1_epi16((short)one),
                _mm256_set1_epi16((short)(one << 8)));
}

// The byte of each code, among `Count` times 16.
template <int Count>
inline Octets among_bytes(const Bank* part, Octets codes) {
  if constexpr (Count <= 1) {
    const __m256i bank = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)part->at));
    return _mm256_shuffle_epi8(bank, codes & all_bytes(15));
  } else {
    const Octets below = among_bytes<Count / 2>(part, codes);
    const Octets above = among_bytes<Count / 2>(part + Count / 2, codes);
    constexpr int chooses = Count == 2 ? 4 : Count == 4 ? 5 : Count == 8 ? 6 : 7;
    return _mm256_blendv_epi8(below, above, shift<7 - chooses>(codes));
  }
}

}  // namespace ISA
