// The library's functions for other languages, and the choice among the kernels of products.cpp.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "pool.h"
#include "products.h"

namespace {

const Kernels* all_kernels[] = {
#if defined(__x86_64__)
    &kernels_avx512, &kernels_avx2,
#elif defined(__aarch64__)
    &kernels_neon,
#endif
    &kernels_portable,
};

#if defined(__x86_64__)
// What the processor has, and the system keeps of it when threads take turns. The compilers' own
// __builtin_cpu_supports has no answer in what zig links.
struct Processor {
  bool has_avx2 = false, has_avx512 = false;

  Processor() {
    unsigned a, b, c, d, kept, unused;
    constexpr unsigned xsave = 1u << 27, fma = 1u << 12, f16c = 1u << 29;
    if (!__get_cpuid(1, &a, &b, &c, &d) || ~c & (xsave | fma | f16c)) return;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    asm("xgetbv" : "=a"(kept), "=d"(unused) : "c"(0));
    constexpr unsigned bmi = 1u << 3, avx2 = 1u << 5, bmi2 = 1u << 8;
    constexpr unsigned avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    constexpr unsigned vbmi = 1u << 1, vnni = 1u << 11;
    has_avx2 = !(~kept & 0x06) && !(~b & (bmi | avx2 | bmi2));
    has_avx512 = has_avx2 && !(~kept & 0xe6) && !(~b & avx512) && !(~c & (vbmi | vnni));
  }
};
#endif

bool runs_here(const Kernels& kernels) {
#if defined(__x86_64__)
  static const Processor processor;
  if (&kernels == &kernels_avx512) return processor.has_avx512;
  if (&kernels == &kernels_avx2) return processor.has_avx2;
#endif
  return true;
}

const Kernels* best() {
  for (const Kernels* each : all_kernels)
    if (runs_here(*each)) return each;
  return &kernels_portable;
}

const Kernels* kernels = best();

constexpr int64_t ALONE = 1 << 17;  // multiplications that are not worth a thread's waking

int64_t grain(int64_t rows, int64_t M, int64_t columns) {
  if (M * rows * columns < ALONE) return rows;
  // As many rows of sums as fit the second cache with a pass of x; more where x does not fit it.
  if (M > 1) return M * columns > 1 << 19 ? 64 : 32;
  return std::max<int64_t>(8, std::min<int64_t>(256, (1 << 18) / columns));
}

// So many rows of x, or pairs of a row and an expert, are multiplied together: whole passes of
// products.cpp, so that it takes no longer than all at once, and what is kept stays small.
constexpr int64_t SLICE = 132, PAIRS = 1024;

// The rows of x as the weight takes them, and what becomes of them before y. They are kept: memory
// that is new to a process costs as much as a tenth of a long product.
thread_local Buffer arranged_rows, products;
thread_local Buffer inputs, inners, ups, updates;  // between the products of one call

// Returns M rows as the weight takes them; `row_of` tells where each lies.
template <class RowOf>
const float* arrange(const Weight& weight, int64_t M, int64_t columns, RowOf row_of) {
  const int64_t K = arranged_columns(weight);
  float* const rows = arranged_rows.of(M * K);
  each(M, M * K < ALONE ? M : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; m++)
      kernels->arrange(weight, row_of(m), columns, rows + m * K);
  });
  return rows;
}

// As hlwq_multiply.
void multiply_slice(const Weight& weight, const float* x, int64_t M, int64_t columns, float* y,
                    bool gated) {
  const int64_t K = arranged_columns(weight), N = weight.rows;
  const float* const rows =
      arrange(weight, M, columns, [&](int64_t m) { return x + m * columns; });
  float* const out = gated ? products.of(M * N) : y;
  each(N, grain(N, M, K), [&](int64_t begin, int64_t end, int) {
    kernels->multiply(weight, rows, M, out, N, begin, end);
  });
  if (!gated) return;
  const int64_t half = N / 2;
  each(M, M * half < ALONE / 8 ? M : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; m++)
      kernels->gelu_mul(out + m * N, out + m * N + half, y + m * half, half);
  });
}

// As hlwq_multiply_experts, for `count` pairs in an order in which an expert's follow each other.
void multiply_pairs(const Weight& weight, const float* x, int64_t columns,
                    const uint32_t* experts, int64_t each_row, const int64_t* order, int64_t count,
                    int64_t height, float* y) {
  const int64_t K = arranged_columns(weight);
  const float* const rows = arrange(
      weight, count, columns, [&](int64_t i) { return x + order[i] / each_row * columns; });
  float* const found = products.of(count * height);
  struct Group {
    int64_t begin, count;
    uint32_t expert;
  };
  std::vector<Group> groups;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t expert = experts[order[i]];
    if (groups.empty() || groups.back().expert != expert) groups.push_back({i, 0, expert});
    groups.back().count++;
  }
  const int64_t slice = std::min<int64_t>(height, 32), slices = (height + slice - 1) / slice;
  each((int64_t)groups.size() * slices, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t turn = begin; turn < end; turn++) {
      const Group& group = groups[turn / slices];
      const int64_t base = group.expert * height, first = turn % slices * slice;
      // Rows of the weight are counted from the stack's first, those of y from the expert's.
      kernels->multiply(weight, rows + group.begin * K, group.count,
                        found + group.begin * height - base, height, base + first,
                        base + std::min(height, first + slice));
    }
  });
  for (int64_t i = 0; i < count; i++)
    memcpy(y + order[i] * height, found + i * height, height * sizeof(float));
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Names the instructions that are in use.
const char* hlwq_instructions() { return kernels->name; }

// Takes other instructions; returns 0 where this processor or this build has none of that name.
int hlwq_use(const char* name) {
  for (const Kernels* each : all_kernels)
    if (!strcmp(each->name, name) && runs_here(*each)) {
      kernels = each;
      return 1;
    }
  return 0;
}

void hlwq_set_threads(int count) { set_threads(count); }

// y[m, n] = x[m] . weight[n]; with `gated`, y[m, n] = gelu of that * x[m] . weight[rows / 2 + n].
// x has `columns` floats a row, which a coded weight's padding follows as zeros.
void hlwq_multiply(const Weight* weight, const float* x, int64_t M, int64_t columns, float* y,
                   int gated) {
  const int64_t width = gated ? weight->rows / 2 : weight->rows;
  for (int64_t m = 0; m < M; m += SLICE)
    multiply_slice(*weight, x + m * columns, std::min(SLICE, M - m), columns, y + m * width, gated);
}

// y[p] = x[rows[p]] . weight[experts[p] * height + n] for n < height.
void hlwq_multiply_experts(const Weight* weight, const float* x, int64_t M, int64_t columns,
                           const uint32_t* experts, int64_t each_row, int64_t height, float* y) {
  const int64_t pairs = M * each_row;
  // The pairs of each expert side by side, so that its rows are decoded once.
  std::vector<int64_t> order(pairs);
  for (int64_t p = 0; p < pairs; p++) order[p] = p;
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return experts[a] < experts[b]; });
  for (int64_t p = 0; p < pairs; p += PAIRS)
    multiply_pairs(*weight, x, columns, experts, each_row, &order[p], std::min(PAIRS, pairs - p),
                   height, y);
}

// y[i] = row ids[i] of a coded weight, rotated back: [count, columns].
void hlwq_look_up(const Weight* weight, const int64_t* ids, int64_t count, float* y) {
  each(count, std::max<int64_t>(1, ALONE / 8 / weight->columns), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++)
      kernels->look_up(*weight, ids[i], y + i * weight->columns);
  });
}

// y = gelu(gate) * up, element by element.
void hlwq_gelu_mul(const float* gate, const float* up, float* y, int64_t count) {
  const int64_t slice = 1 << 12;
  each(count, slice, [&](int64_t begin, int64_t end, int) {
    kernels->gelu_mul(gate + begin, up + begin, y + begin, end - begin);
  });
}

// y = cap * tanh(x / cap), element by element.
void hlwq_cap_scores(const float* x, float cap, float* y, int64_t count) {
  each(count, 1 << 13, [&](int64_t begin, int64_t end, int) {
    kernels->cap_scores(x + begin, cap, y + begin, end - begin);
  });
}

// See Residual: x, update, h and normed [M, columns].
void hlwq_residual_norm(const Residual* of, const float* x, const float* update, float* h,
                        float* normed, int64_t M) {
  const int64_t K = of->columns;
  each(M, M * K < ALONE / 8 ? M : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; m++)
      kernels->residual_norm(*of, x + m * K, update + m * K, h + m * K,
                             normed ? normed + m * K : nullptr);
  });
}

// See Rest: x, attended, h and normed [M, columns], own [M, rows of the gate]. Each step is a
// function above. Without a norm that follows there is no `normed`.
void hlwq_rest(const Rest* of, const float* x, const float* attended, const float* own, float* h,
               float* normed, int64_t M) {
  const int64_t K = of->attended.columns, width = of->up ? of->up->rows : of->gate_up->rows / 2;
  const int64_t own_width = of->gate ? of->gate->rows : 0;
  const int64_t most = std::min(SLICE, M);
  float *const input = inputs.of(most * K), *const update = updates.of(most * K);
  float* const inner = inners.of(most * std::max(width, own_width));
  float* const up = of->up ? ups.of(most * width) : nullptr;
  for (int64_t first = 0; first < M; first += SLICE) {
    const int64_t m = std::min(SLICE, M - first), at = first * K;
    float *const out = h + at, *const last = normed ? normed + at : nullptr;
    hlwq_residual_norm(&of->attended, x + at, attended + at, out, input, m);
    hlwq_multiply(of->gate_up, input, m, K, inner, !up);
    if (up) {
      hlwq_multiply(of->up, input, m, K, up, 0);
      hlwq_gelu_mul(inner, up, inner, m * width);
    }
    hlwq_multiply(of->down, inner, m, width, update, 0);
    hlwq_residual_norm(&of->fed, out, update, out, of->gate ? nullptr : last, m);
    if (!of->gate) continue;
    hlwq_multiply(of->gate, out, m, K, inner, 0);
    hlwq_gelu_mul(inner, own + first * own_width, inner, m * own_width);
    hlwq_multiply(of->projection, inner, m, own_width, update, 0);
    hlwq_residual_norm(&of->added, out, update, out, last, m);
  }
}

// x [sequences, length, heads * columns], rows `x_stride` apart -> y [sequences, heads, length,
// columns]; the first position of a sequence is its offset.
void hlwq_heads(const Heads* of, const float* x, int64_t x_stride, const int64_t* offsets,
                int64_t sequences, int64_t length, float* y) {
  const int64_t D = of->columns, half = D / 2, rows = sequences * length;
  each(rows, rows * of->heads * D < ALONE / 8 ? rows : 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> cosines(half), sines(half);
    for (int64_t row = begin; row < end; row++) {
      const int64_t sequence = row / length, position = row % length;
      for (int64_t i = 0; of->waves && i < half; i++) {
        const float angle = (float)(offsets[sequence] + position) * (1.0f / of->waves[i]);
        cosines[i] = cosf(angle);
        sines[i] = sinf(angle);
      }
      for (int64_t head = 0; head < of->heads; head++)
        kernels->head(*of, x + row * x_stride + head * D, cosines.data(), sines.data(),
                      y + ((sequence * of->heads + head) * length + position) * D);
    }
  });
}

// See Attention. The heads of one position that share keys are queries of one head.
void hlwq_attend(const Attention* given) {
  Attention regrouped = *given;
  const Attention* of = &regrouped;
  if (given->queries == 1) {
    regrouped.queries = given->heads / given->kv_heads;
    regrouped.heads = given->kv_heads;
    regrouped.advance = 0;
  }
  const int64_t slice = 6, slices = (of->queries + slice - 1) / slice;
  int64_t work = 0;
  for (int64_t i = 0; i < of->sequences; i++)
    work += of->heads * of->queries * of->seen[i].count * of->columns;
  const int64_t turns = of->sequences * of->heads * slices;
  each(turns, work < ALONE / 2 ? turns : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t turn = begin; turn < end; turn++) {
      const int64_t first = turn % slices * slice, row = turn / slices;
      kernels->attend(*of, row / of->heads, row % of->heads, first,
                      std::min(of->queries, first + slice));
    }
  });
}

}  // extern "C"
#pragma GCC visibility pop
