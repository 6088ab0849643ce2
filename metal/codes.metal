// codes: from the words of P32 (packing.py) to centroids.
//   a unit    32 codes of a block, the share of one lane: `bits` words from up to three planes
//   a table   centroids in threadgroup memory, as vec<E, 2>: pairs of codes at 2 and 3 bits (one
//             lookup is two weights), single codes from 4 bits on; none at 1 bit, a select does it
#pragma once
#include "common.metal"

namespace hlwq {

// The words of one unit, from up to three planes of `units` units each. Indices of 32 bits, for the
// GPU adds them to an array's start at no cost; sums of pointers have 64 and take instructions.
template <int B>
METAL_FUNC void load_unit(const device uint* codes, uint units, uint unit, thread uint* words) {
  constexpr int QUADS = B / 4;
  constexpr int PAIRS = (B >> 1) & 1;
  HLWQ_UNROLL
  for (int a = 0; a < QUADS; a++) {
    const uint4 v = ((const device uint4*)codes)[unit * uint(QUADS) + uint(a)];
    HLWQ_UNROLL
    for (int i = 0; i < 4; i++) {
      words[4 * a + i] = v[i];
    }
  }
  if (PAIRS == 1) {
    const uint2 v = ((const device uint2*)codes)[units * uint(2 * QUADS) + unit];
    words[4 * QUADS] = v.x;
    words[4 * QUADS + PAIRS] = v.y;
  }
  if ((B & 1) == 1) {
    words[B - 1] = codes[units * uint(B - 1) + unit];
  }
}

// Field `index`, W bits wide, of the stream of a unit of B words.
template <int B, int W>
METAL_FUNC uint field(const thread uint* words, int index) {
  const int word = (index * W) >> 5;
  const int shift = (index * W) & 31;
  uint v = words[word] >> shift;
  if (shift + W > 32) {
    v |= words[word + 1 < B ? word + 1 : B - 1] << ((32 - shift) & 31);
  }
  return v & ((1u << W) - 1u);
}

constexpr int table_size(int bits) {
  return bits == 1 ? 1 : (bits <= 3 ? 1 << (2 * bits) : 1 << (bits - 1));
}

// Fill a table together: thread `index` of `count`. The caller sets the barrier.
template <int B, typename E>
METAL_FUNC void fill_table(
    const device float* centroids, threadgroup vec<E, 2>* table, uint index, uint count) {
  for (uint i = index; B > 1 && i < uint(table_size(B)); i += count) {
    const uint first = B <= 3 ? i & ((1u << B) - 1u) : 2u * i;
    const uint second = B <= 3 ? i >> B : 2u * i + 1u;
    table[i] = vec<E, 2>(E(centroids[first]), E(centroids[second]));
  }
}

// A pair of halves is loaded as 32 bits at once, whose size the GPU scales the index by.
METAL_FUNC float2 load_pair(const threadgroup half2* table, uint index) {
  return float2(as_type<half2>(((const threadgroup uint*)table)[index]));
}

METAL_FUNC float2 load_pair(const threadgroup float2* table, uint index) { return table[index]; }

// Codes 4*quad .. 4*quad+3 of a unit as centroids. `ends` are both centroids of a 1-bit table.
template <int B, typename E>
METAL_FUNC void decode4(
    const thread uint* words, int quad, const threadgroup vec<E, 2>* table, float2 ends,
    thread float* c) {
  if (B == 1) {
    HLWQ_UNROLL
    for (int t = 0; t < 4; t++) {
      c[t] = (words[0] & (1u << (4 * quad + t))) != 0u ? ends.y : ends.x;
    }
  } else if (B <= 3) {
    HLWQ_UNROLL
    for (int t = 0; t < 2; t++) {
      const float2 pair = load_pair(table, field<B, 2 * B>(words, 2 * quad + t));
      c[2 * t] = pair.x;
      c[2 * t + 1] = pair.y;
    }
  } else {
    const threadgroup E* single = (const threadgroup E*)table;
    HLWQ_UNROLL
    for (int t = 0; t < 4; t++) {
      c[t] = float(single[field<B, B>(words, 4 * quad + t)]);
    }
  }
}

}  // namespace hlwq
