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
  // Logits of batch.logit_rows, f32, valid until the next call; tokens[r] is drawn from row r of them as draws[r] says.
  // Without draws nothing is drawn.
  virtual Tensor forward(const Batch& batch, std::span<const SampleRow> draws, std::span<SampledToken> tokens) = 0;
  // Copies one row of logits to host memory.
  virtual void read(float* host, Tensor row) = 0;
  virtual int64_t kv_bytes() const { return 0; }
  virtual int64_t work_bytes() const { return 0; }
};

class ModelRunner final : public StepRunner {
 public:
  ModelRunner(std::shared_ptr<Model> model, const KvLayout& layout, const SchedulerLimits& limits);

  Tensor forward(const Batch& batch, std::span<const SampleRow> draws, std::span<SampledToken> tokens) override {
    return model_->forward(batch, kv_, draws, tokens);
  }
  void read(float* host, Tensor row) override;
  int64_t kv_bytes() const override { return static_cast<int64_t>(kv_.bytes()); }
  int64_t work_bytes() const override { return model_->work_bytes(); }

 private:
  std::shared_ptr<Model> model_;
  KvCache kv_;
};

}  // namespace gemmantle
