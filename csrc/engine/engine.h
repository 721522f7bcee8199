// engine.h: many requests over one model, on a worker thread of its own.
//
// Each round of the worker: take in new requests and cancellations, schedule, forward, sample, publish. Consumers never
// touch the model; they talk to mailboxes. A step that fails ends the sequences of that step with its error, and the
// engine goes on. A sequence that waits for its mask, or whose reader leaves too much unread, takes no part in steps;
// one that waits for long gives its place to others where they need it, and one that nobody reads is cancelled in the
// end. A request that finds no place within max_queue_ms ends as one that found the queue full; with that limit its
// first delta is empty and says that it has a place. All methods may be called from any thread; after a fork the child
// is refused.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/generation.h"
#include "engine/histogram.h"
#include "engine/limits.h"
#include "engine/sampling.h"
#include "engine/step_runner.h"
#include "model/model.h"
#include "text/vocabulary.h"

namespace gemmantle {

struct EngineStats {
  int64_t queued = 0, running = 0;
  int64_t steps = 0, prompt_tokens = 0, generated_tokens = 0, preemptions = 0;
  int64_t cached_tokens = 0;                                   // of prompts, found instead of computed
  int64_t decode_rows = 0, repeated_rows = 0, logit_rows = 0;  // the second: computed again after a preemption
  int64_t blocks_free[kKvGroups] = {}, blocks_total[kKvGroups] = {};
  int64_t blocks_kept[kKvGroups] = {};  // of the free ones, those with contents that may be found again
  Histogram queue_time, time_to_first_token, time_between_tokens;
  int64_t kv_bytes = 0, kv_budget = 0, work_bytes = 0;
  int64_t max_context = 0, max_sequences = 0, max_rows = 0, max_queue = 0, max_queue_ms = 0, block_size = 0;
  bool deterministic = false;
};

// Logits that a request collects: `generation` ends when `values` [rows, cols] are complete.
struct LogitsRequest {
  Generation generation;
  std::shared_ptr<float[]> values;
  int64_t rows = 0;
  int64_t cols = 0;
};

class Engine {
 public:
  // `vocabulary` may be null: then there is no text, and stop strings are refused.
  Engine(std::shared_ptr<Model> model, std::shared_ptr<const Vocabulary> vocabulary, const EngineOptions& options);
  Engine(std::unique_ptr<StepRunner> runner, const EngineLimits& limits, std::shared_ptr<const Vocabulary> vocabulary,
         const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Throws invalid_argument with the field as param, context_length, queue_full, closed, forked.
  Generation submit(std::vector<int32_t> ids, SamplingParams params);

  // Logits after softcap of every position, or of the last (then the rows before it take the prefill shortcut).
  // `chunks`: rows of each step, which must sum up to the ids; empty: as they fit. `reuse`: with last_only, positions
  // before may come from kept blocks; otherwise every row is computed.
  LogitsRequest logits(std::vector<int32_t> ids, const std::vector<int64_t>& chunks = {}, bool last_only = false,
                       bool reuse = false);

  EngineStats stats() const;
  int64_t max_context() const;
  void close();  // what runs ends with `closed`; idempotent; does nothing in a forked child

 private:
  struct Parts;
  Generation enqueue(std::vector<int32_t>&& ids, SamplingParams&& params, const char* field,
                     std::vector<int64_t>&& chunk_ends, std::optional<LogitsSink>&& sink, bool reuse);

  std::unique_ptr<Parts> parts_;
  pid_t owner_;
};

}  // namespace gemmantle
