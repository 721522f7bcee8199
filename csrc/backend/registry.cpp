#include "backend/registry.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/cuda/cuda_loader.h"
#include "backend/reference/reference_backend.h"
#include "core/cpu_features.h"
#include "core/error.h"

namespace gemmantle {

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
  return list;
}

namespace {

std::unique_ptr<Backend> open_device(const BackendOptions& options) {
  if (options.device == "auto") return cuda_status().available ? make_cuda_backend(options) : make_cpu_backend(options);
  if (options.device == "cpu") return make_cpu_backend(options);
  if (options.device == "reference") return make_reference_backend(options);
  if (options.device == "cuda") return make_cuda_backend(options);
  throw Error(ErrorCode::invalid_argument,
              str("device is '", options.device, "'; give one of auto, cpu, reference, cuda"), "device");
}

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  std::unique_ptr<Backend> backend = open_device(options);
  if (options.kv.value_or(backend->kv_dtype()) != backend->kv_dtype()) {
    throw Error(
        ErrorCode::invalid_argument,
        str("device '", backend->info().device, "' does not keep K and V in the type that kv asks for; leave kv out"),
        "kv");
  }
  return backend;
}

}  // namespace gemmantle
