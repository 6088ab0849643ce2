// Conversions that clang calls for half and bfloat, and the jitter of approximate functions.
#include <math.h>
#include <string.h>

#include "host.h"

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
static float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

EXPORT __bf16 __truncsfbf2(float x) {
  uint32_t bits = bits_of(x);
  uint16_t top = isnan(x) ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  __bf16 result;
  memcpy(&result, &top, sizeof result);
  return result;
}

// Move x by at most `jitter_ulp` units in the last place, at random.
EXPORT float msl_jitter(float x) {
  int32_t reach = (int32_t)dispatch.options.jitter_ulp;
  if (!reach || !isfinite(x) || x == 0)
    return x;
  int32_t by = (int32_t)(random_number() % (uint32_t)(2 * reach + 1)) - reach;
  float moved = float_of(bits_of(x) + (uint32_t)by);
  return isfinite(moved) ? moved : x;
}
