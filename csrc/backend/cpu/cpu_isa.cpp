#include "backend/cpu/cpu_isa.h"

#include <cstdlib>

#include "core/cpu_features.h"
#include "core/error.h"

namespace gemmantle {

std::span<const CpuIsa> cpu_isas() {
  static const CpuIsa list[] = {
#if defined(__x86_64__)
    {cpu::kernels_avx512_vnni(), "AVX-512 F, BW, DQ, VL, VNNI", cpu_features().avx512_vnni},
    {cpu::kernels_avx512(), "AVX-512 F, BW, DQ, VL", cpu_features().avx512},
    {cpu::kernels_avx_vnni(), "AVX2, FMA, F16C, AVX-VNNI", cpu_features().avx_vnni},
    {cpu::kernels_avx2(), "AVX2, FMA, F16C", cpu_features().avx2},
#endif
    {cpu::kernels_baseline(), "nothing beyond the architecture", true},
  };
  return list;
}

const CpuIsa& choose_cpu_isa(const std::string& forced) {
  std::string there;
  for (const CpuIsa& isa : cpu_isas()) {
    if (isa.supported && (forced.empty() || forced == isa.kernels->name)) return isa;
    there += str(there.empty() ? "" : "; ", isa.kernels->name,
                 isa.supported ? "" : str(" (this machine lacks ", isa.needs, ")"));
  }
  throw Error(ErrorCode::invalid_argument, str("GEMMANTLE_CPU_ISA is '", forced, "'; this build has: ", there,
                                               ". Unset it to take the best that runs"));
}

const CpuIsa& choose_cpu_isa() {
  const char* forced = std::getenv("GEMMANTLE_CPU_ISA");
  return choose_cpu_isa(forced == nullptr ? "" : forced);
}

}  // namespace gemmantle
