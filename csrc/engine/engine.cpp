#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <new>
#include <thread>
#include <utility>

#include "engine/batch_builder.h"
#include "engine/fork_guard.h"

namespace gemmantle {
namespace {

// What a failed step tells its sequences.
Error as_error(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::out_of_memory, "the machine has no memory left for this step: ask for less at a time");
  } catch (const std::exception& error) {
    return Error(ErrorCode::internal, error.what());
  } catch (...) {
    return Error(ErrorCode::internal, "a step failed without a reason");
  }
}

}  // namespace

struct Engine::Parts {
  Parts(std::unique_ptr<StepRunner> step_runner, const EngineLimits& engine_limits,
        std::shared_ptr<const Vocabulary> words, const EngineOptions& engine_options)
      : limits(engine_limits),
        options(engine_options),
        vocabulary(std::move(words)),
        runner(std::move(step_runner)),
        scheduler(limits.scheduler),
        builder(limits.scheduler) {
    publish_stats();
    worker = std::thread([this] { work(); });
  }

  // The worker's loop and its steps.
  void work();
  bool take_in();
  bool has_news() const;
  void look_after(Sequence& sequence, Sequence::Clock::time_point now);
  void turn_away(Sequence::Clock::time_point now);
  void step();
  void publish(const std::vector<ScheduledRows>& plan);
  void finish(Sequence& sequence, Delta&& last);
  void fail(Sequence& sequence, const Error& error);
  void publish_stats();

  const EngineLimits limits;
  const EngineOptions options;
  const std::shared_ptr<const Vocabulary> vocabulary;

  // Of the worker alone.
  std::unique_ptr<StepRunner> runner;
  Scheduler scheduler;
  BatchBuilder builder;
  std::vector<SampledToken> sampled;
  EngineStats counts;
  bool only_waits = false;  // everything there is waits for its consumer

  const std::shared_ptr<Bell> bell = std::make_shared<Bell>();
  std::mutex& mutex = bell->mutex;
  std::condition_variable& wake = bell->wake;
  std::vector<std::unique_ptr<Sequence>> inbox;
  EngineStats stats;
  bool is_closing = false;

  std::mutex close_mutex;  // held while joining
  std::thread worker;
};

Engine::Engine(std::shared_ptr<Model> model, std::shared_ptr<const Vocabulary> vocabulary, const EngineOptions& options)
    : owner_(::getpid()) {
  if (options.deterministic && !model->placement().first().deterministic()) {
    throw Error(ErrorCode::invalid_argument,
                str("device '", model->info().backend.device,
                    "' gives a row other bits in company than alone; load the model with deterministic=True"),
                "deterministic");
  }
  const Placement& placement = model->placement();
  const KvLayout layout(model->config(), placement.first(), std::max<int64_t>(1, options.block_size));
  const int64_t on_device = free_for_kv(model->config(), layout, placement);
  if (on_device >= 0 && options.kv_bytes > on_device) {
    throw Error(ErrorCode::out_of_memory,
                str("kv_bytes is ", options.kv_bytes, "; '", model->info().backend.device, "' has room for ", on_device,
                    " bytes of KV cache"),
                "kv_bytes");
  }
  const int64_t free_bytes = on_device >= 0 ? on_device : free_memory();
  const EngineLimits limits = derive_limits(options, model->config(), layout, free_bytes);
  auto runner = std::make_unique<ModelRunner>(std::move(model), layout, limits.scheduler);
  parts_ = std::make_unique<Parts>(std::move(runner), limits, std::move(vocabulary), options);
}

Engine::Engine(std::unique_ptr<StepRunner> runner, const EngineLimits& limits,
               std::shared_ptr<const Vocabulary> vocabulary, const EngineOptions& options)
    : parts_(std::make_unique<Parts>(std::move(runner), limits, std::move(vocabulary), options)), owner_(::getpid()) {}

Engine::~Engine() {
  // In a forked child the worker does not exist and its locks may be held for ever: nothing there can be taken apart.
  if (::getpid() != owner_) {
    [[maybe_unused]] const Parts* left = parts_.release();
    return;
  }
  close();
}

Generation Engine::submit(std::vector<int32_t> ids, SamplingParams params) {
  return enqueue(std::move(ids), std::move(params), "prompt", {}, std::nullopt, true);
}

LogitsRequest Engine::logits(std::vector<int32_t> ids, const std::vector<int64_t>& chunks, bool last_only, bool reuse) {
  refuse_in_child(owner_);
  const auto n = static_cast<int64_t>(ids.size());
  std::vector<int64_t> chunk_ends;
  int64_t sum = 0;
  for (const int64_t rows : chunks) {
    if (rows < 1 || rows > n - sum) {
      throw Error(
          ErrorCode::invalid_argument,
          str("a chunk of ", rows, " rows after ", sum, " of ", n, " ids; chunks are positive and sum up to the ids"),
          "chunks");
    }
    chunk_ends.push_back(sum += rows);
  }
  if (!chunks.empty() && sum != n) {
    throw Error(ErrorCode::invalid_argument, str("chunks sum up to ", sum, "; there are ", n, " ids"), "chunks");
  }
  SamplingParams params;
  params.max_tokens = 0;
  const int64_t rows = last_only ? std::min<int64_t>(n, 1) : n;
  const int64_t cols = parts_->limits.vocabulary;
  if (n > parts_->limits.max_context) {
    throw Error(ErrorCode::context_length,
                str("the ids are ", n, " long; this engine's context is ", parts_->limits.max_context), "ids");
  }
  LogitsSink sink{std::shared_ptr<float[]>(new float[static_cast<size_t>(rows * cols)]), last_only};
  std::shared_ptr<float[]> values = sink.values;
  return {enqueue(std::move(ids), std::move(params), "ids", std::move(chunk_ends), std::move(sink), reuse),
          std::move(values), rows, cols};
}

Generation Engine::enqueue(std::vector<int32_t>&& ids, SamplingParams&& params, const char* field,
                           std::vector<int64_t>&& chunk_ends, std::optional<LogitsSink>&& sink, bool reuse) {
  refuse_in_child(owner_);
  const EngineLimits& limits = parts_->limits;
  const auto n = static_cast<int64_t>(ids.size());
  params.validate(limits.vocabulary);
  if (ids.empty()) throw Error(ErrorCode::invalid_argument, str(field, " is empty: give at least one id"), field);
  for (const int32_t id : ids) {
    if (id >= 0 && id < limits.vocabulary) continue;
    throw Error(ErrorCode::invalid_argument,
                str(field, " has id ", id, "; the model's vocabulary has ids 0 to ", limits.vocabulary - 1), field);
  }
  if (n + (params.max_tokens == 0 ? 0 : 1) > limits.max_context) {
    throw Error(ErrorCode::context_length,
                str("the prompt is ", n, " tokens long and leaves no room for a reply: this engine's context is ",
                    limits.max_context, "; shorten the prompt or load with a larger max_context"),
                field);
  }
  if (!parts_->vocabulary) {
    const char* wants_text = !params.stop.empty() ? "stop" : params.channels ? "channels" : nullptr;
    if (wants_text != nullptr) {
      throw Error(ErrorCode::invalid_argument,
                  str(wants_text, " needs text, and this engine has no vocabulary: load a folder with its tokenizer"),
                  wants_text);
    }
  }

  auto mailbox = std::make_shared<Mailbox>(params.constrained ? limits.vocabulary : 0, parts_->bell);
  Generation generation(mailbox);
  auto sequence = std::make_unique<Sequence>(std::move(ids), std::move(params), parts_->options.eos_ids,
                                             limits.max_context, parts_->vocabulary, std::move(mailbox));
  sequence->chunk_ends = std::move(chunk_ends);
  sequence->sink = std::move(sink);
  sequence->reuse = reuse;
  for (int g = 0; g < kKvGroups; ++g) {
    const int64_t chunk = std::max(limits.scheduler.max_rows, sequence->largest_chunk());
    const int64_t needed = Scheduler::blocks_needed(limits.scheduler, g, n, chunk);
    if (needed > limits.scheduler.blocks[static_cast<size_t>(g)]) {
      throw Error(ErrorCode::invalid_argument,
                  str("a chunk of ", chunk, " rows needs ", needed, " KV blocks and there are ",
                      limits.scheduler.blocks[static_cast<size_t>(g)], ": use smaller chunks"),
                  "chunks");
    }
  }
  {
    const std::lock_guard lock(parts_->mutex);
    if (parts_->is_closing) throw Error(ErrorCode::closed, "this engine is closed: load the model again");
    const int64_t queued = parts_->stats.queued + static_cast<int64_t>(parts_->inbox.size());
    const bool has_place = parts_->stats.running + queued < limits.scheduler.max_sequences;
    if (queued >= limits.max_queue && !has_place) {
      throw Error(ErrorCode::queue_full,
                  str(queued, " requests are waiting, which is the limit (max_queue): try again later"));
    }
    parts_->inbox.push_back(std::move(sequence));
  }
  parts_->wake.notify_one();
  return generation;
}

EngineStats Engine::stats() const {
  refuse_in_child(owner_);
  const std::lock_guard lock(parts_->mutex);
  EngineStats stats = parts_->stats;
  stats.queued += static_cast<int64_t>(parts_->inbox.size());
  return stats;
}

int64_t Engine::max_context() const { return parts_->limits.max_context; }

void Engine::close() {
  if (::getpid() != owner_) return;
  {
    const std::lock_guard lock(parts_->mutex);
    parts_->is_closing = true;
  }
  parts_->wake.notify_one();
  const std::lock_guard lock(parts_->close_mutex);
  if (parts_->worker.joinable()) parts_->worker.join();
}

void Engine::Parts::work() {
  while (take_in()) {
    const Sequence::Clock::time_point now = Sequence::Clock::now();
    for (Sequence* sequence : scheduler.sequences()) look_after(*sequence, now);
    if (!scheduler.is_empty()) step();
    if (options.max_queue_ms > 0) turn_away(now);
    publish_stats();
  }
  const Error closed(ErrorCode::closed, "the engine was closed while this request ran");
  for (Sequence* sequence : scheduler.sequences()) fail(*sequence, closed);
  // Nothing of the model is needed any more: the cache goes when the engine is closed, not when it is collected.
  runner.reset();
  publish_stats();
}

// Waits for something to do. False when the engine closes.
bool Engine::Parts::take_in() {
  std::unique_lock lock(mutex);
  const auto is_awake = [&] { return is_closing || !inbox.empty() || has_news(); };
  if (scheduler.is_empty()) {
    wake.wait(lock, is_awake);
  } else if (only_waits) {
    // Cancellations may come without a ring, and those that wait for too long are looked at again.
    wake.wait_for(lock, std::chrono::milliseconds(20), is_awake);
  }
  for (std::unique_ptr<Sequence>& sequence : inbox) scheduler.add(std::move(sequence));
  inbox.clear();
  // Counted here, so that a request is never in neither the inbox nor the queue.
  stats.queued = scheduler.waiting();
  stats.running = scheduler.running();
  return !is_closing;
}

bool Engine::Parts::has_news() const {
  for (const Sequence* sequence : scheduler.sequences()) {
    const Mailbox& mailbox = sequence->mailbox();
    if (mailbox.is_cancelled() || (sequence->awaits_mask() && mailbox.has_mask())) return true;
    if (sequence->paused_since && mailbox.unread() < options.stream_buffer) return true;
  }
  return false;
}

// Those that found no place in the step that was just planned and have waited too long before it.
void Engine::Parts::turn_away(Sequence::Clock::time_point now) {
  const std::chrono::milliseconds longest_wait(options.max_queue_ms);
  for (Sequence* sequence : scheduler.sequences()) {
    const bool is_queued = !sequence->was_admitted && sequence->computable() > 0;
    if (!is_queued || now - sequence->submitted <= longest_wait) continue;
    fail(*sequence, Error(ErrorCode::queue_full, str("no place came free within ", options.max_queue_ms,
                                                     " ms, the most that a request waits here (max_queue_ms): try "
                                                     "again later")));
  }
}

// What consumers did and did not do since the last step.
void Engine::Parts::look_after(Sequence& sequence, Sequence::Clock::time_point now) {
  constexpr std::chrono::milliseconds kPatience(250);  // many times what a mask takes
  Mailbox& mailbox = sequence.mailbox();
  if (mailbox.is_cancelled()) {
    finish(sequence, sequence.end(FinishReason::cancelled));
    return;
  }
  if (mailbox.unread() < options.stream_buffer) {
    sequence.paused_since.reset();
  } else if (!sequence.paused_since) {
    sequence.paused_since = now;
  } else if (now - *sequence.paused_since > std::chrono::milliseconds(options.idle_stream_ms)) {
    finish(sequence, sequence.end(FinishReason::cancelled));
    return;
  }
  if (!sequence.awaits_mask()) {
    sequence.waits_since.reset();
  } else if (mailbox.has_mask()) {
    sequence.set_mask(mailbox.take_mask());
  } else if (!sequence.waits_since) {
    sequence.waits_since = now;
  }
  sequence.is_slow = sequence.held_up_for(now) > kPatience;
}

void Engine::Parts::step() {
  const std::vector<ScheduledRows> plan = scheduler.plan();
  const std::vector<Sequence*> all = scheduler.sequences();
  only_waits = plan.empty() && std::any_of(all.begin(), all.end(), [](const Sequence* s) { return s->is_held_up(); });
  if (only_waits) return;
  if (plan.empty()) {
    // A sequence that is alone always fits, so this is a fault of ours; ending one keeps the others alive.
    fail(*scheduler.sequences().front(), Error(ErrorCode::internal, "no sequence could be scheduled"));
    return;
  }
  const Sequence::Clock::time_point now = Sequence::Clock::now();
  for (const ScheduledRows& entry : plan) {
    if (entry.sequence->admitted) continue;
    entry.sequence->admitted = now;
    counts.queue_time.add(now - entry.sequence->submitted);
    if (options.max_queue_ms > 0) entry.sequence->mailbox().publish({});
  }
  try {
    const Batch& batch = builder.build(plan);
    sampled.resize(builder.sample_rows().size());
    const Tensor logits = runner->forward(batch, builder.sample_rows(), sampled);
    const std::vector<BatchBuilder::Wanted>& wanted = builder.wanted();
    GEMMANTLE_CHECK(logits.rows == static_cast<int64_t>(wanted.size()), logits.rows, " rows of ", wanted.size());
    for (size_t r = 0; r < wanted.size(); ++r) {
      if (!wanted[r].keeps) continue;
      const LogitsSink& sink = *wanted[r].sequence->sink;
      const int64_t row = sink.last_only ? 0 : wanted[r].position;
      runner->read(sink.values.get() + row * logits.cols, logits.slice(static_cast<int64_t>(r), 1));
    }
  } catch (...) {
    const Error error = as_error(std::current_exception());
    for (const ScheduledRows& entry : plan) fail(*entry.sequence, error);
    return;
  }
  ++counts.steps;
  publish(plan);
}

void Engine::Parts::publish(const std::vector<ScheduledRows>& plan) {
  for (const ScheduledRows& entry : plan) {
    Sequence& sequence = *entry.sequence;
    const int64_t end = sequence.computed + entry.rows;
    const int64_t fresh = std::max(sequence.computed, sequence.furthest);  // what lies before was computed once already
    const int64_t prompt = std::max<int64_t>(0, std::min(end, sequence.prompt_size()) - fresh);
    counts.prompt_tokens += prompt;
    counts.decode_rows += std::max<int64_t>(0, end - fresh) - prompt;
    counts.repeated_rows += std::min(fresh, end) - sequence.computed;
    sequence.computed = end;
    sequence.furthest = std::max(sequence.furthest, end);
  }
  counts.logit_rows += static_cast<int64_t>(builder.wanted().size());
  const Sequence::Clock::time_point now = Sequence::Clock::now();
  const std::vector<BatchBuilder::Wanted>& wanted = builder.wanted();
  for (size_t r = 0; r < sampled.size(); ++r) {
    if (wanted[r].scores) wanted[r].sequence->set_score(wanted[r].position, sampled[r]);
  }
  // At most one row of a sequence is drawn, so a sequence that ends here is not met again below.
  std::vector<Sequence*> complete;
  for (const ScheduledRows& entry : plan) {
    if (entry.sequence->is_complete()) complete.push_back(entry.sequence);
  }
  for (size_t r = 0; r < sampled.size(); ++r) {
    if (!wanted[r].draws) continue;
    Sequence& sequence = *wanted[r].sequence;
    if (sampled[r].id < 0) {
      fail(sequence, Error(ErrorCode::invalid_argument,
                           "no token may be drawn: suppress or the allowed set exclude all of them", "suppress"));
      continue;
    }
    if (sequence.last_token) {
      counts.time_between_tokens.add(now - *sequence.last_token);
    } else {
      counts.time_to_first_token.add(now - sequence.submitted);
    }
    sequence.last_token = now;
    Delta delta = sequence.accept(sampled[r]);
    ++counts.generated_tokens;
    if (delta.finish == FinishReason::none) {
      sequence.mailbox().publish(std::move(delta));
    } else {
      finish(sequence, std::move(delta));
    }
  }
  for (Sequence* sequence : complete) finish(*sequence, sequence->end(FinishReason::length));
}

void Engine::Parts::finish(Sequence& sequence, Delta&& last) {
  const std::unique_ptr<Sequence> ended = scheduler.remove(&sequence);
  publish_stats();  // whoever sees the end sees the blocks free
  sequence.mailbox().finish(std::move(last), sequence.take_prompt_logprobs());
}

void Engine::Parts::fail(Sequence& sequence, const Error& error) {
  const std::unique_ptr<Sequence> ended = scheduler.remove(&sequence);
  publish_stats();
  sequence.mailbox().fail(error);
}

void Engine::Parts::publish_stats() {
  counts.queued = scheduler.waiting();
  counts.running = scheduler.running();
  counts.preemptions = scheduler.preemptions();
  counts.cached_tokens = scheduler.cached_tokens();
  for (int g = 0; g < kKvGroups; ++g) {
    counts.blocks_free[g] = scheduler.pool(g).available();
    counts.blocks_total[g] = scheduler.pool(g).total();
    counts.blocks_kept[g] = scheduler.pool(g).kept();
  }
  counts.kv_bytes = runner ? runner->kv_bytes() : 0;
  counts.kv_budget = limits.kv_budget;
  counts.work_bytes = runner ? runner->work_bytes() : 0;
  counts.max_context = limits.max_context;
  counts.max_sequences = limits.scheduler.max_sequences;
  counts.max_rows = limits.scheduler.max_rows;
  counts.max_queue = limits.max_queue;
  counts.max_queue_ms = options.max_queue_ms;
  counts.block_size = limits.scheduler.block_size;
  counts.deterministic = options.deterministic;
  const std::lock_guard lock(mutex);
  stats = counts;
}

}  // namespace gemmantle
