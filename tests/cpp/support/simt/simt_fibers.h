// simt_fibers.h: a block of CUDA threads as fibers on one host thread: stacks, schedule, barrier, warp collectives.
//
// Blocks run one after another. A block runs warp by warp, each until none of its lanes can go on; Config says in which
// order. What a GPU leaves undefined (a barrier that some threads miss, a shuffle from a lane that has exited) ends the
// program with words.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "simt_faults.h"
#include "simt_sanitizers.h"

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

// Saves the callee-saved registers on this stack and continues on the other one.
extern "C" void simt_switch(void** from, void* to);

namespace simt {

using Stream = void*;

enum class Order { forward, reverse, shuffled };

// What a test may vary: the order in which ready threads run, and whether an asynchronous copy lands as soon as it is
// asked for or as late as it may.
struct Config {
  Order order = Order::forward;
  bool early_copies = false;
  unsigned seed = 1;
  size_t shared_limit = 227 * 1024;  // bytes of shared memory a block may have
  // Until the first block of a launch has waited for the launch ahead, device memory is NaN: all of it may be what that
  // one writes, but for what is said to be constant.
  bool hides_previous = false;
};
inline Config config;

namespace host {

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

struct Copy {
  void* to;
  const void* from;
  bool ok;
};

// A stack, and where it was left.
struct Context {
  void* sp = nullptr;
  const void* stack = nullptr;
  size_t size = 0;
  void* tsan = nullptr;
};

struct Warp {
  void* arguments[32];
  const void* collective;  // which one its lanes wait at
  unsigned arrived, live, turn;
  char tags[2];  // in turn, so that one collective does not order what follows the next
};

struct Fiber : Context {
  enum State { ready, at_barrier, at_collective, at_previous, done } state;
  bool has_waited;  // for the launch ahead
  uint3 index;
  unsigned lane;
  Warp* warp;
  std::vector<std::vector<Copy>> copies;  // one list for each committed group, the open one last
};

struct Block {
  static constexpr size_t kStackBytes = 256 * 1024;
  dim3 grid, block;
  uint3 index;
  unsigned threads, live, waiting, turn, line, at_previous;
  char tags[2];
  Context scheduler;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned char* shared;
  void (*body)(const void*);
  const void* body_argument;

  ~Block() {
    for (Fiber& f : fibers) munmap(const_cast<void*>(f.stack), kStackBytes);
  }
};

inline constinit thread_local Block* block = nullptr;
inline constinit thread_local Fiber* fiber = nullptr;
inline char launch_tag, done_tag;  // what the start and the end of a launch order
// Where launches go instead of running, with their arguments by value, while a step is being recorded.
inline thread_local std::vector<std::function<void()>>* recording = nullptr;
inline thread_local int replays = 0;  // recordings that ran, since the program began
inline thread_local int waits = 0;    // for a stream, since the program began

void run_block(Block& b, uint3 index, size_t shared_bytes);
void make_fibers(Block& b, unsigned threads);
void barrier(const char* file, unsigned line);
void wait_for_previous();
// Hands in this lane's argument; the last live lane applies `apply` to all 32 (null where a lane has exited).
void collective(void* argument, const void* which, void (*apply)(void** arguments, unsigned live));

// `apply(T** arguments, unsigned live)` is stateless.
template <class T, class Apply>
void collective(T& mine, Apply) {
  static const char which = 0;  // its address says which collective this is
  collective(&mine, &which, [](void** arguments, unsigned live) { Apply{}(reinterpret_cast<T**>(arguments), live); });
}

}  // namespace host

template <class S>
S& shared() {
  return *reinterpret_cast<S*>(host::block->shared);
}

namespace host {

template <class Body>
void run_grid(const Body& body, dim3 grid, dim3 threads, size_t shared_bytes) {
  thread_local const auto keep = std::make_unique<Block>();
  Block& b = *keep;
  b.grid = grid;
  b.block = threads;
  b.body = [](const void* p) { (*static_cast<const Body*>(p))(); };
  b.body_argument = &body;
  make_fibers(b, threads.x * threads.y * threads.z);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) run_block(b, {x, y, z}, shared_bytes);
    }
  }
  acquire(&done_tag);
}

}  // namespace host

// Runs the whole grid before it returns, or puts it into the recording.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Stream, A&&... args) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024) host::die("a block has 1 to 1024 threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) host::die("bad grid");
  if (shared_bytes > config.shared_limit) host::die("more shared memory than the target has");
  auto run = [=, arguments = std::tuple<P...>(P(std::forward<A>(args))...)] {
    host::run_grid([&] { std::apply(kernel, arguments); }, grid, block, shared_bytes);
  };
  if (host::recording != nullptr) {
    host::recording->push_back(std::move(run));
  } else {
    run();
  }
}

}  // namespace simt
