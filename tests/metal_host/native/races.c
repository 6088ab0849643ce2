// Races by happens-before: whatever the lanes' order was, two accesses to a byte must be ordered.
//
// Each byte remembers who wrote and who read it last, and at which epoch (threadgroup barriers
// passed) and step (simdgroup barriers passed). A later access is ordered when an epoch lies
// between, or, within one simdgroup, a step. Threadgroups are never ordered.
#include <string.h>

#include "host.h"

// Mark.who: 0 for nobody, thread + 1, or one of
enum {
  ONE_SIMDGROUP = 0x80000000u, // several lanes of the simdgroup in the low bits
  ATOMICALLY = 0xfffffffdu,
  SEVERAL_GROUPS = 0xfffffffeu,
  SEVERAL_SIMDGROUPS = 0xffffffffu
};
enum { NO_SIMDGROUP = 0xffffffffu };

typedef enum { ORDERED, UNORDERED, OTHER_GROUP } Order;
typedef struct {
  Mark self;
  uint32_t first_epoch; // marks from before belong to other threadgroups
  uint32_t simdgroup;
  uint32_t race_kind, uninitialised_kind;
} View;

static uint32_t simdgroup_of(uint32_t who) {
  if (who == SEVERAL_SIMDGROUPS || who == SEVERAL_GROUPS)
    return NO_SIMDGROUP;
  return who & ONE_SIMDGROUP ? who & ~ONE_SIMDGROUP : (who - 1) % dispatch.threads / MSL_LANES;
}

static Order order_of(Mark mark, const View *view) {
  if (!mark.who || mark.who == view->self.who)
    return ORDERED;
  if (mark.who == SEVERAL_GROUPS || mark.epoch < view->first_epoch)
    return OTHER_GROUP;
  if (mark.epoch != view->self.epoch)
    return ORDERED;
  if (simdgroup_of(mark.who) == view->simdgroup && mark.step != view->self.step)
    return ORDERED;
  return UNORDERED;
}

static void mark_read(Mark *mark, const View *view) {
  if (mark->who == SEVERAL_GROUPS)
    return;
  uint32_t who = view->self.who;
  if (mark->who && mark->who != who) {
    if (mark->epoch < view->first_epoch)
      who = SEVERAL_GROUPS;
    else if (mark->epoch == view->self.epoch)
      who = simdgroup_of(mark->who) == view->simdgroup ? ONE_SIMDGROUP | view->simdgroup
                                                       : SEVERAL_SIMDGROUPS;
  }
  *mark = view->self;
  mark->who = who;
}

// Two unordered writes are judged by value: harmless, but noted, when the second changes nothing.
// At the time of the report the second has not happened yet; the next event of any lane decides.
enum { LONGEST_WRITE = 64 };
static struct {
  bool waiting;
  Lane *writer;
  uint32_t kind, other;
  Access access;
  unsigned char before[LONGEST_WRITE];
} pending;

static void report_race(uint32_t kind, const Access *access, uint32_t who) {
  Report *r = report_access(kind, access);
  if (r)
    r->other = who & ONE_SIMDGROUP ? UINT32_MAX : who - 1;
}

static void expect_write(uint32_t kind, const Access *access, uint32_t who) {
  if (pending.waiting)
    return;
  if (access->size > LONGEST_WRITE) {
    report_race(kind, access, who);
    return;
  }
  pending.waiting = true;
  pending.writer = dispatch.lane;
  pending.kind = kind;
  pending.other = who;
  pending.access = *access;
  memcpy(pending.before, (void *)access->address, access->size);
}

void forget_pending_write(void) { pending.waiting = false; }

void judge_pending_write(void) {
  if (!pending.waiting)
    return;
  pending.waiting = false;
  Lane *running = dispatch.lane;
  dispatch.lane = pending.writer;
  bool changed = memcmp((void *)pending.access.address, pending.before, pending.access.size);
  report_race(changed ? pending.kind : KIND_SAME_VALUE, &pending.access, pending.other);
  dispatch.lane = running;
}

static void check_order(const Shadow *byte, const Access *access, const View *view) {
  bool writes = access->use == STORE;
  Order after_write = order_of(byte->write, view);
  if (after_write != ORDERED) {
    uint32_t kind = after_write == OTHER_GROUP ? KIND_RACE_BETWEEN_GROUPS : view->race_kind;
    if (writes)
      expect_write(kind, access, byte->write.who);
    else
      report_race(kind, access, byte->write.who);
    return;
  }
  Order after_read = writes ? order_of(byte->read, view) : ORDERED;
  if (after_read != ORDERED)
    report_race(after_read == OTHER_GROUP ? KIND_RACE_BETWEEN_GROUPS : view->race_kind, access,
                byte->read.who);
}

static void track(Shadow *shadow, Access access, const View *view, bool is_initialised) {
  bool is_atomic = access.use >= ATOMIC_LOAD;
  bool reads = access.use != STORE && access.use != ATOMIC_STORE;
  for (uint32_t i = 0; i < access.size; i++, access.offset++) {
    Shadow *byte = &shadow[i];
    if (reads && !byte->write.who && !is_initialised) {
      report_access(view->uninitialised_kind, &access);
      is_initialised = true;
    }
    if (is_atomic) {
      byte->write.who = ATOMICALLY; // atomics do not race with each other
      continue;
    }
    if (byte->write.who != ATOMICALLY) {
      check_order(byte, &access, view);
      if (reads)
        mark_read(&byte->read, view);
    }
    if (access.use == STORE)
      byte->write = view->self;
  }
}

static View view_of(uint32_t epoch, uint32_t step) {
  const msl_ids *ids = &dispatch.lane->ids;
  uint32_t thread = dispatch.group * dispatch.threads + ids->thread_index_in_threadgroup;
  return (View){.self = {.who = thread + 1, .epoch = epoch, .step = step},
                .simdgroup = ids->simdgroup_index_in_threadgroup};
}

void track_threadgroup(Shadow *shadow, const Access *access) {
  View view = view_of(dispatch.threadgroup_epoch, dispatch.lane->simdgroup->threadgroup_step);
  view.race_kind = KIND_RACE_THREADGROUP;
  view.uninitialised_kind = KIND_UNINITIALISED_THREADGROUP;
  track(shadow, *access, &view, false);
}

void track_device(Shadow *shadow, const Access *access, bool is_initialised) {
  View view = view_of(dispatch.device_epoch, dispatch.lane->simdgroup->device_step);
  view.first_epoch = dispatch.first_device_epoch;
  view.race_kind = KIND_RACE_DEVICE;
  view.uninitialised_kind = KIND_UNINITIALISED_OUTPUT;
  track(shadow, *access, &view, is_initialised);
}
