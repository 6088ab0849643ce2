// What lies between the products of a layer: norms, the gate, the rotation of heads, attention.
//
// Every result depends on its own row alone, and is summed in an order that its own length gives.
#pragma once
#include <algorithm>
#include <vector>

#include "lanes.h"
#include "products.h"
#include "tile.h"

namespace ISA {

// ---------------------------------------------------------------- exponentials

// exp(x) for x in -87..87, to two units in the last place: 2^n times a polynomial of the rest.
// What is no number stays none, here and wherever a value is bounded: min and max keep their first.
// Source: the coefficients of Cephes' expf (S. Moshier), a published approximation.
inline void exp_of(const float* x, float* y) {
  for (int i = 0; i < LANES; i++) {
    const float n = std::nearbyint(x[i] * 1.44269504088896341f);
    float r = x[i] - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const int32_t bits = ((int32_t)(n == n ? n : 0) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    y[i] = p * power;
  }
}

// gelu by tanh is x / (1 + exp(-2 * inner)).
inline void gelu_mul(const float* gate, const float* up, float* y, int64_t count) {
  for (int64_t start = 0; start < count; start += LANES) {
    const int n = (int)std::min<int64_t>(LANES, count - start);
    float g[LANES] = {}, inner[LANES], power[LANES];
    memcpy(g, gate + start, n * sizeof(float));
    for (int i = 0; i < LANES; i++) {
      inner[i] = -1.5957691216057308f * (g[i] + 0.044715f * g[i] * g[i] * g[i]);
      inner[i] = std::min(std::max(inner[i], -87.0f), 87.0f);
    }
    exp_of(inner, power);
    for (int i = 0; i < n; i++) y[start + i] = g[i] / (1.0f + power[i]) * up[start + i];
  }
}

// y = cap * tanh(x / cap): by exp, and near zero, where that would cancel, by a series.
inline void cap_scores(const float* x, float cap, float* y, int64_t count) {
  for (int64_t start = 0; start < count; start += LANES) {
    const int n = (int)std::min<int64_t>(LANES, count - start);
    float t[LANES] = {}, twice[LANES], power[LANES];
    memcpy(t, x + start, n * sizeof(float));
    for (int i = 0; i < LANES; i++) {
      t[i] /= cap;
      twice[i] = std::min(2.0f * std::fabs(t[i]), 87.0f);
    }
    exp_of(twice, power);
    for (int i = 0; i < LANES; i++) {
      const float square = t[i] * t[i];
      const float series =
          t[i] * (1.0f + square * (-1.0f / 3 + square * (2.0f / 15 + square * (-17.0f / 315))));
      const float far = std::copysign(1.0f - 2.0f / (power[i] + 1.0f), t[i]);
      t[i] = cap * (square < 0.04f ? series : far);
    }
    memcpy(y + start, t, n * sizeof(float));
  }
}

// ---------------------------------------------------------------- norms

// 1 / sqrt(mean of squares + epsilon), of any number of columns.
inline float inverse_norm(const float* x, int64_t columns, float epsilon) {
  Lanes squares = zero();
  int64_t i = 0;
  for (; i + LANES <= columns; i += LANES) squares = fma(load(x + i), load(x + i), squares);
  if (i < columns) {
    float rest[LANES] = {};
    memcpy(rest, x + i, (columns - i) * sizeof(float));
    squares = fma(load(rest), load(rest), squares);
  }
  return 1.0f / std::sqrt(sum(squares) / (float)columns + epsilon);
}

inline void residual_norm(const Residual& of, const float* x, const float* update, float* h,
                          float* normed) {
  const float inverse = inverse_norm(update, of.columns, of.epsilon);
  for (int64_t i = 0; i < of.columns; i++)
    h[i] = (x[i] + update[i] * inverse * of.weight[i]) * of.scale;
  if (!of.next) return;
  const float following = inverse_norm(h, of.columns, of.epsilon);
  for (int64_t i = 0; i < of.columns; i++) normed[i] = h[i] * following * of.next[i];
}

inline void head(const Heads& of, const float* x, const float* cosines, const float* sines,
                 float* y) {
  const int64_t half = of.columns / 2;
  const float inverse = inverse_norm(x, of.columns, of.epsilon);
  for (int64_t i = 0; i < of.columns; i++) y[i] = x[i] * inverse * (of.weight ? of.weight[i] : 1.0f);
  if (!of.waves) return;
  for (int64_t i = 0; i < half; i++) {
    const float a = y[i], b = y[i + half];
    y[i] = a * cosines[i] - b * sines[i];
    y[i + half] = b * cosines[i] + a * sines[i];
  }
}

// ---------------------------------------------------------------- attention

// The keys that a query sees: first to last, and among them what its mask has.
struct Span {
  int64_t first, last;
};

inline Span span_of(const Attention& of, const Seen& seen, int64_t query) {
  if (seen.mask) return {0, seen.count};
  const int64_t last = seen.count - of.advance * (of.queries - 1 - query);
  return {of.window ? std::max<int64_t>(0, last - of.window) : 0, last};
}

// Scores of some queries by all keys that any of them sees, a row of `stride` for each.
inline void score(const Attention& of, const float* keys, const float* x, int queries, Span all,
                  float* scores, int64_t stride) {
  alignas(64) float sums[TILE_N * TILE_M * LANES];
  const int steps = (int)(of.columns / LANES);
  const auto keep = [&](int64_t key, int height) {
    for (int n = 0; n < height; n++)
      for (int m = 0; m < queries; m++)
        scores[m * stride + key + n - all.first] = sum(load(sums + (n * TILE_M + m) * LANES));
  };
  int64_t key = all.first;
  for (; key + TILE_N <= all.last; key += TILE_N) {
    tile_of<TILE_N, TILE_M>(queries, keys + key * of.columns, of.columns, x, of.columns, sums,
                            steps, true);
    keep(key, TILE_N);
  }
  for (; key < all.last; key++) {
    tile_of<1, TILE_M>(queries, keys + key * of.columns, of.columns, x, of.columns, sums,
                       steps, true);
    keep(key, 1);
  }
}

// Turns a query's scores into weights that sum to 1; keys that it does not see weigh nothing.
inline void weigh(const Attention& of, const Seen& seen, int64_t query, Span all, float* scores) {
  const Span own = span_of(of, seen, query);
  const uint8_t* mask = seen.mask ? seen.mask + query * of.advance * seen.count : nullptr;
  const float none = -INFINITY;
  float* first = scores + own.first - all.first;
  const int64_t count = own.last - own.first;
  if (mask)
    for (int64_t i = 0; i < count; i++)
      if (!mask[own.first + i]) first[i] = none;
  float most = none;
  for (int64_t i = 0; i < count; i++) most = std::max(most, first[i]);
  Lanes sums = zero();
  for (int64_t i = 0; i < count; i += LANES) {
    const int n = (int)std::min<int64_t>(LANES, count - i);
    float x[LANES], y[LANES];
    for (int k = 0; k < LANES; k++) x[k] = k < n ? std::max(first[i + k] - most, -87.0f) : -87.0f;
    exp_of(x, y);
    for (int k = 0; k < LANES; k++) y[k] = k < n && first[i + k] != none ? y[k] : 0.0f;
    sums = add(sums, load(y));
    memcpy(first + i, y, n * sizeof(float));
  }
  const float total = sum(sums), share = total > 0 ? 1.0f / total : 0.0f;  // padding sees nothing
  for (int64_t i = 0; i < count; i++) first[i] *= share;
  std::fill(scores, first, 0.0f);
  std::fill(first + count, scores + (all.last - all.first), 0.0f);
}

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int MIXED = 1;
#else
constexpr int MIXED = 4;
#endif

// Sums of values by weights, key after key; `Queries` rows and `Width` registers of columns at once.
template <int Queries, int Width>
inline void mix(const float* values, int64_t columns, const float* weights, int64_t stride,
                Span all, float* y) {
  Lanes sums[Queries][Width];
  for (auto& row : sums)
    for (auto& each : row) each = zero();
  for (int64_t key = all.first; key < all.last; key++) {
    Lanes value[Width];
    for (int i = 0; i < Width; i++) value[i] = load(values + key * columns + i * LANES);
    for (int q = 0; q < Queries; q++) {
      const Lanes weight = ISA::all(weights[q * stride + key - all.first]);
      for (int i = 0; i < Width; i++) sums[q][i] = fma(value[i], weight, sums[q][i]);
    }
  }
  for (int q = 0; q < Queries; q++)
    for (int i = 0; i < Width; i++) store(y + q * columns + i * LANES, sums[q][i]);
}

template <int Queries, int Width>
inline void mix_of(int count, const float* values, int64_t columns, const float* weights,
                   int64_t stride, Span all, float* y) {
  if (count == Queries) return mix<Queries, Width>(values, columns, weights, stride, all, y);
  if constexpr (Queries > 1)
    mix_of<Queries - 1, Width>(count, values, columns, weights, stride, all, y);
}

inline void attend(const Attention& of, int64_t sequence, int64_t head, int64_t begin,
                   int64_t end) {
  const Seen& seen = of.seen[sequence];
  const int64_t kv = head / (of.heads / of.kv_heads);
  const float *keys = seen.keys + kv * seen.key_stride, *values = seen.values + kv * seen.value_stride;
  const int64_t at = (sequence * of.heads + head) * of.queries;
  static thread_local std::vector<float> kept;
  for (int64_t query = begin; query < end; query += TILE_M) {
    const int count = (int)std::min<int64_t>(TILE_M, end - query);
    const Span all{span_of(of, seen, query).first, span_of(of, seen, query + count - 1).last};
    const int64_t stride = all.last - all.first;
    if ((int64_t)kept.size() < stride * count) kept.resize(stride * count);
    float* scores = kept.data();
    score(of, keys, of.x + (at + query) * of.columns, count, all, scores, stride);
    for (int q = 0; q < count; q++) weigh(of, seen, query + q, all, scores + q * stride);
    float* y = of.y + (at + query) * of.columns;
    int64_t column = 0;
    for (; column + MIXED * LANES <= of.columns; column += MIXED * LANES)
      mix_of<TILE_M, MIXED>(count, values + column, of.columns, scores, stride, all, y + column);
    for (; column < of.columns; column += LANES)
      mix_of<TILE_M, 1>(count, values + column, of.columns, scores, stride, all, y + column);
  }
}

}  // namespace ISA
