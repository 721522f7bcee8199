// cuda_ops.h: the operations of the graph as launches on one stream.
//
// A step is walked twice: planned, when every call is checked, mixed into the step's key and brings its numbers to step
// memory; and issued, when it launches. A step that is replayed from a recording is only planned.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cuda/recordings.h"
#include "backend/cuda/step_memory.h"
#include "backend/cuda/weight_store.h"
#include "backend/ops.h"
#include "kernels/cuda/launch.h"

namespace gemmantle::cuda {

class CudaOps : public Ops {
 public:
  CudaOps(const WeightStore& weights, StepMemory& memory, void* stream, int multiprocessors)
      : weights_(weights), memory_(memory), stream_(stream), multiprocessors_(multiprocessors) {}

  // Before the first call of each walk. `smallest_tag` is what check_finite lowers.
  void begin(int32_t* smallest_tag);
  uint64_t key() const { return key_.value(); }

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
  void head(Tensor y, Tensor x, const Weight& w, float cap) override;
  void prepare_qkv(const QkvHeads& heads, KvView kv, std::span<const int32_t> positions,
                   std::span<const int32_t> slots) override;
  void geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch) override;

 private:
  // Mixes an operation and what it is given by value into the key; true when it is to be launched.
  template <class... Given>
  bool launches(const char* operation, const Given&... given);
  // Many rows: activations rounded once, weights unpacked a piece at a time where they are packed.
  void multiply_many(Rows y, ConstRows x, const Matrix& w, float cap);
  // How an attention is cut: rows of a prompt together, and shares of the keys.
  virtual bool takes_prompt_tiles(std::span<const int32_t> sequence) const;
  virtual int splits_for(int tiles, int kv_heads, int keys) const;

  const WeightStore& weights_;
  StepMemory& memory_;
  void* stream_;
  int multiprocessors_;
  int32_t* smallest_tag_ = nullptr;
  StepKey key_;
};

}  // namespace gemmantle::cuda
