// The runtime's functions that this library calls.
#pragma once
#include "../layout.h"

extern "C" {
MSL_CONVERGENT void msl_threadgroup_barrier(uint flags);
MSL_CONVERGENT void msl_simdgroup_barrier(uint flags);
MSL_CONVERGENT msl_exchange *msl_meet(const void *value, uint size);
void *msl_threadgroup_variable(uint id, ulong size, uint alignment);
void msl_atomic_access(void *address, uint size, uint kind);
void msl_complain(uint kind, uint detail);
uint msl_lane(void);
float msl_jitter(float x);
}
