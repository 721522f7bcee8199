// cpu_ops.h: every op over the kernel table of one instruction set: checks shapes, splits rows, calls kernels.
//
// In mode "fast" products with packed weights go through 8-bit codes of x, those with bf16 weights through x in bf16,
// where the instruction set has them.
// Work is cut by size and thread count, but never inside a sum, so no result depends on the cut. Scratch belongs to the
// thread and only grows: steps of a known size allocate nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/paged_kv.h"
#include "backend/ops.h"
#include "core/thread_pool.h"
#include "kernels/cpu/kernel_table.h"

namespace gemmantle {

class CpuOps final : public Ops {
 public:
  // `kv`: type of K and V; other than f32 they lie in pages.
  CpuOps(const cpu::CpuKernels& kernels, ThreadPool& pool, Mode mode, DType kv);

  void embed(Tensor y, const Weight& table, std::span<const int32_t> ids, float scale) override;
  void linear(Tensor y, Tensor x, const Weight& w) override;
  void rms_norm(Tensor y, Tensor x, const float* weight, int64_t group, float eps) override;
  void add(Tensor y, Tensor x, float scale) override;
  void scale(Tensor y, Tensor x, const float* weight, float scale) override;
  void gelu_mul(Tensor y, Tensor gate, Tensor up) override;
  void softcap(Tensor y, float cap) override;
  void rope(Tensor x, int64_t head_dim, Rope rope, std::span<const int32_t> positions) override;
  void store_kv(KvView kv, Tensor k, Tensor v, std::span<const int32_t> slots) override;
  void attend(Tensor y, Tensor q, HeadLayout heads, KvView kv, const Batch::Group& group,
              std::span<const int32_t> sequence, float scale) override;
  void route(Routing routing, Tensor logits, const float* expert_scale) override;
  void experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
               Tensor scratch) override;
  void copy_rows(Tensor y, Tensor x, std::span<const int32_t> rows) override;
  void sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) override;
  void check_finite(Tensor x, int tag) override;

  void add_norm(Tensor h, Tensor y, const float* post, float scale, const float* next, Tensor x, float eps) override;
  void geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch) override;

  // The smallest tag whose tensor was not finite since the last call, or Backend::kFinite.
  int take_not_finite();

 private:
  // Cosines and sines of some positions, kept because every layer of a kind asks for the same ones.
  struct Turns {
    std::vector<float> freq;
    std::vector<int32_t> positions;
    std::vector<float> values;  // [positions, 2 * freq]
  };

  // Makes rows of x into what products with some weights take, in memory for one product after the other. Without
  // kernels in mode "exact".
  struct Encoder {
    const cpu::CodedKernels* kernels;
    std::unique_ptr<uint8_t[]> memory;
    int64_t bytes = 0;
  };
  struct Encoded {
    const cpu::CodedKernels* kernels = nullptr;  // null: the product reads x itself
    cpu::CodedRows rows{};
  };

  template <class Body>
  void split(int64_t items, int64_t work, int64_t step, Body&& body);
  template <class Body>
  void split_weight_rows(int64_t items, int64_t row_bytes, int64_t work, int64_t x_rows, Body&& body);
  template <class Body>
  void each_value(int64_t rows, int64_t cols, Body&& body);
  float* scratch(int worker) { return scratch_[static_cast<size_t>(worker)].get(); }
  void reserve(int64_t floats);
  Encoder* encoder_of(const Weight& w);  // null: its products are in f32
  int64_t linear_scratch(const Weight& w);
  Encoded encode(Tensor x, const Weight& w);
  std::pair<Encoded, Encoded> encode(Tensor x, const Weight& a, const Weight& b);
  void multiply(const cpu::LinearArgs& args, const Encoded& x, int64_t first, int64_t last, int worker);
  const Turns& turns(const float* freq, int64_t half, std::span<const int32_t> positions);

  const cpu::CpuKernels& k_;
  ThreadPool& pool_;
  std::vector<std::unique_ptr<float[]>> scratch_;  // one a thread
  int64_t scratch_floats_ = 0;
  Encoder encoders_[2];
  std::optional<PagedKv> pages_;
  Turns turns_[4];
  size_t next_turns_ = 0;
  std::vector<float> partial_;  // attention states of one split row after the other
  std::vector<int32_t> expert_starts_, expert_rows_, expert_places_;
  std::vector<float> expert_factors_;
  int not_finite_ = Backend::kFinite;
};

}  // namespace gemmantle
