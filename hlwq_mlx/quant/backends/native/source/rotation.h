// The Walsh-Hadamard transform of a block, which is its own inverse.
#pragma once
#include "lanes.h"

namespace ISA {

constexpr int BLOCK = 128;
constexpr float ROOT = 0.08838834764831845f;  // 1 / sqrt(128)

// The unscaled transform of columns, side by side.
template <int Rows, int Columns>
inline void transform(float (&x)[Rows][Columns]) {
  for (int half = Rows / 2; half >= 1; half /= 2)
    for (int start = 0; start < Rows; start += 2 * half)
      for (int row = start; row < start + half; row++)
        for (int i = 0; i < Columns; i++) {
          const float a = x[row][i], b = x[row + half][i];
          x[row][i] = a + b, x[row + half][i] = a - b;
        }
}

constexpr int TALL = BLOCK / LANES;

// Where a rotated block has a column: it is turned, for then no sum is of neighbours in a register.
constexpr int turned(int column) { return TALL * (column % LANES) + column / LANES; }

inline void rotate(const float* block, float* rotated) {
  alignas(64) float rows[TALL][LANES], columns[LANES][TALL];
  memcpy(rows, block, sizeof rows);
  transform(rows);
  for (int j = 0; j < LANES; j++)
    for (int i = 0; i < TALL; i++) columns[j][i] = rows[i][j];
  transform(columns);
  for (auto& column : columns)
    for (float& each : column) each *= ROOT;
  memcpy(rotated, columns, sizeof columns);
}

}  // namespace ISA
