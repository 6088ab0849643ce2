// What the library's functions mean, in float64 and from the layout's description (packing.py):
// slow, without a line of the library's own.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "products.h"

namespace reference {

using Doubles = std::vector<double>;
constexpr int BLOCK = 128;
const double ROOT = std::sqrt(128.0);

// |found - wanted| / |wanted|.
inline double distance(const float* found, const Doubles& wanted) {
  double error = 0, length = 0;
  for (size_t i = 0; i < wanted.size(); i++) {
    error += (found[i] - wanted[i]) * (found[i] - wanted[i]);
    length += wanted[i] * wanted[i];
  }
  return std::sqrt(error / length);
}

// Code `column` of a row: bit by bit, for a unit's words lie in up to three planes.
inline int code_at(const Weight& weight, int64_t row, int64_t column) {
  const int bits = weight.format, k = (int)(column % BLOCK), q = k / 4 % 4, t = 4 * (k / 16) + k % 4;
  const int64_t unit = (row * weight.columns + column) / BLOCK * 4 + q;
  const int64_t units = weight.rows * weight.columns / 32;
  int code = 0;
  for (int i = 0; i < bits; i++) {
    int word = (t * bits + i) / 32;
    int64_t before = 0;  // words of the planes that come first
    for (int width : {bits & 12, bits & 2, bits & 1}) {
      if (word < width) {
        uint32_t found;
        memcpy(&found, (const uint8_t*)weight.data + 4 * (before + unit * width + word), 4);
        code |= (int)(found >> (t * bits + i) % 32 & 1) << i;
        break;
      }
      word -= width;
      before += units * width;
    }
  }
  return code;
}

inline double of_half(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return half & 0x8000 ? -size : size;
}

inline double weight_at(const Weight& weight, int64_t row, int64_t column) {
  const int64_t at = row * weight.columns + column;
  if (weight.format == FLOAT32) return ((const float*)weight.data)[at];
  if (weight.format == FLOAT16) return of_half(((const uint16_t*)weight.data)[at]);
  if (weight.format == BFLOAT16) {
    const uint32_t word = (uint32_t)((const uint16_t*)weight.data)[at] << 16;
    float found;
    memcpy(&found, &word, 4);
    return found;
  }
  // A block's norm is that of all its values, and centroids are those of one with variance 1.
  return of_half(weight.norms[at / BLOCK]) * weight.centroids[code_at(weight, row, column)] / ROOT;
}

// The Walsh-Hadamard transform of every block, divided by the root of 128: its own inverse.
inline void rotate(double* x, int64_t columns) {
  for (int64_t start = 0; start < columns; start += BLOCK) {
    double turned[BLOCK] = {};
    for (int i = 0; i < BLOCK; i++)
      for (int k = 0; k < BLOCK; k++)
        turned[i] += __builtin_parity(i & k) ? -x[start + k] : x[start + k];
    for (int i = 0; i < BLOCK; i++) x[start + i] = turned[i] / ROOT;
  }
}

// x [M, columns] times the weight: [M, rows].
inline Doubles multiply(const Weight& weight, const float* x, int64_t M, int64_t columns) {
  const int64_t N = weight.rows, K = weight.columns;
  Doubles rows(N * K), y(M * N), one(K);
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < K; k++) rows[n * K + k] = weight_at(weight, n, k);
  for (int64_t m = 0; m < M; m++) {
    std::fill(one.begin(), one.end(), 0.0);
    std::copy(x + m * columns, x + (m + 1) * columns, one.begin());
    if (weight.format <= 8) rotate(one.data(), K);
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) y[m * N + n] += one[k] * rows[n * K + k];
  }
  return y;
}

inline Doubles look_up(const Weight& weight, int64_t row) {
  Doubles found(weight.columns);
  for (int64_t k = 0; k < weight.columns; k++) found[k] = weight_at(weight, row, k);
  rotate(found.data(), weight.columns);
  return found;
}

// gelu(gate) * up, by tanh.
inline double gated(double gate, double up) {
  return 0.5 * gate * (1 + std::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) * up;
}

inline double inverse_norm(const double* x, int64_t columns, double epsilon) {
  double squares = 0;
  for (int64_t i = 0; i < columns; i++) squares += x[i] * x[i];
  return 1 / std::sqrt(squares / columns + epsilon);
}

// A row of a residual: h, and h normed behind it.
inline Doubles residual_norm(const Residual& of, const float* x, const float* update) {
  const int64_t K = of.columns;
  Doubles h(update, update + K);
  const double inverse = inverse_norm(h.data(), K, of.epsilon);
  for (int64_t i = 0; i < K; i++) h[i] = (x[i] + h[i] * inverse * of.weight[i]) * of.scale;
  const double following = inverse_norm(h.data(), K, of.epsilon);
  for (int64_t i = 0; i < K; i++) h.push_back(h[i] * following * of.next[i]);
  return h;
}

// A head's vector at a position, normed and rotated.
inline Doubles head(const Heads& of, const float* x, int64_t position) {
  const int64_t D = of.columns, half = D / 2;
  Doubles y(x, x + D);
  const double inverse = inverse_norm(y.data(), D, of.epsilon);
  for (int64_t i = 0; i < D; i++) y[i] *= inverse * of.weight[i];
  for (int64_t i = 0; i < half; i++) {
    // The angle is rounded to float32 by the library, as MLX does; at small positions that is little.
    const double angle = position / (double)of.waves[i], a = y[i], b = y[i + half];
    y[i] = a * std::cos(angle) - b * std::sin(angle);
    y[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
  return y;
}

// What a query of a sequence and a head reads.
inline Doubles attend(const Attention& of, int64_t sequence, int64_t head, int64_t query) {
  const Seen& seen = of.seen[sequence];
  const int64_t kv = head / (of.heads / of.kv_heads), D = of.columns;
  const float* x = of.x + ((sequence * of.heads + head) * of.queries + query) * D;
  const int64_t own = seen.count - of.advance * (of.queries - 1 - query);
  Doubles shares(seen.count), y(D);
  double most = -INFINITY, total = 0;
  for (int64_t key = 0; key < seen.count; key++) {
    const bool is_near = key < own && (!of.window || key >= own - of.window);
    const bool is_seen = seen.mask ? seen.mask[query * of.advance * seen.count + key] : is_near;
    shares[key] = is_seen ? 0 : -INFINITY;
    for (int64_t i = 0; i < D; i++)
      shares[key] += x[i] * (double)seen.keys[kv * seen.key_stride + key * D + i];
    most = std::max(most, shares[key]);
  }
  for (double& share : shares) total += share = std::exp(share - most);
  for (int64_t key = 0; key < seen.count; key++)
    for (int64_t i = 0; i < D; i++)
      y[i] += shares[key] / total * seen.values[kv * seen.value_stride + key * D + i];
  return y;
}

}  // namespace reference
