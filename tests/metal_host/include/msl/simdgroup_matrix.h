// <metal_simdgroup_matrix>: 8x8 matrices, two elements a lane, products summed in float.
// Lane -> elements is the map that MLX's steel BaseMMAFrag relies on.
#pragma once

namespace metal {
MSL_INLINE uint matrix_row(uint lane) { return (lane / 4 & 4) + lane / 2 % 4; }
MSL_INLINE uint matrix_column(uint lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

template <class T, int R, int C> struct simdgroup_matrix {
  static_assert(R == 8 && C == 8, "Metal has 8x8 alone");
  static_assert(is_floating_point<T>::value, "elements are float, half or bfloat");
  typedef vec<T, 2> storage_type;
  vec<T, 2> elements;
  simdgroup_matrix() {}
  explicit simdgroup_matrix(T diagonal) {
    uint row = matrix_row(msl_lane()), column = matrix_column(msl_lane());
    elements[0] = row == column ? diagonal : (T)0;
    elements[1] = row == column + 1 ? diagonal : (T)0;
  }
  __private vec<T, 2> &thread_elements() __private { return elements; }
  const __private vec<T, 2> &thread_elements() const __private { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int R, int C>
MSL_INLINE simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, R, C> m;
  m.elements[0] = value;
  m.elements[1] = value;
  return m;
}

template <class T> MSL_INLINE MSL_CONVERGENT msl_exchange *meet_for_matrix(const T &value) {
  msl_exchange *m = meet(value);
  if (m->mask != 0xffffffffu)
    msl_complain(KIND_PARTIAL_MATRIX, m->mask);
  return m;
}
// Where element `i` of this lane lies in memory.
MSL_INLINE ulong matrix_offset(uint i, ulong stride, ulong2 origin, bool transposed) {
  ulong row = matrix_row(msl_lane()), column = matrix_column(msl_lane()) + i;
  return transposed ? (origin.y + column) * stride + origin.x + row
                    : (origin.y + row) * stride + origin.x + column;
}
#define MSL_MATRIX_MEMORY(SPACE)                                                                   \
  template <class T, int R, int C>                                                                 \
  MSL_INLINE MSL_CONVERGENT void simdgroup_load(simdgroup_matrix<T, R, C> &d,                      \
                                                const SPACE T *source, ulong stride = C,           \
                                                ulong2 origin = 0, bool transposed = false) {      \
    meet_for_matrix(0u);                                                                           \
    for (uint i = 0; i < 2; i++)                                                                   \
      d.elements[i] = source[matrix_offset(i, stride, origin, transposed)];                        \
  }                                                                                                \
  template <class T, int R, int C>                                                                 \
  MSL_INLINE MSL_CONVERGENT void simdgroup_store(const simdgroup_matrix<T, R, C> &a,               \
                                                 SPACE T *target, ulong stride = C,                \
                                                 ulong2 origin = 0, bool transposed = false) {     \
    meet_for_matrix(0u);                                                                           \
    for (uint i = 0; i < 2; i++)                                                                   \
      target[matrix_offset(i, stride, origin, transposed)] = a.elements[i];                        \
  }
MSL_MATRIX_MEMORY(__global)
MSL_MATRIX_MEMORY(__local)

// What a lane brings to a product: its elements of A, B and C; its elements of D are left behind.
struct matrix_parts {
  float a[2], b[2], c[2];
};
enum { MATRIX_RESULT_WORD = 4 };

// D = A B + C; the first lane out does it for all.
MSL_OUTLINE void multiply_parts(msl_exchange *m) {
  typedef float row __attribute__((ext_vector_type(8)));
  float a[8][8];
  row b[8], d[8];
  for (uint lane = 0; lane < MSL_LANES; lane++) {
    matrix_parts parts = slot_value<matrix_parts>(m, lane);
    uint r = matrix_row(lane), c = matrix_column(lane);
    for (uint i = 0; i < 2; i++) {
      a[r][c + i] = parts.a[i];
      b[r][c + i] = parts.b[i];
      d[r][c + i] = parts.c[i];
    }
  }
  for (uint k = 0; k < 8; k++)
    for (uint r = 0; r < 8; r++)
      d[r] += a[r][k] * b[k];
  for (uint lane = 0; lane < MSL_LANES; lane++) {
    uint r = matrix_row(lane), c = matrix_column(lane);
    *(float2 *)(void *)&m->slot[lane][MATRIX_RESULT_WORD] = float2{d[r][c], d[r][c + 1]};
  }
  m->done = 1;
}
template <class TD, class TA, class TB>
MSL_INLINE MSL_CONVERGENT void multiply_into(simdgroup_matrix<TD, 8, 8> &d,
                                             const simdgroup_matrix<TA, 8, 8> &a,
                                             const simdgroup_matrix<TB, 8, 8> &b, float2 c) {
  matrix_parts parts;
  for (uint i = 0; i < 2; i++) {
    parts.a[i] = (float)a.elements[i];
    parts.b[i] = (float)b.elements[i];
    parts.c[i] = c[i];
  }
  msl_exchange *m = meet_for_matrix(parts);
  if (!m->done)
    multiply_parts(m);
  float2 result = *(float2 *)(void *)&m->slot[msl_lane()][MATRIX_RESULT_WORD];
  d.elements[0] = (TD)result.x;
  d.elements[1] = (TD)result.y;
}

template <class TD, class TA, class TB, class TC>
MSL_INLINE MSL_CONVERGENT void simdgroup_multiply_accumulate(simdgroup_matrix<TD, 8, 8> &d,
                                                             const simdgroup_matrix<TA, 8, 8> &a,
                                                             const simdgroup_matrix<TB, 8, 8> &b,
                                                             const simdgroup_matrix<TC, 8, 8> &c) {
  multiply_into(d, a, b, float2{(float)c.elements[0], (float)c.elements[1]});
}
template <class TD, class TA, class TB>
MSL_INLINE MSL_CONVERGENT void simdgroup_multiply(simdgroup_matrix<TD, 8, 8> &d,
                                                  const simdgroup_matrix<TA, 8, 8> &a,
                                                  const simdgroup_matrix<TB, 8, 8> &b) {
  multiply_into(d, a, b, float2{0.0f, 0.0f});
}
template <class T>
MSL_INLINE MSL_CONVERGENT simdgroup_matrix<T, 8, 8> operator*(const simdgroup_matrix<T, 8, 8> &a,
                                                              const simdgroup_matrix<T, 8, 8> &b) {
  simdgroup_matrix<T, 8, 8> d;
  multiply_into(d, a, b, float2{0.0f, 0.0f});
  return d;
}
} // namespace metal
