// Threads that share a loop: each takes the next few turns until none is left.
#pragma once
#include <cstdint>

using Turn = void (*)(void* job, int64_t begin, int64_t end, int thread);

// Sets how many threads a loop has, this one included. Takes effect at the next loop.
void set_threads(int count);

// Calls `turn` for all of 0..count, `grain` at a time; returns when all are done.
// Loops of several callers follow each other. A thread of the pool sleeps between loops.
void run_loop(int64_t count, int64_t grain, Turn turn, void* job);

template <class Body>
void each(int64_t count, int64_t grain, Body body) {
  run_loop(
      count, grain,
      [](void* job, int64_t begin, int64_t end, int thread) { (*(Body*)job)(begin, end, thread); },
      &body);
}
