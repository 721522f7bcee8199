// generation.h: the handle of one request: deltas come out, a cancellation goes in.
//
// The engine's worker writes into a Mailbox, one consumer reads it through a Generation. Whatever was not yet read is
// merged into one pending delta, so a slow reader holds up nobody and costs no more than its own tokens.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"
#include "text/channels.h"

namespace gemmantle {

// One token of the output, or of the prompt where log-probabilities of the prompt were asked for.
struct TokenInfo {
  int32_t id = 0;
  Channel channel = Channel::content;
  std::string text;  // the token's own bytes, not always whole UTF-8
  std::optional<float> logprob;
  std::vector<std::pair<int32_t, float>> top;  // descending
};

enum class FinishReason { none, stop, length, cancelled };

const char* name(FinishReason reason) noexcept;

struct Usage {
  int64_t prompt = 0;
  int64_t completion = 0;  // the end token included when one was sampled
  int64_t reasoning = 0;   // those of `completion` that belong to thoughts
  int64_t cached = 0;      // prompt tokens whose KV was there already
  double queue_ms = 0;     // until it was first scheduled
};

using StopReason = std::variant<std::monostate, std::string, int32_t>;  // the stop string or the id that ended it

struct Delta {
  std::vector<Piece> pieces;  // whole UTF-8, stop strings cut
  std::vector<TokenInfo> tokens;
  FinishReason finish = FinishReason::none;
  StopReason stop_reason;
  std::optional<Usage> usage;  // with the last delta

  // Appends what came later. Adjacent pieces of one channel are joined.
  void append(Delta&& later);
  void append(Piece&& piece);
};

using PromptLogprobs = std::vector<std::optional<TokenInfo>>;  // [prompt]; the first has none

class Mailbox {
 public:
  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // The worker's side.
  void publish(Delta&& delta);
  void finish(Delta&& last, PromptLogprobs&& prompt);
  void fail(const Error& error);
  bool is_cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // The consumer's side.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  std::optional<Delta> next(std::optional<double> timeout_s);
  bool is_over() const;  // ended, and every delta read
  int fileno();
  PromptLogprobs prompt_logprobs() const;

 private:
  bool is_readable() const { return has_pending_ || (error_ && !error_seen_); }
  void signal();  // with the lock held

  std::atomic<bool> cancelled_{false};
  mutable std::mutex mutex_;
  std::condition_variable readable_;
  Delta pending_;
  bool has_pending_ = false;
  bool ended_ = false;
  bool error_seen_ = false;
  std::optional<Error> error_;
  PromptLogprobs prompt_;
  int event_fd_ = -1;
};

// Owned by the consumer; its end cancels the request. After a fork the child may only drop it.
class Generation {
 public:
  explicit Generation(std::shared_ptr<Mailbox> mailbox);
  ~Generation();
  Generation(Generation&& other) noexcept = default;
  Generation& operator=(Generation&&) = delete;

  // The next delta; nothing when `timeout_s` passed without one, or after the last one. Throws the error that ended the
  // request once its deltas are read.
  std::optional<Delta> next(std::optional<double> timeout_s = std::nullopt);
  std::optional<Delta> try_next() { return next(0.0); }
  bool is_over() const;  // nothing more will come

  // An eventfd that is readable while something waits; made on the first call, owned by the generation.
  int fileno();
  void cancel();                           // idempotent, takes no lock; works at the next step
  PromptLogprobs prompt_logprobs() const;  // empty until the end

 private:
  std::shared_ptr<Mailbox> mailbox_;
  pid_t owner_;
};

}  // namespace gemmantle
