// What a processor's instructions offer; products.cpp is compiled once for each kind.
#pragma once
#include <cstdint>

enum Format : int32_t { BFLOAT16 = 16, FLOAT16 = 17, FLOAT32 = 32 };  // 1 to 8: coded

// A weight of N rows and K columns, row by row: codes with norms and centroids, or plain numbers.
struct Weight {
  int32_t format;
  int64_t rows, columns;
  const void* data;
  const uint16_t* norms;    // float16 [rows, columns / 128]
  const float* centroids;   // [2 ** format]
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
};

// How many floats a row has in the lanes' order.
inline int64_t arranged_columns(const Weight& weight) { return (weight.columns + 127) / 128 * 128; }

extern const Kernels kernels_portable, kernels_avx2, kernels_avx512, kernels_neon;
