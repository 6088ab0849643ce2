// Running a grid: threadgroup after threadgroup, with faults turned into reports.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>
#include <xmmintrin.h>

#include "host.h"

Dispatch dispatch;
Lane lanes[MAX_THREADS];
Simdgroup *simdgroups;
char *stacks;

enum { FLUSH_TO_ZERO = 0x8040 }; // of the control register: both flushed results and operands
static const int FAULTS[] = {SIGSEGV, SIGFPE, SIGBUS};
enum { FAULT_COUNT = sizeof FAULTS / sizeof *FAULTS };

static uint64_t random_state;
uint32_t random_number(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)(random_state >> 16);
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
  if (!dispatch.active) {
    signal(signal_number, SIG_DFL);
    raise(signal_number);
    return;
  }
  uintptr_t address = (uintptr_t)info->si_addr;
  uintptr_t pc = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
  bool in_stack = address - (uintptr_t)stacks < (uintptr_t)MAX_THREADS * STACK_BYTES;
  Report *r = report(in_stack ? KIND_STACK_OVERFLOW : KIND_FAULT, pc);
  if (r) {
    r->address = address;
    r->other = (uint32_t)signal_number;
  }
  siglongjmp(dispatch.abandon, 1);
}

static void prepare_lane(uint32_t i, const uint32_t position[3], const uint32_t size[3],
                         const uint32_t groups[3]) {
  uint32_t threads = size[0] * size[1] * size[2];
  uint32_t full = dispatch.threads;
  Lane *lane = &lanes[i];
  Simdgroup *group = &simdgroups[i / MSL_LANES];
  lane->simdgroup = group;
  lane->state = NEW;
  lane->flags = 0;
  uint32_t place = i % MSL_LANES;
  group->lanes[place] = lane;
  bool reversed = dispatch.options.lane_order == ORDER_REVERSE;
  group->order[reversed ? group->lanes_used - 1 - place : place] = lane;

  msl_ids *ids = &lane->ids;
  const uint32_t within[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
  for (int k = 0; k < 3; k++) {
    ids->thread_position_in_grid[k] = position[k] * dispatch.options.threadgroup[k] + within[k];
    ids->thread_position_in_threadgroup[k] = within[k];
    ids->threadgroup_position_in_grid[k] = position[k];
    ids->threads_per_grid[k] = dispatch.options.grid[k];
    ids->threads_per_threadgroup[k] = size[k];
    ids->dispatch_threads_per_threadgroup[k] = dispatch.options.threadgroup[k];
    ids->threadgroups_per_grid[k] = groups[k];
    ids->grid_origin[k] = 0;
  }
  ids->thread_index_in_threadgroup = i;
  ids->thread_index_in_simdgroup = place;
  ids->simdgroup_index_in_threadgroup = i / MSL_LANES;
  ids->simdgroups_per_threadgroup = (threads + MSL_LANES - 1) / MSL_LANES;
  ids->dispatch_simdgroups_per_threadgroup = (full + MSL_LANES - 1) / MSL_LANES;
  ids->threads_per_simdgroup = MSL_LANES;
  ids->thread_index_in_quadgroup = i % 4;
  ids->quadgroup_index_in_threadgroup = i / 4;
  ids->quadgroups_per_threadgroup = (threads + 3) / 4;
  ids->dispatch_quadgroups_per_threadgroup = (full + 3) / 4;
}

// Run the threadgroup at `position`; the last along an axis may be short, as with dispatchThreads.
static void run_at(const uint32_t position[3], const uint32_t groups[3]) {
  uint32_t size[3];
  for (int k = 0; k < 3; k++) {
    uint32_t full = dispatch.options.threadgroup[k];
    uint32_t left = dispatch.options.grid[k] - position[k] * full;
    size[k] = left < full ? left : full;
  }
  uint32_t threads = size[0] * size[1] * size[2];
  uint32_t simdgroup_count = (threads + MSL_LANES - 1) / MSL_LANES;
  dispatch.threadgroup_epoch++;
  dispatch.first_device_epoch = ++dispatch.device_epoch;
  forget_variables();
  for (uint32_t i = 0; i < simdgroup_count; i++) {
    uint32_t left = threads - i * MSL_LANES;
    Simdgroup *group = &simdgroups[i];
    group->meetings = group->threadgroup_step = group->device_step = 0;
    group->lanes_used = left < MSL_LANES ? left : MSL_LANES;
  }
  for (uint32_t i = 0; i < threads; i++)
    prepare_lane(i, position, size, groups);
  run_threadgroup(threads, simdgroup_count);
}

static void run_grid(void) {
  uint32_t groups[3];
  for (int k = 0; k < 3; k++)
    groups[k] = (dispatch.options.grid[k] + dispatch.options.threadgroup[k] - 1) /
                dispatch.options.threadgroup[k];
  for (uint32_t z = 0; z < groups[2]; z++)
    for (uint32_t y = 0; y < groups[1]; y++)
      for (uint32_t x = 0; x < groups[0]; x++) {
        run_at((uint32_t[3]){x, y, z}, groups);
        dispatch.group++;
      }
}

// Run a grid to its end: 0, or 1 when it was abandoned at a fault.
EXPORT int msl_launch(void *entry, void **arguments, const Options *options) {
  static char fault_stack[64 << 10];
  stack_t fault_stack_now = {.ss_sp = fault_stack, .ss_size = sizeof fault_stack}, stack_before;
  struct sigaction now = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  struct sigaction before[FAULT_COUNT];
  const uint32_t *size = options->threadgroup;

  memset(&dispatch, 0, sizeof dispatch);
  dispatch.options = *options;
  dispatch.entry = (void (*)(void **, const msl_ids *))entry;
  dispatch.arguments = arguments;
  dispatch.threads = size[0] * size[1] * size[2];
  random_state = 0x9E3779B97F4A7C15ull * (options->lane_order + 1);
  forget_reports();
  forget_pending_write();
  sigaltstack(&fault_stack_now, &stack_before);
  for (int i = 0; i < FAULT_COUNT; i++)
    sigaction(FAULTS[i], &now, &before[i]);
  unsigned control = _mm_getcsr();
  dispatch.active = true;
  int abandoned = sigsetjmp(dispatch.abandon, 1);
  if (!abandoned) {
    if (options->flush_to_zero)
      _mm_setcsr(control | FLUSH_TO_ZERO);
    run_grid();
  }
  dispatch.active = false;
  dispatch.lane = NULL;
  _mm_setcsr(control);
  for (int i = 0; i < FAULT_COUNT; i++)
    sigaction(FAULTS[i], &before[i], NULL);
  sigaltstack(&stack_before, NULL);
  return abandoned;
}

// Which loaded file holds an instruction, and where it is loaded: 0, or -1 when none does.
EXPORT int msl_module_of(uintptr_t pc, uint64_t *base, char *path, int capacity) {
  Dl_info owner;
  if (!dladdr((void *)pc, &owner))
    return -1;
  *base = (uint64_t)owner.dli_fbase;
  snprintf(path, (size_t)capacity, "%s", owner.dli_fname);
  return 0;
}
