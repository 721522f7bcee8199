#include "backend/cuda/step_memory.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace gemmantle::cuda {
namespace {

constexpr size_t kSmallestSlot = 256;  // also the alignment

}  // namespace

void StepMemory::begin_plan() {
  phase_ = Phase::plan;
  image_.clear();
  slots_.clear();
  cursor_ = 0;
  shared_.clear();
  results_.clear();
  pointers_.clear();
  scratch_wanted_ = 0;
}

bool StepMemory::begin_issue() {
  bool moved = false;
  if (inputs_.bytes() < image_.size()) {
    const size_t room = std::bit_ceil(2 * image_.size());
    inputs_ = {};  // the old memory first: both together may not fit
    pinned_ = {};
    inputs_ = DeviceMemory(room);
    pinned_ = PinnedMemory(room);
    moved = true;
  }
  if (scratch_.bytes() < scratch_wanted_) {
    scratch_ = {};
    scratch_ = DeviceMemory(std::bit_ceil(scratch_wanted_));
    moved = true;
  }
  for (const Pointer& p : pointers_) {
    const std::byte* target = inputs_.data() + p.target;
    std::memcpy(image_.data() + p.at, &target, sizeof target);
  }
  std::copy(image_.begin(), image_.end(), pinned_.data());
  stream_.upload(inputs_.data(), pinned_.data(), image_.size());
  phase_ = Phase::issue;
  cursor_ = 0;
  return moved;
}

StepMemory::Slot StepMemory::next() {
  GEMMANTLE_CHECK(cursor_ < slots_.size(), "a step was issued otherwise than it was planned");
  return slots_[cursor_++];
}

StepMemory::Slot StepMemory::put(const void* values, size_t bytes) {
  if (phase_ == Phase::issue) return next();
  const Slot slot{image_.size(), std::bit_ceil(std::max(bytes, kSmallestSlot))};
  image_.resize(slot.offset + slot.bytes);
  if (bytes > 0) std::memcpy(image_.data() + slot.offset, values, bytes);
  slots_.push_back(slot);
  return slot;
}

StepMemory::Slot StepMemory::share(const void* values, size_t bytes) {
  if (phase_ == Phase::issue) return next();
  for (const Shared& s : shared_) {
    const bool same = s.host == values && s.bytes == bytes;
    if (!same || (bytes > 0 && std::memcmp(image_.data() + s.slot.offset, values, bytes) != 0)) continue;
    slots_.push_back(s.slot);
    return s.slot;
  }
  const Slot slot = put(values, bytes);
  shared_.push_back({values, bytes, slot});
  return slot;
}

StepMemory::Slot StepMemory::result(void* host, size_t bytes) {
  const Slot slot = put(host, bytes);
  if (phase_ == Phase::plan) results_.push_back({host, bytes, slot});
  return slot;
}

void StepMemory::point(Slot holder, size_t at, Slot target) {
  if (phase_ == Phase::plan) pointers_.push_back({holder.offset + at, target.offset});
}

void* StepMemory::scratch(size_t bytes) {
  scratch_wanted_ = std::max(scratch_wanted_, bytes);
  return phase_ == Phase::plan ? nullptr : scratch_.data();
}

void StepMemory::finish() {
  for (const Result& r : results_) {
    stream_.download(pinned_.data() + r.slot.offset, inputs_.data() + r.slot.offset, r.bytes);
  }
  stream_.wait();
  for (const Result& r : results_) std::memcpy(r.host, pinned_.data() + r.slot.offset, r.bytes);
}

}  // namespace gemmantle::cuda
