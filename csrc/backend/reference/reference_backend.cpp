#include "backend/reference/reference_backend.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "core/error.h"
#include "kernels/formats/decode.h"
#include "kernels/reference/attention.h"
#include "kernels/reference/elementwise.h"
#include "kernels/reference/moe.h"
#include "kernels/reference/rope.h"
#include "kernels/reference/sample.h"

namespace gemmantle {
namespace {

using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void decode(const Weight& w, int64_t row, float* out) {
  formats::decode_row(w.format, reinterpret_cast<const uint8_t*>(w.row(row)), w.cols, out);
}

class ReferenceOps final : public Ops {
 public:
  int first_not_finite = Backend::kFinite;

  void embed(Tensor y, const Weight& table, std::span<const int32_t> ids, float scale) override {
    for (int64_t r = 0; r < y.rows; ++r) {
      decode(table, ids[static_cast<size_t>(r)], y.row(r));
      for (int64_t c = 0; c < y.cols; ++c) y.row(r)[c] *= scale;
    }
  }

  void linear(Tensor y, Tensor x, const Weight& w) override {
    GEMMANTLE_CHECK(x.cols == w.cols && y.cols == w.rows && x.rows == y.rows);
    if (x.rows == 0) return;
    constexpr int64_t kTile = 64;  // weight rows widened at a time
    RowMatrix input(x.rows, x.cols);
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) input(r, c) = x.row(r)[c];
    }
    row_.resize(static_cast<size_t>(w.cols));
    for (int64_t first = 0; first < w.rows; first += kTile) {
      const int64_t n = std::min(kTile, w.rows - first);
      RowMatrix tile(n, w.cols);
      for (int64_t r = 0; r < n; ++r) {
        decode(w, first + r, row_.data());
        for (int64_t c = 0; c < w.cols; ++c) tile(r, c) = row_[static_cast<size_t>(c)];
      }
      const RowMatrix product = input * tile.transpose();
      for (int64_t r = 0; r < x.rows; ++r) {
        for (int64_t c = 0; c < n; ++c) y.row(r)[first + c] = static_cast<float>(product(r, c));
      }
    }
  }

  void rms_norm(Tensor y, Tensor x, const float* weight, int64_t group, float eps) override {
    GEMMANTLE_CHECK(x.cols % group == 0 && y.cols == x.cols);
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; c += group) reference::rms_norm(y.row(r) + c, x.row(r) + c, weight, group, eps);
    }
  }

  void add(Tensor y, Tensor x, float scale) override {
    for (int64_t r = 0; r < y.rows; ++r) {
      for (int64_t c = 0; c < y.cols; ++c) y.row(r)[c] = (y.row(r)[c] + x.row(r)[c]) * scale;
    }
  }

  void scale(Tensor y, Tensor x, const float* weight, float scale) override {
    for (int64_t r = 0; r < y.rows; ++r) {
      for (int64_t c = 0; c < y.cols; ++c) y.row(r)[c] = x.row(r)[c] * scale * (weight == nullptr ? 1.0f : weight[c]);
    }
  }

  void gelu_mul(Tensor y, Tensor gate, Tensor up) override {
    for (int64_t r = 0; r < y.rows; ++r) reference::gelu_mul(y.row(r), gate.row(r), up.row(r), y.cols);
  }

  void softcap(Tensor y, float cap) override {
    for (int64_t r = 0; r < y.rows; ++r) reference::softcap(y.row(r), y.cols, cap);
  }

  void rope(Tensor x, int64_t head_dim, Rope rope, std::span<const int32_t> positions) override {
    for (int64_t r = 0; r < x.rows; ++r) {
      reference::rope(x.row(r), x.cols / head_dim, head_dim, rope.freq, positions[static_cast<size_t>(r)]);
    }
  }

  void store_kv(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) override {
    for (int64_t r = 0; r < k.rows; ++r) {
      const int32_t slot = slots[static_cast<size_t>(r)];
      GEMMANTLE_CHECK(slot >= 0 && slot < kv.k.rows, "slot ", slot);
      std::copy_n(k.row(r), k.cols, kv.k.row(slot));
      std::copy_n(v.row(r), v.cols, kv.v.row(slot));
    }
  }

  void attend(Tensor y, Tensor q, HeadLayout heads, KvView kv, const Batch::Group& group,
              std::span<const int32_t> sequence, float scale) override {
    for (int64_t r = 0; r < q.rows; ++r) {
      const auto at = static_cast<size_t>(r);
      const int32_t* table = group.block_table.data() + sequence[at] * group.max_blocks;
      reference::attend(y.row(r), q.row(r), heads.query, heads.kv, heads.dim, kv.k.row(0), kv.v.row(0), kv.k.stride,
                        table, kv.block_size, group.kv_begin[at], group.kv_end[at], scale, scores_, sum_);
    }
  }

  void route(Routing routing, Tensor logits, const float* expert_scale) override {
    for (int64_t r = 0; r < logits.rows; ++r) {
      auto* ids = static_cast<int32_t*>(routing.experts.data) + r * routing.experts.stride;
      reference::route(ids, routing.weights.row(r), logits.row(r), logits.cols, routing.experts.cols, expert_scale,
                       taken_);
    }
  }

  void experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
               Tensor scratch) override {
    const int64_t width = down.cols;
    std::vector<double> sum(static_cast<size_t>(y.cols));
    std::vector<float> part(static_cast<size_t>(y.cols));
    for (int64_t r = 0; r < x.rows; ++r) {
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t j = 0; j < routing.experts.cols; ++j) {
        const int32_t e = static_cast<const int32_t*>(routing.experts.data)[r * routing.experts.stride + j];
        const Tensor row = scratch.slice(r * routing.experts.cols + j, 1);
        const Tensor g = row.columns(0, width);
        const Tensor u = row.columns(width, width);
        if (up) {
          linear(g, x.slice(r, 1), gate_up.expert(e));
          linear(u, x.slice(r, 1), up.expert(e));
        } else {
          linear(row.columns(0, 2 * width), x.slice(r, 1), gate_up.expert(e));
        }
        gelu_mul(g, g, u);
        linear({part.data(), DType::f32, 1, y.cols, y.cols}, g, down.expert(e));
        for (size_t c = 0; c < sum.size(); ++c) sum[c] += static_cast<double>(routing.weights.row(r)[j]) * part[c];
      }
      for (size_t c = 0; c < sum.size(); ++c) y.row(r)[c] = static_cast<float>(sum[c]);
    }
  }

  void copy_rows(Tensor y, Tensor x, std::span<const int32_t> rows) override {
    for (int64_t r = 0; r < y.rows; ++r) std::copy_n(x.row(rows[static_cast<size_t>(r)]), y.cols, y.row(r));
  }

  void sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) override {
    sample_scratch_.resize(reference::sample_scratch_bytes(logits.cols) / sizeof(double) + 1);
    for (int64_t r = 0; r < logits.rows; ++r) {
      const auto at = static_cast<size_t>(r);
      reference::sample_row(logits.row(r), logits.cols, rows[at], tokens[at], sample_scratch_.data());
    }
  }

  void check_finite(Tensor x, int tag) override {
    if (first_not_finite != Backend::kFinite) return;
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) {
        if (!std::isfinite(x.row(r)[c])) {
          first_not_finite = tag;
          return;
        }
      }
    }
  }

 private:
  std::vector<float> row_;
  std::vector<double> scores_, sum_;
  std::vector<uint8_t> taken_;
  std::vector<double> sample_scratch_;
};

class ReferenceBackend final : public Backend {
 public:
  BackendInfo info() const override { return {"reference", "", 1}; }
  DType activation_dtype() const override { return DType::f32; }

  Buffer allocate(size_t bytes) override {
    void* memory = std::calloc(std::max<size_t>(bytes, 1), 1);
    if (memory == nullptr) throw Error(ErrorCode::out_of_memory, str("no memory for ", bytes, " bytes"));
    return {std::shared_ptr<void>(memory, std::free), static_cast<std::byte*>(memory), bytes};
  }

  Buffer upload(const void* host, size_t bytes) override {
    Buffer buffer = allocate(bytes);
    if (bytes > 0) std::memcpy(buffer.data, host, bytes);
    return buffer;
  }

  Weight place(const Weight& mapped, std::shared_ptr<const void> keep) override {
    keep_.push_back(std::move(keep));
    return mapped;
  }

  int run(const std::function<void(Ops&)>& step) override {
    ops_.first_not_finite = kFinite;
    step(ops_);
    return ops_.first_not_finite;
  }

 private:
  ReferenceOps ops_;
  std::vector<std::shared_ptr<const void>> keep_;
};

}  // namespace

std::unique_ptr<Backend> make_reference_backend(const BackendOptions&) { return std::make_unique<ReferenceBackend>(); }

}  // namespace gemmantle
