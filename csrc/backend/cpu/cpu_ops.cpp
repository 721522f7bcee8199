#include "backend/cpu/cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>

#include "core/error.h"
#include "kernels/reference/sample.h"

namespace gemmantle {
namespace {

constexpr int64_t kGrain = 16384;        // values, or products, that are worth handing to another thread
constexpr int64_t kChunksPerThread = 4;  // so that a thread that was interrupted does not hold up the others
constexpr int64_t kFewRows = 4;          // up to here a product waits for memory
constexpr int64_t kLeastRead = 48 << 10, kMostRead = 768 << 10;  // bytes of weights that a thread takes at once
constexpr int64_t kSpan = 1024;  // positions that one thread attends to, when few rows are all there is
static_assert(kSpan % cpu::kAttendTile == 0);

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

cpu::WeightRows rows_of(const Weight& w) {
  return {w.format, reinterpret_cast<const uint8_t*>(w.data), w.row_bytes, w.cols};
}

cpu::LinearArgs linear_args(Tensor y, Tensor x, const Weight& w) {
  return {static_cast<float*>(y.data),
          static_cast<const float*>(x.data),
          y.stride,
          x.stride,
          x.rows,
          nullptr,
          nullptr,
          nullptr,
          rows_of(w)};
}

void check_same(Tensor a, Tensor b) {
  GEMMANTLE_CHECK(a.rows == b.rows && a.cols == b.cols, a.rows, "x", a.cols, " against ", b.rows, "x", b.cols);
}

int64_t state_floats(int64_t heads, int64_t dim) { return heads * (dim + 2); }

cpu::AttendState state_at(float* memory, int64_t heads) { return {memory, memory + heads, memory + 2 * heads}; }

}  // namespace

CpuOps::CpuOps(const cpu::CpuKernels& kernels, ThreadPool& pool, Mode mode, DType kv)
    : k_(kernels), pool_(pool), scratch_(static_cast<size_t>(pool.threads())), encoders_{} {
  if (kv != DType::f32) pages_.emplace(kernels, pool, kv);
  if (mode == Mode::exact) return;
  encoders_[0].kernels = kernels.coded;
  encoders_[1].kernels = kernels.halves;
}

void CpuOps::reserve(int64_t floats) {
  if (floats <= scratch_floats_) return;
  for (auto& memory : scratch_) memory = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(floats));
  scratch_floats_ = floats;
}

// Calls body(first, last, worker) over [0, items) in runs of a multiple of `step`; `work` is the cost of one item in
// units of kGrain.
template <class Body>
void CpuOps::split(int64_t items, int64_t work, int64_t step, Body&& body) {
  if (items <= 0) return;
  const int64_t most = pool_.threads() == 1 ? 1 : pool_.threads() * kChunksPerThread;
  const int64_t chunks = std::clamp<int64_t>(items * std::max<int64_t>(work, 1) / kGrain, 1, most);
  const int64_t size = ceil_div(ceil_div(items, chunks), step) * step;
  pool_.parallel_for(ceil_div(items, size), [&](int64_t chunk, int worker) {
    body(chunk * size, std::min(items, (chunk + 1) * size), worker);
  });
}

// split() of rows of weights: where few rows of x meet them, reading is what takes time, and a thread reads fastest in
// long runs.
template <class Body>
void CpuOps::split_weight_rows(int64_t items, int64_t row_bytes, int64_t work, int64_t x_rows, Body&& body) {
  if (x_rows > kFewRows || pool_.threads() == 1) return split(items, work, 8, body);
  const int64_t share = items * row_bytes / (pool_.threads() * kChunksPerThread);
  const int64_t bytes = std::clamp(share, kLeastRead, kMostRead);
  const int64_t size = std::min(items, ceil_div(ceil_div(bytes, row_bytes), 8) * 8);
  pool_.parallel_for(ceil_div(items, size), [&](int64_t chunk, int worker) {
    body(chunk * size, std::min(items, (chunk + 1) * size), worker);
  });
}

// Calls body(row, first column, columns): by rows, and within rows where there are few.
template <class Body>
void CpuOps::each_value(int64_t rows, int64_t cols, Body&& body) {
  if (rows >= pool_.threads() * kChunksPerThread || cols <= kGrain) {
    split(rows, cols, 1, [&](int64_t first, int64_t last, int) {
      for (int64_t r = first; r < last; ++r) body(r, int64_t{0}, cols);
    });
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    split(cols, 1, 64, [&](int64_t first, int64_t last, int) { body(r, first, last - first); });
  }
}

void CpuOps::embed(Tensor y, const Weight& table, std::span<const int32_t> ids, float scale) {
  GEMMANTLE_CHECK(y.cols == table.cols && y.rows == static_cast<int64_t>(ids.size()));
  const cpu::WeightRows rows = rows_of(table);
  split(y.rows, y.cols, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      const int32_t id = ids[static_cast<size_t>(r)];
      GEMMANTLE_CHECK(id >= 0 && id < table.rows, "id ", id, " of ", table.rows);
      k_.embed(y.row(r), &rows, id, scale);
    }
  });
}

CpuOps::Encoder* CpuOps::encoder_of(const Weight& w) {
  for (Encoder& encoder : encoders_) {
    if (encoder.kernels != nullptr && w && encoder.kernels->takes(w.format)) return &encoder;
  }
  return nullptr;
}

int64_t CpuOps::linear_scratch(const Weight& w) {
  const Encoder* encoder = encoder_of(w);
  return encoder != nullptr ? encoder->kernels->scratch(w.cols) : k_.linear_scratch(w.cols);
}

// The rows stand until the next call for a weight of the same encoder.
CpuOps::Encoded CpuOps::encode(Tensor x, const Weight& w) {
  constexpr int64_t kLine = 64;
  Encoder* encoder = encoder_of(w);
  if (encoder == nullptr) return {};
  const cpu::CodedKernels& kernels = *encoder->kernels;
  // An odd number of lines: several rows are read at once, and caches are slow where they lie a multiple of 4 KiB
  // apart.
  const int64_t row_bytes = (ceil_div(kernels.bytes(x.cols), kLine) | 1) * kLine;
  if (const int64_t bytes = x.rows * row_bytes + kLine; bytes > encoder->bytes) {
    encoder->memory = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(bytes));
    encoder->bytes = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(encoder->memory.get());
  uint8_t* rows = encoder->memory.get() + (kLine - address % kLine) % kLine;
  split(x.rows, x.cols, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) kernels.encode(rows + r * row_bytes, x.row(r), x.cols);
  });
  return {&kernels, {rows, row_bytes}};
}

std::pair<CpuOps::Encoded, CpuOps::Encoded> CpuOps::encode(Tensor x, const Weight& a, const Weight& b) {
  const Encoded for_a = encode(x, a);
  return {for_a, encoder_of(a) == encoder_of(b) ? for_a : encode(x, b)};
}

void CpuOps::multiply(const cpu::LinearArgs& args, const Encoded& x, int64_t first, int64_t last, int worker) {
  if (x.kernels != nullptr) {
    x.kernels->linear(&args, x.rows, first, last, scratch(worker));
  } else {
    k_.linear(&args, first, last, scratch(worker));
  }
}

void CpuOps::linear(Tensor y, Tensor x, const Weight& w) {
  GEMMANTLE_CHECK(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows, "x ", x.rows, "x", x.cols, ", y ", y.rows,
                  "x", y.cols, ", w ", w.rows, "x", w.cols);
  if (x.rows == 0) return;
  reserve(linear_scratch(w));
  const cpu::LinearArgs args = linear_args(y, x, w);
  const Encoded encoded = encode(x, w);
  split_weight_rows(w.rows, w.row_bytes, w.cols * x.rows, x.rows,
                    [&](int64_t first, int64_t last, int worker) { multiply(args, encoded, first, last, worker); });
}

void CpuOps::rms_norm(Tensor y, Tensor x, const float* weight, int64_t group, float eps) {
  check_same(y, x);
  GEMMANTLE_CHECK(group > 0 && x.cols % group == 0, "group ", group, " of ", x.cols);
  split(x.rows, x.cols, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) k_.rms_norm(y.row(r), x.row(r), weight, x.cols, group, eps);
  });
}

void CpuOps::add(Tensor y, Tensor x, float scale) {
  check_same(y, x);
  each_value(y.rows, y.cols, [&](int64_t r, int64_t c, int64_t n) { k_.add(y.row(r) + c, x.row(r) + c, n, scale); });
}

void CpuOps::scale(Tensor y, Tensor x, const float* weight, float scale) {
  check_same(y, x);
  each_value(y.rows, y.cols, [&](int64_t r, int64_t c, int64_t n) {
    k_.scale(y.row(r) + c, x.row(r) + c, weight == nullptr ? nullptr : weight + c, n, scale);
  });
}

void CpuOps::gelu_mul(Tensor y, Tensor gate, Tensor up) {
  check_same(y, gate);
  check_same(y, up);
  each_value(y.rows, y.cols,
             [&](int64_t r, int64_t c, int64_t n) { k_.gelu_mul(y.row(r) + c, gate.row(r) + c, up.row(r) + c, n); });
}

void CpuOps::softcap(Tensor y, float cap) {
  each_value(y.rows, y.cols, [&](int64_t r, int64_t c, int64_t n) { k_.softcap(y.row(r) + c, n, cap); });
}

const CpuOps::Turns& CpuOps::turns(const float* freq, int64_t half, std::span<const int32_t> positions) {
  // By content, not by address: buffers of another step may lie where those of this one lay.
  for (const Turns& known : turns_) {
    if (known.freq.size() == static_cast<size_t>(half) && known.positions.size() == positions.size() &&
        std::equal(positions.begin(), positions.end(), known.positions.begin()) &&
        std::equal(freq, freq + half, known.freq.begin())) {
      return known;
    }
  }
  Turns& fresh = turns_[next_turns_++ % std::size(turns_)];
  fresh.freq.assign(freq, freq + half);
  fresh.positions.assign(positions.begin(), positions.end());
  fresh.values.resize(positions.size() * static_cast<size_t>(2 * half));
  constexpr int64_t kTurnWork = 64;  // a sine and a cosine cost about this many products
  split(static_cast<int64_t>(positions.size()), half * kTurnWork, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      k_.rope_turns(fresh.values.data() + r * 2 * half, freq, half, positions[static_cast<size_t>(r)]);
    }
  });
  return fresh;
}

void CpuOps::rope(Tensor x, int64_t head_dim, Rope rope, std::span<const int32_t> positions) {
  GEMMANTLE_CHECK(head_dim > 0 && head_dim % 2 == 0 && x.cols % head_dim == 0, "heads of ", head_dim, " in ", x.cols);
  GEMMANTLE_CHECK(x.rows == static_cast<int64_t>(positions.size()));
  if (x.rows == 0) return;
  const int64_t half = head_dim / 2;
  const Turns& t = turns(rope.freq, half, positions);
  split(x.rows, x.cols, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) k_.rope(x.row(r), t.values.data() + r * head_dim, x.cols / head_dim, half);
  });
}

void CpuOps::store_kv(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) {
  check_same(k, v);
  GEMMANTLE_CHECK(k.rows == static_cast<int64_t>(slots.size()) && kv.k.cols == k.cols && kv.v.cols == v.cols);
  if (pages_) return pages_->store(kv, k, v, slots);
  const size_t bytes = static_cast<size_t>(k.cols) * sizeof(float);
  split(k.rows, 2 * k.cols, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      const int32_t slot = slots[static_cast<size_t>(r)];
      GEMMANTLE_CHECK(slot >= 0 && slot < kv.k.rows, "slot ", slot, " of ", kv.k.rows);
      std::memcpy(kv.k.row(slot), k.row(r), bytes);
      std::memcpy(kv.v.row(slot), v.row(r), bytes);
    }
  });
}

// A task is a row and at most kMaxAttendHeads query heads of one KV head. Its range is cut at multiples of kSpan, each
// part attended to from scratch and merged in order: the same sums whether one thread walks the parts or, when there
// are fewer tasks than threads (decode over a long context), several take them side by side.
void CpuOps::attend(Tensor y, Tensor q, HeadLayout heads, KvView kv, const Batch::Group& group,
                    std::span<const int32_t> sequence, float scale) {
  check_same(y, q);
  GEMMANTLE_CHECK(q.cols == heads.q_dim() && kv.k.cols == heads.kv_dim() && heads.query % heads.kv == 0);
  if (q.rows == 0) return;
  if (pages_) return pages_->attend(y, q, heads, kv, group, sequence, scale);
  const int64_t shared = heads.query / heads.kv;
  const int64_t at_once = std::min<int64_t>(shared, cpu::kMaxAttendHeads);
  const int64_t parts = ceil_div(shared, at_once);  // of one KV head
  const int64_t per_row = heads.kv * parts;
  const int64_t state = state_floats(at_once, heads.dim);
  reserve(2 * state + cpu::kAttendScratch);

  struct Task {
    cpu::AttendArgs args;
    float* y;
    int64_t begin, end;
  };
  const auto task_of = [&](int64_t index) {
    const int64_t r = index / per_row, kv_head = index % per_row / parts, part = index % parts;
    const auto at = static_cast<size_t>(r);
    const int64_t first = kv_head * shared + part * at_once;  // query head
    const int64_t count = std::min(at_once, (kv_head + 1) * shared - first);
    Task t;
    t.args = {q.row(r) + first * heads.dim,
              static_cast<int>(count),
              heads.dim,
              static_cast<const float*>(kv.k.data) + kv_head * heads.dim,
              static_cast<const float*>(kv.v.data) + kv_head * heads.dim,
              kv.k.stride,
              kv.v.stride,
              group.block_table.data() + sequence[at] * group.max_blocks,
              kv.block_size,
              scale};
    t.y = y.row(r) + first * heads.dim;
    t.begin = group.kv_begin[at];
    t.end = group.kv_end[at];
    GEMMANTLE_CHECK(t.begin >= 0 && t.begin < t.end && t.end <= group.max_blocks * kv.block_size, "row ", r,
                    " may look at positions ", t.begin, " to ", t.end);
    return t;
  };
  const auto spans_of = [](const Task& t) { return (t.end - 1) / kSpan - t.begin / kSpan + 1; };
  const auto attend_span = [&](const Task& t, int64_t span, cpu::AttendState into, float* scores) {
    const int64_t from = (t.begin / kSpan + span) * kSpan;
    k_.attend(&t.args, std::max(t.begin, from), std::min(t.end, from + kSpan), into, scores);
  };

  const int64_t tasks = q.rows * per_row;
  int64_t most_spans = 1, positions = 0;
  for (int64_t r = 0; r < q.rows; ++r) {
    const Task t = task_of(r * per_row);
    most_spans = std::max(most_spans, spans_of(t));
    positions += t.end - t.begin;
  }

  if (tasks < 2 * pool_.threads() && pool_.threads() > 1 && most_spans > 1) {
    partial_.resize(std::max(partial_.size(), static_cast<size_t>(tasks * most_spans * state)));
    const auto partial = [&](int64_t task, int64_t span) {
      return state_at(partial_.data() + (task * most_spans + span) * state, at_once);
    };
    pool_.parallel_for(tasks * most_spans, [&](int64_t chunk, int worker) {
      const Task t = task_of(chunk / most_spans);
      const int64_t span = chunk % most_spans;
      if (span < spans_of(t)) attend_span(t, span, partial(chunk / most_spans, span), scratch(worker));
    });
    for (int64_t i = 0; i < tasks; ++i) {
      const Task t = task_of(i);
      for (int64_t span = 1; span < spans_of(t); ++span) {
        k_.attend_merge(partial(i, 0), partial(i, span), t.args.heads, heads.dim);
      }
      k_.attend_finish(t.y, partial(i, 0), t.args.heads, heads.dim);
    }
    return;
  }

  split(tasks, 2 * positions / q.rows * heads.dim * at_once, 1, [&](int64_t first, int64_t last, int worker) {
    const cpu::AttendState total = state_at(scratch(worker), at_once),
                           part = state_at(scratch(worker) + state, at_once);
    float* scores = scratch(worker) + 2 * state;
    for (int64_t i = first; i < last; ++i) {
      const Task t = task_of(i);
      attend_span(t, 0, total, scores);
      for (int64_t span = 1; span < spans_of(t); ++span) {
        attend_span(t, span, part, scores);
        k_.attend_merge(total, part, t.args.heads, heads.dim);
      }
      k_.attend_finish(t.y, total, t.args.heads, heads.dim);
    }
  });
}

void CpuOps::route(Routing routing, Tensor logits, const float* expert_scale) {
  const int64_t used = routing.experts.cols;
  GEMMANTLE_CHECK(used >= 1 && used <= logits.cols && routing.weights.cols == used &&
                  routing.experts.dtype == DType::i32);
  for (int64_t r = 0; r < logits.rows; ++r) {
    auto* ids = static_cast<int32_t*>(routing.experts.data) + r * routing.experts.stride;
    k_.route(ids, routing.weights.row(r), logits.row(r), expert_scale, logits.cols, used);
  }
}

// Rows are grouped by expert, so that an expert's weights are widened once for all rows that use it. A row adds its
// experts in the order of their ids, whoever else is there.
void CpuOps::experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
                     Tensor scratch_rows) {
  const int64_t used = routing.experts.cols, width = down.cols, count = down.count;
  GEMMANTLE_CHECK(gate_up.cols == x.cols && gate_up.rows == (up ? width : 2 * width) && down.rows == y.cols);
  GEMMANTLE_CHECK(scratch_rows.rows >= x.rows * used && scratch_rows.cols >= 2 * width);
  if (x.rows == 0) return;
  const auto id_of = [&](int64_t r, int64_t j) {
    return static_cast<const int32_t*>(routing.experts.data)[r * routing.experts.stride + j];
  };

  // Counting sort by expert: places[starts[e] .. starts[e + 1]) are the rows of scratch that expert e fills.
  const auto entries = static_cast<size_t>(x.rows * used);
  expert_starts_.assign(static_cast<size_t>(count) + 1, 0);
  for (auto* list : {&expert_rows_, &expert_places_}) list->resize(std::max(list->size(), entries));
  expert_factors_.resize(std::max(expert_factors_.size(), entries));
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t j = 0; j < used; ++j) {
      GEMMANTLE_CHECK(id_of(r, j) >= 0 && id_of(r, j) < count, "expert ", id_of(r, j), " of ", count);
      ++expert_starts_[static_cast<size_t>(id_of(r, j)) + 1];
    }
  }
  for (size_t e = 0; e < static_cast<size_t>(count); ++e) expert_starts_[e + 1] += expert_starts_[e];
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t j = 0; j < used; ++j) {
      // starts[e] walks to the start of e + 1 while it is filled, and is moved back below.
      const auto at = static_cast<size_t>(expert_starts_[static_cast<size_t>(id_of(r, j))]++);
      expert_rows_[at] = static_cast<int32_t>(r);
      expert_places_[at] = static_cast<int32_t>(r * used + j);
      expert_factors_[at] = routing.weights.row(r)[j];
    }
  }
  std::move_backward(expert_starts_.begin(), expert_starts_.end() - 1, expert_starts_.end());
  expert_starts_[0] = 0;

  reserve(std::max({linear_scratch(gate_up), up ? linear_scratch(up) : 0, linear_scratch(down)}));
  const auto [x_for_gate, x_for_up] = encode(x, gate_up, up ? up : gate_up);
  const auto for_each_expert = [&](auto&& body) {
    for (int32_t e = 0; e < count; ++e) {
      const int32_t first = expert_starts_[static_cast<size_t>(e)],
                    n = expert_starts_[static_cast<size_t>(e) + 1] - first;
      if (n > 0) body(e, static_cast<size_t>(first), n);
    }
  };
  const Tensor g = scratch_rows.columns(0, width), u = scratch_rows.columns(width, width);
  const int64_t work = x.rows * used;
  split(width, 2 * work * x.cols, 8, [&](int64_t first, int64_t last, int worker) {
    for_each_expert([&](int32_t e, size_t at, int32_t n) {
      const Weight both = gate_up.expert(e);
      const Weight ups = up ? up.expert(e) : both.slice(width, width);
      for (const auto& [out, weight, in] :
           {std::tuple{g, up ? both : both.slice(0, width), x_for_gate}, std::tuple{u, ups, x_for_up}}) {
        cpu::LinearArgs args = linear_args(out, x, weight);
        args.rows = n;
        args.from = expert_rows_.data() + at;
        args.to = expert_places_.data() + at;
        multiply(args, in, first, last, worker);
      }
      for (int32_t i = 0; i < n; ++i) {
        const int32_t place = expert_places_[at + static_cast<size_t>(i)];
        k_.gelu_mul(g.row(place) + first, g.row(place) + first, u.row(place) + first, last - first);
      }
    });
  });
  const Encoded encoded_g = encode(g.slice(0, work), down);
  split(down.rows, work * width, 8, [&](int64_t first, int64_t last, int worker) {
    for (int64_t r = 0; r < y.rows; ++r) std::fill(y.row(r) + first, y.row(r) + last, 0.0f);
    for_each_expert([&](int32_t e, size_t at, int32_t n) {
      cpu::LinearArgs args = linear_args(y, g, down.expert(e));
      args.rows = n;
      args.from = expert_places_.data() + at;
      args.to = expert_rows_.data() + at;
      args.factor = expert_factors_.data() + at;
      multiply(args, encoded_g, first, last, worker);
    });
  });
}

void CpuOps::copy_rows(Tensor y, Tensor x, std::span<const int32_t> rows) {
  GEMMANTLE_CHECK(y.cols == x.cols && y.rows == static_cast<int64_t>(rows.size()));
  for (int64_t r = 0; r < y.rows; ++r) {
    const int32_t from = rows[static_cast<size_t>(r)];
    GEMMANTLE_CHECK(from >= 0 && from < x.rows, "row ", from, " of ", x.rows);
    std::memcpy(y.row(r), x.row(from), static_cast<size_t>(y.cols) * sizeof(float));
  }
}

void CpuOps::sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) {
  GEMMANTLE_CHECK(logits.rows == static_cast<int64_t>(rows.size()) && rows.size() == tokens.size());
  reserve(ceil_div(static_cast<int64_t>(reference::sample_scratch_bytes(logits.cols)), sizeof(float)));
  pool_.parallel_for(logits.rows, [&](int64_t r, int worker) {
    const auto at = static_cast<size_t>(r);
    reference::sample_row(logits.row(r), logits.cols, rows[at], tokens[at], scratch(worker));
  });
}

void CpuOps::check_finite(Tensor x, int tag) {
  if (not_finite_ != Backend::kFinite && not_finite_ <= tag) return;
  std::atomic<bool> finite = true;
  each_value(x.rows, x.cols, [&](int64_t r, int64_t c, int64_t n) {
    if (!k_.is_finite(x.row(r) + c, n)) finite.store(false, std::memory_order_relaxed);
  });
  if (!finite) not_finite_ = tag;
}

int CpuOps::take_not_finite() { return std::exchange(not_finite_, Backend::kFinite); }

void CpuOps::add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps) {
  check_same(h, y);
  if (next != nullptr) check_same(h, x);
  split(h.rows, 4 * h.cols, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      k_.rms_norm(y.row(r), y.row(r), post, y.cols, y.cols, eps);
      k_.add(h.row(r), y.row(r), h.cols, scale);
      if (next != nullptr) k_.rms_norm(x.row(r), h.row(r), next, h.cols, h.cols, eps);
    }
  });
}

void CpuOps::geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch_rows) {
  const Tensor g = scratch_rows.columns(0, gate.rows), u = scratch_rows.columns(gate.rows, up.rows);
  check_same(g, u);
  GEMMANTLE_CHECK(x.cols == gate.cols && x.cols == up.cols && x.rows == scratch_rows.rows);
  if (x.rows == 0) return;
  reserve(std::max(linear_scratch(gate), linear_scratch(up)));
  const cpu::LinearArgs gates = linear_args(g, x, gate), ups = linear_args(u, x, up);
  const auto [x_for_gate, x_for_up] = encode(x, gate, up);
  split_weight_rows(gate.rows, gate.row_bytes + up.row_bytes, 2 * x.cols * x.rows, x.rows,
                    [&](int64_t first, int64_t last, int worker) {
                      multiply(gates, x_for_gate, first, last, worker);
                      multiply(ups, x_for_up, first, last, worker);
                      for (int64_t r = 0; r < x.rows; ++r) {
                        k_.gelu_mul(g.row(r) + first, g.row(r) + first, u.row(r) + first, last - first);
                      }
                    });
  linear(y, g, down);
}

}  // namespace gemmantle
