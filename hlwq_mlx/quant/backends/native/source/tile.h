// Many dot products at once, whose sums stay in registers.
#pragma once
#include "lanes.h"

namespace ISA {

// Rows of a weight, and rows of x.
#if defined(__AVX512F__)
constexpr int TILE_N = 4, TILE_M = 6;
#elif defined(__AVX2__)
constexpr int TILE_N = 2, TILE_M = 6;
#else
constexpr int TILE_N = 2, TILE_M = 3;
#endif

// Where the sums of a tile's rows are: those of one row of a weight side by side.
constexpr int64_t SUMS = TILE_M * LANES;

// N rows by M rows, some columns of both: the sums are kept in memory between passes.
template <int N, int M>
inline void tile(const float* w, int64_t w_stride, const float* x, int64_t x_stride, float* sums,
                 int steps, bool is_first) {
  for (int part = 0; part < LANES; part += PART, w += PART, x += PART, sums += PART) {
    Part sum[N][M];
    for (int n = 0; n < N; n++)
      for (int m = 0; m < M; m++)
        sum[n][m] = is_first ? Part{} : load_part(sums + n * SUMS + m * LANES);
    for (int step = 0; step < steps; step++) {
      Part rows[N];
      for (int n = 0; n < N; n++) rows[n] = load_part(w + n * w_stride + step * LANES);
      for (int m = 0; m < M; m++) {
        const Part column = load_part(x + m * x_stride + step * LANES);
        for (int n = 0; n < N; n++) sum[n][m] = fma(rows[n], column, sum[n][m]);
      }
    }
    for (int n = 0; n < N; n++)
      for (int m = 0; m < M; m++) store(sums + n * SUMS + m * LANES, sum[n][m]);
  }
}

template <int N, int M>
inline void tile_of(int count, const float* w, int64_t w_stride, const float* x, int64_t x_stride,
                    float* sums, int steps, bool is_first) {
  if (count == M) return tile<N, M>(w, w_stride, x, x_stride, sums, steps, is_first);
  if constexpr (M > 1)
    tile_of<N, M - 1>(count, w, w_stride, x, x_stride, sums, steps, is_first);
}

}  // namespace ISA
