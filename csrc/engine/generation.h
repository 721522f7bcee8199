// generation.h: the handle of one request: deltas come out, a cancellation goes in.
//
// The engine's worker writes into a Mailbox, one consumer reads it through a Generation. Whatever was not yet read is
// merged into one pending delta, so a slow reader holds up nobody and costs no more than its own tokens; how many those
// may become is the engine's to say, which sees them counted.
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
  bool awaits_mask = false;    // nothing more comes until Generation::allow
  bool thought_cut = false;    // a thought was closed because its budget was used up

  // Appends what came later. Adjacent pieces of one channel are joined.
  void append(Delta&& later);
  void append(Piece&& piece);
};

using PromptLogprobs = std::vector<std::optional<TokenInfo>>;  // [prompt]; the first has none

// Wakes the engine's worker. Shared with the mailboxes, which may outlive the engine.
struct Bell {
  std::mutex mutex;
  std::condition_variable wake;
};

// The ids that may be drawn next, as bit i % 32 of word i / 32; nothing: all of them.
using TokenMask = std::optional<std::vector<uint32_t>>;

class Mailbox {
 public:
  // `vocabulary`: ids of a mask; 0: the request takes none. `bell` may be null: then nobody waits for masks.
  explicit Mailbox(int64_t vocabulary = 0, std::shared_ptr<Bell> bell = nullptr);
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // The worker's side.
  void publish(Delta&& delta);
  void finish(Delta&& last, PromptLogprobs&& prompt);
  void fail(const Error& error);
  bool is_cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  int64_t unread() const { return unread_.load(std::memory_order_relaxed); }  // tokens
  bool has_mask() const { return has_mask_.load(std::memory_order_acquire); }
  TokenMask take_mask();

  // The consumer's side.
  void cancel();
  void allow(TokenMask mask);
  std::optional<Delta> next(std::optional<double> timeout_s);
  bool is_over() const;  // ended, and every delta read
  int fileno();
  PromptLogprobs prompt_logprobs() const;

 private:
  bool is_readable() const { return has_pending_ || (error_ && !error_seen_); }
  void signal();  // with the lock held

  const int64_t vocabulary_;
  const std::shared_ptr<Bell> bell_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> has_mask_{false};
  std::atomic<int64_t> unread_{0};
  TokenMask mask_;
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
  void cancel();  // idempotent, takes no lock; works at the next step
  // A constrained request: the ids of its next token. One hand-in for one token, at any time before it is drawn; a
  // second one replaces the first. Throws invalid_argument for a mask of the wrong size, and where none is taken.
  void allow(TokenMask mask);
  PromptLogprobs prompt_logprobs() const;  // empty until the end

 private:
  std::shared_ptr<Mailbox> mailbox_;
  pid_t owner_;
};

}  // namespace gemmantle
