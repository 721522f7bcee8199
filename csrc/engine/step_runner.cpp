#include "engine/step_runner.h"

#include <utility>

namespace gemmantle {

ModelRunner::ModelRunner(std::shared_ptr<Model> model, const KvLayout& layout, const SchedulerLimits& limits)
    : model_(std::move(model)), kv_(model_->config(), layout, limits.blocks, model_->placement()) {}

void ModelRunner::read(float* host, Tensor row) {
  model_->placement().last().read(host, row.data, static_cast<size_t>(row.cols) * sizeof(float));
}

}  // namespace gemmantle
