// cpu_isa.h: the kernel tables, best first, and the choice among them.
#pragma once

#include <span>
#include <string>

#include "kernels/cpu/kernel_table.h"

namespace gemmantle {

struct CpuIsa {
  const char* name;
  const cpu::CpuKernels* kernels;  // null where GEMMANTLE_CPU_TABLES left the table out of this build
  const char* needs;               // instructions, in words
  bool supported;                  // by this processor and operating system

  bool usable() const { return kernels != nullptr && supported; }
  std::string missing() const;  // why it cannot be used, in words; empty when it can
};

std::span<const CpuIsa> cpu_isas();

// The first usable table, or the one that `forced` names. Throws invalid_argument for a name that is not there or
// cannot run here, listing what can.
const CpuIsa& choose_cpu_isa(const std::string& forced);

// choose_cpu_isa() of the environment variable GEMMANTLE_CPU_ISA.
const CpuIsa& choose_cpu_isa();

}  // namespace gemmantle
