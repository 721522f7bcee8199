// fake_cuda_plugin.cpp: a CUDA plugin without CUDA, for the tests of the loader. GEMMANTLE_FAKE_CUDA says what it
// pretends: "other_interface", "other_build", "refuses" (a reason) or, by default, one usable device.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "backend/cuda/cuda_plugin.h"
#include "core/error.h"

extern "C" GEMMANTLE_EXPORT int gemmantle_cuda_plugin(int interface_version, gemmantle::CudaPlugin* plugin) {
  const char* text = std::getenv("GEMMANTLE_FAKE_CUDA");
  const char* role = text == nullptr ? "" : text;
  if (interface_version != gemmantle::kCudaInterfaceVersion || std::strcmp(role, "other_interface") == 0) return 1;
  *plugin = gemmantle::CudaPlugin{};
  plugin->build_id = std::strcmp(role, "other_build") == 0 ? "0.0.0-elsewhere" : GEMMANTLE_BUILD_ID;
  plugin->runtime_version = 13000;
  if (std::strcmp(role, "refuses") == 0) {
    std::snprintf(plugin->reason, sizeof plugin->reason, "no NVIDIA driver was found");
    return 0;
  }
  plugin->driver_version = 13000;
  plugin->device_count = 1;
  plugin->describe = [](int, char* out, size_t size) { std::snprintf(out, size, "a device of paper"); };
  return 0;
}
