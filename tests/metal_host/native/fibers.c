// Fibers: each lane runs on a stack of its own and is switched by hand (x86-64).
#include "host.h"

void msl_switch(void **save, void *to);
__asm__(".text\n"
        ".globl msl_switch\n"
        ".hidden msl_switch\n"
        "msl_switch:\n"
        "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
        "  mov %rsp,(%rdi)\n"
        "  mov %rsi,%rsp\n"
        "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n"
        "  ret\n");
enum { SAVED_REGISTERS = 6 };

static Lane *next_ready(Simdgroup *group) {
  while (group->next < group->lanes_used) {
    Lane *lane = group->order[group->next++];
    if (lane->state == READY || lane->state == NEW)
      return lane;
  }
  return NULL;
}

static void run_kernel(void);

// A stack on which msl_switch finds zeroed registers and "returns" to run_kernel.
static void *fresh_stack(char *base) {
  uint64_t *top = (uint64_t *)(base + STACK_BYTES);
  *--top = 0;
  *--top = (uint64_t)run_kernel;
  for (int i = 0; i < SAVED_REGISTERS; i++)
    *--top = 0;
  return top;
}

static void start_if_new(Lane *lane) {
  if (lane->state != NEW)
    return;
  lane->saved = fresh_stack(lane->stack);
  lane->state = READY;
}

// Go on with the next lane that can run, or with the schedule when there is none.
static void leave(void **save, Simdgroup *group) {
  Lane *next = next_ready(group);
  dispatch.lane = next;
  if (next)
    start_if_new(next);
  msl_switch(save, next ? next->saved : dispatch.schedule);
}

void yield_lane(Lane *from) {
  judge_pending_write();
  leave(&from->saved, from->simdgroup);
}

void switch_to(Lane *next) {
  dispatch.lane = next;
  start_if_new(next);
  msl_switch(&dispatch.schedule, next->saved);
  dispatch.lane = NULL;
}

// The bottom of every fiber. Lanes that meet nobody run one after the other on one stack.
static void run_kernel(void) {
  for (;;) {
    dispatch.entry(dispatch.arguments, &dispatch.lane->ids);
    Lane *finished = dispatch.lane;
    finished->state = DONE;
    judge_pending_write();
    Simdgroup *group = finished->simdgroup;
    uint32_t position = group->next;
    Lane *next = next_ready(group);
    if (!next || next->state != NEW) {
      group->next = position;
      void *dead;
      leave(&dead, group);
    }
    char *stack = next->stack;
    next->stack = finished->stack;
    finished->stack = stack;
    next->state = READY;
    dispatch.lane = next;
  }
}
