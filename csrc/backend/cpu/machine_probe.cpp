#include "backend/cpu/machine_probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <string>

#include "backend/cpu/cpu_isa.h"
#include "core/cpu_features.h"
#include "core/error.h"

namespace gemmantle {
namespace {

constexpr int64_t kMemory = int64_t{256} << 20;  // many times the last cache
constexpr int64_t kRead = 512 << 10;             // by one thread at once
constexpr int64_t kChunksPerThread = 8;
constexpr int64_t kRounds = 10000;  // of products in a chunk: about half a millisecond

}  // namespace

MachineProbe::MachineProbe(int threads)
    : peaks_(*choose_cpu_isa().kernels->peaks),
      pool_(thread_count(threads)),
      sinks_(static_cast<size_t>(pool_.threads())) {}

// Work of one pass a second.
template <class Pass>
double MachineProbe::median_rate(double seconds, double work, Pass&& pass) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates;
  const Clock::time_point begin = Clock::now();
  do {
    const Clock::time_point start = Clock::now();
    pass();
    rates.push_back(work / std::max(1e-9, std::chrono::duration<double>(Clock::now() - start).count()));
  } while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds);
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  return *middle;
}

double MachineProbe::read_rate(double seconds) {
  if (memory_ == nullptr) {
    memory_.reset(new (std::nothrow) uint8_t[static_cast<size_t>(kMemory)]);
    if (memory_ == nullptr) throw Error(ErrorCode::out_of_memory, str("no memory for ", kMemory, " bytes to read"));
    std::memset(memory_.get(), 1, static_cast<size_t>(kMemory));  // pages that were never written share one
  }
  return median_rate(seconds, static_cast<double>(kMemory), [&] {
    pool_.parallel_for(kMemory / kRead, [&](int64_t chunk, int worker) {
      peaks_.read(memory_.get() + chunk * kRead, kRead, sinks_[static_cast<size_t>(worker)].bytes);
    });
  });
}

std::optional<double> MachineProbe::product_rate(std::string_view kind, double seconds) {
  if (kind != "f32" && kind != "bf16" && kind != "i8") {
    throw Error(ErrorCode::invalid_argument, str("kind is '", std::string(kind), "'; it must be f32, bf16 or i8"),
                "kind");
  }
  const auto loop = kind == "f32" ? peaks_.f32 : kind == "bf16" ? peaks_.bf16 : peaks_.i8;
  if (loop == nullptr) return std::nullopt;
  const int64_t chunks = pool_.threads() * kChunksPerThread;
  const auto operations = static_cast<double>(loop(1, sinks_[0].bytes) * kRounds * chunks);
  return median_rate(seconds, operations, [&] {
    pool_.parallel_for(chunks, [&](int64_t, int worker) { loop(kRounds, sinks_[static_cast<size_t>(worker)].bytes); });
  });
}

}  // namespace gemmantle
