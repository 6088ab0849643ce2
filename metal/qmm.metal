// qmm: y[m, n] = sum over k of x[m, k] * W[n, k], for many rows of x.   Twin: codec.qmm
//   W          norms * centroids[codes] / sqrt(128), in the rotated basis; x is rotated already
//   x          T       [M, K]         contiguous, 16-byte aligned      T float, half or bfloat
//   codes      uint    P32 of [N, K]  B bits a code, 16-byte aligned   norms half [N, K / 128]
//   centroids  float   [>= 2^B]                                        y     TO   [M, N]
//   tile       float4  threadgroup, 512: half tiles of W and x, at the end the sums
//   powers     float   threadgroup, 32;   table float2 threadgroup, table_size(B)
//   part       W may be the N rows from `start` on of a matrix of `height` rows
//   work       32 tokens and 64 rows a threadgroup; its four simdgroups 16 tokens and 32 rows each
//   group      (128, 1, 1); grid (128 * ceil(N / 64), ceil(M / 32), 1)
//   limits     K % 128 == 0, N * K >= 1024, N * K * B / 32 < 2^32, M * K < 2^32
//   numbers    W rounded to half; x divided by a power of two of its row, so that half holds it,
//              and rounded; products and sums float, multiplied by the power, rounded once to TO
//   rows       of x do not touch each other: a row of y has the same bits whatever M is, but not
//              those of qmv, whose sums are in another order
#pragma once
#include "codes.metal"

namespace hlwq {

// The largest power of two that is not above `largest`, and whose inverse is normal.
METAL_FUNC float power_below(float largest) {
  return as_type<float>(clamp(as_type<uint>(largest) & 0x7f800000u, 0x00800000u, 0x7e800000u));
}

// The largest magnitude in one row, of which a lane has seen every fourth quad of columns.
template <typename T>
METAL_FUNC float row_power(const device T* row, uint K, uint quarter) {
  float4 largest = float4(0.0f);
  for (uint k = 4u * quarter; k < K; k += 16u) {
    largest = max(largest, abs(load4(row + k)));
  }
  float value = max(max(largest.x, largest.y), max(largest.z, largest.w));
  value = max(value, simd_shuffle_xor(value, ushort(1)));
  value = max(value, simd_shuffle_xor(value, ushort(2)));
  return power_below(value);
}

// Tiles are 8x8 blocks, each contiguous: W as [column][row], x as [token][column].
template <int B>
METAL_FUNC void stage_weights(
    const thread uint* words, int part, const threadgroup float2* table, float2 ends, float scale,
    uint row, uint quarter, threadgroup half* tile) {
  float c[8];
  decode4<B, float>(words, 2 * part, table, ends, c);
  decode4<B, float>(words, 2 * part + 1, table, ends, c + 4);
  HLWQ_UNROLL
  for (int t = 0; t < 8; t++) {
    const uint column = uint(16 * (t / 4) + t % 4) + 4u * quarter;
    tile[((column >> 3) * 8u + (row >> 3)) * 64u + (column & 7u) * 8u + (row & 7u)] =
        half(c[t] * scale);
  }
}

template <typename T>
METAL_FUNC void stage_tokens(
    const device T* p, float inverse, uint token, uint quarter, threadgroup half* tile) {
  threadgroup half* to = tile + (quarter * 4u + (token >> 3)) * 64u + (token & 7u) * 8u;
  const float4 a = load4(p) * inverse;
  const float4 b = load4(p + 4) * inverse;
  *(threadgroup half4*)to = half4(a);
  *(threadgroup half4*)(to + 4) = half4(b);
}

template <int B, typename T, typename TO>
METAL_FUNC void qmm(
    const device T* x, const device uint* codes, const device half* norms,
    const device float* centroids, device TO* y, threadgroup float4* tile,
    threadgroup float* powers, threadgroup float2* table, uint M, uint K, uint N, uint height,
    uint start, uint3 group, uint thread_index, uint simdgroup) {
  fill_table<B, float>(centroids, table, thread_index, 128u);
  threadgroup half* weights = (threadgroup half*)tile;
  threadgroup half* tokens = weights + 32 * 64;
  const float2 ends = float2(centroids[0], centroids[1]);
  const uint blocks = K / 128u;
  const uint first_row = group.x * 64u;
  const uint first_token = group.y * 32u;
  const uint index = thread_index >> 2;  // of the token, and of the first of two rows, staged here
  const uint quarter = thread_index & 3u;
  const device T* source = x + min(first_token + index, M - 1u) * K;
  const float power = row_power(source, K, quarter);
  const float inverse = 1.0f / power;
  if (quarter == 0u) {
    powers[index] = power;
  }
  simdgroup_float8x8 sums[8];
  HLWQ_UNROLL
  for (int i = 0; i < 8; i++) {
    sums[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  const uint row_half = simdgroup & 1u;
  const uint token_half = simdgroup >> 1;
  for (uint block = 0; block < blocks; block++) {
    uint words[2][B];
    float scales[2];
    HLWQ_UNROLL
    for (int r = 0; r < 2; r++) {
      const uint row = start + min(first_row + index + uint(32 * r), N - 1u);
      load_unit<B>(codes, height * blocks * 4u, (row * blocks + block) * 4u + quarter, words[r]);
      scales[r] = float(norms[row * blocks + block]) * INV_SQRT_BLOCK;
    }
    HLWQ_UNROLL
    for (int part = 0; part < 4; part++) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      HLWQ_UNROLL
      for (int r = 0; r < 2; r++) {
        stage_weights<B>(
            words[r], part, table, ends, scales[r], index + uint(32 * r), quarter, weights);
      }
      stage_tokens(
          source + block * 128u + uint(32 * part) + quarter * 8u, inverse, index, quarter, tokens);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      HLWQ_UNROLL
      for (int k = 0; k < 4; k++) {
        simdgroup_half8x8 a[2];
        simdgroup_half8x8 b[4];
        HLWQ_UNROLL
        for (int i = 0; i < 2; i++) {
          simdgroup_load(a[i], tokens + (uint(4 * k + i) + 2u * token_half) * 64u, 8);
        }
        HLWQ_UNROLL
        for (int i = 0; i < 4; i++) {
          simdgroup_load(b[i], weights + (uint(8 * k + i) + 4u * row_half) * 64u, 8);
        }
        HLWQ_UNROLL
        for (int i = 0; i < 8; i++) {
          simdgroup_multiply_accumulate(sums[i], a[i / 4], b[i % 4], sums[i]);
        }
      }
    }
  }
  threadgroup float* results = (threadgroup float*)tile;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  HLWQ_UNROLL
  for (int i = 0; i < 8; i++) {
    const uint token = 16u * token_half + uint(8 * (i / 4));
    simdgroup_store(sums[i], results + token * 64u + 32u * row_half + uint(8 * (i % 4)), 64);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < 2048u; i += 128u) {
    const uint token = first_token + (i >> 6);
    const uint row = first_row + (i & 63u);
    if (token < M && row < N) {
      y[ulong(token) * ulong(N) + ulong(row)] = TO(results[i] * powers[i >> 6]);
    }
  }
}

}  // namespace hlwq
