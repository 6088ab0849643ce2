// residual_norm: from a product to the rotated input of the next.      Twin: codec.residual_norm
//   h = (x + rms_norm(update) * weight) * scale;  normed = h, or rms_norm(h) * next;
//   y = normed with every block of 128 rotated
//   x        T   [M, K]   the residual stream       update        TO [M, K]
//   weight   TW  [K]      of the norm behind        next          TN [K], read if NORMED
//   scale    TS  [1]      in constant memory        epsilon       float
//   h        T   [M, K]                             normed        T  [M, K]
//   y        TY  [M, K]
//   sums     float        threadgroup, 2 * SIMDGROUPS
//   work     a row a threadgroup; simdgroup s has blocks s, s + SIMDGROUPS, ..., BLOCKS of them
//   group    (32 * SIMDGROUPS, 1, 1); grid (32 * SIMDGROUPS * M, 1, 1)
//   limits   K % 128 == 0, K / 128 <= SIMDGROUPS * BLOCKS, M * K < 2^32; inputs aligned to an element
//   numbers  float inside; normed is made from h as rounded to T, as if it had been read back, and
//            y from normed before it is rounded
#pragma once
#include "rotation.metal"

namespace hlwq {

template <int SIMDGROUPS>
METAL_FUNC float inverse_rms(
    float square_sum, threadgroup float* sums, uint K, float epsilon, uint simdgroup, uint lane) {
  const float own = simd_sum(square_sum);
  if (lane == 0u) {
    sums[simdgroup] = own;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  HLWQ_UNROLL
  for (int s = 0; s < SIMDGROUPS; s++) {
    total += sums[s];
  }
  return metal::precise::rsqrt(total / float(K) + epsilon);
}

template <int SIMDGROUPS, int BLOCKS, bool NORMED, typename T, typename TO, typename TW,
          typename TN, typename TS, typename TY>
METAL_FUNC void residual_norm(
    const device T* x, const device TO* update, const device TW* weight, const device TN* next,
    const constant TS* scale, float epsilon, device T* h, device T* normed, device TY* y,
    threadgroup float* sums, uint K, uint row, uint simdgroup, uint lane) {
  const uint blocks = K / 128u;
  const uint start = row * K;
  float4 values[BLOCKS];
  float square_sum = 0.0f;
  HLWQ_UNROLL
  for (int b = 0; b < BLOCKS; b++) {
    const uint block = simdgroup + uint(b * SIMDGROUPS);
    const uint column = min(block, blocks - 1u) * 128u + lane * 4u;
    values[b] = block < blocks ? gather4(update + start + column) : float4(0.0f);
    square_sum += dot(values[b], values[b]);
  }
  const float inverse = inverse_rms<SIMDGROUPS>(square_sum, sums, K, epsilon, simdgroup, lane);
  const float factor = float(scale[0]);
  square_sum = 0.0f;
  HLWQ_UNROLL
  for (int b = 0; b < BLOCKS; b++) {
    const uint block = simdgroup + uint(b * SIMDGROUPS);
    const uint column = min(block, blocks - 1u) * 128u + lane * 4u;
    const float4 added = values[b] * inverse * gather4(weight + column);
    const float4 sum = (gather4(x + start + column) + added) * factor;
    const T rounded[4] = {T(sum.x), T(sum.y), T(sum.z), T(sum.w)};
    values[b] = float4(
        float(rounded[0]), float(rounded[1]), float(rounded[2]), float(rounded[3]));
    if (block < blocks) {
      store4(h + start + column, values[b]);
      square_sum += dot(values[b], values[b]);
    }
  }
  float factor_of_next = 1.0f;
  if (NORMED) {
    factor_of_next = inverse_rms<SIMDGROUPS>(
        square_sum, sums + SIMDGROUPS, K, epsilon, simdgroup, lane);
  }
  HLWQ_UNROLL
  for (int b = 0; b < BLOCKS; b++) {
    const uint block = simdgroup + uint(b * SIMDGROUPS);
    const uint column = min(block, blocks - 1u) * 128u + lane * 4u;
    float4 v = values[b];
    if (NORMED) {
      v *= factor_of_next * gather4(next + column);
    }
    const float4 rotated = wht_simdgroup(v, lane) * INV_SQRT_BLOCK;
    if (block < blocks) {
      store4(normed + start + column, v);
      store4(y + start + column, rotated);
    }
  }
}

}  // namespace hlwq
