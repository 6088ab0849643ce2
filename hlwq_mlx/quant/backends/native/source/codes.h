// A block of 128 codes in the layout P32 (packing.py), as float32 lanes.
//
// The stream of unit q is four words of eight codes, in `Bits` whole bytes each. Word 4 * q + w has
// the eight steps of a lane, but where the table is too long for that (Bytes).
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

}  // namespace ISA

#if defined(__AVX512VBMI__)
#define HAS_OCTETS
#include "codes512.h"
#elif defined(__AVX2__)
#define HAS_OCTETS
#include "codes256.h"
#endif

namespace ISA {

#if !defined(HAS_OCTETS)
constexpr bool by_bytes(int) { return false; }
#endif

#if !defined(__AVX512VBMI__)

template <int Bits>
struct Floats {
  float centroids[1 << Bits];
  explicit Floats(const float* all) { memcpy(centroids, all, sizeof centroids); }
};

// A block of one row, times its norm.
template <int Bits, bool ByBytes = by_bytes(Bits)>
struct Block {
  alignas(64) float values[STEPS][LANES];
  Block(const Row<Bits>& row, const Floats<Bits>& table, float norm) {
    each_code<Bits>(row, [&](int word, int step, int code) {
      values[step][word] = table.centroids[code] * norm;
    });
  }
  Lanes step(int step) const { return load(values[step]); }
};

#endif

#if defined(HAS_OCTETS)

// Centroids byte by byte: each of a float's four is looked up by itself, of a register of codes at
// once. Where the upper half of a table mirrors the lower, the lower is enough.
template <int Bits>
struct Bytes {
  static constexpr int ALL = std::max(BANK, 1 << Bits), COUNT = ALL / BANK, HALF = COUNT / 2;
  Bank part[4][COUNT];
  bool is_mirrored = HALF > 0;
  explicit Bytes(const float* centroids) {
    uint8_t bytes[4][ALL];
    uint32_t words[ALL];
    for (int i = 0; i < ALL; i++) memcpy(words + i, centroids + i % (1 << Bits), sizeof *words);
    for (int i = 0; i < ALL; i++) {
      for (int byte = 0; byte < 4; byte++) bytes[byte][i] = (uint8_t)(words[i] >> 8 * byte);
      is_mirrored = is_mirrored && (words[i] ^ words[ALL - 1 - i]) == 1u << 31;
    }
    for (int byte = 0; byte < 4; byte++)
      for (int i = 0; i < COUNT; i++) part[byte][i] = bank_of(bytes[byte] + BANK * i);
  }
  // The centroids of codes, times a scale: four steps of Columns, or a part of those.
  void look_up(Octets codes, Part scale, Part* steps) const {
    Octets bytes[4];
    if (HALF && is_mirrored) {
      const Octets places = fold(codes, all_bytes((1 << Bits) - 1));
      for (int byte = 0; byte < 4; byte++) bytes[byte] = among_bytes<HALF>(part[byte], places);
      // The sign of the upper half.
      bytes[3] = turn(bytes[3], shift<8 - Bits>(codes), all_bytes(128));
    } else {
      for (int byte = 0; byte < 4; byte++) bytes[byte] = among_bytes<COUNT>(part[byte], codes);
    }
    const Octets low[] = {low8(bytes[0], bytes[1]), high8(bytes[0], bytes[1])};
    const Octets high[] = {low8(bytes[2], bytes[3]), high8(bytes[2], bytes[3])};
    for (int i = 0; i < 2; i++) {
      steps[2 * i] = mul(as_part(low16(low[i], high[i])), scale);
      steps[2 * i + 1] = mul(as_part(high16(low[i], high[i])), scale);
    }
  }
};

template <int Bits>
struct Block<Bits, true> {
  static constexpr int COUNT = BLOCK / (4 * PART);
  Part steps[COUNT][4];
  Block(const Row<Bits>& row, const Bytes<Bits>& table, float norm) {
    for (int i = 0; i < COUNT; i++) table.look_up(bytes_of(row, i), all_part(norm), steps[i]);
  }
  Lanes step(int step) const { return join(steps + step / 4 * PARTS, step % 4); }
};

template <int Bits>
using Table = std::conditional_t<by_bytes(Bits), Bytes<Bits>, Floats<Bits>>;

#else

template <int Bits>
using Table = Floats<Bits>;

#endif

constexpr Columns make_columns(bool of_bytes) {
  Columns made{};
  for (int at = 0; at < BLOCK; at++) {
    const int step = at / LANES, lane = at % LANES;
    const int word = 8 * (step / 4) + 2 * (lane / 4) + step % 4 / 2;
    made.at[at] = (uint8_t)(of_bytes ? column_of(word, 4 * (step % 2) + lane % 4)
                                      : column_of(lane, step));
    made.rotated[at] = (uint8_t)turned(made.at[at]);
  }
  return made;
}

inline const Columns& columns_of(int bits) {
  static constexpr Columns of_lanes = make_columns(false), of_bytes = make_columns(true);
  return by_bytes(bits) ? of_bytes : of_lanes;
}

}  // namespace ISA
