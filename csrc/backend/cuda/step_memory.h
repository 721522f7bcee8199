// step_memory.h: what a step brings to the device and takes back: numbers that change between steps, and scratch.
//
// A step is walked twice. While it is planned, everything it brings is gathered in an image of device memory; then one
// copy takes the image there, and while the step is issued the same calls, in the same order, give device addresses.
// Room is given in powers of two, so addresses stay as lists grow a little, and a recorded step can be replayed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/cuda/device.h"

namespace gemmantle::cuda {

class StepMemory {
 public:
  explicit StepMemory(DeviceStream& stream) : stream_(stream) {}

  enum class Phase { plan, issue };
  Phase phase() const { return phase_; }

  void begin_plan();
  // Sends the image. True when addresses have moved since the last step, so that nothing recorded is of use any more.
  bool begin_issue();

  struct Slot {
    size_t offset = 0;
    size_t bytes = 0;  // a power of two
  };
  // Room for `bytes` that hold a copy of `values` when the step runs.
  Slot put(const void* values, size_t bytes);
  template <class T>
  Slot put(std::span<const T> values) {
    return put(values.data(), values.size_bytes());
  }
  // put(), but the same list is brought once a step.
  template <class T>
  Slot share(std::span<const T> values) {
    return share(values.data(), values.size_bytes());
  }
  // Room for a result that finish() copies to `host`; starts as what is there.
  Slot result(void* host, size_t bytes);
  // The eight bytes at `at` within `holder` become the device address of `target`.
  void point(Slot holder, size_t at, Slot target);

  // Scratch that the next request may overwrite; null while planning.
  void* scratch(size_t bytes);

  // Null while planning.
  template <class T>
  T* address(Slot slot) const {
    return phase_ == Phase::plan ? nullptr : reinterpret_cast<T*>(inputs_.data() + slot.offset);
  }

  // Waits for the step and hands out its results.
  void finish();

 private:
  struct Shared {
    const void* host;
    size_t bytes;
    Slot slot;
  };
  struct Result {
    void* host;
    size_t bytes;
    Slot slot;
  };
  struct Pointer {
    size_t at;
    size_t target;
  };

  Slot share(const void* values, size_t bytes);
  Slot next();

  DeviceStream& stream_;
  Phase phase_ = Phase::plan;
  std::vector<std::byte> image_;
  std::vector<Slot> slots_;
  size_t cursor_ = 0;
  std::vector<Shared> shared_;
  std::vector<Result> results_;
  std::vector<Pointer> pointers_;
  size_t scratch_wanted_ = 0;
  PinnedMemory pinned_;
  DeviceMemory inputs_;
  DeviceMemory scratch_;
};

}  // namespace gemmantle::cuda
