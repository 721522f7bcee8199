// One thread: attention of one KV head with eight query heads (E2B), K and V in f32 rows or in pages. The argument is
// the context: one row at its end, as in decode, or the last 64 rows of it, as in a prompt. GB/s counts K and V once a
// row or group of rows, Gop/s multiplications and additions.
#include <benchmark/benchmark.h>

#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_isa.h"

namespace gemmantle {
namespace {

constexpr int64_t kBlock = 16;

void attend(benchmark::State& state, const CpuIsa& isa, DType kv, int dim, int64_t rows) {
  BackendOptions options;
  options.threads = 1;
  options.mode = kv == DType::f32 ? Mode::exact : Mode::fast;
  options.kv = kv;
  const auto backend = make_cpu_backend(options, isa);
  const HeadLayout heads = {8, 1, dim};
  const int64_t context = state.range(0);

  std::mt19937 random(1);
  const auto normals = [&](int64_t n, float deviation) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = normal(random);
    return values;
  };
  std::vector<float> k = normals(context * dim, 0.1f), v = normals(context * dim, 1.0f);
  std::vector<float> q = normals(rows * heads.q_dim(), 0.1f), y(q.size());
  const auto matrix = [](std::vector<float>& values, int64_t cols) {
    return Tensor{values.data(), DType::f32, static_cast<int64_t>(values.size()) / cols, cols, cols};
  };
  const auto bytes = static_cast<size_t>(backend->kv_bytes(heads, context));
  const Buffer memory[2] = {backend->allocate(bytes), backend->allocate(bytes)};
  const KvView view = {{memory[0].data, kv, context, dim, dim}, {memory[1].data, kv, context, dim, dim}, kBlock, 1};

  std::vector<int32_t> slots(static_cast<size_t>(context)), table(static_cast<size_t>(context / kBlock));
  std::iota(slots.begin(), slots.end(), 0);
  std::iota(table.begin(), table.end(), 0);
  const std::vector<int32_t> sequence(static_cast<size_t>(rows)), begin(sequence);
  std::vector<int32_t> end(static_cast<size_t>(rows));
  std::iota(end.begin(), end.end(), static_cast<int32_t>(context - rows + 1));
  Batch::Group group;
  group.block_table = table;
  group.max_blocks = context / kBlock;
  group.kv_begin = begin;
  group.kv_end = end;
  backend->run([&](Ops& ops) { ops.store_kv(view, matrix(k, dim), matrix(v, dim), slots); });
  for ([[maybe_unused]] auto _ : state) {
    backend->run([&](Ops& ops) {
      ops.attend(matrix(y, heads.q_dim()), matrix(q, heads.q_dim()), heads, view, group, sequence, 1.0f);
    });
    benchmark::ClobberMemory();
  }
  const auto per_second = benchmark::Counter::kIsIterationInvariantRate;
  const auto attended = static_cast<double>(std::accumulate(end.begin(), end.end(), int64_t{0}));
  state.counters["GB/s"] = benchmark::Counter(2e-9 * static_cast<double>(bytes), per_second);
  state.counters["Gop/s"] = benchmark::Counter(4e-9 * attended * static_cast<double>(heads.q_dim()), per_second);
}

const bool kRegistered = [] {
  for (const CpuIsa& isa : cpu_isas()) {
    if (!isa.usable()) continue;
    for (const auto& [kv, type] :
         {std::pair{DType::f32, "f32"}, std::pair{DType::bf16, "bf16"}, std::pair{DType::i8, "q8"}}) {
      for (const int dim : {256, 512}) {
        for (const int64_t rows : {1, 64}) {
          const std::string name = std::string("attend/") + isa.name + "/" + type + "/width_" + std::to_string(dim) +
                                   "/rows_" + std::to_string(rows);
          benchmark::RegisterBenchmark(
              name.c_str(), [&isa, kv = kv, dim, rows](benchmark::State& state) { attend(state, isa, kv, dim, rows); })
              ->Arg(512)
              ->Arg(4096);
        }
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace gemmantle
