#include "engine/limits.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "core/error.h"

namespace gemmantle {
namespace {

constexpr int64_t kMaxLogitBytes = int64_t{128} << 20;  // of one step that wants the logits of many rows

void require(bool condition, const char* field, int64_t found, const std::string& wanted) {
  if (!condition) throw Error(ErrorCode::invalid_argument, str(field, " is ", found, "; it must be ", wanted), field);
}

int64_t read_number(const char* path) {
  std::ifstream file(path);
  int64_t value = -1;
  return file >> value ? value : -1;  // "max" is no number
}

class Demand {
 public:
  Demand(const SchedulerLimits& limits, const KvLayout& layout) : limits_(limits), layout_(layout) {
    for (size_t g = 0; g < kKvGroups; ++g) limits_.blocks[g] = layout.block_bytes[g] > 0 ? 1 : 0;
  }
  int64_t blocks(int group, int64_t context) const {
    return Scheduler::blocks_needed(limits_, group, context, limits_.max_rows);
  }
  int64_t bytes(int64_t context) const {
    int64_t sum = 0;
    for (int g = 0; g < kKvGroups; ++g) sum += blocks(g, context) * layout_.block_bytes[static_cast<size_t>(g)];
    return sum;
  }

 private:
  SchedulerLimits limits_;
  const KvLayout& layout_;
};

}  // namespace

int64_t free_memory() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  int64_t kib = 0;
  int64_t available = int64_t{1} << 30;
  while (file >> key >> kib) {
    if (key == "MemAvailable:") {
      available = kib * 1024;
      break;
    }
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  const int64_t most = read_number("/sys/fs/cgroup/memory.max");
  const int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (most >= 0 && used >= 0) available = std::min(available, std::max<int64_t>(0, most - used));
  return available;
}

EngineLimits derive_limits(const EngineOptions& options, const ModelConfig& config, const KvLayout& layout,
                           int64_t free_bytes) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  require(options.max_context >= 0 && options.max_context <= config.context, "max_context", options.max_context,
          str("1 to ", config.context, ", the context of the model, or 0 for all of it"));
  require(options.max_sequences >= 1 && options.max_sequences <= 65536, "max_sequences", options.max_sequences,
          "1 to 65536");
  require(options.max_queue >= 0 && options.max_queue <= kMost, "max_queue", options.max_queue, "0 or more");
  require(options.max_rows >= 1 && options.max_rows <= 65536, "max_rows", options.max_rows, "1 to 65536");
  require(options.block_size >= 1 && options.block_size <= 4096, "block_size", options.block_size, "1 to 4096");
  require(options.kv_bytes >= 0, "kv_bytes", options.kv_bytes, "0 (derived) or more");
  require(options.max_queue_ms >= 0, "max_queue_ms", options.max_queue_ms, "0 (no limit) or more");
  require(options.stream_buffer >= 1, "stream_buffer", options.stream_buffer, "1 or more");
  require(options.idle_stream_ms >= 1, "idle_stream_ms", options.idle_stream_ms, "1 or more");
  for (const int32_t id : options.eos_ids) {
    require(id >= 0 && id < config.vocab, "eos_ids", id, str("ids of 0 to ", config.vocab - 1));
  }

  EngineLimits limits;
  limits.max_queue = options.max_queue;
  limits.vocabulary = config.vocab;
  limits.max_context = options.max_context > 0 ? options.max_context : config.context;
  SchedulerLimits& s = limits.scheduler;
  s.max_rows = options.max_rows;
  s.max_sequences = std::min(options.max_sequences, options.max_rows);  // one row each must fit a step
  s.max_logit_rows = std::clamp<int64_t>(kMaxLogitBytes / (4 * config.vocab), 1, options.max_rows);
  s.block_size = options.block_size;
  s.window = config.window;

  const Demand demand(s, layout);
  const int64_t budget = limits.kv_budget = options.kv_bytes > 0 ? options.kv_bytes : free_bytes / 2;
  int64_t longest = limits.max_context;  // that fits the budget alone
  if (demand.bytes(longest) > budget) {
    int64_t too_long = longest;
    longest = 0;
    while (too_long - longest > 1) {
      const int64_t middle = longest + (too_long - longest) / 2;
      (demand.bytes(middle) <= budget ? longest : too_long) = middle;
    }
  }
  if (longest < limits.max_context) {
    if (options.max_context > 0 || longest < 1) {
      throw Error(ErrorCode::out_of_memory,
                  str("the KV cache of one sequence of ", limits.max_context, " tokens takes ",
                      demand.bytes(limits.max_context), " bytes, and ", budget, " are ",
                      options.kv_bytes > 0 ? "allowed (kv_bytes)" : "to be had (half of the free memory)",
                      longest > 0 ? str(": set max_context to ", longest, " or less") : std::string(": free memory")),
                  "max_context");
    }
    limits.max_context = longest;
  }

  const double sequences = std::min(
      static_cast<double>(s.max_sequences),
      static_cast<double>(budget) / static_cast<double>(std::max<int64_t>(1, demand.bytes(limits.max_context))));
  for (int g = 0; g < kKvGroups; ++g) {
    const int64_t one = demand.blocks(g, limits.max_context);
    const auto all = static_cast<int64_t>(static_cast<double>(one) * sequences);
    s.blocks[static_cast<size_t>(g)] = std::min(std::max(one, all), kMost / s.block_size);  // slots are 32 bits wide
  }
  return limits;
}

}  // namespace gemmantle
