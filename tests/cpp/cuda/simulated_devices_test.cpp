// The shim's devices: each has its own memory, and one that touches another's is told.
#include <gtest/gtest.h>

#include <cstdlib>

#include "backend/cuda/device.h"
#include "kernels/cuda/launch.h"

namespace gemmantle::cuda {
namespace {

// The devices are made once in a process: this runs in one of its own.
void touch_from(int device) {
  setenv("GEMMANTLE_CUDA_ON_HOST_DEVICES", "2", 1);
  constexpr int kCols = 64;
  use_device(0);
  DeviceStream stream;
  const DeviceMemory x(kCols * sizeof(float));
  stream.zero(x.data(), x.bytes());
  use_device(device);
  const DeviceMemory y(kCols * sizeof(float));
  scale(stream.handle(), {reinterpret_cast<float*>(y.data()), 1, kCols, kCols},
        {reinterpret_cast<const float*>(x.data()), 1, kCols, kCols}, nullptr, 1.0f);
  std::_Exit(0);
}

TEST(SimulatedDevices, a_kernel_that_reads_the_memory_of_another_device_is_told) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(touch_from(1), "memory of device 0 was touched while device 1 was in use");
  EXPECT_EXIT(touch_from(0), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace gemmantle::cuda
