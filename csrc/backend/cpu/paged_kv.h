// paged_kv.h: K and V of mode "fast" on the CPU: storing rows into pages, and attention over pages on all threads.
//
// A layer's K (and V) is page after page of kPagePositions slots, in each the KV heads behind each other. Results do
// not depend on the number of threads or on which rows come along.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/batch.h"
#include "core/tensor.h"
#include "core/thread_pool.h"
#include "kernels/cpu/kernel_table.h"

namespace gemmantle {

class PagedKv {
 public:
  // `dtype` of the cache: bf16, or i8 for bytes with scales.
  PagedKv(const cpu::CpuKernels& kernels, ThreadPool& pool, DType dtype);

  // Bytes of K, or of V, for `slots` slots of a layer, a multiple of kPagePositions. Heads must be of even width.
  static int64_t bytes(DType dtype, const HeadLayout& heads, int64_t slots);

  // Ops::store_kv and Ops::attend; the data of `kv` is in pages.
  void store(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots);
  void attend(Tensor y, Tensor q, const HeadLayout& heads, KvView kv, const Batch::Group& group,
              std::span<const int32_t> sequence, float scale);

 private:
  // Rows [first, first + rows) of one sequence and query heads [head, head + heads) of one KV head.
  struct Task {
    int64_t first, rows, head, heads, kv_head;
    int32_t begin, end;  // positions of any of the rows
  };
  void make_tasks(const HeadLayout& heads, const Batch::Group& group, std::span<const int32_t> sequence);
  void reserve(int64_t floats);

  const cpu::CpuKernels& k_;
  ThreadPool& pool_;
  cpu::PageType type_;
  std::vector<Task> tasks_;
  std::vector<std::unique_ptr<float[]>> scratch_;  // one a thread
  int64_t scratch_floats_ = 0;
  std::vector<float> partial_;  // states of the spans of a few long tasks
};

}  // namespace gemmantle
