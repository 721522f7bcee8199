#include "core/thread_pool.h"

#include <time.h>

#include <chrono>
#include <system_error>
#include <utility>

#include "core/error.h"

namespace gemmantle {
namespace {

// About 30 microseconds: longer than the gap between two ops of a step, shorter than waking a sleeping thread twice.
constexpr int kSpins = 1000;

void pause() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The pool whose body this thread is in, and its number there.
thread_local const ThreadPool* current_pool = nullptr;
thread_local int current_worker = 0;

// The caller of a loop is worker 0 of its pool while it takes part.
class AsWorkerZero {
 public:
  explicit AsWorkerZero(const ThreadPool* pool) : pool_(current_pool), worker_(current_worker) {
    current_pool = pool;
    current_worker = 0;
  }
  ~AsWorkerZero() {
    current_pool = pool_;
    current_worker = worker_;
  }
  AsWorkerZero(const AsWorkerZero&) = delete;
  AsWorkerZero& operator=(const AsWorkerZero&) = delete;

 private:
  const ThreadPool* pool_;
  int worker_;
};

}  // namespace

// Rests of a worker on a core that another program wants too. A worker that is put aside in the middle of a chunk holds
// up its loop for as long as the other one runs, some milliseconds. One that has slept enough is owed the core, so it
// is put aside less: with rests between its chunks it gives away time that it would lose anyhow, and the loop goes on
// with the other threads. Without such a program nothing of this happens.
class ThreadPool::Rests {
 public:
  Rests() noexcept { mark(); }

  // From here on the thread wants its core.
  void mark() noexcept {
    since_ = Clock::now();
    used_ = used();
  }

  // Between two chunks: sleeps where a rest is due.
  void after_chunk() noexcept {
    const Clock::time_point now = Clock::now();
    if (now - since_ < kBurst) return;
    if (now - since_ - (used() - used_) > kLost) crowded_until_ = now + kCrowded;
    if (now < crowded_until_) std::this_thread::sleep_for(kRest);
    mark();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::microseconds kBurst{1000}, kRest{1500};
  static constexpr std::chrono::microseconds kLost{500};     // of a burst, to somebody else
  static constexpr std::chrono::milliseconds kCrowded{100};  // how long a core counts as crowded after that

  // Time that this thread had the core.
  static Clock::duration used() noexcept {
    timespec time{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
  }

  Clock::time_point since_, crowded_until_{};
  Clock::duration used_{};
};

ThreadPool::ThreadPool(int threads) {
  GEMMANTLE_CHECK(threads >= 1, "a pool of ", threads, " threads");
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back(&ThreadPool::work, this, i);
  } catch (const std::system_error& e) {
    const size_t started = workers_.size() + 1;
    stop();
    throw Error(ErrorCode::out_of_memory,
                str("the system gave ", started, " of ", threads, " threads (", e.what(), "); ask for fewer"),
                "threads");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() noexcept {
  stopping_.store(true, std::memory_order_release);
  wake_.fetch_add(1, std::memory_order_acq_rel);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::run(int64_t chunks, Function function, void* context) {
  if (chunks <= 0) return;
  if (current_pool == this) {
    for (int64_t i = 0; i < chunks; ++i) function(context, i, current_worker);
    return;
  }
  GEMMANTLE_CHECK(chunks <= static_cast<int64_t>(kCountMask), chunks, " chunks");
  const std::lock_guard<std::mutex> lock(caller_mutex_);
  const AsWorkerZero role(this);
  if (workers_.empty() || chunks == 1) {
    for (int64_t i = 0; i < chunks; ++i) function(context, i, 0);
    return;
  }
  function_ = function;
  context_ = context;
  chunks_ = chunks;
  unfinished_.store(chunks, std::memory_order_relaxed);
  const uint64_t loop = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(loop << 32 | static_cast<uint64_t>(chunks), std::memory_order_release);
  wake_.fetch_add(1, std::memory_order_acq_rel);
  wake_.notify_all();

  take_chunks(0, nullptr);
  for (int spin = 0; spin < kSpins && unfinished_.load(std::memory_order_acquire) != 0; ++spin) pause();
  for (int64_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) {
    unfinished_.wait(left, std::memory_order_acquire);
  }
  if (failed_.load(std::memory_order_relaxed)) {
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(failure_, nullptr));
  }
}

void ThreadPool::take_chunks(int worker, Rests* rests) noexcept {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while ((ticket & kCountMask) != 0) {
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      continue;
    }
    const int64_t chunk = chunks_ - static_cast<int64_t>(ticket & kCountMask);
    if (!failed_.load(std::memory_order_relaxed)) {
      try {
        function_(context_, chunk, worker);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failure_mutex_);
        if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
      }
    }
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
    if (rests != nullptr) rests->after_chunk();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::work(int worker) {
  current_pool = this;
  current_worker = worker;
  Rests rests;
  while (true) {
    take_chunks(worker, &rests);
    const uint32_t epoch = wake_.load(std::memory_order_acquire);
    bool found = false;
    for (int spin = 0; spin < kSpins && !found; ++spin) {
      found = has_chunks() || stopping_.load(std::memory_order_acquire);
      if (!found) pause();
    }
    if (stopping_.load(std::memory_order_acquire)) return;
    if (found) continue;
    wake_.wait(epoch, std::memory_order_acquire);
    rests.mark();
  }
}

}  // namespace gemmantle
