#include "engine/generation.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <new>

#include "engine/fork_guard.h"

namespace gemmantle {

const char* name(FinishReason reason) noexcept {
  switch (reason) {
    case FinishReason::none: return "none";
    case FinishReason::stop: return "stop";
    case FinishReason::length: return "length";
    case FinishReason::cancelled: return "cancelled";
  }
  return "unknown";
}

void Delta::append(Piece&& piece) {
  if (piece.channel != Channel::call_end && piece.text.empty()) return;
  if (piece.channel != Channel::call_end && !pieces.empty() && pieces.back().channel == piece.channel) {
    pieces.back().text += piece.text;
  } else {
    pieces.push_back(std::move(piece));
  }
}

void Delta::append(Delta&& later) {
  for (Piece& piece : later.pieces) append(std::move(piece));
  for (TokenInfo& token : later.tokens) tokens.push_back(std::move(token));
  if (later.finish != FinishReason::none) finish = later.finish;
  if (later.stop_reason.index() != 0) stop_reason = std::move(later.stop_reason);
  if (later.usage) usage = later.usage;
  awaits_mask = later.awaits_mask;
  thought_cut = thought_cut || later.thought_cut;
}

Mailbox::Mailbox(int64_t vocabulary, std::shared_ptr<Bell> bell) : vocabulary_(vocabulary), bell_(std::move(bell)) {}

Mailbox::~Mailbox() {
  if (event_fd_ >= 0) ::close(event_fd_);
}

void Mailbox::signal() {
  if (event_fd_ >= 0) {
    const uint64_t one = 1;
    // Fails only when the counter is full, and then the descriptor is readable already.
    [[maybe_unused]] const ssize_t written = ::write(event_fd_, &one, sizeof one);
  }
  readable_.notify_all();
}

void Mailbox::publish(Delta&& delta) {
  const std::lock_guard lock(mutex_);
  unread_.fetch_add(static_cast<int64_t>(delta.tokens.size()), std::memory_order_relaxed);
  pending_.append(std::move(delta));
  has_pending_ = true;
  signal();
}

void Mailbox::finish(Delta&& last, PromptLogprobs&& prompt) {
  const std::lock_guard lock(mutex_);
  pending_.append(std::move(last));
  prompt_ = std::move(prompt);
  has_pending_ = true;
  ended_ = true;
  signal();
}

void Mailbox::fail(const Error& error) {
  const std::lock_guard lock(mutex_);
  error_ = error;
  ended_ = true;
  signal();
}

// Without the bell's lock a ring may be missed; the worker looks again on its own.
void Mailbox::cancel() {
  cancelled_.store(true, std::memory_order_relaxed);
  if (bell_) bell_->wake.notify_one();
}

void Mailbox::allow(TokenMask mask) {
  if (vocabulary_ == 0) {
    throw Error(ErrorCode::invalid_argument, "this request takes no masks: submit it with constrained=True", "mask");
  }
  const auto words = static_cast<size_t>((vocabulary_ + 31) / 32);
  if (mask && mask->size() != words) {
    throw Error(ErrorCode::invalid_argument,
                str("the mask has ", mask->size(), " words; a vocabulary of ", vocabulary_, " ids takes ", words,
                    " of 32 bits"),
                "mask");
  }
  {
    const std::lock_guard lock(mutex_);
    mask_ = std::move(mask);
    has_mask_.store(true, std::memory_order_release);
  }
  if (!bell_) return;
  { const std::lock_guard lock(bell_->mutex); }  // the worker either sees the mask or is asleep by now
  bell_->wake.notify_one();
}

TokenMask Mailbox::take_mask() {
  const std::lock_guard lock(mutex_);
  has_mask_.store(false, std::memory_order_relaxed);
  return std::exchange(mask_, std::nullopt);
}

std::optional<Delta> Mailbox::next(std::optional<double> timeout_s) {
  std::unique_lock lock(mutex_);
  const auto awake = [&] { return has_pending_ || ended_; };
  // A year is for ever, and far from the overflow of the clock.
  constexpr double kForever = 365.0 * 86400;
  if (!timeout_s) {
    readable_.wait(lock, awake);
  } else if (!awake() && *timeout_s > 0) {
    readable_.wait_for(lock, std::chrono::duration<double>(std::fmin(*timeout_s, kForever)), awake);
  }
  const auto drain = [&] {
    if (event_fd_ < 0 || is_readable()) return;
    uint64_t count;
    [[maybe_unused]] const ssize_t got = ::read(event_fd_, &count, sizeof count);  // non-blocking
  };
  if (has_pending_) {
    Delta delta = std::exchange(pending_, Delta());
    has_pending_ = false;
    unread_.store(0, std::memory_order_relaxed);
    drain();
    return delta;
  }
  if (error_) {
    error_seen_ = true;
    drain();
    throw Error(*error_);
  }
  return std::nullopt;
}

bool Mailbox::is_over() const {
  const std::lock_guard lock(mutex_);
  return ended_ && !has_pending_ && !error_;
}

int Mailbox::fileno() {
  const std::lock_guard lock(mutex_);
  if (event_fd_ < 0) {
    event_fd_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_fd_ < 0) throw Error(ErrorCode::internal, str("eventfd: ", std::strerror(errno)));
    if (is_readable()) signal();
  }
  return event_fd_;
}

PromptLogprobs Mailbox::prompt_logprobs() const {
  const std::lock_guard lock(mutex_);
  return prompt_;
}

Generation::Generation(std::shared_ptr<Mailbox> mailbox) : mailbox_(std::move(mailbox)), owner_(::getpid()) {}

Generation::~Generation() {
  if (!mailbox_) return;
  // In a forked child nobody will ever leave the mailbox's lock and condition: they are left as they are.
  if (::getpid() != owner_) {
    new (std::nothrow) std::shared_ptr<Mailbox>(std::move(mailbox_));
    return;
  }
  mailbox_->cancel();
}

std::optional<Delta> Generation::next(std::optional<double> timeout_s) {
  refuse_in_child(owner_);
  return mailbox_->next(timeout_s);
}

bool Generation::is_over() const {
  refuse_in_child(owner_);
  return mailbox_->is_over();
}

int Generation::fileno() {
  refuse_in_child(owner_);
  return mailbox_->fileno();
}

void Generation::allow(TokenMask mask) {
  refuse_in_child(owner_);
  mailbox_->allow(std::move(mask));
}

void Generation::cancel() {
  if (::getpid() == owner_) mailbox_->cancel();
}

PromptLogprobs Generation::prompt_logprobs() const {
  refuse_in_child(owner_);
  return mailbox_->prompt_logprobs();
}

}  // namespace gemmantle
