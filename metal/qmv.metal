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
//              N and ROWS even for GEGLU
//   sums       float; a unit's sum times its norm; over LANES by shuffles; rounded once to TO
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

template <typename E, int B, int ROWS, int LANES, int SIMDGROUPS, int TOKENS, bool GEGLU,
          typename T, typename TO>
METAL_FUNC void qmv(
    const device T* x, const device uint* codes, const device half* norms,
    const device float* centroids, device TO* y, threadgroup vec<E, 2>* tables, uint M, uint K,
    uint N, uint height, uint start, uint3 group, uint simdgroup, uint lane) {
  constexpr int HALVES = GEGLU ? 2 : 1;
  constexpr int OUTPUTS = ROWS / HALVES;
  constexpr uint SIDE = 32 / LANES;
  threadgroup vec<E, 2>* table = tables + simdgroup * uint(table_size(B));
  fill_table<B, E>(centroids, table, lane, 32u);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const float2 ends = float2(centroids[0], centroids[1]);

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
    HLWQ_UNROLL
    for (int r = 0; r < ROWS; r++) {
      load_unit<B>(codes, units, rows[r] * row_units + u, words[r]);
      scales[r] = float(norms[rows[r] * (row_units >> 2) + (u >> 2)]);
      HLWQ_UNROLL
      for (int m = 0; m < TOKENS; m++) {
        unit_sums[r][m] = 0.0f;
      }
    }
    HLWQ_UNROLL
    for (int quad = 0; quad < 8; quad++) {
      float c[ROWS][4];
      HLWQ_UNROLL
      for (int r = 0; r < ROWS; r++) {
        decode4<B, E>(words[r], quad, table, ends, c[r]);
      }
      HLWQ_UNROLL
      for (int m = 0; m < TOKENS; m++) {
        // The start is the same for all lanes, and so costs none of them an addition.
        const device T* start = x + 16 * quad;
        const float4 a = load4(&start[min(token + uint(m), M - 1u) * K + column]);
        HLWQ_UNROLL
        for (int r = 0; r < ROWS; r++) {
          unit_sums[r][m] = multiply4(c[r], a, unit_sums[r][m]);
        }
      }
    }
    HLWQ_UNROLL
    for (int r = 0; r < ROWS; r++) {
      HLWQ_UNROLL
      for (int m = 0; m < TOKENS; m++) {
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
