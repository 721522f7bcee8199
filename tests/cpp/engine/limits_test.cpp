#include "engine/limits.h"

#include <gtest/gtest.h>

#include <memory>

#include "backend/reference/reference_backend.h"
#include "core/error.h"

namespace gemmantle {
namespace {

constexpr int64_t kPlenty = int64_t{1} << 40;

std::unique_ptr<Backend> backend() { return make_reference_backend({}); }

ModelConfig config_of() {
  ModelConfig config;
  config.vocab = 1000;
  config.context = 4096;
  config.window = 64;
  for (int l = 0; l < 4; ++l) {
    LayerSpec spec;
    spec.sliding = l < 3;
    spec.heads = {4, 1, 16};
    spec.window = l < 3 ? 64 : 0;
    spec.kv_source = l;
    config.layers.push_back(spec);
  }
  return config;
}

int64_t bytes_of(const EngineLimits& limits, const KvLayout& layout) {
  return limits.scheduler.blocks[0] * layout.block_bytes[0] + limits.scheduler.blocks[1] * layout.block_bytes[1];
}

struct Failure {
  ErrorCode code;
  std::string param;
};

Failure failure_of(const EngineOptions& options, int64_t free_bytes = kPlenty) {
  const ModelConfig config = config_of();
  try {
    derive_limits(options, config, KvLayout(config, *backend(), 16), free_bytes);
  } catch (const Error& error) {
    return {error.code(), error.param()};
  }
  return {ErrorCode::internal, "none"};
}

TEST(Limits, with_memory_all_sequences_get_the_whole_context) {
  const ModelConfig config = config_of();
  const EngineLimits limits = derive_limits({}, config, KvLayout(config, *backend(), 16), kPlenty);
  EXPECT_EQ(limits.max_context, 4096);
  EXPECT_EQ(limits.scheduler.blocks[kFull], 16 * 4096 / 16);
  EXPECT_EQ(limits.scheduler.blocks[kSliding], 16 * ((64 + 512) / 16 + 2));
}

TEST(Limits, a_budget_is_kept) {
  const ModelConfig config = config_of();
  const KvLayout layout(config, *backend(), 16);
  for (const int64_t budget : {int64_t{600} << 10, int64_t{3} << 20, int64_t{9} << 20}) {
    EngineOptions options;
    options.kv_bytes = budget;
    const EngineLimits limits = derive_limits(options, config, layout, kPlenty);
    EXPECT_LE(bytes_of(limits, layout), budget);
    EXPECT_GT(limits.max_context, 0);
  }
}

TEST(Limits, half_of_the_free_memory_is_the_default_budget) {
  const ModelConfig config = config_of();
  const KvLayout layout(config, *backend(), 16);
  const EngineLimits limits = derive_limits({}, config, layout, int64_t{1} << 20);
  EXPECT_EQ(limits.kv_budget, int64_t{1} << 19);
  EXPECT_LE(bytes_of(limits, layout), limits.kv_budget);
  EXPECT_LT(limits.max_context, 4096);
}

TEST(Limits, a_context_that_was_asked_for_is_never_cut_in_silence) {
  EngineOptions options;
  options.max_context = 4096;
  options.kv_bytes = 1 << 19;
  const Failure failure = failure_of(options);
  EXPECT_EQ(failure.code, ErrorCode::out_of_memory);
  EXPECT_EQ(failure.param, "max_context");
  EXPECT_EQ(failure_of({}, 1000).code, ErrorCode::out_of_memory);
}

TEST(Limits, every_sequence_has_a_row_in_a_step) {
  EngineOptions options;
  options.max_rows = 3;
  const ModelConfig config = config_of();
  EXPECT_EQ(derive_limits(options, config, KvLayout(config, *backend(), 16), kPlenty).scheduler.max_sequences, 3);
}

TEST(Limits, a_wrong_option_is_named) {
  const std::pair<const char*, EngineOptions> cases[] = {
      {"max_context", {.max_context = 4097}},
      {"max_context", {.max_context = -1}},
      {"max_sequences", {.max_sequences = 0}},
      {"max_queue", {.max_queue = -1}},
      {"max_rows", {.max_rows = 0}},
      {"block_size", {.block_size = 0}},
      {"kv_bytes", {.kv_bytes = -1}},
      {"eos_ids", {.eos_ids = {1000}}},
      {"max_queue_ms", {.max_queue_ms = -1}},
      {"stream_buffer", {.stream_buffer = 0}},
      {"idle_stream_ms", {.idle_stream_ms = 0}},
  };
  for (const auto& [field, options] : cases) {
    const Failure failure = failure_of(options);
    EXPECT_EQ(failure.code, ErrorCode::invalid_argument) << field;
    EXPECT_EQ(failure.param, field);
  }
}

}  // namespace
}  // namespace gemmantle
