#include "backend/cpu/cpu_isa.h"

#include <cstdlib>

#include "core/cpu_features.h"
#include "core/error.h"

namespace gemmantle {

// The build defines GEMMANTLE_TABLE_<name>: the table, or null.
std::span<const CpuIsa> cpu_isas() {
  static const CpuIsa list[] = {
#if defined(__x86_64__)
    {"avx512_bf16", GEMMANTLE_TABLE_avx512_bf16, "AVX-512 F, BW, DQ, VL, VNNI, BF16", cpu_features().avx512_bf16},
    {"avx512_vnni", GEMMANTLE_TABLE_avx512_vnni, "AVX-512 F, BW, DQ, VL, VNNI", cpu_features().avx512_vnni},
    {"avx512", GEMMANTLE_TABLE_avx512, "AVX-512 F, BW, DQ, VL", cpu_features().avx512},
    {"avx_vnni", GEMMANTLE_TABLE_avx_vnni, "AVX2, FMA, F16C, AVX-VNNI", cpu_features().avx_vnni},
    {"avx2", GEMMANTLE_TABLE_avx2, "AVX2, FMA, F16C", cpu_features().avx2},
#endif
    {"baseline", GEMMANTLE_TABLE_baseline, "nothing beyond the architecture", true},
  };
  return list;
}

std::string CpuIsa::missing() const {
  if (kernels == nullptr) return "not in this build (GEMMANTLE_CPU_TABLES)";
  return supported ? "" : str("this machine lacks ", needs);
}

const CpuIsa& choose_cpu_isa(const std::string& forced) {
  std::string there;
  for (const CpuIsa& isa : cpu_isas()) {
    if (isa.usable() && (forced.empty() || forced == isa.name)) return isa;
    there += str(there.empty() ? "" : "; ", isa.name, isa.usable() ? "" : str(" (", isa.missing(), ")"));
  }
  throw Error(ErrorCode::invalid_argument,
              str("GEMMANTLE_CPU_ISA is '", forced, "'; there are: ", there, ". Unset it to take the best that runs"));
}

const CpuIsa& choose_cpu_isa() {
  const char* forced = std::getenv("GEMMANTLE_CPU_ISA");
  return choose_cpu_isa(forced == nullptr ? "" : forced);
}

}  // namespace gemmantle
