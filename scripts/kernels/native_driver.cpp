// Drives the native library under sanitizers and emulators: every format, mode and kind of
// instructions, against float64, odd sizes, misaligned x, rows alone and in company, threads that
// come and go, callers at once. Prints what ran, and how far it was off; the exit status is 1 after
// a fault.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "native_reference.h"
#include "products.h"

extern "C" {
const char* hlwq_instructions();
int hlwq_use(const char*);
void hlwq_set_threads(int);
void hlwq_multiply(const Weight*, const float*, int64_t, int64_t, float*, int);
void hlwq_multiply_experts(const Weight*, const float*, int64_t, int64_t, const uint32_t*, int64_t,
                           int64_t, float*);
void hlwq_look_up(const Weight*, const int64_t*, int64_t, float*);
void hlwq_gelu_mul(const float*, const float*, float*, int64_t);
void hlwq_cap_scores(const float*, float, float*, int64_t);
void hlwq_residual_norm(const Residual*, const float*, const float*, float*, float*, int64_t);
void hlwq_rest(const Rest*, const float*, const float*, const float*, float*, float*, int64_t);
void hlwq_heads(const Heads*, const float*, int64_t, const int64_t*, int64_t, int64_t, float*);
void hlwq_attend(const Attention*);
}

static int faults = 0;
// As tests/quant/test_native.py bounds them, relative to a result's length.
constexpr double EXACT = 1e-6, INTEGER = 5e-4, ATTENTION = 3e-6;
static double farthest_exact = 0, farthest_integer = 0;
static std::mt19937 draw(1);

static void expect(bool holds, const char* what, int format, int64_t M) {
  if (holds) return;
  faults++;
  printf("FAULT %s: %s, format %d, %d rows\n", hlwq_instructions(), what, format, (int)M);
}

static void expect_near(const float* found, const reference::Doubles& wanted, double bound,
                        const char* what, int format, int64_t M) {
  const double distance = reference::distance(found, wanted);
  double& farthest = bound == INTEGER ? farthest_integer : farthest_exact;
  farthest = std::max(farthest, distance);
  if (distance <= bound) return;
  printf("off by %.1e: ", distance);
  expect(false, what, format, M);
}

static std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> each;
  std::vector<float> found(count);
  for (float& x : found) x = each(draw);
  return found;
}

struct Matrix {
  std::vector<uint8_t> data;
  std::vector<uint16_t> norms;
  std::vector<float> centroids;
  Weight weight;

  Matrix(int format, int is_integer, int64_t N, int64_t K) {
    const bool is_coded = format <= 8;
    data.resize(is_coded ? N * K * format / 8 : N * K * (format == FLOAT32 ? 4 : 2));
    for (uint8_t& byte : data) byte = (uint8_t)draw();
    if (!is_coded)  // no infinities: the exponents of small numbers
      for (size_t i = format == FLOAT32 ? 3 : 1; i < data.size(); i += format == FLOAT32 ? 4 : 2)
        data[i] = (uint8_t)(0x38 + (data[i] & 0x83));
    norms.resize(is_coded ? N * K / 128 : 0);
    for (uint16_t& norm : norms) norm = (uint16_t)(0x3800 + draw() % 0x400);  // 0.5 to 1
    for (int i = 0; is_coded && i < 1 << format; i++)  // of odd N, not their own mirror image
      centroids.push_back(-3 + 6 * (i + 0.5f) / (1 << format) + 0.01f * (N % 2));
    weight = {format, is_integer, N, K, data.data(), norms.data(), centroids.data()};
  }
};

static bool same(const float* a, const float* b, int64_t count) {
  return !memcmp(a, b, count * sizeof(float));
}

static void products(const Matrix& matrix, const float* x, int64_t M, int64_t columns,
                     const reference::Doubles& wanted) {
  const int64_t N = matrix.weight.rows;
  const int format = matrix.weight.format;
  std::vector<float> all(M * N), one(N), gated(M * (N / 2)), gated_one(N / 2);
  hlwq_multiply(&matrix.weight, x, M, columns, all.data(), 0);
  expect_near(all.data(), wanted, matrix.weight.is_integer ? INTEGER : EXACT, "a product is off",
              format, M);
  for (int64_t m = 0; m < M; m++) {
    hlwq_multiply(&matrix.weight, x + m * columns, 1, columns, one.data(), 0);
    expect(same(one.data(), &all[m * N], N), "a row differs from itself alone", format, M);
  }
  if (N % 2 == 0) {
    hlwq_multiply(&matrix.weight, x, M, columns, gated.data(), 1);
    hlwq_multiply(&matrix.weight, x, 1, columns, gated_one.data(), 1);
    expect(same(gated_one.data(), gated.data(), N / 2), "a gated row differs", format, M);
  }
  if (format <= 8 && N % 3 == 0) {  // a stack of three experts
    std::vector<uint32_t> experts(M * 2);
    for (uint32_t& expert : experts) expert = draw() % 3;
    std::vector<float> chosen(M * 2 * (N / 3));
    hlwq_multiply_experts(&matrix.weight, x, M, columns, experts.data(), 2, N / 3, chosen.data());
    for (int64_t p = 0; p < M * 2; p++)
      expect(same(&chosen[p * (N / 3)], &all[p / 2 * N + experts[p] * (N / 3)], N / 3),
             "an expert's row differs", format, M);
  }
}

static void look_ups(const Weight& weight) {
  const int64_t ids[] = {weight.rows - 1, 0}, K = weight.columns;
  std::vector<float> rows(2 * K);
  hlwq_look_up(&weight, ids, 2, rows.data());
  for (int i = 0; i < 2; i++)
    expect_near(&rows[i * K], reference::look_up(weight, ids[i]), EXACT, "a row is off",
                weight.format, 1);
}

constexpr int THREADS[] = {1, 3, 2};

static void weights(int format, int is_integer, int64_t N, int64_t K, int64_t M) {
  const Matrix matrix(format, is_integer, N, K);
  const int64_t columns = format <= 8 ? K - 5 : K;
  const std::vector<float> kept = normal(M * columns + 1);
  const float* x = kept.data() + 1;  // 4 bytes off any register's width
  const reference::Doubles wanted = reference::multiply(matrix.weight, x, M, columns);
  for (int threads : THREADS) {
    hlwq_set_threads(threads);
    products(matrix, x, M, columns, wanted);
    if (format <= 8) look_ups(matrix.weight);
  }
}

// What is no number has no integer, and spoils its own row alone.
static void no_numbers(int format) {
  const int64_t M = 3, N = 9, K = 256;
  const Matrix matrix(format, 1, N, K);
  std::vector<float> x = normal(M * K), all(M * N), one(N);
  x[3] = NAN, x[K + 3] = INFINITY;
  hlwq_multiply(&matrix.weight, x.data(), M, K, all.data(), 0);
  for (int64_t i = 0; i < 2 * N; i++)
    expect(!std::isfinite(all[i]), "what is no number became one", format, M);
  hlwq_multiply(&matrix.weight, &x[2 * K], 1, K, one.data(), 0);
  expect(same(one.data(), &all[2 * N], N), "a row is spoilt by others", format, M);
}

static void elements() {
  const std::vector<float> gate = normal(5003), up = normal(5003);
  std::vector<float> y(gate.size());
  reference::Doubles gated, capped;
  for (size_t i = 0; i < gate.size(); i++) {
    gated.push_back(reference::gated(gate[i], up[i]));
    capped.push_back(3 * std::tanh(gate[i] / 3.0));
  }
  hlwq_gelu_mul(gate.data(), up.data(), y.data(), (int64_t)y.size());
  expect_near(y.data(), gated, EXACT, "a gate is off", 0, 1);
  hlwq_cap_scores(gate.data(), 3, y.data(), (int64_t)y.size());
  expect_near(y.data(), capped, EXACT, "a capped score is off", 0, 1);
}

static void norms() {
  const int64_t M = 5, K = 77;
  const std::vector<float> x = normal(M * K), update = normal(M * K), weight = normal(K);
  std::vector<float> h(M * K), normed(M * K);
  const Residual of{K, 1e-6f, 0.7f, weight.data(), weight.data()};
  hlwq_residual_norm(&of, x.data(), update.data(), h.data(), normed.data(), M);
  for (int64_t m = 0; m < M; m++) {
    const reference::Doubles both = reference::residual_norm(of, &x[m * K], &update[m * K]);
    expect_near(&h[m * K], {both.begin(), both.begin() + K}, EXACT, "a residual is off", 0, M);
    expect_near(&normed[m * K], {both.begin() + K, both.end()}, EXACT, "a norm is off", 0, M);
  }
}

static void rest() {
  const int64_t M = 137, K = 77, width = 100, own_width = 33;  // more rows than a slice
  Matrix gate_up(5, 0, 2 * width, 128), down(6, 0, K, 128);
  Matrix alone(5, 0, width, 128), up(8, 0, width, 128);
  Matrix gate(BFLOAT16, 0, own_width, K), projection(FLOAT32, 0, K, own_width);
  const std::vector<float> x = normal(M * K), attended = normal(M * K), own = normal(M * own_width),
                           weight = normal(K);
  const Residual norm{K, 1e-6f, 0.7f, weight.data(), weight.data()};
  for (bool has_own : {false, true}) {
    Rest of{norm, norm, norm, &gate_up.weight, nullptr, &down.weight, nullptr, nullptr};
    if (has_own) {
      of.gate_up = &alone.weight;
      of.up = &up.weight;
      of.fed.next = nullptr;
      of.gate = &gate.weight;
      of.projection = &projection.weight;
    }
    std::vector<float> h(M * K), normed(M * K), one(K), one_normed(K);
    hlwq_rest(&of, x.data(), attended.data(), own.data(), h.data(), normed.data(), M);
    for (int64_t m = 0; m < M; m++) {
      hlwq_rest(&of, &x[m * K], &attended[m * K], &own[m * own_width], one.data(),
                one_normed.data(), 1);
      expect(same(one.data(), &h[m * K], K) && same(one_normed.data(), &normed[m * K], K),
             "the rest of a layer differs from a row alone", 0, M);
    }
  }
}

static void attention() {
  const int64_t B = 2, heads = 4, kv = 2, D = 48, count = 31;
  const std::vector<float> keys = normal(B * kv * count * D), values = normal(keys.size()),
                           scale = normal(D);
  std::vector<float> waves = normal(D / 2);
  for (float& wave : waves) wave = 1 + 100 * wave * wave;
  const int64_t offsets[] = {0, 7};
  const Heads of{heads, D, 1e-6f, scale.data(), waves.data()};
  for (int64_t L : {1, 9}) {
    const std::vector<float> q = normal(B * L * heads * D);
    std::vector<float> turned(q.size()), y(q.size());
    hlwq_heads(&of, q.data(), heads * D, offsets, B, L, turned.data());
    for (int64_t i = 0; i < B * L * heads; i++) {
      const int64_t b = i / (L * heads), l = i / heads % L;
      expect_near(&turned[((b * heads + i % heads) * L + l) * D],
                  reference::head(of, &q[i * D], offsets[b] + l), EXACT, "a head is off", 0, L);
    }
    std::vector<uint8_t> mask(L * count, 1);
    for (size_t i = 0; i < mask.size(); i += 3) mask[i] = 0;
    for (const uint8_t* seen_mask : {(const uint8_t*)nullptr, (const uint8_t*)mask.data()})
      for (int64_t window : {0, 5}) {
        std::vector<Seen> seen;
        for (int64_t b = 0; b < B; b++)
          seen.push_back({&keys[b * kv * count * D], &values[b * kv * count * D], count, count * D,
                          count * D, seen_mask});
        const Attention all{B, heads, kv, L, D, window, 1, turned.data(), seen.data(), y.data()};
        hlwq_attend(&all);
        for (int64_t i = 0; i < B * heads * L; i++)
          expect_near(&y[i * D], reference::attend(all, i / (heads * L), i / L % heads, i % L),
                      ATTENTION, "attention is off", 0, L);
      }
  }
}

struct Size {
  int64_t rows, columns, M;
};
// The fourth has more rows of x than go through the weights together.
static const Size SIZES[] = {{1, 128, 13}, {6, 128, 5}, {37, 384, 8}, {3, 256, 147}, {300, 1280, 13}};

int main() {
  const std::vector<int> formats{1, 2, 3, 4, 5, 6, 7, 8, BFLOAT16, FLOAT16, FLOAT32};
  for (const char* name : {"avx512", "avx2", "neon", "portable"}) {
    if (!hlwq_use(name)) {
      printf("%s: not run, this processor or build has it not\n", name);
      continue;
    }
    for (int format : formats)
      for (int is_integer : {0, 1})
        for (auto [N, K, M] : SIZES)
          if (!is_integer || format <= 8) weights(format, is_integer, N, K, M);
    for (int threads : THREADS) {
      hlwq_set_threads(threads);
      elements();
      no_numbers(5);
      norms();
      attention();
      rest();
    }
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; i++)
      callers.emplace_back([] {
        const std::vector<float> x(1280, 1.0f), weights(300 * 1280, 0.5f);
        std::vector<float> y(300);
        const Weight weight{FLOAT32, 0, 300, 1280, weights.data(), nullptr, nullptr};
        for (int turn = 0; turn < 20; turn++)
          hlwq_multiply(&weight, x.data(), 1, 1280, y.data(), 0);
        if (y[299] != 640.0f) faults++;
      });
    for (auto& caller : callers) caller.join();
    printf("%s: ran; of float64 at most %.1e off, integers %.1e\n", name, farthest_exact,
           farthest_integer);
    farthest_exact = farthest_integer = 0;
  }
  printf("%d faults\n", faults);
  return faults > 0;
}
