// The list of findings of one dispatch: one entry for each kind, place and call site.
#include <string.h>

#include "host.h"

static Report reports[MAX_REPORTS];
static int report_count;

static Report *add(uint32_t kind, uintptr_t pc, int place) {
  for (int i = 0; i < report_count; i++) {
    Report *r = &reports[i];
    if (r->kind == kind && r->pc == pc && r->place == place) {
      r->count++;
      return NULL;
    }
  }
  if (report_count == MAX_REPORTS)
    return NULL;
  Report *r = &reports[report_count++];
  memset(r, 0, sizeof *r);
  r->kind = kind;
  r->pc = pc;
  r->place = place;
  r->count = 1;
  Lane *lane = dispatch.lane;
  r->thread =
      lane ? dispatch.group * dispatch.threads + lane->ids.thread_index_in_threadgroup : UINT32_MAX;
  return r;
}

Report *report(uint32_t kind, uintptr_t pc) { return add(kind, pc, NOWHERE); }

Report *report_access(uint32_t kind, const Access *access) {
  Report *r = add(kind, access->pc, access->place);
  if (r) {
    r->address = access->address;
    r->size = access->size;
    r->offset = access->offset;
  }
  return r;
}

Report *report_from(Lane *lane, uint32_t kind, uintptr_t pc) {
  Lane *running = dispatch.lane;
  dispatch.lane = lane;
  Report *r = report(kind, pc);
  dispatch.lane = running;
  return r;
}

void forget_reports(void) { report_count = 0; }

EXPORT int msl_report_count(void) { return report_count; }
EXPORT Report *msl_reports(void) { return reports; }
EXPORT void msl_complain(uint32_t kind, uint32_t detail) {
  Report *r = report(kind, CALLER);
  if (r)
    r->first = detail;
}
