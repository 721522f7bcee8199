// fake_runner.h: a model that stores ids in its KV slots and predicts from what a row can see there.
//
// The next id is a function of every id from the row's first position on, read back through slots and block tables, so
// a wrong slot, table or range changes the output or counts as a violation. Hooks let a test fail or hold up a step.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "kernels/reference/sample.h"

namespace gemmantle::testing {

struct FakeModel {
  int64_t vocabulary = 64;
  EngineLimits limits;
  std::function<void(const Batch&)> on_forward;                 // may throw, may wait; called by the worker
  std::function<int32_t(const std::vector<int32_t>&)> next_id;  // of the ids seen so far; default: a hash of them
  std::atomic<int> violations{0};
  std::atomic<int> steps{0};
  std::atomic<int64_t> most_rows{0};
};

inline int32_t hashed_next(const std::vector<int32_t>& ids, int64_t vocabulary) {
  uint64_t hash = 1469598103934665603u;
  for (const int32_t id : ids) hash = (hash ^ static_cast<uint64_t>(id + 1)) * 1099511628211u;
  return static_cast<int32_t>((hash >> 20) % static_cast<uint64_t>(vocabulary));
}

class FakeRunner final : public StepRunner {
 public:
  explicit FakeRunner(std::shared_ptr<FakeModel> model) : model_(std::move(model)) {
    const SchedulerLimits& limits = model_->limits.scheduler;
    for (size_t g = 0; g < kKvGroups; ++g)
      kv_[g].resize(static_cast<size_t>(limits.blocks[g] * limits.block_size), {-1, -1});
  }

  Tensor forward(const Batch& batch, std::span<const SampleRow> draws, std::span<SampledToken> tokens) override {
    if (model_->on_forward) model_->on_forward(batch);
    ++model_->steps;
    model_->most_rows = std::max(model_->most_rows.load(), batch.rows());
    for (int64_t r = 0; r < batch.rows(); ++r) {
      for (int g = 0; g < kKvGroups; ++g) {
        if (kv_[g].empty()) continue;
        kv_[g][static_cast<size_t>(at(batch.groups[g].slots, r))] = {at(batch.ids, r), at(batch.positions, r)};
      }
    }
    const auto wanted = static_cast<int64_t>(batch.logit_rows.size());
    logits_.assign(static_cast<size_t>(wanted * model_->vocabulary), 0);
    for (int64_t w = 0; w < wanted; ++w) {
      const int64_t r = at(batch.logit_rows, w);
      const std::vector<int32_t> seen = look(batch, kFull, r);
      const std::vector<int32_t> near = look(batch, kSliding, r);
      // The window has to show the same past.
      if (!std::equal(near.rbegin(), near.rend(), seen.rbegin())) ++model_->violations;
      float* row = logits_.data() + w * model_->vocabulary;
      for (int64_t i = 0; i < model_->vocabulary; ++i)
        row[i] = 0.01f * static_cast<float>((i * 7 + at(batch.positions, r)) % 13);
      row[model_->next_id ? model_->next_id(seen) : hashed_next(seen, model_->vocabulary)] = 10;
    }
    const Tensor logits{logits_.data(), DType::f32, wanted, model_->vocabulary, model_->vocabulary};
    scratch_.resize(reference::sample_scratch_bytes(logits.cols));
    for (size_t r = 0; r < draws.size(); ++r) {
      reference::sample_row(logits.row(static_cast<int64_t>(r)), logits.cols, draws[r], tokens[r], scratch_.data());
    }
    return logits;
  }

  void read(float* host, Tensor row) override { std::copy_n(row.row(0), row.cols, host); }

 private:
  struct Entry {
    int32_t id, position;
  };

  static int32_t at(std::span<const int32_t> values, int64_t i) { return values[static_cast<size_t>(i)]; }

  std::vector<int32_t> look(const Batch& batch, int group, int64_t r) {
    const Batch::Group& g = batch.groups[group];
    std::vector<int32_t> ids;
    if (kv_[group].empty()) return ids;
    const int64_t block_size = model_->limits.scheduler.block_size;
    for (int32_t p = at(g.kv_begin, r); p < at(g.kv_end, r); ++p) {
      const int32_t block = at(g.block_table, at(batch.sequence, r) * g.max_blocks + p / block_size);
      if (block < 0) {
        ++model_->violations;
        continue;
      }
      const Entry entry = kv_[group][static_cast<size_t>(block * block_size + p % block_size)];
      if (entry.position != p) ++model_->violations;
      ids.push_back(entry.id);
    }
    return ids;
  }

  std::shared_ptr<FakeModel> model_;
  std::vector<Entry> kv_[kKvGroups];
  std::vector<float> logits_;
  std::vector<char> scratch_;
};

inline EngineLimits small_limits(int64_t vocabulary = 64) {
  EngineLimits limits;
  limits.vocabulary = vocabulary;
  limits.max_context = 96;
  limits.max_queue = 64;
  limits.scheduler.max_rows = 16;
  limits.scheduler.max_logit_rows = 16;
  limits.scheduler.max_sequences = 4;
  limits.scheduler.block_size = 4;
  limits.scheduler.window = 10;
  limits.scheduler.blocks[kSliding] = 4 * 8;
  limits.scheduler.blocks[kFull] = 4 * 24;
  return limits;
}

inline std::shared_ptr<FakeModel> fake_model(const EngineLimits& limits = small_limits()) {
  auto model = std::make_shared<FakeModel>();
  model->limits = limits;
  model->vocabulary = limits.vocabulary;
  return model;
}

inline std::unique_ptr<Engine> fake_engine(const std::shared_ptr<FakeModel>& model,
                                           std::shared_ptr<const Vocabulary> vocabulary = nullptr,
                                           const EngineOptions& options = {}) {
  return std::make_unique<Engine>(std::make_unique<FakeRunner>(model), model->limits, std::move(vocabulary), options);
}

// Everything until the end, as one delta.
inline Delta read_all(Generation& generation) {
  Delta all;
  while (std::optional<Delta> delta = generation.next()) all.append(std::move(*delta));
  return all;
}

inline std::vector<int32_t> ids_of(const Delta& delta) {
  std::vector<int32_t> ids;
  for (const TokenInfo& token : delta.tokens) ids.push_back(token.id);
  return ids;
}

inline std::string text_of(const Delta& delta, Channel channel = Channel::content) {
  std::string text;
  for (const Piece& piece : delta.pieces) {
    if (piece.channel == channel) text += piece.text;
  }
  return text;
}

// What a prompt goes on with, from the definition.
inline std::vector<int32_t> expected_ids(const FakeModel& model, std::vector<int32_t> ids, int64_t n) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t next = model.next_id ? model.next_id(ids) : hashed_next(ids, model.vocabulary);
    ids.push_back(next);
    out.push_back(next);
  }
  return out;
}

}  // namespace gemmantle::testing
