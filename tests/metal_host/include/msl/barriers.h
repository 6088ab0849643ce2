// Barriers, fences and their flags.
#pragma once

namespace metal {
enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16
};
MSL_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return (mem_flags)((uint)a | (uint)b);
}
enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel,
  memory_order_seq_cst
};
enum thread_scope {
  thread_scope_thread,
  thread_scope_threadgroup,
  thread_scope_device,
  thread_scope_simdgroup
};

MSL_INLINE MSL_CONVERGENT void threadgroup_barrier(mem_flags flags) {
  msl_threadgroup_barrier((uint)flags);
}
MSL_INLINE MSL_CONVERGENT void simdgroup_barrier(mem_flags flags) {
  msl_simdgroup_barrier((uint)flags);
}
MSL_INLINE void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device) {}
} // namespace metal
