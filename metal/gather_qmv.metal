// gather_qmv: y[p, n] = sum over k of x[p / (P / M), k] * W[experts[p] * N + n, k]
//   W          a stack of EXPERTS matrices [N, K], one below the other; coded as qmv's, which this is
//              for one row of x and one matrix at a time   Twin: codec.gather_qmv
//   x          T       [M, K]                 contiguous, 16-byte aligned      T float, half or bfloat
//   experts    TI      [P]                    uint, P a multiple of M; in constant memory if P < 8
//   codes      uint    P32 of [EXPERTS * N, K]        norms half [EXPERTS * N, K / 128]
//   centroids  float   [>= 2^B]                       y     TO   [P, N]
//   tile       qmv's for one row; group (32, SIMDGROUPS, 1); grid (32 * P, SIMDGROUPS * groups, 1)
//   limits     qmv's, for the whole stack; P * N < 2^32; an expert of EXPERTS or more is the last
//   rows       of y do not touch each other, and K alone chooses LANES: each has the same bits
//              whatever the others are and however many
#pragma once
#include "qmv.metal"

namespace hlwq {

template <typename E, int B, int ROWS, int LANES, int SIMDGROUPS, int EXPERTS, typename T,
          typename Ids, typename TO>
METAL_FUNC void gather_qmv(
    const device T* x, Ids experts, const device uint* codes, const device half* norms,
    const device float* centroids, device TO* y, threadgroup vec<E, 2>* tables, uint M, uint K,
    uint pairs, uint height, uint3 group, uint simdgroup, uint lane) {
  const uint N = height / uint(EXPERTS);
  const uint pair = group.x;
  const uint token = pair / (pairs / M);
  const uint expert = min(uint(experts[pair]), uint(EXPERTS) - 1u);
  qmv<E, B, ROWS, LANES, SIMDGROUPS, 1, false>(
      x, codes, norms, centroids, y + (pair - token) * N, tables, M, K, N, height, expert * N,
      uint3(token, group.y, 0u), simdgroup, lane);
}

}  // namespace hlwq
