// Undefined behaviour: what clang's undefined-behaviour instrumentation calls.
#include <stdio.h>

#include "host.h"

typedef struct {
  const char *file;
  uint32_t line, column;
} Location; // every handler's data begins with one

static void complain(const Location *at, uintptr_t pc, const char *what) {
  Report *r = report(KIND_UNDEFINED, pc);
  if (!r)
    return;
  snprintf(r->message, sizeof r->message, "%s", what);
  r->address = (uintptr_t)at->file;
  r->first = at->line;
  r->second = at->column;
}

#define HANDLER(NAME, WHAT)                                                                        \
  EXPORT void __ubsan_handle_##NAME(Location *at) { complain(at, CALLER, WHAT); }
HANDLER(divrem_overflow, "integer division by zero, or overflow")
HANDLER(float_cast_overflow, "conversion from float to integer out of range")
HANDLER(invalid_builtin, "clz or ctz builtin of 0")
HANDLER(load_invalid_value, "invalid value of a bool or an enumeration")
HANDLER(pointer_overflow, "pointer overflow")
HANDLER(vla_bound_not_positive, "array size not positive")

typedef struct {
  Location at;
  void *type;
  unsigned char log_alignment, kind;
} TypeMismatch;
EXPORT void __ubsan_handle_type_mismatch_v1(TypeMismatch *data, uintptr_t address) {
  char text[96] = "null pointer access";
  if (address)
    snprintf(text, sizeof text, "misaligned access: address mod 16 is %u, needed alignment %u",
             (unsigned)(address & 15), 1u << data->log_alignment);
  complain(&data->at, CALLER, text);
}
EXPORT void __ubsan_handle_out_of_bounds(Location *at, uintptr_t index) {
  char text[96];
  snprintf(text, sizeof text, "array index %ld out of bounds", (long)index);
  complain(at, CALLER, text);
}
EXPORT void __ubsan_handle_shift_out_of_bounds(Location *at, uintptr_t left, uintptr_t right) {
  (void)left;
  char text[96];
  snprintf(text, sizeof text, "shift by %ld out of range", (long)right);
  complain(at, CALLER, text);
}
EXPORT void __ubsan_handle_builtin_unreachable(Location *at) {
  complain(at, CALLER, "unreachable code reached");
  siglongjmp(dispatch.abandon, 1);
}
EXPORT void __ubsan_handle_missing_return(Location *at) {
  complain(at, CALLER, "function ends without return");
  siglongjmp(dispatch.abandon, 1);
}
