#include "backend/registry.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/cuda/cuda_loader.h"
#include "backend/reference/reference_backend.h"
#include "core/cpu_features.h"
#include "core/error.h"

namespace gemmantle {
namespace {

constexpr const char* kCudaDevice = "cuda:";

}  // namespace

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> list;
  DeviceInfo cpu{"cpu", "", true, ""};
  try {
    cpu.description = str("this processor, kernels '", choose_cpu_isa().name, "', ", usable_cores(), " cores");
  } catch (const Error& e) {  // GEMMANTLE_CPU_ISA asks for what is not there
    cpu.available = false;
    cpu.reason = e.message();
  }
  list.push_back(std::move(cpu));
  list.push_back({"reference", "the definition of every operation: one thread, double sums, slow", true, ""});
  const CudaStatus& cuda = cuda_status();
  list.push_back({"cuda", cuda.description, cuda.available, cuda.reason});
  for (int i = 0; cuda.available && cuda.plugin.device_count > 1 && i < cuda.plugin.device_count; ++i) {
    list.push_back({str(kCudaDevice, i), cuda_description(i), true, ""});
  }
  return list;
}

namespace {

// The numbers behind "cuda:"; empty where that is not what the name is.
std::vector<int> ordinals_of(const std::string& device) {
  std::vector<int> found;
  if (device.rfind(kCudaDevice, 0) != 0) return found;
  std::istringstream list(device.substr(std::strlen(kCudaDevice)));
  for (std::string number; std::getline(list, number, ',');) {
    const bool is_number =
        !number.empty() && number.size() < 4 && number.find_first_not_of("0123456789") == std::string::npos;
    const int ordinal = is_number ? std::stoi(number) : -1;
    if (ordinal < 0 || std::count(found.begin(), found.end(), ordinal) > 0) return {};
    found.push_back(ordinal);
  }
  return found;
}

std::unique_ptr<Backend> open_device(const BackendOptions& options) {
  if (options.device == "auto") return cuda_status().available ? make_cuda_backend(options) : make_cpu_backend(options);
  if (options.device == "cpu") return make_cpu_backend(options);
  if (options.device == "reference") return make_reference_backend(options);
  if (options.device == "cuda" || !ordinals_of(options.device).empty()) return make_cuda_backend(options);
  throw Error(ErrorCode::invalid_argument,
              str("device is '", options.device,
                  "'; give one of auto, cpu, reference, cuda, or numbers of CUDA devices: "
                  "cuda:1, cuda:0,1"),
              "device");
}

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  std::vector<std::unique_ptr<Backend>> backends = make_backends(options);
  if (backends.size() > 1) {
    throw Error(ErrorCode::invalid_argument, str("device is '", options.device, "'; one device is wanted here"),
                "device");
  }
  return std::move(backends.front());
}

std::vector<std::unique_ptr<Backend>> make_backends(const BackendOptions& options) {
  std::vector<int> ordinals = ordinals_of(options.device);
  if (ordinals.empty()) ordinals.push_back(options.ordinal);
  std::vector<std::unique_ptr<Backend>> backends;
  for (const int ordinal : ordinals) {
    BackendOptions one = options;
    one.ordinal = ordinal;
    backends.push_back(open_device(one));
  }
  const Backend& first = *backends.front();
  if (options.kv.value_or(first.kv_dtype()) != first.kv_dtype()) {
    throw Error(
        ErrorCode::invalid_argument,
        str("device '", first.info().device, "' does not keep K and V in the type that kv asks for; leave kv out"),
        "kv");
  }
  return backends;
}

}  // namespace gemmantle
