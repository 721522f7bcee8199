// cuda_plugin.cpp: the one exported function of libgemmantle_cuda.so.
//
// Asks the driver what is there and says in words why no device can be used. It must load and answer on a machine
// without a driver, so nothing here may fail: every CUDA error becomes a reason.
#include "backend/cuda/cuda_plugin.h"

#include <cuda_runtime_api.h>

#include <cstdio>

#include "backend/cuda/cuda_backend.h"
#include "core/error.h"

namespace gemmantle {
namespace {

std::string version(int number) { return str(number / 1000, ".", number % 1000 / 10); }

std::string why_no_device(cudaError_t error, const CudaPlugin& plugin) {
  const std::string needs = str("a driver for CUDA ", version(plugin.runtime_version), " or newer");
  if (plugin.driver_version == 0) return str("no NVIDIA driver was found; the CUDA plugin needs ", needs);
  if (error == cudaErrorInsufficientDriver) {
    return str("the NVIDIA driver is too old: it serves CUDA ", version(plugin.driver_version), ", the plugin needs ",
               needs);
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && plugin.device_count == 0)) {
    return "the NVIDIA driver reports no CUDA device (CUDA_VISIBLE_DEVICES hides devices when it is set)";
  }
  if (error != cudaSuccess) return str("the NVIDIA driver reports: ", cudaGetErrorString(error));
  return "";
}

void describe(int ordinal, char* text, size_t size) {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess) return;
  std::snprintf(text, size, "%s, compute capability %d.%d, %zu GiB", properties.name, properties.major,
                properties.minor, properties.totalGlobalMem >> 30);
}

}  // namespace
}  // namespace gemmantle

extern "C" GEMMANTLE_EXPORT int gemmantle_cuda_plugin(int interface_version, gemmantle::CudaPlugin* plugin) {
  using namespace gemmantle;
  if (interface_version != kCudaInterfaceVersion) return 1;
  *plugin = CudaPlugin{};
  plugin->build_id = GEMMANTLE_BUILD_ID;
  cudaRuntimeGetVersion(&plugin->runtime_version);
  if (cudaDriverGetVersion(&plugin->driver_version) != cudaSuccess) plugin->driver_version = 0;
  const cudaError_t error = cudaGetDeviceCount(&plugin->device_count);
  if (error != cudaSuccess) plugin->device_count = 0;
  std::snprintf(plugin->reason, sizeof plugin->reason, "%s", why_no_device(error, *plugin).c_str());
  plugin->describe = describe;
  plugin->make_backend = [](const BackendOptions& options) { return cuda::make_backend(options).release(); };
  return 0;
}
