#include "simt_fibers.h"

#include "simt_memory.h"

#if defined(__x86_64__)
asm(R"(.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi); movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size simt_switch,.-simt_switch
)");
#elif defined(__aarch64__)
asm(R"(.text
.globl simt_switch
.type simt_switch,%function
simt_switch:
  sub sp,sp,#160
  stp x19,x20,[sp]; stp x21,x22,[sp,#16]; stp x23,x24,[sp,#32]; stp x25,x26,[sp,#48]; stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]; stp d10,d11,[sp,#112]; stp d12,d13,[sp,#128]; stp d14,d15,[sp,#144]
  mov x9,sp; str x9,[x0]; mov sp,x1
  ldp x19,x20,[sp]; ldp x21,x22,[sp,#16]; ldp x23,x24,[sp,#32]; ldp x25,x26,[sp,#48]; ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]; ldp d10,d11,[sp,#112]; ldp d12,d13,[sp,#128]; ldp d14,d15,[sp,#144]
  add sp,sp,#160
  ret
.size simt_switch,.-simt_switch
)");
#else
#error "simt_fibers.cpp knows how to switch stacks on x86-64 and AArch64 only"
#endif

#if defined(SIMT_THREAD_SANITIZER)
// The first race ends the program, so that a test can expect it; long histories of a thousand fibers take gigabytes.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_options() {
  return "halt_on_error=1:history_size=0";
}
#endif

namespace simt::host {
namespace {

// `last`: the stack that is left will not be returned to.
void switch_to(Context& from, const Context& to, [[maybe_unused]] bool last = false) {
  Context next;
  {
    Quiet quiet;
    next = to;
  }
  // In a register: with detect_stack_use_after_return, a stack that is left for good takes `next` with it.
  void* const sp = next.sp;
#if defined(SIMT_ADDRESS_SANITIZER)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, next.stack, next.size);
#endif
#if defined(SIMT_THREAD_SANITIZER)
  constexpr unsigned kOrdersNothing = 1;
  __tsan_switch_to_fiber(next.tsan, kOrdersNothing);
#endif
  simt_switch(&from.sp, sp);
#if defined(SIMT_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void release_barrier() {
  for (Fiber& f : block->fibers) {
    if (f.state == Fiber::at_barrier) f.state = Fiber::ready;
  }
  block->waiting = 0;
  ++block->turn;
}

void fiber_main() {
#if defined(SIMT_ADDRESS_SANITIZER)
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler.stack, &block->scheduler.size);
#endif
  acquire(&launch_tag);
  block->body(block->body_argument);
  release(&done_tag);
  Fiber* f = fiber;
  {
    Quiet quiet;
    for (const auto& group : f->copies) {
      if (!group.empty()) die("a thread ended with asynchronous copies it never waited for");
    }
    f->state = Fiber::done;
    f->warp->live &= ~(1u << f->lane);
    if (!f->has_waited) die("a thread ended without wait_for_previous()");
    if (f->warp->arrived != 0) die("a lane exited while its warp waits at a collective");
    if (--block->live > 0 && block->waiting == block->live) release_barrier();
  }
  switch_to(*f, block->scheduler, true);
  die("a finished thread was resumed");
}

// The stack as simt_switch leaves it, returning into fiber_main.
void* first_stack(const Fiber& f) {
#if defined(SIMT_ADDRESS_SANITIZER)
  // The fiber that had this stack before left it in the middle of a call, whose red zones are still there.
  __asan_unpoison_memory_region(f.stack, f.size);
#endif
  void** top = reinterpret_cast<void**>(static_cast<char*>(const_cast<void*>(f.stack)) + f.size);
#if defined(__x86_64__)
  *--top = nullptr;  // where fiber_main would return to; keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(fiber_main);
  constexpr int kSavedRegisters = 6;
  return top - kSavedRegisters;
#else
  constexpr int kSavedWords = 20, kLinkRegister = 11;
  top -= kSavedWords;
  top[kLinkRegister] = reinterpret_cast<void*>(fiber_main);
  return top;
#endif
}

void prepare(Block& b, uint3 index, size_t shared_bytes) {
  b.index = index;
  b.live = b.threads;
  b.waiting = b.at_previous = 0;
  void* memory = nullptr;
  if (posix_memalign(&memory, 1024, shared_bytes > 0 ? shared_bytes : 1) != 0) die("no memory for shared memory");
  b.shared = static_cast<unsigned char*>(std::memset(memory, 0xff, shared_bytes));  // NaN until written
  for (Warp& w : b.warps) w.arrived = w.live = 0;
  for (unsigned t = 0; t < b.threads; ++t) {
    Fiber& f = b.fibers[t];
    f.state = Fiber::ready;
    f.has_waited = false;
    f.lane = t % 32;
    f.warp = &b.warps[t / 32];
    f.index = {t % b.block.x, t / b.block.x % b.block.y, t / b.block.x / b.block.y};
    f.warp->live |= 1u << f.lane;
    f.copies.assign(1, {});
    f.sp = first_stack(f);
  }
}

// Small numbers in an order that the seed decides.
class Draw {
 public:
  Draw(unsigned seed, uint3 index) : state_(seed * 2654435761u + index.x + 31 * index.y + 977 * index.z + 1) {}
  unsigned below(unsigned n) {
    state_ = state_ * 1664525u + 1013904223u;
    return (state_ >> 8) % n;
  }

 private:
  unsigned state_;
};

// Runs each ready lane of a warp once; false when none was ready.
bool run_lanes(Block& b, unsigned warp, unsigned flip) {
  bool moved = false;
  for (unsigned l = 0; l < 32; ++l) {
    const unsigned t = warp * 32 + (l ^ flip);
    if (t >= b.threads || b.fibers[t].state != Fiber::ready) continue;
    moved = true;
    fiber = &b.fibers[t];
    switch_to(b.scheduler, *fiber);
  }
  return moved;
}

}  // namespace

void make_fibers(Block& b, unsigned threads) {
  Quiet quiet;
  b.threads = threads;
  b.warps.resize((threads + 31) / 32);
  while (b.fibers.size() < threads) {
    Fiber& f = b.fibers.emplace_back();
    f.size = Block::kStackBytes;
    f.stack = mmap(nullptr, f.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f.stack == MAP_FAILED) die("no memory for a fiber's stack");
#if defined(SIMT_THREAD_SANITIZER)
    f.tsan = __tsan_create_fiber(0);
#endif
  }
#if defined(SIMT_THREAD_SANITIZER)
  b.scheduler.tsan = __tsan_get_current_fiber();
#endif
}

void run_block(Block& b, uint3 index, size_t shared_bytes) {
  Quiet quiet;
  prepare(b, index, shared_bytes);
  block = &b;
  if (config.hides_previous && index.x + index.y + index.z == 0) hide_memory();
  release(&launch_tag);
  Draw draw(config.seed, index);
  const auto warps = static_cast<unsigned>(b.warps.size());
  const bool shuffled = config.order == Order::shuffled;
  while (b.live > 0) {
    bool moved = false;
    const unsigned first = shuffled ? draw.below(warps) : 0;
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned warp = config.order == Order::reverse ? warps - 1 - i : (first + i) % warps;
      while (run_lanes(b, warp, config.order == Order::reverse ? 31 : shuffled ? draw.below(32) : 0)) moved = true;
    }
    if (!moved) die("deadlock: threads wait at a barrier or collective that others never reach");
  }
  std::free(b.shared);
  block = nullptr;
  fiber = nullptr;
}

void barrier(const char* file, unsigned line) {
  if (is_planted(Fault::no_barrier, file, line)) return;
  char* tag = &block->tags[block->turn % 2];
  release(tag);
  {
    Quiet quiet;
    if (block->waiting == 0) {
      block->line = line;
    } else if (block->line != line) {
      die("threads of one block are at different barriers");
    }
    if (++block->waiting == block->live) {
      release_barrier();
    } else {
      fiber->state = Fiber::at_barrier;
      switch_to(*fiber, block->scheduler);
    }
  }
  acquire(tag);
}

// Orders nothing within the block: on a GPU every thread waits for itself.
void wait_for_previous() {
  Quiet quiet;
  if (std::exchange(fiber->has_waited, true) || !is_memory_hidden()) return;
  if (++block->at_previous < block->live) {
    fiber->state = Fiber::at_previous;
    switch_to(*fiber, block->scheduler);
    return;
  }
  show_memory();
  for (Fiber& f : block->fibers) {
    if (f.state == Fiber::at_previous) f.state = Fiber::ready;
  }
}

void collective(void* argument, const void* which, void (*apply)(void** arguments, unsigned live)) {
  Warp& w = *fiber->warp;
  char* tag = &w.tags[w.turn % 2];
  release(tag);
  {
    Quiet quiet;
    if (w.arrived == 0) {
      w.collective = which;
    } else if (w.collective != which) {
      die("lanes of one warp are at different collectives");
    }
    w.arguments[fiber->lane] = argument;
    w.arrived |= 1u << fiber->lane;
    if (w.arrived == w.live) {
      w.arrived = 0;
      ++w.turn;
      apply(w.arguments, w.live);
      Fiber* lanes = &block->fibers[static_cast<size_t>(&w - block->warps.data()) * 32];
      for (unsigned l = 0; l < 32; ++l) {
        if ((w.live >> l & 1) != 0) lanes[l].state = Fiber::ready;
      }
    } else {
      fiber->state = Fiber::at_collective;
      switch_to(*fiber, block->scheduler);
    }
  }
  acquire(tag);
}

}  // namespace simt::host
