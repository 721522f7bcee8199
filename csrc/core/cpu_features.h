// cpu_features.h: what this processor and operating system can run, and how many cores this process may use.
#pragma once

#include <string>
#include <vector>

namespace gemmantle {

// Sets of instructions that a kernel table needs as a whole, registers saved by the operating system included.
struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA, F16C
  bool avx_vnni = false;     // avx2 and dot products of bytes
  bool avx512 = false;       // AVX-512 F, BW, DQ, VL, and avx2
  bool avx512_vnni = false;  // avx512 and dot products of bytes
  bool avx512_bf16 = false;  // avx512_vnni and dot products of bf16
};

const CpuFeatures& cpu_features();

// Physical cores in the affinity mask of the calling thread, at most the whole CPUs its control group grants; >= 1.
int usable_cores();

// The threads of `threads=`: as many as asked for, usable_cores() for 0. Throws invalid_argument.
int thread_count(int asked);

// The parts of usable_cores(), with the roots of the file systems as arguments so that tests can bring their own.
int physical_cores(const std::vector<int>& cpus, const std::string& sysfs_cpu);     // "/sys/devices/system/cpu"
int cgroup_cpus(const std::string& membership_file, const std::string& cgroup_fs);  // 0: no limit

}  // namespace gemmantle
