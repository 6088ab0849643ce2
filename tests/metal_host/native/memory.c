// Device buffers, each between red zones in one arena, and threadgroup variables.
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "host.h"

char *threadgroup_memory, *arena;
size_t arena_size;
Buffer buffers[MAX_BUFFERS];
Variable variables[MAX_VARIABLES];
int variable_count;

static size_t arena_used;
static int buffer_count;
static uint16_t *page_owner; // of each page of the arena: buffer number + 1, 0 for none
static Shadow *variable_shadow;
static uint32_t shadow_known; // bytes of variable_shadow cleared for this threadgroup
static uint32_t variables_end, variables_size;

static void *reserve(size_t bytes) {
  void *p =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

// Reserve address space once; returns 0, or -1 when there is too little.
EXPORT int msl_start(uint64_t arena_bytes) {
  arena_size = arena_bytes;
  arena = reserve(arena_bytes);
  page_owner = reserve(arena_bytes / PAGE * sizeof *page_owner);
  threadgroup_memory = reserve(THREADGROUP_REGION);
  variable_shadow = reserve(THREADGROUP_REGION * sizeof *variable_shadow);
  stacks = reserve((size_t)MAX_THREADS * STACK_BYTES);
  simdgroups = reserve(MAX_SIMDGROUPS * sizeof *simdgroups);
  if (!arena || !page_owner || !threadgroup_memory || !variable_shadow || !stacks || !simdgroups)
    return -1;
  for (int i = 0; i < MAX_THREADS; i++) {
    lanes[i].stack = stacks + (size_t)i * STACK_BYTES;
    mprotect(lanes[i].stack, PAGE, PROT_NONE);
  }
  return 0;
}

EXPORT void msl_free_buffers(void) {
  for (int i = 0; i < buffer_count; i++)
    if (buffers[i].shadow)
      munmap(buffers[i].shadow, (buffers[i].end - buffers[i].start) * sizeof(Shadow));
  madvise(arena, arena_used, MADV_DONTNEED);
  memset(page_owner, 0, arena_used / PAGE * sizeof *page_owner);
  arena_used = 0;
  buffer_count = 0;
}

// Place a buffer `misalign` bytes after a page boundary; filled with 0xff when not initialised.
EXPORT void *msl_add_buffer(const char *name, uint64_t size, uint32_t misalign, bool is_writable,
                            bool is_initialised, bool is_tracked) {
  uint64_t zone = (size + misalign + 2 * REDZONE + PAGE - 1) / PAGE * PAGE;
  if (buffer_count == MAX_BUFFERS || arena_used + zone > arena_size)
    return NULL;
  Buffer *b = &buffers[buffer_count];
  memset(b, 0, sizeof *b);
  snprintf(b->name, sizeof b->name, "%s", name);
  b->zone_start = (uintptr_t)arena + arena_used;
  b->zone_end = b->zone_start + zone;
  b->start = b->zone_start + REDZONE + misalign;
  b->end = b->start + size;
  b->is_writable = is_writable;
  b->is_initialised = is_initialised;
  memset((void *)b->zone_start, 0xff, b->start - b->zone_start);
  memset((void *)b->end, 0xff, b->zone_end - b->end);
  if (!is_initialised)
    memset((void *)b->start, 0xff, size);
  if (is_tracked && size && !(b->shadow = reserve(size * sizeof(Shadow))))
    return NULL;
  for (uint64_t page = 0; page < zone / PAGE; page++)
    page_owner[arena_used / PAGE + page] = (uint16_t)(buffer_count + 1);
  arena_used += zone;
  buffer_count++;
  return (void *)b->start;
}

int buffer_of(uintptr_t address) { return page_owner[(address - (uintptr_t)arena) / PAGE] - 1; }

static bool is_buffer(int i) { return i >= 0 && i < buffer_count; }
EXPORT const char *msl_buffer_name(int i) { return is_buffer(i) ? buffers[i].name : ""; }
EXPORT uint64_t msl_buffer_size(int i) {
  return is_buffer(i) ? buffers[i].end - buffers[i].start : 0;
}

// Count the bytes of a tracked buffer that no thread wrote.
EXPORT uint64_t msl_unwritten(int i, uint64_t *first) {
  uint64_t count = 0;
  if (!buffers[i].shadow)
    return 0;
  for (uint64_t k = 0; k < msl_buffer_size(i); k++) {
    if (buffers[i].shadow[k].write.who)
      continue;
    if (!count++)
      *first = k;
  }
  return count;
}

static bool is_intact(uintptr_t from, uintptr_t to) {
  for (uintptr_t p = from; p < to; p++)
    if (*(uint8_t *)p != 0xff)
      return false;
  return true;
}
EXPORT bool msl_redzones_intact(int i) {
  Buffer *b = &buffers[i];
  return is_intact(b->zone_start, b->start) && is_intact(b->end, b->zone_end);
}

void forget_variables(void) {
  variable_count = 0;
  variables_end = variables_size = 0;
  shadow_known = 0;
}

// Find or place a threadgroup variable; every thread that reaches the declaration asks.
EXPORT void *msl_threadgroup_variable(uint32_t id, uint64_t size, uint32_t alignment) {
  for (int i = 0; i < variable_count; i++)
    if (variables[i].id == id && variables[i].size == size)
      return threadgroup_memory + variables[i].offset;
  if (alignment < 16)
    alignment = 16;
  uint32_t offset = (variables_end + VARIABLE_REDZONE + alignment - 1) / alignment * alignment;
  uint32_t limit = dispatch.options.threadgroup_limit;
  variables_size += (uint32_t)(size + 15) / 16 * 16;
  bool fits = offset + size + VARIABLE_REDZONE <= THREADGROUP_REGION;
  if (variables_size > limit || !fits) {
    Report *r = report(KIND_THREADGROUP_MEMORY, CALLER);
    if (r) {
      r->first = variables_size;
      r->second = limit;
    }
  }
  if (!fits || variable_count == MAX_VARIABLES)
    siglongjmp(dispatch.abandon, 1);
  variables_end = offset + (uint32_t)size;
  variables[variable_count++] = (Variable){.id = id, .offset = offset, .size = size};
  memset(threadgroup_memory + offset, 0xff, size);
  return threadgroup_memory + offset;
}

EXPORT uint32_t msl_variable_id(int i) {
  return i >= 0 && i < variable_count ? variables[i].id : 0;
}

// The shadow of threadgroup memory is cleared as far as it is used, for each threadgroup anew.
Shadow *threadgroup_shadow(uint32_t offset, uint32_t size) {
  if (offset + size > shadow_known) {
    memset(variable_shadow + shadow_known, 0, (offset + size - shadow_known) * sizeof(Shadow));
    shadow_known = offset + size;
  }
  return variable_shadow + offset;
}
