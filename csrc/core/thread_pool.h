// thread_pool.h: a fixed number of threads for short parallel loops.
//
// The caller takes part, so a pool of n starts n - 1 threads. Chunks are handed out one at a time; which thread gets
// which is not fixed, so a result must not depend on it. Between loops threads spin for some microseconds (the next op
// of a step is near), then sleep. Where another program wants the same core, a worker rests now and then, so that it is
// not put aside in the middle of a chunk, which would hold up its loop. No allocation in a loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace gemmantle {

class ThreadPool {
 public:
  // threads >= 1, the caller among them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(chunk, worker) once for every chunk in [0, chunks) and returns when all are done. `worker` < threads()
  // names the thread, for scratch of its own. The first exception is thrown here; chunks not yet begun are then left
  // out. A loop inside a body runs on that body's thread. Loops of several callers run one after the other.
  template <class Body>
  void parallel_for(int64_t chunks, Body&& body) {
    using Callable = std::remove_reference_t<Body>;
    run(
        chunks, [](void* context, int64_t chunk, int worker) { (*static_cast<Callable*>(context))(chunk, worker); },
        const_cast<void*>(static_cast<const void*>(std::addressof(body))));
  }

 private:
  class Rests;
  using Function = void (*)(void* context, int64_t chunk, int worker);

  void run(int64_t chunks, Function function, void* context);
  void work(int worker);
  void take_chunks(int worker, Rests* rests) noexcept;
  bool has_chunks() const noexcept { return (ticket_.load(std::memory_order_acquire) & kCountMask) != 0; }
  void stop() noexcept;

  static constexpr uint64_t kCountMask = 0xffffffffu;

  // Number of the loop in the upper half, chunks nobody has taken yet in the lower. Taking one is a compare-exchange,
  // so a late thread can never take a chunk of a loop it has not seen; while it holds one, the fields below stand.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> unfinished_{0};
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};

  Function function_ = nullptr;
  void* context_ = nullptr;
  int64_t chunks_ = 0;
  std::exception_ptr failure_;
  std::mutex failure_mutex_;
  std::mutex caller_mutex_;
  std::vector<std::thread> workers_;
};

}  // namespace gemmantle
