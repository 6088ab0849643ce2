// common: what the kernels share; no kernel of its own. kernels.py puts it in front of each of them.
//   P32       one lane owns a unit: 32 codes of a block, in the order of packing.py
//   tables    centroids in threadgroup memory, as vec<E, 2>: pairs of codes at 2 and 3 bits (one
//             lookup is two weights), single codes from 4 bits on; none at 1 bit, a select does it
//   Hadamard  unscaled, over 4 values a lane (wht_simdgroup) or over a unit a lane (wht_quad)
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

// The words of one unit, from up to three planes of `units` units each.
template <int B>
METAL_FUNC void load_unit(const device uint* codes, uint units, uint unit, thread uint* words) {
  constexpr int QUADS = B / 4;
  constexpr int PAIRS = (B >> 1) & 1;
  HLWQ_UNROLL
  for (int a = 0; a < QUADS; a++) {
    const uint4 v = ((const device uint4*)codes)[unit * uint(QUADS) + uint(a)];
    words[4 * a] = v.x;
    words[4 * a + 1] = v.y;
    words[4 * a + 2] = v.z;
    words[4 * a + 3] = v.w;
  }
  if (PAIRS == 1) {
    const uint2 v = ((const device uint2*)(codes + units * uint(4 * QUADS)))[unit];
    words[4 * QUADS] = v.x;
    words[4 * QUADS + PAIRS] = v.y;
  }
  if ((B & 1) == 1) {
    words[B - 1] = (codes + units * uint(B - 1))[unit];
  }
}

// Field `index`, W bits wide, of the stream of a unit of B words.
template <int B, int W>
METAL_FUNC uint field(const thread uint* words, int index) {
  const int word = (index * W) >> 5;
  const int shift = (index * W) & 31;
  uint v = words[word] >> shift;
  if (shift + W > 32) {
    v |= words[word + 1 < B ? word + 1 : B - 1] << ((32 - shift) & 31);
  }
  return v & ((1u << W) - 1u);
}

constexpr int table_size(int bits) {
  return bits == 1 ? 1 : (bits <= 3 ? 1 << (2 * bits) : 1 << (bits - 1));
}

// Fill a table together: thread `index` of `count`. The caller sets the barrier.
template <int B, typename E>
METAL_FUNC void fill_table(
    const device float* centroids, threadgroup vec<E, 2>* table, uint index, uint count) {
  for (uint i = index; B > 1 && i < uint(table_size(B)); i += count) {
    const uint first = B <= 3 ? i & ((1u << B) - 1u) : 2u * i;
    const uint second = B <= 3 ? i >> B : 2u * i + 1u;
    table[i] = vec<E, 2>(E(centroids[first]), E(centroids[second]));
  }
}

// Codes 8*part .. 8*part+7 of a unit as centroids. `ends` are both centroids of a 1-bit table.
template <int B, typename E>
METAL_FUNC void decode8(
    const thread uint* words, int part, const threadgroup vec<E, 2>* table, float2 ends,
    thread float* c) {
  if (B == 1) {
    HLWQ_UNROLL
    for (int t = 0; t < 8; t++) {
      c[t] = (words[0] & (1u << (8 * part + t))) != 0u ? ends.y : ends.x;
    }
  } else if (B <= 3) {
    HLWQ_UNROLL
    for (int t = 0; t < 4; t++) {
      const vec<E, 2> pair = table[field<B, 2 * B>(words, 4 * part + t)];
      c[2 * t] = float(pair.x);
      c[2 * t + 1] = float(pair.y);
    }
  } else {
    const threadgroup E* single = (const threadgroup E*)table;
    HLWQ_UNROLL
    for (int t = 0; t < 8; t++) {
      c[t] = float(single[field<B, B>(words, 8 * part + t)]);
    }
  }
}

// 128 values of a simdgroup, four neighbours a lane.
METAL_FUNC float4 wht_simdgroup(float4 v, uint lane) {
  v = float4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
  v = float4(v.x + v.z, v.y + v.w, v.x - v.z, v.y - v.w);
  HLWQ_UNROLL
  for (ushort h = 1; h < 32; h <<= 1) {
    const float4 other = simd_shuffle_xor(v, h);
    v = (lane & uint(h)) != 0u ? other - v : other + v;
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
  for (ushort h = 1; h < 4; h <<= 1) {
    HLWQ_UNROLL
    for (int t = 0; t < 32; t++) {
      const float other = simd_shuffle_xor(v[t], h);
      v[t] = (lane & uint(h)) != 0u ? other - v[t] : other + v[t];
    }
  }
}

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
  for (int part = 0; part < 4; part++) {
    decode8<B, float>(words, part, table, ends, v + 8 * part);
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

METAL_FUNC float gelu_tanh(float v) {
  const float t = clamp(0.7978845608028654f * fma(0.044715f * v * v, v, v), -15.0f, 15.0f);
  return 0.5f * v * (1.0f + metal::precise::tanh(t));
}

}  // namespace hlwq
