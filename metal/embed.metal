// embed: y = rows `ids` of W, rotated back.   Twin: codec.embed
//   ids        TI     [M]            int or uint, below N; in constant memory if M < 8
//   codes      uint   P32 of [N, K]  B bits a code, 16-byte aligned   norms half [N, K / 128]
//   centroids  float  [>= 2^B]                                       y     TO   [M, K]
//   table      float2 threadgroup, table_size(B)
//   work       a unit of 32 codes a thread; four lanes share a block
//   group      (128, 1, 1); grid M * K / 32 threads, rounded up to whole groups
//   limits     K % 128 == 0, N * K >= 1024, N * K * B / 32 < 2^32; an id of N or more reads row N - 1
//   numbers    float inside, rounded once to TO
#pragma once
#include "dequantize.metal"

namespace hlwq {

template <int B, typename Ids, typename TO>
METAL_FUNC void embed(
    Ids ids, const device uint* codes, const device half* norms, const device float* centroids,
    device TO* y, threadgroup float2* table, uint M, uint N, uint row_units, uint position,
    uint thread_index, uint lane) {
  fill_table<B, float>(centroids, table, thread_index, 128u);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint safe = min(position, M * row_units - 1u);
  const uint row = safe / row_units;
  const uint unit = min(uint(ids[row]), N - 1u) * row_units + (safe - row * row_units);
  float v[32];
  decode_unit<B, true>(codes, norms, centroids, table, N * row_units, unit, lane, v);
  if (position < M * row_units) {
    store_unit(y, position, v);
  }
}

}  // namespace hlwq
