#include "backend/cuda/cuda_loader.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "core/error.h"

namespace gemmantle {
namespace {

constexpr const char* kVariable = "GEMMANTLE_CUDA_LIBRARY";

#ifdef GEMMANTLE_WITH_CUDA
constexpr const char* kNoPlugin = "no CUDA plugin was found";
#else
constexpr const char* kNoPlugin = "this build has no CUDA plugin (it was configured with GEMMANTLE_CUDA=OFF)";
#endif

std::string describe(const CudaPlugin& plugin, int ordinal) {
  char text[256] = {};
  if (plugin.describe != nullptr) plugin.describe(ordinal, text, sizeof text);
  return text;
}

CudaStatus refusal(CudaStatus status, std::string reason) {
  status.available = false;
  status.reason = std::move(reason);
  return status;
}

}  // namespace

std::string cuda_plugin_path() {
  if (const char* path = std::getenv(kVariable); path != nullptr && *path != '\0') return path;
  Dl_info here{};
  if (dladdr(reinterpret_cast<const void*>(&cuda_plugin_path), &here) == 0 || here.dli_fname == nullptr) {
    return kCudaPluginFile;
  }
  return (std::filesystem::path(here.dli_fname).parent_path() / kCudaPluginFile).string();
}

CudaStatus open_cuda_plugin(const std::string& path) {
  CudaStatus status;
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return refusal(status,
                   str(kNoPlugin, ": looked at ", path, "; set ", kVariable, " to use one that lies elsewhere"));
  }
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return refusal(status, str("the CUDA plugin cannot be opened: ", dlerror()));
  status.library = path;

  void* symbol = dlsym(library, kCudaPluginFunction);
  if (symbol == nullptr) {
    return refusal(status, str(path, " is not a gemmantle CUDA plugin: it has no function ", kCudaPluginFunction));
  }
  const auto ask = reinterpret_cast<CudaPluginFunction>(symbol);
  const std::string remedy = "; install a plugin of the same build as this package";
  if (ask(kCudaInterfaceVersion, &status.plugin) != 0) {
    return refusal(status, str("the CUDA plugin ", path, " speaks another interface version than ",
                               kCudaInterfaceVersion, " (different build)", remedy));
  }
  if (const std::string build_id = status.plugin.build_id; build_id != GEMMANTLE_BUILD_ID) {
    return refusal(status, str("the CUDA plugin ", path, " is of a different build: ", build_id, ", this package is ",
                               GEMMANTLE_BUILD_ID, remedy));
  }
  status.description = describe(status.plugin, 0);
  status.reason = status.plugin.reason;
  status.available = status.reason.empty();
  return status;
}

const CudaStatus& cuda_status() {
  static const CudaStatus status = open_cuda_plugin(cuda_plugin_path());
  return status;
}

std::string cuda_description(int ordinal) { return describe(cuda_status().plugin, ordinal); }

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  const CudaStatus& status = cuda_status();
  if (!status.available) {
    throw Error(ErrorCode::unsupported, str("device 'cuda' is not available: ", status.reason), "device");
  }
  if (options.ordinal >= status.plugin.device_count) {
    throw Error(ErrorCode::invalid_argument,
                str("device '", options.device, "' names CUDA device ", options.ordinal, "; there are ",
                    status.plugin.device_count, ", counted from 0"),
                "device");
  }
  return std::unique_ptr<Backend>(status.plugin.make_backend(options));
}

}  // namespace gemmantle
