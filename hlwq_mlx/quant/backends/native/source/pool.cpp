#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

struct Loop {
  int64_t count, grain;
  Turn turn;
  void* job;
  std::atomic<int64_t> next{0};

  void take_turns(int thread) {
    for (;;) {
      int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      turn(job, begin, begin + grain < count ? begin + grain : count, thread);
    }
  }
};

// To wake a thread takes 20 to 50 us, as long as a small product. Within a step the next loop comes
// sooner than this; whoever else has work takes the processor meanwhile.
constexpr auto SOON = std::chrono::microseconds(100);

// Waits a short while without sleep for what another thread does.
template <class Condition>
void watch(const Condition& is_met) {
  const auto until = std::chrono::steady_clock::now() + SOON;
  while (!is_met() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
}

class Pool {
 public:
  explicit Pool(int count) : asked(count) {
    try {
      for (int thread = 1; thread < count; thread++)
        workers_.emplace_back([this, thread] { work(thread); });
    } catch (const std::system_error&) {
      // No room for more: those that began share the work.
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  const int asked;

  void run(Loop& loop) {
    {
      std::lock_guard<std::mutex> guard(mutex_);
      loop_ = &loop;
      round_++;
    }
    changed_.notify_all();
    loop.take_turns(0);
    // All turns are taken. No worker that is still asleep may begin, and those that work end.
    std::unique_lock<std::mutex> lock(mutex_);
    loop_ = nullptr;
    lock.unlock();
    watch([this] { return working_ == 0; });
    lock.lock();
    done_.wait(lock, [this] { return working_ == 0; });
  }

 private:
  void work(int thread) {
    uint64_t seen = 0;
    for (;;) {
      watch([&] { return round_ != seen || is_over_; });
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return is_over_ || round_ != seen; });
      if (is_over_) return;
      seen = round_;
      if (!loop_) continue;  // it went without this thread
      Loop& loop = *loop_;
      working_++;
      lock.unlock();
      loop.take_turns(thread);
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_, done_;
  Loop* loop_ = nullptr;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> working_{0};
  std::atomic<bool> is_over_{false};
  std::vector<std::thread> workers_;
};

std::mutex callers;
Pool* pool = nullptr;
int wanted = 1;

// A child has none of its parent's threads, and cannot end them either.
void forget_in_child() {
  pool = nullptr;
  new (&callers) std::mutex;
}

}  // namespace

void set_threads(int count) {
  std::lock_guard<std::mutex> guard(callers);
  static const int registered = pthread_atfork(nullptr, nullptr, forget_in_child);
  (void)registered;
  wanted = count < 1 ? 1 : count;
}

void run_loop(int64_t count, int64_t grain, Turn turn, void* job) {
  if (count <= 0) return;
  Loop loop{count, grain, turn, job};
  std::lock_guard<std::mutex> guard(callers);
  if (wanted == 1 || count <= grain) return loop.take_turns(0);
  if (!pool || pool->asked != wanted) {
    delete pool;
    pool = new Pool(wanted);
  }
  pool->run(loop);
}
