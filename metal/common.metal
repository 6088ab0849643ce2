// common: what every kernel may use: loading and storing four neighbours, and gelu.
#pragma once
#include <metal_stdlib>
using namespace metal;

#define HLWQ_UNROLL _Pragma("clang loop unroll(full)")

namespace hlwq {

constant constexpr float INV_SQRT_BLOCK = 0.08838834764831845f;

// Four neighbours, aligned to four elements.
METAL_FUNC float4 load4(const device float* p) { return *(const device float4*)p; }

METAL_FUNC float4 load4(const device half* p) { return float4(*(const device half4*)p); }

METAL_FUNC float4 load4(const device bfloat* p) {
  const uint2 v = *(const device uint2*)p;
  return as_type<float4>(uint4(v.x << 16, v.x & 0xffff0000u, v.y << 16, v.y & 0xffff0000u));
}

// Four neighbours, aligned to one element: for arrays that may be slices.
template <typename T>
METAL_FUNC float4 gather4(const device T* p) {
  return float4(float(p[0]), float(p[1]), float(p[2]), float(p[3]));
}

METAL_FUNC void store4(device float* p, float4 v) { *(device float4*)p = v; }

METAL_FUNC void store4(device half* p, float4 v) { *(device half4*)p = half4(v); }

METAL_FUNC void store4(device bfloat* p, float4 v) {
  *(device ushort4*)p = ushort4(
      as_type<ushort>(bfloat(v.x)), as_type<ushort>(bfloat(v.y)),
      as_type<ushort>(bfloat(v.z)), as_type<ushort>(bfloat(v.w)));
}

METAL_FUNC float gelu_tanh(float v) {
  const float t = clamp(0.7978845608028654f * fma(0.044715f * v * v, v, v), -15.0f, 15.0f);
  return 0.5f * v * (1.0f + metal::precise::tanh(t));
}

}  // namespace hlwq
