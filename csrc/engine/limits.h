// limits.h: how long, how many and how much: the limits of an engine, from its options, the model and free memory.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/scheduler.h"
#include "model/config.h"
#include "model/kv_cache.h"

namespace gemmantle {

struct EngineOptions {
  std::vector<int32_t> eos_ids = {};  // ids that end an output
  int64_t max_context = 0;            // prompt and output of a sequence; 0: the model's, or what memory allows
  int64_t max_sequences = 16;         // that run at the same time
  int64_t max_queue = 1024;           // that wait
  int64_t max_rows = 512;             // of a step
  int64_t block_size = 16;            // positions of a KV block
  int64_t kv_bytes = 0;          // of the KV cache; 0: max_sequences of max_context, at most half of the free memory
  bool deterministic = false;    // the same bits alone and in a batch; the model is loaded with it, too
  int64_t max_queue_ms = 0;      // that a request may wait for its first step; 0: as long as it takes
  int64_t stream_buffer = 4096;  // tokens that nobody read, with which a sequence stands still
  int64_t idle_stream_ms = 120'000;  // that it may stand still before it is cancelled
};

struct EngineLimits {
  SchedulerLimits scheduler;
  int64_t max_context = 0;
  int64_t max_queue = 0;
  int64_t vocabulary = 0;
  int64_t kv_budget = 0;  // bytes that the cache was allowed
};

// Throws invalid_argument with the field as param; out_of_memory when one sequence of an asked max_context cannot fit.
EngineLimits derive_limits(const EngineOptions& options, const ModelConfig& config, const KvLayout& layout,
                           int64_t free_bytes);

// Memory that this process may still take: of the machine, or of its control group where that is less.
int64_t free_memory();

}  // namespace gemmantle
