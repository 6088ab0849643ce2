// qmv: y[m, n] = sum over k of x[m, k] * W[n, k], for a few rows of x.   Twins: codec.qmv, geglu
//   W          norms * centroids[codes] / sqrt(128), in the rotated basis; x is rotated already
//   x          T       [M, K]         contiguous, 16-byte aligned      T float, half or bfloat
//   codes      uint    P32 of [N, K]  B bits a code, 16-byte aligned   norms half [N, K / 128]
//   centroids  float   [>= 2^B]                                        y TO [M, N], GEGLU [M, N / 2]
//   tables     E       threadgroup, table_size(B) for each simdgroup: a private copy is faster
//                      than a shared one; half entries halve its traffic, float ones are exact
//   tile       LANES lanes a row, 32 / LANES rows side by side, ROWS rows a lane, TOKENS rows of x
//   group      (32, SIMDGROUPS, 1); grid (32 * ceil(M / TOKENS), SIMDGROUPS * groups of rows, 1)
//   part       W may be the N rows from `start` on of a matrix of `height` rows
//   GEGLU      rows are gate|up, N / 2 each; a lane holds both and writes gelu_tanh(gate) * up
//   limits     K % 128 == 0, (K / 32) % LANES == 0, N * K >= 1024, N * K * B / 32 < 2^32;
//              N and ROWS even for GEGLU; x below 2^113 at 1 bit
//   sums       float; a unit's sum times its norm; over LANES by shuffles; rounded once to TO
//   1 bit      a unit's sum is c0 * sum(x) + (c1 - c0) * sum(x where the code is 1): the rows share
//              the first, and the second needs no centroids
//   rows       of x do not touch each other, and K alone chooses LANES, which order the sums: a row
//              of y has the same bits whatever M is
#pragma once
#include "codes.metal"

namespace hlwq {

// `sum` plus four centroids times their columns of x.
METAL_FUNC float multiply4(const thread float* c, float4 x, float sum) {
  sum = fma(c[0], x.x, sum);
  sum = fma(c[1], x.y, sum);
  sum = fma(c[2], x.z, sum);
  return fma(c[3], x.w, sum);
}

METAL_FUNC float add4(float4 x, float sum) { return sum + x.x + x.y + x.z + x.w; }

// The order of quads: at 1 bit two of them take their codes from one shifted word.
constexpr int quad_in_turn(int bits, int i) { return bits == 1 ? i / 2 + 4 * (i % 2) : i; }

// Codes 4*quad .. 4*quad+3 of 1 bit, each as it stands in the exponent of a half: 0, or a power of two,
// which times its element of `bit_powers` is 1.
METAL_FUNC void exponents4(uint word, int quad, thread float* c) {
  const int left = 10 - 4 * (quad % 4);
  const uint moved = left < 0 ? word >> 2 : word << (left & 31);
  const ushort codes = ushort(quad < 4 ? moved : moved >> 16);
  HLWQ_UNROLL
  for (int t = 0; t < 4; t++) {
    c[t] = float(as_type<half>(ushort(codes & (0x400 << t))));
  }
}

METAL_FUNC float4 bit_powers() { return float4(16384.0f, 8192.0f, 2048.0f, 128.0f); }

template <typename E, int B, int ROWS, int LANES, int SIMDGROUPS, int TOKENS, bool GEGLU,
          typename T, typename TO>
METAL_FUNC void qmv(
    const device T* x, const device uint* codes, const device half* norms,
    const device float* centroids, device TO* y, threadgroup vec<E, 2>* tables, uint M, uint K,
    uint N, uint height, uint start, uint3 group, uint simdgroup, uint lane) {
  constexpr int HALVES = GEGLU ? 2 : 1;
  constexpr int OUTPUTS = ROWS / HALVES;
  constexpr uint SIDE = 32 / LANES;
  constexpr bool SUMMED = B == 1;
  // For one row of x alone, as each has to be multiplied for it.
  constexpr bool BY_EXPONENTS = SUMMED && TOKENS == 1;
  threadgroup vec<E, 2>* table = tables + simdgroup * uint(table_size(B));
  fill_table<B, E>(centroids, table, lane, 32u);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const float first_centroid = centroids[0];
  const float step = centroids[1] - centroids[0];

  const uint row_units = K / 32u;
  const uint units = height * row_units;
  const uint outputs = N / uint(HALVES);
  const uint part_of_row = lane % uint(LANES);
  const uint first =
      (group.y * uint(SIMDGROUPS) + simdgroup) * SIDE * uint(OUTPUTS) + lane / uint(LANES);
  const uint token = group.x * uint(TOKENS);
  uint rows[ROWS];
  float sums[ROWS][TOKENS];
  HLWQ_UNROLL
  for (int r = 0; r < ROWS; r++) {
    rows[r] = min(first + uint(r % OUTPUTS) * SIDE, outputs - 1u) + uint(r / OUTPUTS) * outputs;
    rows[r] += start;
    HLWQ_UNROLL
    for (int m = 0; m < TOKENS; m++) {
      sums[r][m] = 0.0f;
    }
  }
  for (uint u = part_of_row; u < row_units; u += uint(LANES)) {
    const uint column = ((u >> 2) << 7) + ((u & 3u) << 2);
    uint words[ROWS][B];
    float scales[ROWS];
    float unit_sums[ROWS][TOKENS];
    float all[TOKENS];
    HLWQ_UNROLL
    for (int m = 0; m < TOKENS; m++) {
      all[m] = 0.0f;
    }
    HLWQ_UNROLL
    for (int r = 0; r < ROWS; r++) {
      load_unit<B>(codes, units, rows[r] * row_units + u, words[r]);
      if (!SUMMED) {
        scales[r] = float(norms[rows[r] * (row_units >> 2) + (u >> 2)]);
      }
      HLWQ_UNROLL
      for (int m = 0; m < TOKENS; m++) {
        unit_sums[r][m] = 0.0f;
      }
    }
    HLWQ_UNROLL
    for (int i = 0; i < 8; i++) {
      const int quad = quad_in_turn(B, i);
      float c[ROWS][4];
      HLWQ_UNROLL
      for (int r = 0; r < ROWS; r++) {
        if (BY_EXPONENTS) {
          exponents4(words[r][0], quad, c[r]);
        } else {
          decode4<B, E>(words[r], quad, table, float2(0.0f, 1.0f), c[r]);
        }
      }
      HLWQ_UNROLL
      for (int m = 0; m < TOKENS; m++) {
        // The start is the same for all lanes, and so costs none of them an addition.
        const device T* start = x + 16 * quad;
        float4 a = load4(&start[min(token + uint(m), M - 1u) * K + column]);
        if (SUMMED) {
          all[m] = add4(a, all[m]);
        }
        if (BY_EXPONENTS) {
          a *= bit_powers();
        }
        HLWQ_UNROLL
        for (int r = 0; r < ROWS; r++) {
          unit_sums[r][m] = multiply4(c[r], a, unit_sums[r][m]);
        }
      }
    }
    HLWQ_UNROLL
    for (int r = 0; r < ROWS; r++) {
      // Registers are scarce here: a norm is loaded when it is needed.
      if (SUMMED) {
        scales[r] = float(norms[rows[r] * (row_units >> 2) + (u >> 2)]);
      }
      HLWQ_UNROLL
      for (int m = 0; m < TOKENS; m++) {
        if (SUMMED) {
          unit_sums[r][m] = fma(step, unit_sums[r][m], first_centroid * all[m]);
        }
        sums[r][m] = fma(scales[r], unit_sums[r][m], sums[r][m]);
      }
    }
  }
  HLWQ_UNROLL
  for (int r = 0; r < ROWS; r++) {
    HLWQ_UNROLL
    for (int m = 0; m < TOKENS; m++) {
      HLWQ_UNROLL
      for (ushort offset = LANES / 2; offset > 0; offset >>= 1) {
        sums[r][m] += simd_shuffle_xor(sums[r][m], offset);
      }
      sums[r][m] *= INV_SQRT_BLOCK;
    }
  }
  HLWQ_UNROLL
  for (int r = 0; r < OUTPUTS; r++) {
    const uint output = first + uint(r) * SIDE;
    HLWQ_UNROLL
    for (int m = 0; m < TOKENS; m++) {
      const float up = sums[r + ROWS - OUTPUTS][m];
      const float v = GEGLU ? gelu_tanh(sums[r][m]) * up : sums[r][m];
      if (part_of_row == 0u && output < outputs && token + uint(m) < M) {
        y[(token + uint(m)) * outputs + output] = TO(v);
      }
    }
  }
}

}  // namespace hlwq
