// bind_system.cpp: version, devices and instruction sets.
#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "backend/cpu/cpu_isa.h"
#include "backend/registry.h"
#include "bindings/convert.h"

namespace gemmantle::bindings {

void bind_system(py::module_& m) {
  m.def(
      "version", [] { return std::string(GEMMANTLE_VERSION); }, "Version of the native core.");

  m.def(
      "devices",
      [] {
        std::vector<DeviceInfo> found;
        {
          const py::gil_scoped_release unlocked;
          found = devices();
        }
        py::list out;
        for (const DeviceInfo& device : found) {
          py::dict entry;
          entry["name"] = device.name;
          entry["available"] = device.available;
          entry["description"] = to_str(device.description);
          entry["reason"] = to_str(device.reason);
          out.append(entry);
        }
        return out;
      },
      "Devices that `device=` can name: name, available, description, and the reason of each that is not available.");

  m.def(
      "isas",
      [] {
        const CpuIsa& active = choose_cpu_isa();
        py::list out;
        for (const CpuIsa& isa : cpu_isas()) {
          py::dict entry;
          entry["name"] = isa.name;
          entry["needs"] = isa.needs;
          entry["available"] = isa.usable();
          entry["active"] = &isa == &active;
          out.append(entry);
        }
        return out;
      },
      "Kernel tables of the CPU, best first: name, needs, available, active.\n\n"
      "Raises RequestError when GEMMANTLE_CPU_ISA names one that cannot run here.");

  m.def(
      "trim_memory",
      [] {
        const py::gil_scoped_release unlocked;
#ifdef __GLIBC__
        ::malloc_trim(0);
#endif
      },
      "Gives memory that was freed back to the system where the allocator keeps it.");
}

}  // namespace gemmantle::bindings
