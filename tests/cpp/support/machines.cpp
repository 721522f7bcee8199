#include "support/machines.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_isa.h"
#include "backend/reference/reference_backend.h"
#include "core/error.h"

namespace gemmantle::test {

std::unique_ptr<Backend> Machine::make() const {
  if (device == "reference") return make_reference_backend({});
  BackendOptions options;
  options.threads = threads;
  return make_cpu_backend(options, choose_cpu_isa(isa));
}

std::vector<Machine> all_machines() {
  std::vector<Machine> machines = {{"reference", "", 1, ""}};
  for (const CpuIsa& isa : cpu_isas()) {
    for (const int threads : {1, 3}) machines.push_back({"cpu", isa.name, threads, isa.missing()});
  }
  return machines;
}

}  // namespace gemmantle::test
