// metal_stdlib for clang's "C++ for OpenCL 2021" on a CPU, one header per topic.
//
// Address spaces are real types here: device = __global, threadgroup = __local, constant =
// __constant, thread = __private. Mixing them does not compile.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wshadow"

#define MSL_INLINE inline __attribute__((always_inline))
// For the long parts: nothing in them may call the runtime, which takes its caller for the kernel.
#define MSL_OUTLINE inline __attribute__((noinline))
#define MSL_CONVERGENT __attribute__((convergent))
#define MSL_UNROLL _Pragma("clang loop unroll(full)")

#include "msl/types.h"
#include "msl/host.h"
#include "msl/traits.h"
#include "msl/vectors.h"
#include "msl/packed.h"
#include "msl/limits.h"
#include "msl/math.h"
#include "msl/common.h"
#include "msl/integer.h"
#include "msl/geometric.h"
#include "msl/barriers.h"
#include "msl/simdgroup.h"
#include "msl/quadgroup.h"
#include "msl/simdgroup_matrix.h"
#include "msl/atomics.h"
#include "msl/logging.h"
#include "msl/mlx_internals.h"
#include "msl/launch.h"
#pragma clang diagnostic pop
