// The products, for the instructions that this file is compiled for (ISA names them).
//
// A dot product is 16 chains of fused multiply-adds along the columns, folded at the end, whatever
// the number of rows: `dot` and `tile` differ in what they keep in registers alone.
#include "products.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "buffer.h"
#include "codes.h"
#include "integers.h"
#include "layer.h"
#include "tile.h"

namespace ISA {
namespace {

// What is decoded stays in the first cache, with the columns of x for one tile.
constexpr int PASS_N = 8;
constexpr int MOST_M = 22 * TILE_M;

// How many rows of x go through the weights together: they are decoded once for all of those, so
// that a last pass of a few rows would cost nearly as much as a whole one.
inline int64_t pass_of(int64_t M) {
  const int64_t passes = (M + MOST_M - 1) / MOST_M, rows = (M + passes - 1) / passes;
  return (rows + TILE_M - 1) / TILE_M * TILE_M;
}

// ---------------------------------------------------------------- weights

template <int Bits>
struct Coded {
  static constexpr int AT_ONCE = Bits <= 5 ? 4 : 2;  // rows whose chains overlap
  const Weight& weight;
  int64_t blocks;
  float scaled[1 << Bits];
  Table<Bits> table;

  static const float* scale(const Weight& weight, float* out) {
    for (int i = 0; i < 1 << Bits; i++) out[i] = weight.centroids[i] * ROOT;
    return out;
  }
  explicit Coded(const Weight& of)
      : weight(of), blocks(of.columns / BLOCK), table(scale(of, scaled)) {}

  struct Reader {
    Row<Bits> row;
    const uint16_t* norms;
    const Table<Bits>& table;
    alignas(64) float scales[LANES];
    void prefetch(int64_t blocks) const { row.prefetch(blocks); }
    // Before blocks 0 to LANES - 1 from here: to widen norms one by one takes half as long as to decode.
    void read_norms(int64_t left) {
      store(scales, load_f16(norms, left));
      norms += LANES;
    }
    Block<Bits> next(int which) {
      Block<Bits> found(row, table, scales[which]);
      row.skip(1);
      return found;
    }
  };
  Reader reader(int64_t row, int64_t block) const {
    Reader found{Row<Bits>((const uint8_t*)weight.data, weight.rows, row, blocks),
                 weight.norms + row * blocks + block, table};
    found.row.skip(block);
    return found;
  }
};

template <int Format>
struct Plain {
  static constexpr int AT_ONCE = 4, BYTES = Format == FLOAT32 ? 4 : 2;
  const Weight& weight;
  int64_t blocks;

  explicit Plain(const Weight& of) : weight(of), blocks(arranged_columns(of) / BLOCK) {}

  struct Numbers {
    const uint8_t* at;
    alignas(64) uint8_t padded[BLOCK * BYTES];
    Numbers(const uint8_t* from, int64_t left) : at(from) {
      if (left >= BLOCK) return;
      memset(padded, 0, sizeof padded);  // the last columns, and zeros
      memcpy(padded, from, left * BYTES);
      at = nullptr;
    }
    Lanes step(int step) const {
      const uint8_t* const p = (at ? at : padded) + BYTES * LANES * step;
      if constexpr (Format == BFLOAT16) return load_bf16((const uint16_t*)p);
      if constexpr (Format == FLOAT16) return load_f16((const uint16_t*)p);
      if constexpr (Format == FLOAT32) return load((const float*)p);
    }
  };

  struct Reader {
    const uint8_t* at;
    int64_t left;
    void prefetch(int64_t blocks) const { ISA::prefetch<BYTES * BLOCK>(at + blocks * BYTES * BLOCK); }
    void read_norms(int64_t) {}
    Numbers next(int) {
      const uint8_t* const from = at;
      at += BLOCK * BYTES;
      left -= BLOCK;
      return Numbers(from, left + BLOCK);
    }
  };
  Reader reader(int64_t row, int64_t block) const {
    const int64_t column = block * BLOCK;
    return {(const uint8_t*)weight.data + (row * weight.columns + column) * BYTES,
            weight.columns - column};
  }
};

// ---------------------------------------------------------------- products

// One row of x by some rows of a weight at once: nothing is stored but the sums.
template <class Of, size_t... Each>
void dot(const Of& weight, const float* x, float* y, int64_t begin, std::index_sequence<Each...>) {
  Lanes sums[] = {((void)Each, zero())...};
  typename Of::Reader readers[] = {weight.reader(begin + Each, 0)...};
  for (int64_t block = 0; block < weight.blocks; block++, x += BLOCK) {
    const int which = block % LANES;
    if (which == 0) (readers[Each].read_norms(weight.blocks - block), ...);
    (readers[Each].prefetch(weight.blocks * Of::AT_ONCE), ...);
    decltype(readers[0].next(0)) parts[] = {readers[Each].next(which)...};
    // The rows take turns, for a chain is as slow as its additions follow each other.
#pragma GCC unroll 8
    for (int step = 0; step < STEPS; step++) {
      const Lanes columns = load(x + LANES * step);
      ((sums[Each] = fma(parts[Each].step(step), columns, sums[Each])), ...);
    }
  }
  ((y[begin + Each] = sum(sums[Each])), ...);
}

template <class Of>
void multiply_one(const Of& weight, const float* x, float* y, int64_t begin, int64_t end) {
  constexpr int ROWS = Of::AT_ONCE;
  for (; begin + ROWS <= end; begin += ROWS)
    dot(weight, x, y, begin, std::make_index_sequence<ROWS>());
  for (; begin < end; begin++) dot(weight, x, y, begin, std::make_index_sequence<1>());
}

// Sums of the lanes of `count` vectors, a stride apart.
void fold(const float* vectors, int64_t stride, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(y + i, sums_of_each(vectors + i * stride, stride));
  for (; i < count; i++) y[i] = sum(load(vectors + i * stride));
}

// Some blocks of PASS_N rows of a weight, decoded. A call for each row would cost a tenth of prefill.
template <class Of>
struct Panel {
  static constexpr int BLOCKS = 4;
  static constexpr int64_t W = BLOCKS * BLOCK;
  alignas(64) float values[PASS_N * W];

  [[gnu::always_inline]] void decode(const Of& weight, int i, int64_t row, int64_t block,
                                     int count) {
    auto reader = weight.reader(row, block);
    float* out = values + i * W;
    reader.read_norms(count);
    for (int b = 0; b < count; b++, out += BLOCK) {
      reader.prefetch(BLOCKS);
      const auto part = reader.next(b);
#pragma GCC unroll 8
      for (int step = 0; step < STEPS; step++) store(out + LANES * step, part.step(step));
    }
  }
  // Multiplies TILE_N rows from the i-th by M rows of x, up to TILE_M.
  [[gnu::always_inline]] void tile(int i, const float* x, int64_t x_stride, int M, int64_t block,
                                   int count, float* sums) const {
    tile_of<TILE_N, TILE_M>(M, values + i * W, W, x + block * BLOCK, x_stride, sums,
                            count * STEPS, block == 0);
  }
};

template <int Bits>
struct Panel<Coarse<Bits>> {
  static constexpr int BLOCKS = PASS_BLOCKS16;
  static constexpr int64_t W = BLOCKS * BLOCK;
  alignas(64) int16_t levels[PASS_N * W];
  alignas(64) float scales[PASS_N * LANES];

  void decode(const Coarse<Bits>& weight, int i, int64_t row, int64_t block, int count) {
    Row<Bits> codes = weight.row(row, block);
    store(scales + i * LANES, weight.scales(row, block));
    int16_t* out = levels + i * W;
    for (int b = 0; b < count; b++, out += BLOCK, codes.skip(1)) {
      codes.prefetch(BLOCKS);
      decode16<Bits>(codes, weight.levels,
                     [&](int step, Wide w) { store16(out + WIDE * step, w); });
    }
  }
  void tile(int i, const float* x, int64_t x_stride, int M, int64_t block, int count,
            float* sums) const {
    tile16_of<TILE_N, TILE_M>(M, levels + i * W, scales + i * LANES, x, x_stride, block, count,
                              sums);
  }
};

template <class Of>
void multiply_many(const Of& weight, const float* x, int64_t M, float* y, int64_t stride,
                   int64_t begin, int64_t end) {
  const int64_t x_stride = weight.blocks * BLOCK, N = end - begin;
  const int64_t pass = pass_of(M);
  const int64_t whole = (N + TILE_N - 1) / TILE_N * TILE_N;  // the last tile writes all its rows
  thread_local Buffer kept;
  float* const all_sums = kept.of(whole * pass * LANES);
  const auto sums_of = [&](int64_t m) { return all_sums + m / TILE_M * whole * SUMS; };
  static thread_local Panel<Of> panel;
  for (int64_t first = 0; first < M; first += pass) {
    const int64_t rows = std::min<int64_t>(pass, M - first);
    for (int64_t block = 0; block < weight.blocks; block += panel.BLOCKS) {
      const int count = (int)std::min<int64_t>(panel.BLOCKS, weight.blocks - block);
      for (int64_t n = 0; n < N; n += PASS_N) {
        const int height = (int)std::min<int64_t>(PASS_N, N - n);
        for (int i = 0; i < height; i++) panel.decode(weight, i, begin + n + i, block, count);
        for (int64_t m = 0; m < rows; m += TILE_M)
          for (int i = 0; i < height; i += TILE_N)
            panel.tile(i, x + (first + m) * x_stride, x_stride,
                       (int)std::min<int64_t>(TILE_M, rows - m), block, count,
                       sums_of(m) + (n + i) * SUMS);
      }
    }
    // A row of y at a time: its neighbours may lie a page apart or more.
    for (int64_t m = 0; m < rows; m++)
      fold(sums_of(m) + m % TILE_M * LANES, SUMS, N, y + (first + m) * stride + begin);
  }
}

template <class Of>
void multiply_by(const Weight& of, const float* x, int64_t M, float* y, int64_t stride,
                 int64_t begin, int64_t end) {
  const Of weight(of);
  if (M == 1) return multiply_one(weight, x, y, begin, end);
  multiply_many(weight, x, M, y, stride, begin, end);
}

template <class Of>
struct Type {
  using type = Of;
};

void multiply(const Weight& weight, const float* x, int64_t M, float* y, int64_t stride,
              int64_t begin, int64_t end) {
  const auto by = [&](auto of) {
    multiply_by<typename decltype(of)::type>(weight, x, M, y, stride, begin, end);
  };
  switch (weight.format) {
#define CODED(bits) \
  case bits:        \
    return weight.is_integer ? by(Type<Coarse<bits>>()) : by(Type<Coded<bits>>());
#define PLAIN(format) \
  case format:        \
    return by(Type<Plain<format>>());
    CODED(1)
    CODED(2)
    CODED(3)
    CODED(4)
    CODED(5)
    CODED(6)
    CODED(7)
    CODED(8)
    PLAIN(BFLOAT16)
    PLAIN(FLOAT16)
    PLAIN(FLOAT32)
#undef CODED
#undef PLAIN
  }
}

// ---------------------------------------------------------------- rotation

void arrange(const Weight& weight, const float* x, int64_t count, float* arranged) {
  const int64_t columns = arranged_columns(weight);
  if (weight.format > 8) {
    memcpy(arranged, x, count * sizeof(float));
    memset(arranged + count, 0, (columns - count) * sizeof(float));
    return;
  }
  const Columns& order = columns_of(weight.format);
  for (int64_t start = 0; start < columns; start += BLOCK) {
    alignas(64) float rotated[BLOCK];
    if (start + BLOCK <= count) {
      rotate(x + start, rotated);
    } else {
      float padded[BLOCK] = {};
      if (start < count) memcpy(padded, x + start, (count - start) * sizeof *x);
      rotate(padded, rotated);
    }
    if (weight.is_integer)
      arrange16(rotated, (int16_t*)arranged + start, arranged + columns / 2 + start / BLOCK);
    else
      for (int i = 0; i < BLOCK; i++) arranged[start + i] = rotated[order.rotated[i]];
  }
  // What lies beyond the last scale is multiplied with it, which would be slow of denormal numbers.
  if (weight.is_integer) {
    float* const beyond = arranged + columns / 2 + columns / BLOCK;
    std::fill(beyond, beyond + PASS_BLOCKS16 - 1, 0.0f);
  }
}

template <int Bits>
void look_up_coded(const Weight& of, int64_t row, float* y) {
  const Coded<Bits> weight(of);
  const Columns& order = columns_of(Bits);
  auto reader = weight.reader(row, 0);
  for (int64_t i = 0; i < weight.blocks; i++, y += BLOCK) {
    alignas(64) float lanes[BLOCK], block[BLOCK], rotated[BLOCK];
    if (i % LANES == 0) reader.read_norms(weight.blocks - i);
    const auto part = reader.next(i % LANES);
    for (int step = 0; step < STEPS; step++) store(lanes + LANES * step, part.step(step));
    for (int at = 0; at < BLOCK; at++) block[order.at[at]] = lanes[at];
    rotate(block, rotated);
    for (int column = 0; column < BLOCK; column++) y[column] = rotated[turned(column)];
  }
}

void look_up(const Weight& weight, int64_t row, float* y) {
  using LookUp = void (*)(const Weight&, int64_t, float*);
  static const LookUp by_bits[] = {look_up_coded<1>, look_up_coded<2>, look_up_coded<3>,
                                   look_up_coded<4>, look_up_coded<5>, look_up_coded<6>,
                                   look_up_coded<7>, look_up_coded<8>};
  by_bits[weight.format - 1](weight, row, y);
}

}  // namespace

#define JOIN(a, b) a##b
#define NAMED(name) JOIN(kernels_, name)
#define TEXT(name) #name
#define TEXT_OF(name) TEXT(name)

}  // namespace ISA

extern const Kernels NAMED(ISA);
const Kernels NAMED(ISA) = {
    TEXT_OF(ISA),  ISA::arrange,    ISA::multiply,      ISA::look_up,
    ISA::gelu_mul, ISA::cap_scores, ISA::residual_norm, ISA::head,
    ISA::attend,
};
