// dequantize: y = W, rotated back if BACK, else in the basis of the codes.
//                                                       Twins: codec.dequantize, rotated_weight
//   codes      uint   P32 of [N, K]  B bits a code, 16-byte aligned   norms half [N, K / 128]
//   centroids  float  [>= 2^B]                                       y     TO   [N, K]
//   table      float2 threadgroup, table_size(B)
//   work       a unit of 32 codes a thread; `units` is N * K / 32; four lanes share a block
//   group      (128, 1, 1); grid `units` threads, rounded up to whole groups
//   limits     K % 128 == 0, N * K >= 1024, N * K * B / 32 < 2^32
//   numbers    float inside, rounded once to TO
#pragma once
#include "codes.metal"
#include "rotation.metal"

namespace hlwq {

// A unit of the weight, rotated back if BACK. All lanes of the block have to take part.
template <int B, bool BACK>
METAL_FUNC void decode_unit(
    const device uint* codes, const device half* norms, const device float* centroids,
    const threadgroup float2* table, uint units, uint unit, uint lane, thread float* v) {
  uint words[B];
  load_unit<B>(codes, units, unit, words);
  const float scale = float(norms[unit >> 2]) * (BACK ? 1.0f / 128.0f : INV_SQRT_BLOCK);
  const float2 ends = float2(centroids[0], centroids[1]);
  HLWQ_UNROLL
  for (int quad = 0; quad < 8; quad++) {
    decode4<B, float>(words, quad, table, ends, v + 4 * quad);
  }
  if (BACK) {
    wht_quad(v, lane);
  }
  HLWQ_UNROLL
  for (int t = 0; t < 32; t++) {
    v[t] *= scale;
  }
}

template <typename TO>
METAL_FUNC void store_unit(device TO* y, uint unit, const thread float* v) {
  device TO* p = y + ulong(unit >> 2) * 128ul + ulong((unit & 3u) << 2);
  HLWQ_UNROLL
  for (int i = 0; i < 8; i++) {
    store4(p + 16 * i, float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]));
  }
}

template <int B, bool BACK, typename TO>
METAL_FUNC void dequantize(
    const device uint* codes, const device half* norms, const device float* centroids,
    device TO* y, threadgroup float2* table, uint units, uint position, uint thread_index,
    uint lane) {
  fill_table<B, float>(centroids, table, thread_index, 128u);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint unit = min(position, units - 1u);
  float v[32];
  decode_unit<B, BACK>(codes, norms, centroids, table, units, unit, lane, v);
  if (position < units) {
    store_unit(y, position, v);
  }
}

}  // namespace hlwq
