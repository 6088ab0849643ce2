// What a processor's instructions offer; products.cpp is compiled once for each kind.
#pragma once
#include <cstdint>

enum Format : int32_t { BFLOAT16 = 16, FLOAT16 = 17, FLOAT32 = 32 };  // 1 to 8: coded

// A weight of N rows and K columns, row by row: codes with norms and centroids, or plain numbers.
struct Weight {
  int32_t format, is_integer;  // the mode in which codes are multiplied
  int64_t rows, columns;
  const void* data;
  const uint16_t* norms;    // float16 [rows, columns / 128]
  const float* centroids;   // [2 ** format]
};

// h = (x + norm(update) * weight) * scale; normed = norm(h) * next. Without `next` there is no normed.
struct Residual {
  int64_t columns;
  float epsilon, scale;
  const float *weight, *next;
};

// A norm over each head, with or without a weight, and the rotation of its halves by angles.
struct Heads {
  int64_t heads, columns;
  float epsilon;
  const float *weight, *waves;  // waves [columns / 2], infinite where nothing rotates, or none
};

// What the queries of one sequence see.
struct Seen {
  const float *keys, *values;         // [kv_heads, count, columns], heads a stride apart
  int64_t count, key_stride, value_stride;
  const uint8_t* mask;                // [queries, count], or none where all keys are seen
};

struct Attention {
  int64_t sequences, heads, kv_heads, queries, columns;
  int64_t window;                     // how far a query sees, its own key included; 0: everywhere
  int64_t advance;                    // 1: queries are positions, whose last one owns the last key;
                                      // 0: they share one position, and see the same
  const float* x;                     // [sequences, heads, queries, columns]
  const Seen* seen;                   // of each sequence
  float* y;                           // as x
};

// What a layer does behind its attention: the MLP, and what its own input of a token adds.
struct Rest {
  Residual attended, fed, added;    // of attention, of the MLP, of the layer's own input
  const Weight *gate_up, *up, *down;  // the gate above up, or alone with `up` beside it
  const Weight *gate, *projection;  // of the layer's own input, or none
};

struct Kernels {
  const char* name;
  // Pads a row with zeros, rotates it if the weight is coded, and brings it into the lanes' order.
  void (*arrange)(const Weight&, const float* x, int64_t count, float* arranged);
  // Multiplies rows in the lanes' order by rows begin..end of the weight: y[m * stride + row].
  void (*multiply)(const Weight&, const float* arranged, int64_t M, float* y, int64_t stride,
                   int64_t begin, int64_t end);
  // Decodes one row of a coded weight and rotates it back.
  void (*look_up)(const Weight&, int64_t row, float* y);
  // y = gelu(gate) * up, by tanh.
  void (*gelu_mul)(const float* gate, const float* up, float* y, int64_t count);
  // y = cap * tanh(x / cap).
  void (*cap_scores)(const float* x, float cap, float* y, int64_t count);
  // A row of `residual`.
  void (*residual_norm)(const Residual&, const float* x, const float* update, float* h,
                        float* normed);
  // A head's vector, normed and rotated.
  void (*head)(const Heads&, const float* x, const float* cosines, const float* sines, float* y);
  // Some queries of one sequence and head, from `begin` to `end`.
  void (*attend)(const Attention&, int64_t sequence, int64_t head, int64_t begin, int64_t end);
};

// How many floats a row has in the lanes' order.
inline int64_t arranged_columns(const Weight& weight) { return (weight.columns + 127) / 128 * 128; }

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_neon;
