// weight_store.h: the weights of a model on the device, and how they get there.
//
// Rows are split by a few threads into one of two pieces of pinned memory while the other one travels.
#pragma once

#include <array>
#include <unordered_map>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/weight.h"
#include "kernels/cuda/launch.h"

namespace gemmantle::cuda {

class WeightStore {
 public:
  // Copies a weight from host memory to the device; the source is not needed any more. Throws out_of_memory.
  Weight place(const Weight& source);
  // What place() gave back, as kernels see it.
  const Matrix& find(const Weight& placed) const;

 private:
  struct Lane {
    PinnedMemory staging;
    DeviceStream stream;
  };

  std::array<Lane, 2> lanes_;
  std::vector<DeviceMemory> memory_;
  std::unordered_map<const std::byte*, Matrix> placed_;
};

}  // namespace gemmantle::cuda
