// plugin_on_host.cpp: the CUDA backend as a plugin that runs on the host, so that everything above the loader can be
// tested with device "cuda" (GEMMANTLE_CUDA_LIBRARY names the library). Slow; never shipped.
#include <cstdio>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/cuda_plugin.h"
#include "core/error.h"
#include "simulated_devices.h"

extern "C" GEMMANTLE_EXPORT int gemmantle_cuda_plugin(int interface_version, gemmantle::CudaPlugin* plugin) {
  using namespace gemmantle;
  if (interface_version != kCudaInterfaceVersion) return 1;
  *plugin = CudaPlugin{};
  plugin->build_id = GEMMANTLE_BUILD_ID;
  plugin->device_count = simt::host::device_count();
  plugin->describe = [](int, char* text, size_t size) {
    std::snprintf(text, size, "CUDA kernels on the host, for tests");
  };
  plugin->make_backend = [](const BackendOptions& options) { return cuda::make_backend(options).release(); };
  return 0;
}
