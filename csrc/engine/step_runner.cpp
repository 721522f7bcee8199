#include "engine/step_runner.h"

#include <utility>

namespace gemmantle {

ModelRunner::ModelRunner(std::shared_ptr<Model> model, const KvLayout& layout, const SchedulerLimits& limits)
    : model_(std::move(model)), kv_(model_->config(), layout, limits.blocks, model_->backend()) {}

void ModelRunner::sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) {
  model_->backend().run([&](Ops& ops) { ops.sample(logits, rows, tokens); });
}

}  // namespace gemmantle
