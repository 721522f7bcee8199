// cpu_backend.h: device "cpu": host memory, a thread pool, and the kernels of the best instruction set that runs here.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cpu/cpu_isa.h"

namespace gemmantle {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

// With a given table, for tests that compare several.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options, const CpuIsa& isa);

}  // namespace gemmantle
