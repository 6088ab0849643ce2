// Floats that begin at a cache line, for a load across two of them takes twice as long.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

class Buffer {
 public:
  // So many floats, whatever they are; what was there before is lost.
  float* of(int64_t count) {
    if (size_ < count) {
      kept_.reset(new (LINE) float[count]);
      size_ = count;
    }
    return kept_.get();
  }

 private:
  static constexpr std::align_val_t LINE{64};
  struct Delete {
    void operator()(float* kept) const { operator delete[](kept, LINE); }
  };
  std::unique_ptr<float[], Delete> kept_;
  int64_t size_ = 0;
};
