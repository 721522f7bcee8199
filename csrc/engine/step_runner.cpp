#include "engine/step_runner.h"

#include <functional>
#include <utility>

namespace gemmantle {

ModelRunner::ModelRunner(std::shared_ptr<Model> model, const KvLayout& layout, const SchedulerLimits& limits)
    : model_(std::move(model)), kv_(model_->config(), layout, limits.blocks, model_->placement()) {}

void ModelRunner::sample(Tensor logits, std::span<const SampleRow> rows, std::span<SampledToken> tokens) {
  const auto step = [&](Ops& ops) { ops.sample(logits, rows, tokens); };
  model_->placement().last().run(std::ref(step));  // the function itself would be copied to the heap
}

void ModelRunner::read(float* host, Tensor row) {
  model_->placement().last().read(host, row.data, static_cast<size_t>(row.cols) * sizeof(float));
}

}  // namespace gemmantle
