// recordings.h: steps that were recorded, by what they do.
//
// The key of a step is a hash of everything its launches are given by value: operations, shapes, addresses, splits.
// What its kernels read from step memory may differ each time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "backend/cuda/device.h"

namespace gemmantle::cuda {

class StepKey {
 public:
  void reset() { hash_ = kStart; }
  uint64_t value() const { return hash_; }

  void mix(uint64_t word) {
    // splitmix64 over the running hash: every bit of a word reaches every bit of the key.
    uint64_t z = (hash_ ^ word) + kStart;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    hash_ = z ^ (z >> 31);
  }

 private:
  static constexpr uint64_t kStart = 0x9e3779b97f4a7c15u;
  uint64_t hash_ = kStart;
};

class Recordings {
 public:
  explicit Recordings(DeviceStream& stream) : stream_(stream) {}

  // Replays the step of this key; or records it where it comes a second time; or just lets `issue` enqueue it.
  void run(uint64_t key, const std::function<void()>& issue) {
    if (steps_.size() >= kMost) clear();
    Step& step = steps_[key];
    if (step.recorded == nullptr && step.seen++ > 0) step.recorded = stream_.record(issue);
    if (step.recorded != nullptr) {
      stream_.replay(*step.recorded);
      ++replayed_;
    } else {
      issue();
    }
  }
  void clear() { steps_.clear(); }
  int64_t replayed() const { return replayed_; }

 private:
  static constexpr size_t kMost = 256;
  struct Step {
    int seen = 0;
    std::unique_ptr<RecordedWork> recorded;
  };

  DeviceStream& stream_;
  std::unordered_map<uint64_t, Step> steps_;
  int64_t replayed_ = 0;
};

}  // namespace gemmantle::cuda
