// One thread, weights in the second-level cache: what the products of a kernel table reach when memory does not limit
// them. GB/s counts packed weights, Gop/s multiplications and additions. CPU time, so neighbours matter little.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_isa.h"
#include "kernels/formats/decode.h"

namespace gemmantle {
namespace {

constexpr int64_t kOutputs = 256, kCols = 1536;

// What multiplies weights of a format in mode "fast"; null where that is mode "exact".
const cpu::CodedKernels* rounding(const cpu::CpuKernels& k, formats::FormatId format) {
  for (const cpu::CodedKernels* kernels : {k.coded, k.halves}) {
    if (kernels != nullptr && kernels->takes(format)) return kernels;
  }
  return nullptr;
}

// `fast` null: in f32.
void linear(benchmark::State& state, const cpu::CpuKernels& k, formats::FormatId format,
            const cpu::CodedKernels* fast) {
  const formats::FormatInfo info = formats::info(format);
  const int64_t rows = state.range(0), row_bytes = kCols / info.group * info.block_bytes;
  std::mt19937 random(1);
  std::vector<uint8_t> weights(static_cast<size_t>(kOutputs * row_bytes));
  for (uint8_t& byte : weights) byte = random() & 0x3f;  // f16 scales stay finite and small
  std::vector<float> x(static_cast<size_t>(rows * kCols)), y(static_cast<size_t>(rows * kOutputs));
  for (float& value : x) value = static_cast<float>(random() % 2001) * 1e-3f - 1.0f;
  const cpu::LinearArgs args = {
      y.data(), x.data(), kOutputs, kCols, rows, nullptr, nullptr, nullptr, {format, weights.data(), row_bytes, kCols}};

  const int64_t coded_bytes = fast != nullptr ? (fast->bytes(kCols) + 63) / 64 * 64 : 64;
  std::vector<uint8_t> memory(static_cast<size_t>(rows * coded_bytes + 64));
  uint8_t* coded = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  for (int64_t r = 0; fast != nullptr && r < rows; ++r)
    fast->encode(coded + r * coded_bytes, x.data() + r * kCols, kCols);
  std::vector<float> scratch(static_cast<size_t>(fast != nullptr ? fast->scratch(kCols) : k.linear_scratch(kCols)));

  for ([[maybe_unused]] auto _ : state) {
    if (fast != nullptr) {
      fast->linear(&args, {coded, coded_bytes}, 0, kOutputs, scratch.data());
    } else {
      k.linear(&args, 0, kOutputs, scratch.data());
    }
    benchmark::ClobberMemory();
  }
  const auto per_second = benchmark::Counter::kIsIterationInvariantRate;
  state.counters["GB/s"] = benchmark::Counter(1e-9 * static_cast<double>(weights.size()), per_second);
  state.counters["Gop/s"] = benchmark::Counter(2e-9 * static_cast<double>(rows * kOutputs * kCols), per_second);
}

const bool kRegistered = [] {
  for (const CpuIsa& isa : cpu_isas()) {
    if (!isa.usable()) continue;
    for (const auto format : {formats::FormatId::bf16, formats::FormatId::q4_0, formats::FormatId::q5_0,
                              formats::FormatId::q8_0, formats::FormatId::q4_k, formats::FormatId::q6_k}) {
      for (const bool fast : {false, true}) {
        const cpu::CodedKernels* by = fast ? rounding(*isa.kernels, format) : nullptr;
        if (fast && by == nullptr) continue;
        const std::string name =
            std::string("linear/") + isa.name + "/" + formats::info(format).name + (fast ? "/fast" : "/exact");
        benchmark::RegisterBenchmark(
            name.c_str(), [&isa, format, by](benchmark::State& state) { linear(state, *isa.kernels, format, by); })
            ->Arg(1)
            ->Arg(4)
            ->Arg(16)
            ->Arg(256);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace gemmantle
