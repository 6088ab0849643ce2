// Layouts and limits that a kernel (C++ for OpenCL) and the runtime (C) both see.
#pragma once

enum { MSL_LANES = 32, MSL_SLOT_WORDS = 8 };

// What a thread may ask about itself, in the words of the Metal specification's table 5.8.
typedef struct msl_ids {
  unsigned int thread_position_in_grid[3];
  unsigned int thread_position_in_threadgroup[3];
  unsigned int threadgroup_position_in_grid[3];
  unsigned int threads_per_grid[3];
  unsigned int threads_per_threadgroup[3];
  unsigned int dispatch_threads_per_threadgroup[3];
  unsigned int threadgroups_per_grid[3];
  unsigned int grid_origin[3];
  unsigned int thread_index_in_threadgroup;
  unsigned int thread_index_in_simdgroup;
  unsigned int simdgroup_index_in_threadgroup;
  unsigned int simdgroups_per_threadgroup;
  unsigned int dispatch_simdgroups_per_threadgroup;
  unsigned int threads_per_simdgroup;
  unsigned int thread_index_in_quadgroup;
  unsigned int quadgroup_index_in_threadgroup;
  unsigned int quadgroups_per_threadgroup;
  unsigned int dispatch_quadgroups_per_threadgroup;
} msl_ids;

// Where the lanes of a simdgroup meet: each leaves a value in its slot, then all may read.
typedef struct msl_exchange {
  unsigned int mask; // lanes that came
  unsigned int done; // whether the first lane out has computed the common result
  unsigned int padding[2];
  unsigned long result[MSL_SLOT_WORDS];
  unsigned long slot[MSL_LANES][MSL_SLOT_WORDS];
} msl_exchange;
