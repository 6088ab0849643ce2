// Codes of weights and their layout on disk: what conversion does, for coding.py.
//
// It needs no instructions that some processors lack, so it is compiled once. Callers have threads
// of their own; nothing here starts one.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int BLOCK = 128, UNITS = 4, QUADS = BLOCK / 4;

// ---------------------------------------------------------------- P32 (packing.py)

// Exchanges neighbouring fields of `taken` bits, among the lowest `bits`.
inline uint64_t exchange(uint64_t x, int taken, int bits) {
  uint64_t low = 0;
  for (int at = 0; at < bits; at += 2 * taken) low |= ((1ull << taken) - 1) << at;
  return ((x >> taken) & low) | ((x & low) << taken);
}

// Reads 8 codes, each quad of them from its first code, the lowest, on. What follows them is read too.
template <int Bits, bool IsMsb>
inline void read(const uint8_t* at, uint64_t* quads) {
  constexpr uint64_t quad = (1ull << 4 * Bits) - 1;
  uint64_t x;
  memcpy(&x, at, 8);
  if (IsMsb) {
    x = __builtin_bswap64(x) >> (64 - 8 * Bits);
    x = exchange(exchange(x, 2 * Bits, 8 * Bits), Bits, 8 * Bits);
    quads[0] = x >> 4 * Bits, quads[1] = x & quad;
    return;
  }
  quads[0] = x & quad, quads[1] = x >> 4 * Bits & quad;
}

template <int Bits, bool IsMsb>
void lay_out(const uint8_t* source, int64_t blocks, uint32_t* const* planes) {
  constexpr int widths[3] = {Bits & 12, Bits & 2, Bits & 1};
  uint32_t* targets[3];
  for (int plane = 0; plane < 3; plane++) targets[plane] = widths[plane] ? *planes++ : nullptr;
  constexpr int groups = QUADS / 2;
  uint8_t last[groups * Bits + 8] = {};
  for (int64_t block = 0; block < blocks; block++, source += groups * Bits) {
    if (block == blocks - 1)  // nothing that could be read follows
      source = (const uint8_t*)memcpy(last, source, groups * Bits);
    uint64_t quads[QUADS];
    for (int group = 0; group < groups; group++)
      read<Bits, IsMsb>(source + group * Bits, quads + 2 * group);
    for (int unit = 0; unit < UNITS; unit++) {
      uint32_t words[Bits];
      uint64_t gathered = 0;
      for (int i = 0, filled = 0, word = 0; i < QUADS / UNITS; i++) {
        gathered |= quads[UNITS * i + unit] << filled;
        for (filled += 4 * Bits; filled >= 32; filled -= 32, gathered >>= 32)
          words[word++] = (uint32_t)gathered;
      }
      const uint32_t* next = words;
      for (int plane = 0; plane < 3; plane++) {
        if (!widths[plane]) continue;
        memcpy(targets[plane], next, 4 * widths[plane]);
        targets[plane] += widths[plane], next += widths[plane];
      }
    }
  }
}

using LayOut = void (*)(const uint8_t*, int64_t, uint32_t* const*);
#define BOTH(bits) {lay_out<bits, false>, lay_out<bits, true>}
constexpr LayOut lay_outs[8][2] = {BOTH(1), BOTH(2), BOTH(3), BOTH(4),
                                   BOTH(5), BOTH(6), BOTH(7), BOTH(8)};
#undef BOTH

// ---------------------------------------------------------------- codes (coder.py)

// The table of a coder; `cells` holds a code and, above it, whether a value there may have another.
struct Table {
  const uint16_t* cells;
  const float* levels;
  const float* centroids;
  const double* midpoints;  // [count + 2], the last two infinite
  int64_t count;
  double scale, tolerance;
};

constexpr int CELLS = 1 << 16;

// The unscaled Walsh-Hadamard transform of columns, side by side.
template <int Rows, int Columns>
inline void transform(float (&x)[Rows][Columns]) {
  for (int half = 1; half < Rows; half *= 2)
    for (int start = 0; start < Rows; start += 2 * half)
      for (int row = start; row < start + half; row++)
        for (int i = 0; i < Columns; i++) {
          const float a = x[row][i], b = x[row + half][i];
          x[row][i] = a + b, x[row + half][i] = a - b;
        }
}

constexpr int TALL = 8, WIDE = 16;

// The transform of a block, as that of 8 rows and then of 16 columns. Its result is turned: value
// 16 * i + j lies at 8 * j + i.
inline void rotate(const float* block, float (&turned)[WIDE][TALL]) {
  float x[TALL][WIDE];
  memcpy(x, block, sizeof x);
  transform(x);
  for (int j = 0; j < WIDE; j++)
    for (int i = 0; i < TALL; i++) turned[j][i] = x[i][j];
  transform(turned);
}

inline int place(int at) { return WIDE * (at % TALL) + at / TALL; }

// One value of the transform, in double.
double coordinate(const float* block, int row) {
  double x[BLOCK];
  for (int k = 0; k < BLOCK; k++) x[k] = block[k];
  for (int half = BLOCK / 2; half; half /= 2) {
    const double sign = row & half ? -1 : 1;
    for (int k = 0; k < half; k++) x[k] += sign * x[k + half];
  }
  return x[0];
}

int settle(const Table& table, int below, float position, const float* block, int row,
           double length) {
  const double value = ((double)position - CELLS / 2) / table.scale;
  const double midpoint = table.midpoints[below];
  const bool is_near = std::abs(value - midpoint) <= table.tolerance ||
                       value + table.tolerance >= table.midpoints[below + 1];
  if (!is_near) return below + (value > midpoint);
  const double exact = coordinate(block, row) / length;
  return (int)(std::lower_bound(table.midpoints, table.midpoints + table.count, exact) -
               table.midpoints);
}

inline double squares(const float* x) {
  float sums[8] = {};
  for (int k = 0; k < BLOCK; k += 8)
    for (int i = 0; i < 8; i++) sums[i] += x[k + i] * x[k + i];
  double sum = 0;
  for (float each : sums) sum += each;
  return sum;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Lays whole blocks of a stream of codes out in P32, in as many planes as that width has.
void hlwq_lay_out(const uint8_t* stream, int64_t blocks, int bits, int is_msb,
                  uint32_t* const* planes) {
  lay_outs[bits - 1][is_msb != 0](stream, blocks, planes);
}

// Codes blocks [n, 128] of these lengths, whose norms are stored as `norms`. `energies` gets the
// sums of squares of what the codes stand for, and of what that is wrong by.
void hlwq_code(const Table* table, const float* blocks, const double* lengths, const float* norms,
               int64_t n, uint8_t* codes, double* energies) {
  const uint16_t* const cells = table->cells;
  const float* const levels = table->levels;
  double decoded_sum = 0, error_sum = 0;
  for (int64_t b = 0; b < n; b++, blocks += BLOCK, codes += BLOCK) {
    float turned[WIDE][TALL], position[BLOCK], decoded[BLOCK];
    int32_t cell[BLOCK], open[BLOCK];
    rotate(blocks, turned);
    float* const rotated = turned[0];
    const float factor = (float)(table->scale / lengths[b]);
    for (int k = 0; k < BLOCK; k++) {
      position[k] = rotated[k] * factor + (float)(CELLS / 2);
      const int32_t at = (int32_t)position[k];
      cell[k] = at < 0 ? 0 : at > CELLS - 1 ? CELLS - 1 : at;
    }
    int open_count = 0;
    for (int k = 0; k < BLOCK; k++) {
      const int found = cells[cell[k]];
      codes[place(k)] = (uint8_t)found;
      decoded[k] = levels[cell[k]];
      open[open_count] = k;
      open_count += found >> 8;
    }
    for (int i = 0; i < open_count; i++) {
      const int k = open[i], at = place(k);
      codes[at] = (uint8_t)settle(*table, codes[at], position[k], blocks, at, lengths[b]);
      decoded[k] = table->centroids[codes[at]];
    }
    for (int k = 0; k < BLOCK; k++) decoded[k] *= norms[b], rotated[k] -= decoded[k];
    decoded_sum += squares(decoded), error_sum += squares(rotated);
  }
  energies[0] = decoded_sum / BLOCK, energies[1] = error_sum / BLOCK;
}

}  // extern "C"
#pragma GCC visibility pop
