// dequantize: y = W, rotated back if BACK, else in the basis of the codes.
//                                                       Twins: codec.dequantize, rotated_weight
//   codes      uint   P32 of [N, K]  B bits a code, 16-byte aligned   norms half [N, K / 128]
//   centroids  float  [>= 2^B]                                       y     TO   [N, K]
//   table      float2 threadgroup, table_size(B)
//   work       a unit of 32 codes a thread; `units` is N * K / 32; four lanes share a block
//   group      (128, 1, 1); grid `units` threads, rounded up to whole groups
//   limits     K % 128 == 0, N * K >= 1024, N * K * B / 32 < 2^32
//   numbers    float inside, rounded once to TO
#include "common.metal"

namespace hlwq {

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
