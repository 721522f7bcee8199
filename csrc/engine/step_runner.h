// step_runner.h: what the engine needs of a model, so that its tests can script one.
#pragma once

#include <memory>
#include <span>

#include "backend/batch.h"
#include "backend/ops.h"
#include "engine/scheduler.h"
#include "model/kv_cache.h"
#include "model/model.h"

namespace gemmantle {

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Logits of batch.logit_rows, f32, valid until the next call.
  virtual Tensor forward(const Batch& batch) = 0;
  virtual void sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) = 0;
  // Copies one row of logits to host memory.
  virtual void read(float* host, Tensor row) = 0;
  virtual int64_t kv_bytes() const { return 0; }
  virtual int64_t work_bytes() const { return 0; }
};

class ModelRunner final : public StepRunner {
 public:
  ModelRunner(std::shared_ptr<Model> model, const KvLayout& layout, const SchedulerLimits& limits);

  Tensor forward(const Batch& batch) override { return model_->forward(batch, kv_); }
  void sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) override;
  void read(float* host, Tensor row) override;
  int64_t kv_bytes() const override { return static_cast<int64_t>(kv_.bytes()); }
  int64_t work_bytes() const override { return model_->work_bytes(); }

 private:
  std::shared_ptr<Model> model_;
  KvCache kv_;
};

}  // namespace gemmantle
