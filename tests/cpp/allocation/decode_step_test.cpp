// A decode step asks the allocator for nothing: from the plan of the scheduler to the drawn tokens. A program of its
// own, since it puts a counter in front of malloc.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/batch_builder.h"
#include "engine/limits.h"
#include "engine/step_runner.h"
#include "model/model.h"

#if !defined(__GLIBC__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GEMMANTLE_COUNTS 0
#else
#define GEMMANTLE_COUNTS 1
#endif

namespace {

std::atomic<int64_t> asked{0};  // by all threads

}  // namespace

#if GEMMANTLE_COUNTS
extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);

void* malloc(size_t bytes) {
  asked.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
  asked.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(count, bytes);
}
void* realloc(void* memory, size_t bytes) {
  asked.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(memory, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
  asked.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, bytes);
}
}
#endif

namespace gemmantle {
namespace {

constexpr int64_t kSequences = 3, kBlock = 16;

// The engine's worker without its thread: what happens between two tokens, step by step.
class Worker {
 public:
  Worker(const std::string& path, Mode mode) {
    EngineOptions options;
    options.max_context = 256;
    options.max_sequences = kSequences;
    options.block_size = kBlock;
    BackendOptions machine;
    machine.device = "cpu";
    machine.threads = 2;
    machine.mode = mode;
    model_ = Model::load(path, machine);
    const KvLayout layout(model_->config(), model_->placement().first(), options.block_size);
    limits_ = derive_limits(options, model_->config(), layout, int64_t{1} << 30);
    runner_ = std::make_unique<ModelRunner>(model_, layout, limits_.scheduler);
    scheduler_ = std::make_unique<Scheduler>(limits_.scheduler);
    builder_ = std::make_unique<BatchBuilder>(limits_.scheduler);
  }

  void add(int32_t first, int64_t tokens, SamplingParams params) {
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < tokens; ++i) prompt.push_back(static_cast<int32_t>((first + i * 7) % 1000 + 1));
    scheduler_->add(std::make_unique<Sequence>(std::move(prompt), std::move(params), std::vector<int32_t>{},
                                               limits_.max_context, nullptr, std::make_shared<Mailbox>()));
  }

  // Allocations up to the drawn tokens; what the readers are given is made behind that and is theirs.
  int64_t step() {
    const int64_t before = asked.load();
    const std::vector<ScheduledRows>& plan = scheduler_->plan();
    const Batch& batch = builder_->build(plan);
    sampled_.resize(builder_->sample_rows().size());
    runner_->forward(batch, builder_->sample_rows(), sampled_);
    const int64_t count = asked.load() - before;
    for (const ScheduledRows& entry : plan) entry.sequence->computed += entry.rows;
    for (size_t r = 0; r < sampled_.size(); ++r) builder_->wanted()[r].sequence->accept(sampled_[r]);
    return count;
  }

 private:
  std::shared_ptr<Model> model_;
  EngineLimits limits_;
  std::unique_ptr<ModelRunner> runner_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<BatchBuilder> builder_;
  std::vector<SampledToken> sampled_;
};

class DecodeStepTest : public ::testing::TestWithParam<std::pair<std::string, Mode>> {};

TEST_P(DecodeStepTest, allocates_nothing) {
  if (!GEMMANTLE_COUNTS) GTEST_SKIP() << "malloc belongs to the sanitizer or to another C library";
  const auto& [model, mode] = GetParam();
  Worker worker(std::string(GEMMANTLE_SOURCE_DIR) + model, mode);
  SamplingParams greedy, drawn;
  greedy.temperature = 0;
  drawn.top_k = 40;
  drawn.top_p = 0.9;
  drawn.logprobs = 2;
  worker.add(1, 20, greedy);
  worker.add(200, 37, drawn);
  worker.add(400, 90, drawn);
  int64_t warm_up = 0;
  for (int64_t i = 0; i < 2 * kBlock; ++i) warm_up += worker.step();
  EXPECT_GT(warm_up, 0) << "the counter counts nothing";
  for (int64_t i = 0; i < 4 * kBlock; ++i) EXPECT_EQ(worker.step(), 0) << "step " << i;
}

INSTANTIATE_TEST_SUITE_P(Models, DecodeStepTest,
                         ::testing::Values(std::pair{"/python/gemmantle/models/gemma-4-nano-e", Mode::exact},
                                           std::pair{"/python/gemmantle/models/gemma-4-nano-e", Mode::fast}));

}  // namespace
}  // namespace gemmantle
