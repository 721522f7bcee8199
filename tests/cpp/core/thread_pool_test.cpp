#include "core/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/cpu_features.h"

namespace gemmantle {
namespace {

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, every_chunk_runs_once) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const int64_t chunks : {0, 1, 2, 3, 7, 100, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(chunks));
    pool.parallel_for(chunks, [&](int64_t chunk, int) { runs[static_cast<size_t>(chunk)].fetch_add(1); });
    for (auto& n : runs) EXPECT_EQ(n.load(), 1);
  }
}

TEST_P(ThreadPoolTest, a_worker_number_is_never_in_two_bodies_at_once) {
  ThreadPool pool(GetParam());
  std::vector<std::atomic<int>> inside(static_cast<size_t>(pool.threads()));
  std::vector<int64_t> sums(static_cast<size_t>(pool.threads()));  // unsynchronised on purpose: the number guards it
  std::atomic<bool> clash = false;
  for (int loop = 0; loop < 200; ++loop) {
    pool.parallel_for(50, [&](int64_t chunk, int worker) {
      const auto at = static_cast<size_t>(worker);
      if (inside[at].fetch_add(1) != 0) clash = true;
      sums[at] += chunk;
      inside[at].fetch_sub(1);
    });
  }
  int64_t total = 0;
  for (const int64_t sum : sums) total += sum;
  EXPECT_FALSE(clash);
  EXPECT_EQ(total, 200 * (50 * 49 / 2));
}

TEST_P(ThreadPoolTest, what_a_loop_wrote_is_seen_after_it) {
  ThreadPool pool(GetParam());
  std::vector<int> values(64);
  for (int loop = 1; loop <= 2000; ++loop) {
    pool.parallel_for(64, [&](int64_t chunk, int) { ++values[static_cast<size_t>(chunk)]; });
    for (const int v : values) ASSERT_EQ(v, loop);
  }
}

TEST_P(ThreadPoolTest, the_first_exception_reaches_the_caller_and_the_pool_goes_on) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.parallel_for(100,
                                   [](int64_t chunk, int) {
                                     if (chunk % 10 == 3) throw std::runtime_error("chunk");
                                   }),
                 std::runtime_error);
    std::atomic<int> runs = 0;
    pool.parallel_for(100, [&](int64_t, int) { ++runs; });
    EXPECT_EQ(runs.load(), 100);
  }
}

TEST_P(ThreadPoolTest, a_loop_in_a_loop_runs_on_its_thread) {
  ThreadPool pool(GetParam());
  std::atomic<int> runs = 0, strangers = 0;
  pool.parallel_for(8, [&](int64_t, int outer) {
    const auto thread = std::this_thread::get_id();
    pool.parallel_for(5, [&](int64_t, int inner) {
      ++runs;
      if (inner != outer || std::this_thread::get_id() != thread) ++strangers;
    });
  });
  EXPECT_EQ(runs.load(), 40);
  EXPECT_EQ(strangers.load(), 0);
}

TEST_P(ThreadPoolTest, callers_take_turns) {
  ThreadPool pool(GetParam());
  int64_t sum = 0;
  std::atomic<int64_t> runs = 0;
  const auto caller = [&] {
    for (int loop = 0; loop < 100; ++loop) {
      std::atomic<int64_t> own = 0;
      pool.parallel_for(10, [&](int64_t chunk, int) { own += chunk; });
      runs += own;
    }
  };
  std::thread other(caller);
  caller();
  other.join();
  sum = runs;
  EXPECT_EQ(sum, 2 * 100 * 45);
}

// Workers take rests there, between their chunks: every chunk still runs, once.
TEST_P(ThreadPoolTest, crowded_cores_leave_no_chunk_out) {
  std::atomic<bool> is_over = false;
  std::vector<std::thread> others;
  for (int i = 0; i < usable_cores(); ++i) {
    others.emplace_back([&] {
      while (!is_over.load(std::memory_order_relaxed)) {
      }
    });
  }
  {
    ThreadPool pool(GetParam());
    std::vector<std::atomic<int>> runs(64);
    constexpr int kLoops = 40;
    for (int loop = 0; loop < kLoops; ++loop) {
      pool.parallel_for(64, [&](int64_t chunk, int) {
        const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
        while (std::chrono::steady_clock::now() < end) {
        }
        runs[static_cast<size_t>(chunk)].fetch_add(1);
      });
    }
    for (auto& n : runs) EXPECT_EQ(n.load(), kLoops);
  }
  is_over = true;
  for (std::thread& other : others) other.join();
}

TEST_P(ThreadPoolTest, goes_away_idle_busy_or_unused) {
  for (int round = 0; round < 50; ++round) {
    ThreadPool pool(GetParam());
    if (round % 2 == 0) pool.parallel_for(round, [](int64_t, int) {});
  }
}

INSTANTIATE_TEST_SUITE_P(threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 8));

TEST(usable_cores, is_at_least_one) { EXPECT_GE(usable_cores(), 1); }

}  // namespace
}  // namespace gemmantle
