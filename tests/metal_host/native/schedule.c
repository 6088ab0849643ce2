// Meetings of lanes: operations of a simdgroup, and barriers.
//
// Lanes run one at a time until each waits or is done. The lanes of a simdgroup that wait at one
// call site then meet; lanes elsewhere have diverged. Which call site comes first is a model of
// reconvergence: the lowest address. Threadgroup barriers meet when all simdgroups wait.
#include <string.h>

#include "host.h"

EXPORT uint32_t msl_lane(void) { return dispatch.lane->ids.thread_index_in_simdgroup; }

static void wait_at(State meeting, uintptr_t pc, uint32_t flags) {
  Lane *self = dispatch.lane;
  self->pc = pc;
  self->flags = flags;
  self->state = meeting;
  yield_lane(self);
}

EXPORT msl_exchange *msl_meet(const void *value, uint32_t size) {
  Lane *self = dispatch.lane;
  Simdgroup *group = self->simdgroup;
  memcpy(group->exchange[(group->meetings + 1) & 1].slot[msl_lane()], value, size);
  wait_at(AT_MEETING, CALLER, 0);
  return &group->exchange[group->meetings & 1];
}
EXPORT void msl_threadgroup_barrier(uint32_t flags) {
  wait_at(AT_THREADGROUP_BARRIER, CALLER, flags);
}
EXPORT void msl_simdgroup_barrier(uint32_t flags) { wait_at(AT_SIMDGROUP_BARRIER, CALLER, flags); }

static bool meets(const Lane *lane) {
  return lane->state == AT_MEETING || lane->state == AT_SIMDGROUP_BARRIER;
}
static uint32_t bit_of(const Lane *lane) { return 1u << lane->ids.thread_index_in_simdgroup; }

static void shuffle_lanes(Simdgroup *group) {
  for (uint32_t i = group->lanes_used; i > 1; i--) {
    uint32_t j = random_number() % i;
    Lane *other = group->order[i - 1];
    group->order[i - 1] = group->order[j];
    group->order[j] = other;
  }
}

static Lane *first_to_meet(Simdgroup *group) {
  Lane *first = NULL;
  for (uint32_t i = 0; i < group->lanes_used; i++) {
    Lane *lane = group->lanes[i];
    if (meets(lane) && (!first || lane->pc < first->pc))
      first = lane;
  }
  return first;
}

// Lanes that returned count as diverged, as those that wait elsewhere do.
static void report_absent(Simdgroup *group, Lane *present, uint32_t mask) {
  uint32_t all = group->lanes_used == MSL_LANES ? UINT32_MAX : (1u << group->lanes_used) - 1;
  if (mask == all)
    return;
  bool at_barrier = present->state == AT_SIMDGROUP_BARRIER;
  Report *r = report_from(present, at_barrier ? KIND_DIVERGED_SIMDGROUP_BARRIER : KIND_PARTIAL_SIMD,
                          present->pc);
  if (r) {
    r->first = mask;
    r->second = all;
  }
}

static void hold_meeting(Simdgroup *group, Lane *first) {
  uint32_t mask = 0, flags = 0;
  for (uint32_t i = 0; i < group->lanes_used; i++) {
    Lane *lane = group->lanes[i];
    if (!meets(lane) || lane->pc != first->pc)
      continue;
    mask |= bit_of(lane);
    flags |= lane->flags;
  }
  report_absent(group, first, mask);
  group->meetings++;
  msl_exchange *now = &group->exchange[group->meetings & 1];
  msl_exchange *later = &group->exchange[(group->meetings + 1) & 1];
  now->mask = mask;
  now->done = 0;
  group->threadgroup_step += (flags & MEM_THREADGROUP) != 0;
  group->device_step += (flags & MEM_DEVICE) != 0;
  for (uint32_t i = 0; i < group->lanes_used; i++) {
    Lane *lane = group->lanes[i];
    if (mask & bit_of(lane))
      lane->state = READY;
    else if (lane->state == AT_MEETING)
      memcpy(later->slot[i], now->slot[i], sizeof now->slot[i]);
  }
}

// Run the lanes of a simdgroup until each waits at a threadgroup barrier or is done.
static void run_simdgroup(Simdgroup *group) {
  for (;;) {
    if (dispatch.options.lane_order > ORDER_REVERSE)
      shuffle_lanes(group);
    group->next = 0;
    for (uint32_t i = 0; i < group->lanes_used; i++) {
      Lane *lane = group->order[i];
      if (lane->state != READY && lane->state != NEW)
        continue;
      group->next = i + 1;
      switch_to(lane);
      break;
    }
    Lane *first = first_to_meet(group);
    if (!first)
      return;
    hold_meeting(group, first);
  }
}

// Check that all threads of the threadgroup wait at one barrier, and let them go on.
static bool pass_barrier(uint32_t threads) {
  uint32_t waiting = 0, flags = 0;
  Lane *first = NULL;
  for (uint32_t i = 0; i < threads; i++) {
    Lane *lane = &lanes[i];
    if (lane->state == DONE)
      continue;
    if (first && first->pc != lane->pc) {
      Report *r = report_from(lane, KIND_BARRIER_DIVERGENCE, first->pc);
      if (r)
        r->address = lane->pc;
    }
    if (first && first->flags != lane->flags)
      report_from(lane, KIND_BARRIER_FLAGS, first->pc);
    first = first ? first : lane;
    flags |= lane->flags;
    lane->state = READY;
    waiting++;
  }
  if (!waiting)
    return false;
  if (waiting < threads) {
    Report *r = report_from(first, KIND_BARRIER_EXIT, first->pc);
    if (r) {
      r->first = waiting;
      r->second = threads - waiting;
    }
  }
  dispatch.threadgroup_epoch += (flags & MEM_THREADGROUP) != 0;
  dispatch.device_epoch += (flags & MEM_DEVICE) != 0;
  return true;
}

void run_threadgroup(uint32_t threads, uint32_t groups) {
  uint32_t order[MAX_SIMDGROUPS];
  for (uint32_t i = 0; i < groups; i++)
    order[i] = dispatch.options.lane_order == ORDER_REVERSE ? groups - 1 - i : i;
  do {
    if (dispatch.options.lane_order > ORDER_REVERSE)
      for (uint32_t i = groups; i > 1; i--) {
        uint32_t j = random_number() % i, other = order[i - 1];
        order[i - 1] = order[j];
        order[j] = other;
      }
    for (uint32_t i = 0; i < groups; i++)
      run_simdgroup(&simdgroups[order[i]]);
  } while (pass_barrier(threads));
}
