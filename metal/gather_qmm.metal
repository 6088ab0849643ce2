// gather_qmm: y[p, n] = sum over k of x[p, k] * W[expert of p * N + n, k], rows in order of experts
//   W          a stack of EXPERTS matrices [N, K], one below the other; coded as qmm's, which this is
//              for the rows of one expert at a time   Twin: codec.gather_qmm
//   x          T       [P, K]           contiguous, 16-byte aligned      T float, half or bfloat
//   starts     TI      [EXPERTS + 1]    uint, rising from 0 to P: where each expert's rows begin
//   codes      uint    P32 of [EXPERTS * N, K]        norms half [EXPERTS * N, K / 128]
//   centroids  float   [>= 2^B]                       y     TO   [P, N]
//   work       qmm's; an expert's rows are cut into tiles of 32, of which the last may be smaller
//   group      (128, 1, 1); grid (128 * ceil(N / 64), P / 32 + EXPERTS, 1): tiles at most
//   limits     qmm's, for the whole stack; numbers and rows as qmm's
#pragma once
#include "qmm.metal"

namespace hlwq {

template <int B, int EXPERTS, typename T, typename Starts, typename TO>
METAL_FUNC void gather_qmm(
    const device T* x, Starts starts, const device uint* codes, const device half* norms,
    const device float* centroids, device TO* y, threadgroup float4* tile,
    threadgroup float* powers, threadgroup float2* table, uint K, uint height, uint3 group,
    uint thread_index, uint simdgroup) {
  const uint N = height / uint(EXPERTS);
  uint expert = 0;
  uint left = group.y;
  uint tiles = (uint(starts[1]) + 31u) / 32u;
  while (left >= tiles && expert + 1u < uint(EXPERTS)) {
    left -= tiles;
    expert += 1u;
    tiles = (uint(starts[expert + 1u]) - uint(starts[expert]) + 31u) / 32u;
  }
  if (left < tiles) {
    const uint first = uint(starts[expert]) + 32u * left;
    qmm<B>(
        x + first * K, codes, norms, centroids, y + ulong(first) * ulong(N), tile, powers, table,
        min(uint(starts[expert + 1u]) - first, 32u), K, N, height, expert * N,
        uint3(group.x, 0u, 0u), thread_index, simdgroup);
  }
}

}  // namespace hlwq
