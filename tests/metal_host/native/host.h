// What the parts of the runtime share: the dispatch in progress, its lanes and its memory.
//
// One fiber per GPU thread. Operations of a simdgroup and barriers are meetings: a lane that comes
// to one is suspended until the schedule finds that nobody else can still arrive. One OS thread
// runs everything, so nothing here is concurrent. KIND_* are numbered by findings.py.
#pragma once
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#define EXPORT __attribute__((visibility("default")))
#define CALLER ((uintptr_t)__builtin_return_address(0))

enum {
  MAX_THREADS = 1024,
  MAX_SIMDGROUPS = MAX_THREADS / MSL_LANES,
  MAX_BUFFERS = 256,
  MAX_VARIABLES = 256,
  MAX_REPORTS = 64,
  PAGE = 4096,
  STACK_BYTES = 128 << 10,
  REDZONE = 16 << 10,
  VARIABLE_REDZONE = 64,
  THREADGROUP_REGION = 1 << 20
};
enum { MEM_DEVICE = 1, MEM_THREADGROUP = 2 };
enum { ORDER_FORWARD = 0, ORDER_REVERSE = 1 }; // from 2 on: random, and the number is the seed

// ---- lanes (fibers.c) and their meetings (schedule.c)
typedef enum { NEW, READY, AT_MEETING, AT_SIMDGROUP_BARRIER, AT_THREADGROUP_BARRIER, DONE } State;
typedef struct Simdgroup Simdgroup;
typedef struct {
  void *saved; // stack pointer while suspended
  char *stack;
  Simdgroup *simdgroup;
  uintptr_t pc; // call site of the meeting it waits at
  uint32_t flags;
  State state;
  msl_ids ids;
} Lane;
struct Simdgroup {
  _Alignas(64) msl_exchange exchange[2]; // the one being read, and the next
  uint32_t meetings, lanes_used, next;
  uint32_t threadgroup_step, device_step; // simdgroup barriers passed
  Lane *order[MSL_LANES], *lanes[MSL_LANES];
};

// ---- one dispatch (launch.c)
typedef struct {
  uint32_t grid[3], threadgroup[3];
  uint32_t lane_order, flush_to_zero, is_checked, threadgroup_limit, jitter_ulp;
} Options;
typedef struct {
  Options options;
  void (*entry)(void **, const msl_ids *);
  void **arguments;
  uint32_t threads;           // of a full threadgroup
  uint32_t group;             // number of the threadgroup that runs
  uint32_t threadgroup_epoch; // barriers passed since the dispatch began
  uint32_t device_epoch;
  uint32_t first_device_epoch; // of the threadgroup that runs
  Lane *lane;                  // that runs; null in the schedule
  void *schedule;              // its saved stack pointer
  bool active;
  sigjmp_buf abandon;
} Dispatch;
extern Dispatch dispatch;
extern Lane lanes[MAX_THREADS];
extern Simdgroup *simdgroups;
extern char *stacks;

uint32_t random_number(void);
void switch_to(Lane *next);
void yield_lane(Lane *from);
void run_threadgroup(uint32_t threads, uint32_t groups);

// ---- memory (memory.c), who touched it (races.c), accesses (accesses.c)
typedef struct {
  uint32_t who, epoch, step;
} Mark;
typedef struct {
  Mark write, read;
} Shadow; // of one byte
typedef struct {
  uintptr_t start, end, zone_start, zone_end;
  bool is_writable, is_initialised;
  char name[48];
  Shadow *shadow;
} Buffer;
typedef struct {
  uint32_t id, offset;
  uint64_t size;
} Variable; // in threadgroup memory
typedef enum { LOAD, STORE, ATOMIC_LOAD, ATOMIC_STORE, ATOMIC_UPDATE } Use;
typedef struct {
  uintptr_t address, pc;
  uint32_t size;
  Use use;
  int place;
  int64_t offset; // within the place
} Access;

extern char *threadgroup_memory, *arena;
extern size_t arena_size;
extern Buffer buffers[MAX_BUFFERS];
extern Variable variables[MAX_VARIABLES];
extern int variable_count;

int buffer_of(uintptr_t address); // NOWHERE for none
Shadow *threadgroup_shadow(uint32_t offset, uint32_t size);
void forget_variables(void);
void track_threadgroup(Shadow *shadow, const Access *access);
void track_device(Shadow *shadow, const Access *access, bool is_initialised);
void judge_pending_write(void);
void forget_pending_write(void);

// ---- reports (reports.c). A place is a buffer's number, FIRST_VARIABLE + a variable's, or
// NOWHERE.
enum { NOWHERE = -1, FIRST_VARIABLE = 1000 };
typedef struct {
  uint32_t kind, count, thread, other, size;
  int32_t place;
  int64_t offset;
  uintptr_t pc, address;
  uint32_t first, second; // their meaning goes with the kind: see runtime.py
  char message[96];
} Report;
Report *report(uint32_t kind, uintptr_t pc); // null: known already, or too many
Report *report_access(uint32_t kind, const Access *access);
Report *report_from(Lane *lane, uint32_t kind, uintptr_t pc);
void forget_reports(void);
