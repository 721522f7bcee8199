#include "backend/cuda/cuda_ops.h"

#include <algorithm>
#include <bit>
#include <type_traits>
#include <vector>

#include "core/error.h"

namespace gemmantle::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t kUnpackedBytes = size_t{64} << 20;  // of a packed weight that are bf16 at a time

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

template <class T>
View<T> view(Tensor t) {
  constexpr DType kType = std::is_same_v<std::remove_const_t<T>, float> ? DType::f32 : DType::i32;
  GEMMANTLE_CHECK(t.dtype == kType);
  return {static_cast<T*>(t.data), static_cast<int>(t.rows), static_cast<int>(t.cols), t.stride};
}
Rows rows_of(Tensor t) { return view<float>(t); }
ConstRows input_of(Tensor t) { return view<const float>(t); }

void mix(StepKey& key, const Tensor& t) {
  key.mix(reinterpret_cast<uintptr_t>(t.data));
  key.mix(static_cast<uint64_t>(t.rows));
  key.mix(static_cast<uint64_t>(t.cols));
  key.mix(static_cast<uint64_t>(t.stride));
}
void mix(StepKey& key, const Weight& w) { key.mix(reinterpret_cast<uintptr_t>(w.data)); }
void mix(StepKey& key, const void* address) { key.mix(reinterpret_cast<uintptr_t>(address)); }
void mix(StepKey& key, StepMemory::Slot slot) {
  key.mix(slot.offset);
  key.mix(slot.bytes);
}
void mix(StepKey& key, float value) { key.mix(std::bit_cast<uint32_t>(value)); }
void mix(StepKey& key, int value) { key.mix(static_cast<uint64_t>(value)); }

bool same_planes(const Matrix& a, const Matrix& b) {
  return a.plane == b.plane && a.group == b.group && a.wide_scales == b.wide_scales && a.rows == b.rows &&
         a.cols == b.cols && (a.offsets == nullptr) == (b.offsets == nullptr);
}

// Consecutive rows of one sequence, at most `most` to a tile.
std::vector<AttendTile> tiles_of(std::span<const int32_t> sequence, int most) {
  std::vector<AttendTile> tiles;
  for (size_t r = 0; r < sequence.size(); ++r) {
    const bool goes_on = !tiles.empty() && tiles.back().sequence == sequence[r] && tiles.back().rows < most;
    if (!goes_on) tiles.push_back({static_cast<int32_t>(r), 0, sequence[r]});
    ++tiles.back().rows;
  }
  return tiles;
}

// The lists of all rows to sample behind each other: a step's key knows the room they take together, not which row has
// which list, so that it stays while some of them grow, come and go.
class SampleLists {
 public:
  SampleLists(std::span<const SampleRow> rows, int64_t vocabulary) {
    for (size_t r = 0; r < rows.size(); ++r) {
      const SampleRow& row = rows[r];
      const size_t at = r * sizeof(SampleRow);
      add(at + offsetof(SampleRow, seen), row.seen, row.n_seen);
      add(at + offsetof(SampleRow, bias), row.bias, row.n_bias);
      add(at + offsetof(SampleRow, banned), row.banned, row.n_banned);
      add(at + offsetof(SampleRow, allowed), row.allowed, (vocabulary + 31) / 32);
    }
  }

  // Into step memory, and their addresses into the rows that lie at `rows`.
  StepMemory::Slot bring(StepMemory& memory, StepMemory::Slot rows) const {
    const StepMemory::Slot lists = memory.put(std::span(bytes_));
    for (const Place& p : places_) memory.point(rows, p.pointer, {lists.offset + p.list, 0});
    return lists;
  }

 private:
  struct Place {
    size_t pointer, list;
  };

  template <class T>
  void add(size_t pointer, const T* list, int64_t n) {
    if (list == nullptr) return;
    constexpr size_t kListAlign = 16;
    places_.push_back({pointer, bytes_.size()});
    const auto bytes = std::as_bytes(std::span(list, static_cast<size_t>(n)));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    bytes_.resize((bytes_.size() + kListAlign - 1) / kListAlign * kListAlign);
  }

  std::vector<std::byte> bytes_;
  std::vector<Place> places_;
};

// K and V of `k`'s shape may go to these slots.
void check_slots(const KvView& kv, Tensor k, std::span<const int32_t> slots) {
  GEMMANTLE_CHECK(kv.k.dtype == DType::bf16 && kv.k.cols == k.cols && kv.k.stride == k.cols);
  GEMMANTLE_CHECK(k.rows == static_cast<int64_t>(slots.size()));
  for (const int32_t slot : slots) GEMMANTLE_CHECK(slot >= -1 && slot < kv.k.rows, "slot ", slot);
}

}  // namespace

template <class... Given>
bool CudaOps::launches(const char* operation, const Given&... given) {
  if (memory_.phase() == StepMemory::Phase::issue) return true;
  mix(key_, static_cast<const void*>(operation));
  (mix(key_, given), ...);
  return false;
}

void CudaOps::begin(int32_t* smallest_tag) {
  smallest_tag_ = smallest_tag;
  if (memory_.phase() == StepMemory::Phase::plan) key_.reset();
}

void CudaOps::embed(Tensor y, const Weight& table, std::span<const int32_t> ids, float scale) {
  const Matrix& m = weights_.find(table);
  GEMMANTLE_CHECK(y.cols == m.cols && y.rows == static_cast<int64_t>(ids.size()));
  const StepMemory::Slot brought = memory_.share(ids);
  if (!launches("embed", y, table, brought, scale)) return;
  cuda::embed(stream_, rows_of(y), m, memory_.address<int32_t>(brought), scale);
}

void CudaOps::linear(Tensor y, Tensor x, const Weight& w) { head(y, x, w, 0); }

void CudaOps::head(Tensor y, Tensor x, const Weight& w, float cap) {
  const Matrix& m = weights_.find(w);
  GEMMANTLE_CHECK(m.count == 1 && x.cols == m.cols && y.cols == m.rows && x.rows == y.rows);
  if (x.rows > kFewRows) {
    multiply_many(rows_of(y), input_of(x), m, cap);
    launches("linear", y, x, w, cap);
  } else if (launches("linear", y, x, w, cap) && x.rows > 0) {
    product_few(stream_, rows_of(y), input_of(x), m, cap);
  }
}

void CudaOps::multiply_many(Rows y, ConstRows x, const Matrix& w, float cap) {
  const int64_t row_bytes = int64_t{2} * w.padded_cols;
  const size_t rounded_bytes = aligned(static_cast<size_t>(x.rows * row_bytes));
  const bool packed = w.plane != Plane::bf16;
  const int at_once =
      packed
          ? static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(kUnpackedBytes) / row_bytes, 1, int64_t{w.rows}))
          : w.rows;
  auto* scratch =
      static_cast<std::byte*>(memory_.scratch(rounded_bytes + (packed ? static_cast<size_t>(at_once * row_bytes) : 0)));
  if (memory_.phase() == StepMemory::Phase::plan) return;

  auto* rounded = reinterpret_cast<Bf16*>(scratch);
  auto* unpacked = reinterpret_cast<Bf16*>(scratch + rounded_bytes);
  round_rows(stream_, {rounded, x.rows, w.padded_cols, w.padded_cols}, x);
  for (int first = 0; first < w.rows; first += at_once) {
    const int n = std::min(at_once, w.rows - first);
    const Bf16* weights = reinterpret_cast<const Bf16*>(w.values);
    if (packed) {
      unpack_rows(stream_, {unpacked, n, w.padded_cols, w.padded_cols}, w, first);
      weights = unpacked;
    }
    gemm(stream_, {y.data + first, y.rows, n, y.stride}, {rounded, x.rows, w.padded_cols, w.padded_cols},
         {weights, n, w.padded_cols, w.padded_cols}, cap);
  }
}

void CudaOps::rms_norm(Tensor y, Tensor x, const float* weight, int64_t group, float eps) {
  GEMMANTLE_CHECK(x.cols % group == 0 && y.cols == x.cols && y.rows == x.rows);
  if (!launches("rms_norm", y, x, weight, static_cast<int>(group), eps)) return;
  cuda::rms_norm(stream_, rows_of(y), input_of(x), weight, static_cast<int>(group), eps);
}

void CudaOps::add(Tensor y, Tensor x, float scale) {
  if (launches("add", y, x, scale)) cuda::add(stream_, rows_of(y), input_of(x), scale);
}

void CudaOps::scale(Tensor y, Tensor x, const float* weight, float scale) {
  if (launches("scale", y, x, weight, scale)) cuda::scale(stream_, rows_of(y), input_of(x), weight, scale);
}

void CudaOps::gelu_mul(Tensor y, Tensor gate, Tensor up) {
  if (launches("gelu_mul", y, gate, up)) cuda::gelu_mul(stream_, rows_of(y), input_of(gate), input_of(up));
}

void CudaOps::softcap(Tensor y, float cap) {
  if (launches("softcap", y, cap)) cuda::softcap(stream_, rows_of(y), cap);
}

void CudaOps::rope(Tensor x, int64_t head_dim, Rope rope, std::span<const int32_t> positions) {
  const StepMemory::Slot brought = memory_.share(positions);
  if (!launches("rope", x, static_cast<int>(head_dim), rope.freq, brought)) return;
  cuda::rope(stream_, rows_of(x), static_cast<int>(head_dim), rope.freq, memory_.address<int32_t>(brought));
}

void CudaOps::store_kv(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) {
  GEMMANTLE_CHECK(v.cols == k.cols);
  check_slots(kv, k, slots);
  const StepMemory::Slot brought = memory_.share(slots);
  if (!launches("store_kv", kv.k, kv.v, k, v, brought)) return;
  cuda::store_kv(stream_, static_cast<Bf16*>(kv.k.data), static_cast<Bf16*>(kv.v.data), input_of(k), input_of(v),
                 memory_.address<int32_t>(brought));
}

bool CudaOps::takes_prompt_tiles(std::span<const int32_t> sequence) const {
  return std::adjacent_find(sequence.begin(), sequence.end()) != sequence.end();
}

// Enough blocks for two on every multiprocessor, as long as each has some keys; it depends on what is in the key only.
int CudaOps::splits_for(int tiles, int kv_heads, int keys) const {
  constexpr int kKeysPerSplit = 256, kMostSplits = 32;
  const int wanted = (2 * multiprocessors_ + tiles * kv_heads - 1) / (tiles * kv_heads);
  return std::clamp(std::min(wanted, keys / kKeysPerSplit), 1, kMostSplits);
}

void CudaOps::attend(Tensor y, Tensor q, HeadLayout heads, KvView kv, const Batch::Group& group,
                     std::span<const int32_t> sequence, float scale) {
  if (!attend_takes(heads.dim)) {
    throw Error(ErrorCode::unsupported,
                str("the CUDA backend has no attention for heads of ", heads.dim, "; use device 'cpu'"), "device");
  }
  GEMMANTLE_CHECK(kv.k.dtype == DType::bf16 && q.cols == heads.q_dim() && kv.k.cols == heads.kv_dim());
  if (q.rows == 0) return;
  const int query_group = heads.query / heads.kv;
  AttendArgs args;
  args.tile_rows = attend_tile_rows(heads.dim, query_group, takes_prompt_tiles(sequence));
  const std::vector<AttendTile> tiles = tiles_of(sequence, args.tile_rows);
  args.n_tiles = static_cast<int>(tiles.size());
  int most_keys = 1;
  for (size_t r = 0; r < sequence.size(); ++r) most_keys = std::max(most_keys, group.kv_end[r] - group.kv_begin[r]);
  // Lengths grow by one each step: only their power of two may be part of what a recorded step was given.
  args.splits = splits_for(args.n_tiles, heads.kv, static_cast<int>(std::bit_ceil(static_cast<unsigned>(most_keys))));

  const auto max_blocks = static_cast<int32_t>(group.max_blocks);
  const StepMemory::Slot brought_tiles = memory_.put(std::span(tiles));
  const StepMemory::Slot table = memory_.share(group.block_table);
  const StepMemory::Slot width = memory_.put(&max_blocks, sizeof max_blocks);
  const StepMemory::Slot begin = memory_.share(group.kv_begin), end = memory_.share(group.kv_end);
  args.partial = args.splits > 1 ? static_cast<float*>(memory_.scratch(attend_scratch_bytes(
                                       static_cast<int>(q.rows), heads.query, heads.dim, args.splits)))
                                 : nullptr;
  if (!launches("attend", y, q, heads.query, heads.kv, heads.dim, kv.k, kv.v, static_cast<int>(kv.block_size), scale,
                args.tile_rows, args.n_tiles, args.splits, brought_tiles, table, width, begin, end)) {
    return;
  }
  args.y = rows_of(y);
  args.q = input_of(q);
  args.heads = heads.query;
  args.kv_heads = heads.kv;
  args.dim = heads.dim;
  args.scale = scale;
  args.k = static_cast<const Bf16*>(kv.k.data);
  args.v = static_cast<const Bf16*>(kv.v.data);
  args.block_size = static_cast<int>(kv.block_size);
  args.block_table = memory_.address<int32_t>(table);
  args.max_blocks = memory_.address<int32_t>(width);
  args.kv_begin = memory_.address<int32_t>(begin);
  args.kv_end = memory_.address<int32_t>(end);
  args.tiles = memory_.address<AttendTile>(brought_tiles);
  cuda::attend(stream_, args);
}

void CudaOps::route(Routing routing, Tensor logits, const float* expert_scale) {
  if (!launches("route", routing.experts, routing.weights, logits, expert_scale)) return;
  cuda::route(stream_, view<int32_t>(routing.experts), rows_of(routing.weights), input_of(logits), expert_scale);
}

void CudaOps::experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
                      Tensor) {
  ExpertArgs args;
  args.y = rows_of(y);
  args.x = input_of(x);
  args.ids = view<const int32_t>(routing.experts);
  args.weights = input_of(routing.weights);
  args.gate_up = weights_.find(gate_up);
  if (up) args.up = weights_.find(up);
  args.down = weights_.find(down);
  args.scratch = memory_.scratch(experts_scratch_bytes(args));
  if (launches("experts", y, x, routing.experts, routing.weights, gate_up, up, down)) cuda::experts(stream_, args);
}

void CudaOps::copy_rows(Tensor y, Tensor x, std::span<const int32_t> rows) {
  GEMMANTLE_CHECK(y.cols == x.cols && y.rows == static_cast<int64_t>(rows.size()));
  const StepMemory::Slot brought = memory_.share(rows);
  if (!launches("copy_rows", y, x, brought)) return;
  cuda::copy_rows(stream_, rows_of(y), input_of(x), memory_.address<int32_t>(brought));
}

void CudaOps::sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) {
  GEMMANTLE_CHECK(logits.rows == static_cast<int64_t>(rows.size()) && rows.size() == tokens.size());
  if (rows.empty()) return;
  const StepMemory::Slot brought = memory_.put(rows);
  const StepMemory::Slot lists = SampleLists(rows, logits.cols).bring(memory_, brought);
  const StepMemory::Slot drawn = memory_.result(tokens.data(), tokens.size_bytes());
  void* scratch = memory_.scratch(sample_scratch_bytes(static_cast<int>(logits.rows), static_cast<int>(logits.cols)));
  if (!launches("sample", logits, brought, lists, drawn)) return;
  cuda::sample(stream_, memory_.address<SampledToken>(drawn), input_of(logits), memory_.address<SampleRow>(brought),
               scratch);
}

void CudaOps::check_finite(Tensor x, int tag) {
  if (launches("check_finite", x, tag)) cuda::check_finite(stream_, input_of(x), tag, smallest_tag_);
}

void CudaOps::add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps) {
  if (!launches("add_norm", h, y, post, scale, next, x, eps)) return;
  cuda::add_norm(stream_, rows_of(h), input_of(y), post, scale, next, rows_of(x), eps);
}

void CudaOps::prepare_qkv(const QkvHeads& heads, KvView kv, std::span<const int32_t> positions,
                          std::span<const int32_t> slots) {
  if (!attend_takes(static_cast<int>(heads.dim))) return Ops::prepare_qkv(heads, kv, positions, slots);
  const bool has_kv = heads.k.cols > 0, has_values = heads.values != QkvHeads::Values::normed_keys;
  const StepMemory::Slot at = memory_.share(positions);
  StepMemory::Slot to;
  if (has_kv) {
    check_slots(kv, heads.k, slots);
    to = memory_.share(slots);
  }
  if (!launches("prepare_qkv", heads.q, heads.k, has_values ? heads.v : Tensor{}, heads.q_norm, heads.k_norm,
                static_cast<int>(heads.values), heads.eps, heads.rope.freq, static_cast<int>(heads.dim), kv.k, kv.v, at,
                to)) {
    return;
  }
  QkvArgs args;
  if (heads.q.cols > 0) args.q = rows_of(heads.q);
  if (has_kv) {
    args.k = input_of(heads.k);
    if (has_values) args.v = input_of(heads.v);
    args.norms_v = heads.values == QkvHeads::Values::normed;
    args.k_cache = static_cast<Bf16*>(kv.k.data);
    args.v_cache = static_cast<Bf16*>(kv.v.data);
    args.slots = memory_.address<int32_t>(to);
  }
  args.rows = static_cast<int>(positions.size());
  args.dim = static_cast<int>(heads.dim);
  args.q_norm = heads.q_norm;
  args.k_norm = heads.k_norm;
  args.eps = heads.eps;
  args.freq = heads.rope.freq;
  args.positions = memory_.address<int32_t>(at);
  cuda::prepare_qkv(stream_, args);
}

void CudaOps::geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch) {
  const Matrix &g = weights_.find(gate), &u = weights_.find(up);
  if (x.rows > kFewRows || !same_planes(g, u)) return Ops::geglu(y, x, gate, up, down, scratch);
  const Tensor inner = scratch.columns(0, gate.rows);
  if (launches("geglu", inner, x, gate, up) && x.rows > 0) {
    product_geglu(stream_, rows_of(inner), input_of(x), g, u);
  }
  linear(y, inner, down);
}

}  // namespace gemmantle::cuda
