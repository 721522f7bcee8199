// bind_engine.cpp: SamplingParams, Engine, Generation and what they deliver.
#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "bindings/convert.h"
#include "bindings/models.h"
#include "bindings/words.h"
#include "engine/engine.h"

namespace gemmantle::bindings {
namespace {

// Python holds an engine through this: letting it go joins its worker, for which the interpreter lock is released.
class PyEngine {
 public:
  explicit PyEngine(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  PyEngine(PyEngine&&) = default;
  ~PyEngine() {
    if (!engine_) return;
    const py::gil_scoped_release unlocked;
    engine_.reset();
  }
  Engine& operator*() const { return *engine_; }
  Engine* operator->() const { return engine_.get(); }

 private:
  std::shared_ptr<Engine> engine_;
};

// Engines that are still open when the interpreter ends are closed before anything they use goes away.
class OpenEngines {
 public:
  void add(const std::shared_ptr<Engine>& engine) {
    const std::lock_guard lock(mutex_);
    std::erase_if(engines_, [](const std::weak_ptr<Engine>& entry) { return entry.expired(); });
    engines_.push_back(engine);
  }
  void close_all() {
    std::vector<std::weak_ptr<Engine>> engines;
    {
      const std::lock_guard lock(mutex_);
      engines.swap(engines_);
    }
    for (const std::weak_ptr<Engine>& entry : engines) {
      if (const std::shared_ptr<Engine> engine = entry.lock()) engine->close();
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<Engine>> engines_;
};

OpenEngines& open_engines() {
  static auto* engines = new OpenEngines;  // outlives every static destructor
  return *engines;
}

uint64_t to_seed(const py::int_& seed) {
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(seed.ptr(), &overflow);
  if (overflow == 0) return static_cast<uint64_t>(value);
  const unsigned long long large = overflow > 0 ? PyLong_AsUnsignedLongLong(seed.ptr()) : 0;
  if (overflow < 0 || PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw Error(ErrorCode::invalid_argument,
                str("seed is ", py::str(seed).cast<std::string>(), "; it must fit into 64 bits"), "seed");
  }
  return large;
}

int to_count(long long value) {
  return static_cast<int>(std::clamp<long long>(value, -2, std::numeric_limits<int>::max()));
}

SamplingParams make_params(long long priority, int64_t prompt_logprobs_start, int64_t max_tokens, double temperature,
                           double top_p, int64_t top_k, double min_p, double repetition_penalty,
                           double presence_penalty, double frequency_penalty,
                           const std::map<long long, double>& logit_bias, const py::int_& seed, long long choice,
                           std::vector<std::string> stop, const std::vector<long long>& stop_token_ids, bool ignore_eos,
                           int64_t min_tokens, long long logprobs, long long prompt_logprobs,
                           const std::vector<long long>& suppress, bool include_stop, bool channels,
                           bool start_in_thought, bool single_call, bool constrained,
                           const std::vector<long long>& suppress_in_thought, int64_t thinking_budget,
                           const std::vector<long long>& thought_end) {
  SamplingParams params;
  params.priority = static_cast<int>(std::clamp<long long>(priority, -1000, 1000));
  params.prompt_logprobs_start = prompt_logprobs_start;
  params.max_tokens = max_tokens;
  params.temperature = temperature;
  params.top_p = top_p;
  params.top_k = top_k;
  params.min_p = min_p;
  params.repetition_penalty = repetition_penalty;
  params.presence_penalty = presence_penalty;
  params.frequency_penalty = frequency_penalty;
  for (const auto& [id, bias] : logit_bias) {
    params.logit_bias.emplace_back(to_id(id, "logit_bias"), static_cast<float>(bias));
  }
  params.seed = to_seed(seed);
  if (choice < 0 || choice > std::numeric_limits<uint32_t>::max()) {
    throw Error(ErrorCode::invalid_argument, str("choice is ", choice, "; it must be 0 or more"), "choice");
  }
  params.choice = static_cast<uint32_t>(choice);
  params.stop = std::move(stop);
  params.stop_token_ids = to_ids(stop_token_ids, "stop_token_ids");
  params.ignore_eos = ignore_eos;
  params.min_tokens = min_tokens;
  params.logprobs = to_count(logprobs);
  params.prompt_logprobs = to_count(prompt_logprobs);
  params.suppress = to_ids(suppress, "suppress");
  params.include_stop = include_stop;
  params.channels = channels;
  params.start_in_thought = start_in_thought;
  params.single_call = single_call;
  params.constrained = constrained;
  params.suppress_in_thought = to_ids(suppress_in_thought, "suppress_in_thought");
  params.thinking_budget = thinking_budget;
  params.thought_end = to_ids(thought_end, "thought_end");
  params.validate();
  return params;
}

py::object stop_reason_of(const Delta& delta) {
  if (const auto* text = std::get_if<std::string>(&delta.stop_reason)) return to_str(*text);
  if (const auto* id = std::get_if<int32_t>(&delta.stop_reason)) return py::int_(*id);
  return py::none();
}

py::object usage_of(const Delta& delta) {
  if (!delta.usage) return py::none();
  return py::make_tuple(delta.usage->prompt, delta.usage->completion, delta.usage->reasoning, delta.usage->cached);
}

py::list pieces_of(const Delta& delta) {
  py::list out(delta.pieces.size());
  for (size_t i = 0; i < delta.pieces.size(); ++i) {
    out[i] = py::make_tuple(name(delta.pieces[i].channel), to_str(delta.pieces[i].text));
  }
  return out;
}

// Nothing was said within the time and the generation has not ended.
struct Waited {
  std::optional<Delta> delta;
  bool is_over = false;
  explicit operator bool() const { return delta.has_value() || is_over; }
};

std::optional<Delta> next_of(Generation& generation, std::optional<double> timeout) {
  Waited got = wait_interruptibly(timeout, [&](double seconds) {
    Waited waited{generation.next(seconds), false};
    waited.is_over = !waited.delta && generation.is_over();
    return waited;
  });
  return std::move(got.delta);
}

TokenMask to_mask(const std::optional<py::array>& mask) {
  if (!mask) return std::nullopt;
  const py::dtype type = mask->dtype();
  if (!py::dtype::of<int32_t>().equal(type) && !py::dtype::of<uint32_t>().equal(type)) {
    throw py::type_error(
        str("mask is an array of ", py::str(type).cast<std::string>(), "; it must be one of int32 or uint32"));
  }
  if (mask->ndim() != 1 || (mask->flags() & py::array::c_style) == 0) {
    throw Error(ErrorCode::invalid_argument,
                str("mask is an array of ", mask->ndim(), " dimensions; it must be contiguous and have one"), "mask");
  }
  const auto* words = static_cast<const uint32_t*>(mask->data());
  return std::vector<uint32_t>(words, words + mask->size());
}

py::array_t<float> logits_of(PyEngine& engine, const py::array& ids, const std::optional<std::vector<int64_t>>& chunks,
                             bool last_only, bool reuse) {
  std::vector<int32_t> tokens = to_ids(ids, "ids");
  if (chunks && chunks->empty()) {
    throw Error(ErrorCode::invalid_argument, "chunks is empty: leave it out, or give sizes that sum up to the ids",
                "chunks");
  }
  LogitsRequest request = [&] {
    const py::gil_scoped_release unlocked;
    return engine->logits(std::move(tokens), chunks.value_or(std::vector<int64_t>{}), last_only, reuse);
  }();
  // An interrupt leaves through here: the request is cancelled and its worker still owns the memory it writes.
  while (next_of(request.generation, std::nullopt)) {
  }
  return to_matrix(std::move(request.values), request.rows, request.cols);
}

py::dict histogram_of(const Histogram& histogram) {
  py::dict out;
  out["le"] = Histogram::kBounds;
  out["counts"] = histogram.cumulative();
  out["sum"] = histogram.sum();
  out["count"] = histogram.count();
  return out;
}

py::dict stats_of(const EngineStats& stats) {
  py::dict out;
  out["queued"] = stats.queued;
  out["running"] = stats.running;
  out["steps"] = stats.steps;
  out["prompt_tokens"] = stats.prompt_tokens;
  out["generated_tokens"] = stats.generated_tokens;
  out["cached_tokens"] = stats.cached_tokens;
  const int64_t prompts = stats.cached_tokens + stats.prompt_tokens;
  out["hit_rate"] = prompts == 0 ? 0.0 : static_cast<double>(stats.cached_tokens) / static_cast<double>(prompts);
  out["decode_rows"] = stats.decode_rows;
  out["repeated_rows"] = stats.repeated_rows;
  out["logit_rows"] = stats.logit_rows;
  out["preemptions"] = stats.preemptions;
  out["blocks_free"] = stats.blocks_free[kSliding] + stats.blocks_free[kFull];
  out["blocks_total"] = stats.blocks_total[kSliding] + stats.blocks_total[kFull];
  out["sliding_blocks_free"] = stats.blocks_free[kSliding];
  out["sliding_blocks_total"] = stats.blocks_total[kSliding];
  out["full_blocks_free"] = stats.blocks_free[kFull];
  out["full_blocks_total"] = stats.blocks_total[kFull];
  out["blocks_kept"] = stats.blocks_kept[kSliding] + stats.blocks_kept[kFull];
  out["kv_bytes"] = stats.kv_bytes;
  out["kv_budget"] = stats.kv_budget;
  out["work_bytes"] = stats.work_bytes;
  out["max_context"] = stats.max_context;
  out["max_sequences"] = stats.max_sequences;
  out["max_rows"] = stats.max_rows;
  out["max_queue"] = stats.max_queue;
  out["max_queue_ms"] = stats.max_queue_ms;
  out["block_size"] = stats.block_size;
  out["deterministic"] = stats.deterministic;
  out["queue_time"] = histogram_of(stats.queue_time);
  out["time_to_first_token"] = histogram_of(stats.time_to_first_token);
  out["time_between_tokens"] = histogram_of(stats.time_between_tokens);
  return out;
}

void bind_params(py::module_& m) {
  py::class_<SamplingParams>(m, "SamplingParams", "How a reply is sampled and where it ends.")
      .def(
          py::init(&make_params), py::kw_only(), py::arg("priority") = 0, py::arg("prompt_logprobs_start") = 0,
          py::arg("max_tokens") = -1, py::arg("temperature") = 1.0, py::arg("top_p") = 1.0, py::arg("top_k") = 0,
          py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0, py::arg("presence_penalty") = 0.0,
          py::arg("frequency_penalty") = 0.0, py::arg("logit_bias") = py::dict(), py::arg("seed") = 0,
          py::arg("choice") = 0, py::arg("stop") = py::list(), py::arg("stop_token_ids") = py::list(),
          py::arg("ignore_eos") = false, py::arg("min_tokens") = 0, py::arg("logprobs") = -1,
          py::arg("prompt_logprobs") = -1, py::arg("suppress") = py::list(), py::arg("include_stop") = false,
          py::arg("channels") = false, py::arg("start_in_thought") = false, py::arg("single_call") = false,
          py::arg("constrained") = false, py::arg("suppress_in_thought") = py::list(), py::arg("thinking_budget") = -1,
          py::arg("thought_end") = py::list(),
          "priority: the higher is admitted first. prompt_logprobs_start: the first token that has one; what lies\n"
          "before it may come from kept KV blocks.\n"
          "max_tokens: -1 up to the context, 0 prompt work only. temperature 0: arg-max, ties to the lowest id.\n"
          "Order: logit bias and penalties, suppressed ids, temperature, top_k, top_p, min_p, draw by (seed, choice,\n"
          "position). logprobs, prompt_logprobs: -1 off, else 0 to 20 alternatives. channels: follow the control ids;\n"
          "otherwise every token is content. single_call: end after the first complete tool call.\n"
          "constrained: every token outside thoughts waits for Generation.allow. thinking_budget: tokens of thoughts,\n"
          "-1 free; at the budget the ids of thought_end are forced.\n\n"
          "Raises RequestError with the field as param.");
}

void bind_deltas(py::module_& m) {
  py::class_<TokenInfo>(m, "Token", "One token of a reply or a prompt.")
      .def_readonly("id", &TokenInfo::id)
      .def_property_readonly(
          "channel", [](const TokenInfo& self) { return name(self.channel); }, "content, thought or call.")
      .def_readonly("logprob", &TokenInfo::logprob,
                    "Natural logarithm, over the whole vocabulary, before bias, penalties, masks and temperature.")
      .def_readonly("top", &TokenInfo::top, "(id, logprob) of the most probable tokens, descending.")
      .def_property_readonly(
          "text", [](const TokenInfo& self) { return to_bytes(self.text); }, "The token's own bytes.");

  py::class_<Delta>(m, "Delta", "What came since the last one.")
      .def_property_readonly("pieces", &pieces_of,
                             "(channel, text): whole UTF-8, stop strings cut. (\"call_end\", \"\") closes a call.")
      .def_property_readonly(
          "tokens", [](const Delta& self) { return self.tokens; }, "The sampled tokens, the end token included.")
      .def_property_readonly(
          "finish_reason",
          [](const Delta& self) -> std::optional<std::string> {
            if (self.finish == FinishReason::none) return std::nullopt;
            return name(self.finish);
          },
          "None, stop, length or cancelled.")
      .def_property_readonly("stop_reason", &stop_reason_of, "The stop string or the id that ended it.")
      .def_readonly("awaits_mask", &Delta::awaits_mask, "Nothing more comes until Generation.allow.")
      .def_readonly("thought_cut", &Delta::thought_cut, "A thought was closed at its budget.")
      .def_property_readonly("usage", &usage_of, "At the end: prompt, completion, reasoning and cached tokens.")
      .def_property_readonly(
          "queue_ms",
          [](const Delta& self) -> std::optional<double> {
            if (!self.usage) return std::nullopt;
            return self.usage->queue_ms;
          },
          "At the end: how long the request waited until it was first scheduled.");

  py::class_<Generation>(m, "Generation", "A running request. Dropping it cancels it.")
      .def("next", &next_of, py::arg("timeout") = py::none(),
           "The next delta; None after `timeout` seconds without one, and after the last. The lock is released.\n\n"
           "Raises what ended the request: EngineClosed, OutOfMemory, DeviceError, ...; KeyboardInterrupt.")
      .def(
          "try_next", [](Generation& self) { return self.try_next(); }, "next(0) without waiting.")
      .def("fileno", &Generation::fileno, "A descriptor that is readable while a delta waits; owned by this object.")
      .def(
          "allow", [](Generation& self, const std::optional<py::array>& mask) { self.allow(to_mask(mask)); },
          py::arg("mask").none(true),
          "What the next token may be: int32 or uint32 [ceil(vocabulary / 32)], bit i % 32 of word i / 32; None for\n"
          "everything. Copied. One hand-in for one token of a constrained request, the first included; those inside\n"
          "thoughts take none. Raises RequestError.")
      .def("cancel", &Generation::cancel, "Ends the request at its next step. Idempotent.")
      .def_property_readonly("prompt_logprobs", &Generation::prompt_logprobs,
                             "One Token a prompt token, the first None; empty until the end.");
}

}  // namespace

void bind_engine(py::module_& m) {
  bind_params(m);
  bind_deltas(m);
  py::class_<PyEngine>(m, "Engine", "Many requests over one model, on a thread of its own.")
      .def(py::init([](const PyModel& model, const PyVocabulary* vocabulary, const std::vector<long long>& eos_ids,
                       int64_t max_context, int64_t max_sequences, int64_t max_queue, int64_t max_rows,
                       int64_t block_size, int64_t kv_bytes, bool deterministic, int64_t max_queue_ms,
                       int64_t stream_buffer, int64_t idle_stream_ms) {
             const EngineOptions options{to_ids(eos_ids, "eos_ids"),
                                         max_context,
                                         max_sequences,
                                         max_queue,
                                         max_rows,
                                         block_size,
                                         kv_bytes,
                                         deterministic,
                                         max_queue_ms,
                                         stream_buffer,
                                         idle_stream_ms};
             std::shared_ptr<Model> shared = model.get();
             std::shared_ptr<const Vocabulary> words = vocabulary != nullptr ? vocabulary->words : nullptr;
             const py::gil_scoped_release unlocked;
             auto engine = std::make_shared<Engine>(std::move(shared), std::move(words), options);
             open_engines().add(engine);
             return std::make_unique<PyEngine>(std::move(engine));
           }),
           py::arg("model"), py::arg("vocabulary") = py::none(), py::kw_only(), py::arg("eos_ids") = py::list(),
           py::arg("max_context") = 0, py::arg("max_sequences") = 16, py::arg("max_queue") = 1024,
           py::arg("max_rows") = 512, py::arg("block_size") = 16, py::arg("kv_bytes") = 0,
           py::arg("deterministic") = false, py::arg("max_queue_ms") = 0, py::arg("stream_buffer") = 4096,
           py::arg("idle_stream_ms") = 120000,
           "Limits of 0 are derived from the model and from free memory. max_queue_ms: a request that finds no\n"
           "place within it ends with engine_busy, and the first delta of one that does is empty; 0: no limit.\n"
           "stream_buffer: tokens unread with which a generation stands still; idle_stream_ms: after which it is\n"
           "cancelled then. Raises RequestError, OutOfMemory.")
      .def(
          "submit",
          [](PyEngine& self, const py::array& ids, const SamplingParams& params) {
            std::vector<int32_t> tokens = to_ids(ids, "ids");
            SamplingParams copy = params;
            const py::gil_scoped_release unlocked;
            return self->submit(std::move(tokens), std::move(copy));
          },
          py::arg("ids"), py::arg("params"),
          "ids: int32 [n], contiguous. Raises RequestError (invalid_value, context_length_exceeded, engine_busy),\n"
          "EngineClosed, ForkedEngineError.")
      .def(
          "logits", &logits_of, py::arg("ids"), py::kw_only(), py::arg("chunks") = py::none(),
          py::arg("last_only") = false, py::arg("reuse") = false,
          "Logits after softcap: float32 [n, vocabulary], or [1, vocabulary] with last_only. Runs between other\n"
          "requests, in steps of `chunks` rows where they are given. reuse, with last_only: positions before may come\n"
          "from kept KV blocks. Raises as submit does; KeyboardInterrupt.")
      .def(
          "stats", [](const PyEngine& self) { return stats_of(self->stats()); },
          "Counters and limits; queued, running, steps, prompt_tokens (computed), cached_tokens (found instead),\n"
          "hit_rate, generated_tokens, blocks_free, ... Histograms in seconds: le, counts (cumulative), sum, count.")
      .def(
          "max_context", [](const PyEngine& self) { return self->max_context(); },
          "Most tokens of prompt and reply together.")
      .def(
          "close",
          [](PyEngine& self) {
            const py::gil_scoped_release unlocked;
            self->close();
          },
          "Ends the worker; running generations end with EngineClosed. Idempotent.");
  py::module_::import("atexit").attr("register")(py::cpp_function([] {
    const py::gil_scoped_release unlocked;
    open_engines().close_all();
  }));
}

}  // namespace gemmantle::bindings
