// cuda_loader.h: finds the CUDA plugin at run time, or remembers in words why CUDA cannot be used.
//
// The core never links CUDA. The plugin is looked for at GEMMANTLE_CUDA_LIBRARY, else beside the library or program
// that holds this code; it is opened privately, never unloaded, and asked once.
#pragma once

#include <memory>
#include <string>

#include "backend/cuda/cuda_plugin.h"

namespace gemmantle {

struct CudaStatus {
  bool available = false;
  std::string reason;       // why not; empty when available
  std::string description;  // of the first device, as its driver names it; empty when there is none
  std::string library;      // the plugin that was opened; empty when none was
  CudaPlugin plugin;        // what it said; only its build id is meaningful when the builds differ
};

// Answered once, on the first question.
const CudaStatus& cuda_status();

// Where cuda_status() looks: GEMMANTLE_CUDA_LIBRARY when it is set, else beside this code.
std::string cuda_plugin_path();

// Opens the plugin at `path` and asks it; never throws for what it finds there.
CudaStatus open_cuda_plugin(const std::string& path);

// Device `ordinal` as its driver names it; empty when it is not there.
std::string cuda_description(int ordinal);

// Throws ErrorCode::unsupported with the reason when CUDA is not available, invalid_argument where there is
// no device options.ordinal.
std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options);

}  // namespace gemmantle
