#include "core/cpu_features.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "core/error.h"

namespace gemmantle {
namespace {

CpuFeatures detect() {
  CpuFeatures features;
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return features;
  const bool osxsave = (c & bit_OSXSAVE) != 0, fma = (c & bit_FMA) != 0, f16c = (c & bit_F16C) != 0;
  if (!osxsave || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return features;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kYmm = 0x06, kZmm = 0xe6;  // XMM and YMM; and mask registers, upper ZMM halves, ZMM 16..31
  features.avx2 = (low & kYmm) == kYmm && fma && f16c && (b & bit_AVX2) != 0;
  constexpr unsigned kWide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  features.avx512 = features.avx2 && (low & kZmm) == kZmm && (b & kWide) == kWide;
  features.avx512_vnni = features.avx512 && (c & bit_AVX512VNNI) != 0;
  constexpr unsigned kAvxVnni = 1u << 4, kBf16 = 1u << 5;  // in eax of leaf 7.1; compilers do not agree on names
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    features.avx_vnni = features.avx2 && (a & kAvxVnni) != 0;
    features.avx512_bf16 = features.avx512_vnni && (a & kBf16) != 0;
  }
#endif
  return features;
}

std::string first_line(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// Whole CPUs of "quota period" (microseconds); 0 for "max", -1 or anything that is not two numbers.
int whole_cpus(const std::string& quota, const std::string& period) {
  std::istringstream q(quota), p(period);
  long long granted = 0, every = 0;
  if (!(q >> granted) || !(p >> every) || granted <= 0 || every <= 0) return 0;
  return static_cast<int>(std::max<long long>(1, std::min<long long>(granted / every, 1 << 20)));
}

int smaller_limit(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

int physical_cores(const std::vector<int>& cpus, const std::string& sysfs_cpu) {
  std::set<std::pair<std::string, std::string>> cores;
  for (const int cpu : cpus) {
    const std::string topology = sysfs_cpu + "/cpu" + std::to_string(cpu) + "/topology/";
    const std::string core = first_line(topology + "core_id");
    if (core.empty()) return static_cast<int>(cpus.size());
    cores.emplace(first_line(topology + "physical_package_id"), core);
  }
  return static_cast<int>(cores.size());
}

int cgroup_cpus(const std::string& membership_file, const std::string& cgroup_fs) {
  int limit = 0;
  std::ifstream membership(membership_file);
  for (std::string line; std::getline(membership, line);) {
    // hierarchy:controllers:path, with no controllers in version 2
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = std::string(",").append(line, first + 1, second - first - 1).append(",");
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(",cpu,") == std::string::npos) continue;
    // Every ancestor limits too; inside a container the path may not exist below the root that is seen.
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {
      if (path == "/") path.clear();
      if (v2) {
        std::istringstream max(first_line(std::string(cgroup_fs).append(path).append("/cpu.max")));
        std::string quota, period;
        max >> quota >> period;
        limit = smaller_limit(limit, whole_cpus(quota, period));
      } else {
        const std::string folder = cgroup_fs + "/cpu" + path;
        limit = smaller_limit(
            limit, whole_cpus(first_line(folder + "/cpu.cfs_quota_us"), first_line(folder + "/cpu.cfs_period_us")));
      }
      if (path.find('/') == std::string::npos) break;
    }
  }
  return limit;
}

int usable_cores() {
  std::vector<int> cpus;
#if defined(__linux__)
  // The mask of a machine with more processors than fit is refused; then all of them count.
  constexpr int kMaxCpus = 8192;
  std::vector<cpu_set_t> sets((kMaxCpus + CPU_SETSIZE - 1) / CPU_SETSIZE);
  const size_t bytes = sets.size() * sizeof(cpu_set_t);
  if (sched_getaffinity(0, bytes, sets.data()) == 0) {
    for (int cpu = 0; cpu < kMaxCpus; ++cpu) {
      if (CPU_ISSET_S(static_cast<size_t>(cpu), bytes, sets.data())) cpus.push_back(cpu);
    }
  }
  if (!cpus.empty()) {
    const int cores = physical_cores(cpus, "/sys/devices/system/cpu");
    return std::max(1, smaller_limit(cores, cgroup_cpus("/proc/self/cgroup", "/sys/fs/cgroup")));
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int thread_count(int asked) {
  constexpr int kMaxThreads = 1024;
  if (asked < 0 || asked > kMaxThreads) {
    throw Error(ErrorCode::invalid_argument,
                str("threads is ", asked, "; give 1 to ", kMaxThreads, ", or 0 for one per physical core"), "threads");
  }
  return asked == 0 ? usable_cores() : asked;
}

}  // namespace gemmantle
