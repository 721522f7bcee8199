#include "backend/op_profile.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <utility>

#include "core/error.h"
#include "kernels/formats/decode.h"

namespace gemmantle {
namespace {

int64_t bytes_of(const Weight& w) { return w.rows * w.row_bytes; }

// Multiplications and additions of `rows` rows against one matrix.
int64_t operations_of(const Weight& w, int64_t rows) { return 2 * rows * w.rows * w.cols; }

// Positions that somebody looks at, each once: rows of one sequence follow each other, and their ranges overlap.
int64_t positions_read(const Batch::Group& group, std::span<const int32_t> sequence) {
  int64_t sum = 0;
  for (size_t r = 0; r < sequence.size();) {
    int32_t begin = group.kv_begin[r], end = group.kv_end[r];
    const int32_t of = sequence[r];
    for (++r; r < sequence.size() && sequence[r] == of; ++r) {
      begin = std::min(begin, group.kv_begin[r]);
      end = std::max(end, group.kv_end[r]);
    }
    sum += end - begin;
  }
  return sum;
}

int64_t positions_attended(const Batch::Group& group, size_t rows) {
  int64_t sum = 0;
  for (size_t r = 0; r < rows; ++r) sum += group.kv_end[r] - group.kv_begin[r];
  return sum;
}

// Calls an op and gives what it cost.
template <class Op>
OpProfile::Use timed(Op&& op, int64_t bytes = 0, int64_t operations = 0) {
  const auto start = std::chrono::steady_clock::now();
  op();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return {1, seconds.count(), bytes, operations};
}

class ProfiledOps final : public Ops {
 public:
  ProfiledOps(Ops& ops, OpProfile& profile) : ops_(ops), profile_(profile) {}

  void embed(Tensor y, const Weight& table, std::span<const int32_t> ids, float scale) override {
    const int64_t bytes = static_cast<int64_t>(ids.size()) * table.row_bytes;
    profile_.add("embed", &table, timed([&] { ops_.embed(y, table, ids, scale); }, bytes));
  }
  void linear(Tensor y, Tensor x, const Weight& w) override {
    profile_.add("linear", &w, timed([&] { ops_.linear(y, x, w); }, bytes_of(w), operations_of(w, x.rows)));
  }
  void rms_norm(Tensor y, Tensor x, const float* weight, int64_t group, float eps) override {
    plain("rms_norm", [&] { ops_.rms_norm(y, x, weight, group, eps); });
  }
  void add(Tensor y, Tensor x, float scale) override {
    plain("add", [&] { ops_.add(y, x, scale); });
  }
  void scale(Tensor y, Tensor x, const float* weight, float scale) override {
    plain("scale", [&] { ops_.scale(y, x, weight, scale); });
  }
  void gelu_mul(Tensor y, Tensor gate, Tensor up) override {
    plain("gelu_mul", [&] { ops_.gelu_mul(y, gate, up); });
  }
  void softcap(Tensor y, float cap) override {
    plain("softcap", [&] { ops_.softcap(y, cap); });
  }
  void rope(Tensor x, int64_t head_dim, Rope rope, std::span<const int32_t> positions) override {
    plain("rope", [&] { ops_.rope(x, head_dim, rope, positions); });
  }
  void store_kv(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) override {
    plain("store_kv", [&] { ops_.store_kv(kv, k, v, slots); });
  }
  void attend(Tensor y, Tensor q, HeadLayout heads, KvView kv, const Batch::Group& group,
              std::span<const int32_t> sequence, float scale) override {
    const int64_t row_bytes = kv.k.cols * size_bytes(kv.k.dtype) + kv.v.cols * size_bytes(kv.v.dtype);
    const int64_t bytes = positions_read(group, sequence) * row_bytes;
    const int64_t operations = 4 * heads.q_dim() * positions_attended(group, sequence.size());
    profile_.add("attend", heads.query, heads.dim,
                 timed([&] { ops_.attend(y, q, heads, kv, group, sequence, scale); }, bytes, operations));
  }
  void route(Routing routing, Tensor logits, const float* expert_scale) override {
    plain("route", [&] { ops_.route(routing, logits, expert_scale); });
  }
  void experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
               Tensor scratch) override {
    std::set<int32_t> met;
    const auto* ids = static_cast<const int32_t*>(routing.experts.data);
    for (int64_t r = 0; r < x.rows; ++r) {
      met.insert(ids + r * routing.experts.stride, ids + r * routing.experts.stride + routing.experts.cols);
    }
    int64_t bytes = 0, operations = 0;
    for (const Weight* w : {&gate_up, &up, &down}) {
      bytes += static_cast<int64_t>(met.size()) * bytes_of(*w);
      operations += operations_of(*w, x.rows * routing.experts.cols);
    }
    profile_.add("experts", &gate_up,
                 timed([&] { ops_.experts(y, x, routing, gate_up, up, down, scratch); }, bytes, operations));
  }
  void copy_rows(Tensor y, Tensor x, std::span<const int32_t> rows) override {
    plain("copy_rows", [&] { ops_.copy_rows(y, x, rows); });
  }
  void sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) override {
    plain("sample", [&] { ops_.sample(logits, rows, tokens); });
  }
  void check_finite(Tensor x, int tag) override {
    plain("check_finite", [&] { ops_.check_finite(x, tag); });
  }
  void add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps) override {
    plain("add_norm", [&] { ops_.add_norm(h, y, post, scale, next, x, eps); });
  }
  void head(Tensor y, Tensor x, const Weight& w, float cap) override {
    profile_.add("head", &w, timed([&] { ops_.head(y, x, w, cap); }, bytes_of(w), operations_of(w, x.rows)));
  }
  void prepare_qkv(const QkvHeads& heads, KvView kv, std::span<const int32_t> positions,
                   std::span<const int32_t> slots) override {
    plain("prepare_qkv", [&] { ops_.prepare_qkv(heads, kv, positions, slots); });
  }
  void geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch) override {
    int64_t bytes = 0, operations = 0;
    for (const Weight* w : {&gate, &up, &down}) {
      bytes += bytes_of(*w);
      operations += operations_of(*w, x.rows);
    }
    profile_.add("geglu", &gate, timed([&] { ops_.geglu(y, x, gate, up, down, scratch); }, bytes, operations));
  }

 private:
  template <class Op>
  void plain(const char* name, Op&& op) {
    profile_.add(name, 0, 0, timed(op));
  }

  Ops& ops_;
  OpProfile& profile_;
};

class ProfiledBackend final : public Backend {
 public:
  ProfiledBackend(std::unique_ptr<Backend> backend, std::shared_ptr<OpProfile> profile)
      : backend_(std::move(backend)), profile_(std::move(profile)) {}

  BackendInfo info() const override { return backend_->info(); }
  DType activation_dtype() const override { return backend_->activation_dtype(); }
  int64_t free_bytes() const override { return backend_->free_bytes(); }
  DType kv_dtype() const override { return backend_->kv_dtype(); }
  int64_t kv_positions() const override { return backend_->kv_positions(); }
  int64_t kv_bytes(const HeadLayout& heads, int64_t slots) const override { return backend_->kv_bytes(heads, slots); }
  Buffer allocate(size_t bytes) override { return backend_->allocate(bytes); }
  Buffer upload(const void* host, size_t bytes) override { return backend_->upload(host, bytes); }
  void read(void* host, const void* from, size_t bytes) override { backend_->read(host, from, bytes); }
  Weight place(const Weight& mapped, std::shared_ptr<const void> keep) override {
    return backend_->place(mapped, std::move(keep));
  }
  int64_t padded_rows(int64_t rows) const override { return backend_->padded_rows(rows); }
  int run(const std::function<void(Ops&)>& step) override {
    const auto profiled_step = [&](Ops& ops) {
      ProfiledOps timed_ops(ops, *profile_);
      step(timed_ops);
    };
    return backend_->run(std::ref(profiled_step));
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::shared_ptr<OpProfile> profile_;
};

}  // namespace

void OpProfile::add(const char* op, const Weight* weight, const Use& use) {
  add(Key(op, formats::info(weight->format).name, weight->rows, weight->cols), use);
}

void OpProfile::add(const char* op, int64_t rows, int64_t cols, const Use& use) { add(Key(op, "", rows, cols), use); }

void OpProfile::add(const Key& key, const Use& use) {
  const std::lock_guard lock(mutex_);
  Use& sum = uses_[key];
  sum.calls += use.calls;
  sum.seconds += use.seconds;
  sum.bytes += use.bytes;
  sum.operations += use.operations;
}

std::vector<OpProfile::Entry> OpProfile::take() {
  std::map<Key, Use> uses;
  {
    const std::lock_guard lock(mutex_);
    uses.swap(uses_);
  }
  std::vector<Entry> entries;
  for (const auto& [key, use] : uses) {
    const auto& [op, format, rows, cols] = key;
    entries.push_back({std::string(op), std::string(format), rows, cols, use});
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.use.seconds > b.use.seconds; });
  return entries;
}

std::unique_ptr<Backend> profiled(std::unique_ptr<Backend> backend, std::shared_ptr<OpProfile> profile) {
  if (const std::string device = backend->info().device; device != "cpu" && device != "reference") {
    throw Error(ErrorCode::invalid_argument,
                str("ops of device '", device, "' return before they are done, so their times mean nothing: profile ",
                    "with device='cpu'"),
                "profile");
  }
  return std::make_unique<ProfiledBackend>(std::move(backend), std::move(profile));
}

}  // namespace gemmantle
