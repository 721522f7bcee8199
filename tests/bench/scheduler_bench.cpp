// What a step costs beside the model: scheduling, building the batch, publishing. The runner below computes nothing;
// its own clock counts the CPU time of the worker from step to step, so neighbours matter little.
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <vector>

#include "engine/engine.h"

namespace gemmantle {
namespace {

double thread_seconds() {
  timespec now;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Clock {
  double seconds = 0;  // of the worker, in steps that decode for everybody
  int64_t steps = 0, rows = 0;
};

class NullRunner final : public StepRunner {
 public:
  NullRunner(Clock& clock, int64_t sequences) : clock_(clock), sequences_(sequences) {}

  Tensor forward(const Batch& batch, std::span<const SampleRow>, std::span<SampledToken> tokens) override {
    const double now = thread_seconds();
    const auto wanted = static_cast<int64_t>(batch.logit_rows.size());
    const bool is_full = wanted == sequences_ && batch.rows() == sequences_;
    if (is_full && was_full_) {
      clock_.seconds += now - before_;
      ++clock_.steps;
      clock_.rows += wanted;
    }
    was_full_ = is_full;
    before_ = now;
    logits_.resize(static_cast<size_t>(wanted * kVocabulary));
    for (SampledToken& token : tokens) token.id = 1;
    return {logits_.data(), DType::f32, wanted, kVocabulary, kVocabulary};
  }
  void read(float* host, Tensor row) override { std::copy_n(row.row(0), row.cols, host); }

  static constexpr int64_t kVocabulary = 8;

 private:
  Clock& clock_;
  const int64_t sequences_;
  std::vector<float> logits_;
  double before_ = 0;
  bool was_full_ = false;
};

// Args: sequences that decode, requests that wait behind them, tokens of each prompt.
void step_overhead(benchmark::State& state) {
  const int64_t sequences = state.range(0), queued = state.range(1), prompt = state.range(2);
  EngineLimits limits;
  limits.vocabulary = NullRunner::kVocabulary;
  limits.max_context = prompt + 1200;
  limits.max_queue = sequences + queued;
  limits.scheduler.max_rows = 512;
  limits.scheduler.max_sequences = sequences;
  limits.scheduler.window = 512;
  limits.scheduler.blocks[kSliding] = sequences * 100;
  limits.scheduler.blocks[kFull] = sequences * (limits.max_context / limits.scheduler.block_size + 1);
  Clock clock;
  for ([[maybe_unused]] auto _ : state) {
    Engine engine(std::make_unique<NullRunner>(clock, sequences), limits, nullptr, {});
    SamplingParams params;
    params.max_tokens = 1000;
    std::vector<Generation> generations;
    for (int64_t i = 0; i < sequences + queued; ++i) {
      std::vector<int32_t> ids(static_cast<size_t>(prompt), static_cast<int32_t>(i % NullRunner::kVocabulary));
      if (i >= sequences) params.max_tokens = 1;
      generations.push_back(engine.submit(std::move(ids), params));
    }
    for (int64_t i = 0; i < sequences; ++i) {
      while (generations[static_cast<size_t>(i)].next()) {
      }
    }
  }
  const auto steps = static_cast<double>(clock.steps);
  state.counters["us/step"] = 1e6 * clock.seconds / steps;
  state.counters["us/row"] = 1e6 * clock.seconds / static_cast<double>(clock.rows);
}

BENCHMARK(step_overhead)
    ->ArgNames({"sequences", "queued", "prompt"})
    ->Args({1, 0, 16})
    ->Args({16, 0, 16})
    ->Args({64, 0, 16})
    ->Args({64, 1000, 16})
    ->Args({64, 0, 3000})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);

}  // namespace
}  // namespace gemmantle
