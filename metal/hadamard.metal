// hadamard: y = x with every block of 128 rotated; gelu_mul: the same of gelu_tanh(gate) * up.
//                                                           Twins: codec.hadamard, codec.gelu_mul
//   x, gate, up  T   [M, K]   contiguous, aligned to an element       T float, half or bfloat
//   y            TO  [M, K]                           product TG [M, K]
//   work         a block a simdgroup, four neighbours a lane; `blocks` is M * K / 128
//   group        (128, 1, 1); grid 32 * blocks threads, rounded up to whole groups
//   limits       K % 128 == 0, M * K >= 128 and below 2^32
//   numbers      float inside, each result rounded once
#pragma once
#include "rotation.metal"

namespace hlwq {

template <typename TO>
METAL_FUNC void rotate_block(float4 v, device TO* y, uint blocks, uint block, uint lane) {
  v = wht_simdgroup(v, lane) * INV_SQRT_BLOCK;
  if (block < blocks) {
    store4(y + block * 128u + lane * 4u, v);
  }
}

template <typename T, typename TO>
METAL_FUNC void hadamard(const device T* x, device TO* y, uint blocks, uint block, uint lane) {
  const uint at = min(block, blocks - 1u) * 128u + lane * 4u;
  rotate_block(gather4(x + at), y, blocks, block, lane);
}

template <typename TG, typename TU, typename TO>
METAL_FUNC void gelu_mul(
    const device TG* gate, const device TU* up, device TG* product, device TO* y, uint blocks,
    uint block, uint lane) {
  const uint at = min(block, blocks - 1u) * 128u + lane * 4u;
  const float4 g = gather4(gate + at);
  const float4 v = float4(gelu_tanh(g.x), gelu_tanh(g.y), gelu_tanh(g.z), gelu_tanh(g.w));
  const float4 result = v * gather4(up + at);
  if (block < blocks) {
    store4(product + at, result);
  }
  rotate_block(result, y, blocks, block, lane);
}

}  // namespace hlwq
