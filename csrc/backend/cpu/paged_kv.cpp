#include "backend/cpu/paged_kv.h"

#include <algorithm>

#include "core/error.h"

namespace gemmantle {
namespace {

constexpr int64_t kSpan = 256;  // positions whose attention is summed up by itself; threads share spans of few queries
static_assert(kSpan % cpu::kAttendTile == 0);
constexpr int64_t kStoreRows = 64;  // rows that a thread stores at once

int64_t spans_of(int64_t begin, int64_t end) { return (end - 1) / kSpan - begin / kSpan + 1; }

cpu::AttendState state_at(float* memory, int64_t queries) { return {memory, memory + queries, memory + 2 * queries}; }

cpu::PageType page_type(DType dtype) { return dtype == DType::i8 ? cpu::PageType::q8 : cpu::PageType::bf16; }

}  // namespace

PagedKv::PagedKv(const cpu::CpuKernels& kernels, ThreadPool& pool, DType dtype)
    : k_(kernels), pool_(pool), type_(page_type(dtype)), scratch_(static_cast<size_t>(pool.threads())) {
  GEMMANTLE_CHECK(dtype == DType::bf16 || dtype == DType::i8);
}

int64_t PagedKv::bytes(DType dtype, const HeadLayout& heads, int64_t slots) {
  GEMMANTLE_CHECK(slots % cpu::kPagePositions == 0 && heads.dim % 2 == 0, slots, " slots of heads of ", heads.dim);
  return slots / cpu::kPagePositions * heads.kv * cpu::page_bytes(page_type(dtype), heads.dim);
}

void PagedKv::reserve(int64_t floats) {
  if (floats <= scratch_floats_) return;
  for (auto& memory : scratch_) memory = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(floats));
  scratch_floats_ = floats;
}

void PagedKv::store(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) {
  const int64_t dim = k.cols / kv.heads, head_bytes = cpu::page_bytes(type_, dim), page_stride = kv.heads * head_bytes;
  const int64_t chunks = (k.rows + kStoreRows - 1) / kStoreRows;
  pool_.parallel_for(chunks, [&](int64_t chunk, int) {
    for (int64_t r = chunk * kStoreRows; r < std::min(k.rows, (chunk + 1) * kStoreRows); ++r) {
      const int32_t slot = slots[static_cast<size_t>(r)];
      GEMMANTLE_CHECK(slot >= 0 && slot < kv.k.rows, "slot ", slot, " of ", kv.k.rows);
      const int64_t page = slot / cpu::kPagePositions * page_stride, lane = slot % cpu::kPagePositions;
      for (int64_t h = 0; h < kv.heads; ++h) {
        k_.pages->store(type_, static_cast<uint8_t*>(kv.k.data) + page + h * head_bytes,
                        static_cast<uint8_t*>(kv.v.data) + page + h * head_bytes, lane, k.row(r) + h * dim,
                        v.row(r) + h * dim, dim);
      }
    }
  });
}

// Neighbouring rows of a sequence go together, as many as fill a task, so that all their queries share each read of K
// and V.
void PagedKv::make_tasks(const HeadLayout& heads, const Batch::Group& group, std::span<const int32_t> sequence) {
  const int64_t shared = heads.query / heads.kv;
  const int64_t at_once = std::min<int64_t>(shared, cpu::kMaxPageQueries);
  const int64_t most_rows = cpu::kMaxPageQueries / at_once;
  tasks_.clear();
  for (int64_t first = 0, next; first < static_cast<int64_t>(sequence.size()); first = next) {
    int32_t begin = group.kv_begin[static_cast<size_t>(first)], end = group.kv_end[static_cast<size_t>(first)];
    for (next = first; next < static_cast<int64_t>(sequence.size()) && next - first < most_rows; ++next) {
      const auto at = static_cast<size_t>(next);
      if (sequence[at] != sequence[static_cast<size_t>(first)]) break;
      GEMMANTLE_CHECK(group.kv_begin[at] >= 0 && group.kv_begin[at] < group.kv_end[at], "row ", next,
                      " may look at positions ", group.kv_begin[at], " to ", group.kv_end[at]);
      begin = std::min(begin, group.kv_begin[at]);
      end = std::max(end, group.kv_end[at]);
    }
    for (int64_t kv_head = 0; kv_head < heads.kv; ++kv_head) {
      for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; head += at_once) {
        tasks_.push_back(
            {first, next - first, head, std::min(at_once, (kv_head + 1) * shared - head), kv_head, begin, end});
      }
    }
  }
}

// The range of a task is cut at multiples of kSpan, each span attended to from scratch and merged in order: the same
// sums whether one thread walks the spans or several take them side by side.
void PagedKv::attend(Tensor y, Tensor q, const HeadLayout& heads, KvView kv, const Batch::Group& group,
                     std::span<const int32_t> sequence, float scale) {
  if (q.rows == 0) return;
  GEMMANTLE_CHECK(heads.query % heads.kv == 0 && heads.kv == kv.heads && kv.block_size % cpu::kPagePositions == 0);
  make_tasks(heads, group, sequence);
  const int64_t head_bytes = cpu::page_bytes(type_, heads.dim);
  const auto args_of = [&](const Task& t) {
    const auto at = static_cast<size_t>(t.first);
    GEMMANTLE_CHECK(t.end <= group.max_blocks * kv.block_size, "row ", t.first, " looks at position ", t.end);
    return cpu::PageArgs{.q = q.row(t.first) + t.head * heads.dim,
                         .q_stride = q.stride,
                         .rows = static_cast<int>(t.rows),
                         .heads = static_cast<int>(t.heads),
                         .dim = heads.dim,
                         .begin = group.kv_begin.data() + at,
                         .end = group.kv_end.data() + at,
                         .type = type_,
                         .k = static_cast<const uint8_t*>(kv.k.data) + t.kv_head * head_bytes,
                         .v = static_cast<const uint8_t*>(kv.v.data) + t.kv_head * head_bytes,
                         .page_stride = heads.kv * head_bytes,
                         .blocks = group.block_table.data() + sequence[at] * group.max_blocks,
                         .block_size = kv.block_size,
                         .scale = scale};
  };
  const auto attend_span = [&](const Task& t, int64_t span, cpu::AttendState into, float* scratch) {
    const int64_t from = (t.begin / kSpan + span) * kSpan;
    const cpu::PageArgs args = args_of(t);
    k_.pages->attend(&args, std::max<int64_t>(t.begin, from), std::min<int64_t>(t.end, from + kSpan), into, scratch);
  };
  const auto finish = [&](const Task& t, cpu::AttendState state) {
    for (int64_t r = 0; r < t.rows; ++r) {
      const int64_t query = r * t.heads;
      k_.attend_finish(y.row(t.first + r) + t.head * heads.dim,
                       {state.max + query, state.sum + query, state.values + query * heads.dim},
                       static_cast<int>(t.heads), heads.dim);
    }
  };

  int64_t most_queries = 0, most_spans = 1;
  for (const Task& t : tasks_) {
    most_queries = std::max(most_queries, t.rows * t.heads);
    most_spans = std::max(most_spans, spans_of(t.begin, t.end));
  }
  const int64_t state = most_queries * (heads.dim + 2), tasks = static_cast<int64_t>(tasks_.size());
  reserve(2 * state + k_.pages->scratch(static_cast<int>(most_queries), heads.dim));

  if (tasks < 2 * pool_.threads() && pool_.threads() > 1 && most_spans > 1) {
    partial_.resize(std::max(partial_.size(), static_cast<size_t>(tasks * most_spans * state)));
    const auto partial = [&](int64_t task, int64_t span) {
      return state_at(partial_.data() + (task * most_spans + span) * state, most_queries);
    };
    pool_.parallel_for(tasks * most_spans, [&](int64_t chunk, int worker) {
      const Task& t = tasks_[static_cast<size_t>(chunk / most_spans)];
      const int64_t span = chunk % most_spans;
      if (span >= spans_of(t.begin, t.end)) return;
      attend_span(t, span, partial(chunk / most_spans, span), scratch_[static_cast<size_t>(worker)].get());
    });
    for (int64_t i = 0; i < tasks; ++i) {
      const Task& t = tasks_[static_cast<size_t>(i)];
      for (int64_t span = 1; span < spans_of(t.begin, t.end); ++span) {
        k_.attend_merge(partial(i, 0), partial(i, span), static_cast<int>(t.rows * t.heads), heads.dim);
      }
      finish(t, partial(i, 0));
    }
    return;
  }

  pool_.parallel_for(tasks, [&](int64_t i, int worker) {
    const Task& t = tasks_[static_cast<size_t>(i)];
    float* memory = scratch_[static_cast<size_t>(worker)].get();
    const cpu::AttendState total = state_at(memory, most_queries), part = state_at(memory + state, most_queries);
    attend_span(t, 0, total, memory + 2 * state);
    for (int64_t span = 1; span < spans_of(t.begin, t.end); ++span) {
      attend_span(t, span, part, memory + 2 * state);
      k_.attend_merge(total, part, static_cast<int>(t.rows * t.heads), heads.dim);
    }
    finish(t, total);
  });
}

}  // namespace gemmantle
