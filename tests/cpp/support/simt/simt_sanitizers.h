// simt_sanitizers.h: what the address and thread sanitizers must be told about fibers; nothing without them.
//
// The thread sanitizer sees one fiber for each CUDA thread, switched in a way that orders nothing, so only barriers,
// collectives and the borders of a launch order accesses: it is a race detector for shared and global memory.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ADDRESS_SANITIZER 1
#endif
#if defined(__SANITIZE_THREAD__)
#define SIMT_THREAD_SANITIZER 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ADDRESS_SANITIZER 1
#endif
#if __has_feature(thread_sanitizer)
#define SIMT_THREAD_SANITIZER 1
#endif
#endif

#if defined(SIMT_ADDRESS_SANITIZER)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __asan_unpoison_memory_region(void const volatile* start, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** old_bottom, size_t* old_size);
}
#endif

#if defined(SIMT_THREAD_SANITIZER)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* tag);
void __tsan_release(void* tag);
void __tsan_read_range(void* address, unsigned long size);
void __tsan_write_range(void* address, unsigned long size);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace simt::host {

inline void acquire(void* tag) { __tsan_acquire(tag); }
inline void release(void* tag) { __tsan_release(tag); }
inline void will_read(const void* p, size_t n) { __tsan_read_range(const_cast<void*>(p), n); }
inline void will_write(void* p, size_t n) { __tsan_write_range(p, n); }

// While one lives, accesses are the shim's own bookkeeping and not the kernel's.
struct Quiet {
  Quiet() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Quiet() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
};

}  // namespace simt::host

#else

namespace simt::host {

inline void acquire(void*) {}
inline void release(void*) {}
inline void will_read(const void*, size_t) {}
inline void will_write(void*, size_t) {}
struct Quiet {
  Quiet() {}
};

}  // namespace simt::host

#endif
