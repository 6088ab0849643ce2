// Every load and store of a checked kernel: clang's kernel-address instrumentation calls these.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#include "host.h"

static bool is_within(uintptr_t address, const void *base, size_t size) {
  return address - (uintptr_t)base < size;
}

static bool writes(const Access *access) {
  return access->use == STORE || access->use == ATOMIC_STORE || access->use == ATOMIC_UPDATE;
}

static void check_threadgroup(Access *access) {
  uint32_t at = (uint32_t)(access->address - (uintptr_t)threadgroup_memory);
  int nearest = -1;
  for (int i = 0; i < variable_count; i++) {
    const Variable *v = &variables[i];
    if (at + VARIABLE_REDZONE >= v->offset)
      nearest = i;
    if (at < v->offset || at + access->size > v->offset + v->size)
      continue;
    access->place = FIRST_VARIABLE + i;
    access->offset = at - v->offset;
    track_threadgroup(threadgroup_shadow(at, access->size), access);
    return;
  }
  if (nearest >= 0) {
    access->place = FIRST_VARIABLE + nearest;
    access->offset = (int64_t)at - variables[nearest].offset;
  }
  Report *r = report_access(KIND_THREADGROUP_BOUNDS, access);
  if (r) {
    r->first = writes(access);
    r->second = nearest >= 0 ? (uint32_t)variables[nearest].size : 0;
  }
}

static void check_device(Access *access) {
  uint32_t out_of_bounds = writes(access) ? KIND_WRITE_BOUNDS : KIND_READ_BOUNDS;
  access->place = buffer_of(access->address);
  if (access->place == NOWHERE) {
    report_access(out_of_bounds, access);
    return;
  }
  const Buffer *b = &buffers[access->place];
  access->offset = (int64_t)(access->address - b->start);
  if (access->address < b->start || access->address + access->size > b->end)
    report_access(out_of_bounds, access);
  else if (writes(access) && !b->is_writable)
    report_access(KIND_INPUT_WRITTEN, access);
  else if (b->shadow)
    track_device(b->shadow + access->offset, access, b->is_initialised);
}

// Elsewhere: the meetings' own slots, and the constants of kernels, which nobody may write.
static void check_elsewhere(Access *access) {
  if (is_within(access->address, simdgroups, MAX_SIMDGROUPS * sizeof *simdgroups))
    return;
  Dl_info owner;
  bool is_wild =
      access->address < PAGE || (writes(access) && !dladdr((void *)access->address, &owner));
  if (is_wild)
    report_access(KIND_WILD, access);
}

static void check(uintptr_t address, size_t size, Use use, uintptr_t pc) {
  judge_pending_write();
  if (is_within(address, stacks, (size_t)MAX_THREADS * STACK_BYTES) || !dispatch.lane)
    return;
  Access access = {
      .address = address, .pc = pc, .size = (uint32_t)size, .use = use, .place = NOWHERE};
  if (is_within(address, threadgroup_memory, THREADGROUP_REGION))
    check_threadgroup(&access);
  else if (is_within(address, arena, arena_size))
    check_device(&access);
  else
    check_elsewhere(&access);
}

#define HOOKS(SIZE)                                                                                \
  EXPORT void __asan_load##SIZE##_noabort(uintptr_t a) { check(a, SIZE, LOAD, CALLER); }           \
  EXPORT void __asan_store##SIZE##_noabort(uintptr_t a) { check(a, SIZE, STORE, CALLER); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
EXPORT void __asan_loadN_noabort(uintptr_t a, size_t n) { check(a, n, LOAD, CALLER); }
EXPORT void __asan_storeN_noabort(uintptr_t a, size_t n) { check(a, n, STORE, CALLER); }
EXPORT void __asan_handle_no_return(void) {}

EXPORT void *__asan_memset(void *target, int value, size_t n) {
  if (n)
    check((uintptr_t)target, n, STORE, CALLER);
  return memset(target, value, n);
}
EXPORT void *__asan_memmove(void *target, const void *source, size_t n) {
  if (n) {
    check((uintptr_t)source, n, LOAD, CALLER);
    check((uintptr_t)target, n, STORE, CALLER);
  }
  return memmove(target, source, n);
}
EXPORT void *__asan_memcpy(void *target, const void *source, size_t n) {
  if (n) {
    check((uintptr_t)source, n, LOAD, CALLER);
    check((uintptr_t)target, n, STORE, CALLER);
  }
  return memcpy(target, source, n);
}

// Atomics announce themselves, for they are to be told from plain accesses. `kind` as in atomics.h.
EXPORT void msl_atomic_access(void *address, uint32_t size, uint32_t kind) {
  if (dispatch.options.is_checked)
    check((uintptr_t)address, size, ATOMIC_LOAD + kind, CALLER);
}
