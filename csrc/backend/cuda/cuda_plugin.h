// cuda_plugin.h: the one function that crosses between the core and libgemmantle_cuda.so.
//
// The plugin fills what it found and, when a device can be used, how to make a backend on it. Both sides check that
// they were built from the same border headers: the plugin the interface version, the core the build id.
#pragma once

#include "backend/backend.h"

namespace gemmantle {

inline constexpr int kCudaInterfaceVersion = 2;
inline constexpr const char* kCudaPluginFile = "libgemmantle_cuda.so";
inline constexpr const char* kCudaPluginFunction = "gemmantle_cuda_plugin";

struct CudaPlugin {
  const char* build_id = "";
  int runtime_version = 0;  // 1000 * major + 10 * minor, as CUDA counts
  int driver_version = 0;   // newest run time the driver serves; 0: no driver
  int device_count = 0;
  char reason[512] = {};  // why no device can be used; empty when one can
  // A device in words, cut to `size` with the zero behind it; nothing for one that is not there.
  void (*describe)(int ordinal, char* text, size_t size) = nullptr;
  Backend* (*make_backend)(const BackendOptions& options) = nullptr;  // on options.ordinal; throws Error
};

// Returns 0, or 1 when the interface versions differ (then `plugin` is left alone).
using CudaPluginFunction = int (*)(int interface_version, CudaPlugin* plugin);

}  // namespace gemmantle
