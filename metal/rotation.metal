// rotation: the Walsh-Hadamard transform of a block of 128, unscaled; twice is 128 times.
//   wht_simdgroup   a block a simdgroup, four neighbours a lane
//   wht_quad        a block every four lanes, each the columns of its unit of codes
#pragma once
#include "common.metal"

namespace hlwq {

// A step of the transform across lanes, on values of float or float4: of two lanes whose numbers
// differ in `bit`, one gets the sum, the other the difference. One FMA, and exact; of a choice
// between 1 and -1, compilers make another choice and an addition.
template <typename V>
METAL_FUNC V butterfly(V v, uint lane, uint bit) {
  const float sign = as_type<float>(0x3f800000u | ((lane >> bit) << 31));
  return fma(v, V(sign), simd_shuffle_xor(v, ushort(1 << bit)));
}

// 128 values of a simdgroup, four neighbours a lane.
METAL_FUNC float4 wht_simdgroup(float4 v, uint lane) {
  v = float4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
  v = float4(v.x + v.z, v.y + v.w, v.x - v.z, v.y - v.w);
  HLWQ_UNROLL
  for (uint bit = 0; bit < 5; bit++) {
    v = butterfly(v, lane, bit);
  }
  return v;
}

// 128 values of four neighbouring lanes, a unit each: value 4*i + c of quarter q is column
// 16*i + 4*q + c.
METAL_FUNC void wht_quad(thread float* v, uint lane) {
  HLWQ_UNROLL
  for (int h = 1; h < 32; h <<= 1) {
    HLWQ_UNROLL
    for (int t = 0; t < 32; t++) {
      if ((t & h) == 0) {
        const float a = v[t];
        const float b = v[t + h];
        v[t] = a + b;
        v[t + h] = a - b;
      }
    }
  }
  HLWQ_UNROLL
  for (uint bit = 0; bit < 2; bit++) {
    HLWQ_UNROLL
    for (int t = 0; t < 32; t++) {
      v[t] = butterfly(v[t], lane, bit);
    }
  }
}

}  // namespace hlwq
