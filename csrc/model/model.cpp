#include "model/model.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "backend/op_profile.h"
#include "backend/registry.h"
#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "model/activations.h"
#include "model/gemma4.h"
#include "model/padding.h"
#include "model/weights.h"

namespace gemmantle {
namespace {

// The rows of a batch whose logits are wanted, as a batch of their own. Slots are left out: nothing after the cut
// writes KV.
class TailBatch {
 public:
  const Batch& make(const Batch& all) {
    batch_ = all;
    if (all.logit_rows.size() == all.ids.size()) return batch_;
    pick(positions_, all.positions, all.logit_rows);
    pick(sequence_, all.sequence, all.logit_rows);
    pick(ids_, all.ids, all.logit_rows);
    batch_.positions = positions_;
    batch_.sequence = sequence_;
    batch_.ids = ids_;
    for (size_t g = 0; g < kKvGroups; ++g) {
      pick(begin_[g], all.groups[g].kv_begin, all.logit_rows);
      pick(end_[g], all.groups[g].kv_end, all.logit_rows);
      batch_.groups[g].kv_begin = begin_[g];
      batch_.groups[g].kv_end = end_[g];
      batch_.groups[g].slots = {};
    }
    return batch_;
  }

 private:
  static void pick(std::vector<int32_t>& out, std::span<const int32_t> from, std::span<const int32_t> rows) {
    out.resize(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) out[i] = from[static_cast<size_t>(rows[i])];
  }

  Batch batch_;
  std::vector<int32_t> ids_, positions_, sequence_;
  std::vector<int32_t> begin_[kKvGroups], end_[kKvGroups];
};

void check_batch(const Batch& b, const ModelConfig& config) {
  const auto rows = static_cast<size_t>(b.rows());
  GEMMANTLE_CHECK(b.positions.size() == rows && b.sequence.size() == rows);
  for (const Batch::Group& g : b.groups)
    GEMMANTLE_CHECK(g.slots.size() == rows && g.kv_begin.size() == rows && g.kv_end.size() == rows);
  for (const int32_t id : b.ids) GEMMANTLE_CHECK(id >= 0 && id < config.vocab, "token id ", id, " of ", config.vocab);
}

}  // namespace

struct Model::Parts {
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  ModelInfo info;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<ModelWeights> weights;
  std::unique_ptr<Activations> activations;
  Padding padding;
  TailBatch tail;
};

Model::Model() : parts_(std::make_unique<Parts>()) {}
Model::~Model() = default;

std::shared_ptr<Model> Model::load(const std::string& path, const BackendOptions& options,
                                   std::shared_ptr<OpProfile> profile) {
  std::shared_ptr<Model> model(new Model);
  Parts& p = *model->parts_;
  p.checkpoint = Checkpoint::open(path);
  p.config = ModelConfig::from(*p.checkpoint);
  p.backend = make_backend(options);
  if (profile) p.backend = profiled(std::move(p.backend), std::move(profile));
  p.weights = std::make_unique<ModelWeights>(p.checkpoint, p.config, *p.backend);
  p.activations = std::make_unique<Activations>(p.config);
  p.info = {p.backend->info(),     options.mode,     p.backend->kv_dtype(),
            p.weights->parameters, p.weights->bytes, p.weights->formats};
  return model;
}

const ModelConfig& Model::config() const { return parts_->config; }
const ModelInfo& Model::info() const { return parts_->info; }
Backend& Model::backend() { return *parts_->backend; }
int64_t Model::work_bytes() const { return parts_->activations->bytes(); }

void Model::reserve(int64_t rows, int64_t logit_rows) {
  parts_->activations->reserve(rows, logit_rows, *parts_->backend);
}

Tensor Model::forward(const Batch& given, KvCache& kv, std::span<const SampleRow> draws,
                      std::span<SampledToken> tokens) {
  Parts& p = *parts_;
  check_batch(given, p.config);
  // A row of padding in a mixture would read the weights of experts that nobody asked for.
  const bool may_pad = !p.config.has_moe() && is_decode_step(given);
  const int64_t rows = may_pad ? p.backend->padded_rows(given.rows()) : given.rows();
  const bool is_padded = rows > given.rows();
  const Batch& batch = is_padded ? p.padding.fill(given, rows) : given;
  const std::span<const SampleRow> drawn = is_padded ? p.padding.fill(draws, rows) : draws;
  const std::span<SampledToken> results = is_padded ? p.padding.tokens() : tokens;
  const Batch& tail = p.tail.make(batch);
  reserve(batch.rows(), tail.rows());
  const auto step = [&](Ops& ops) {
    decoder_forward(ops, p.config, *p.weights, *p.activations, kv, batch, tail);
    if (!drawn.empty()) ops.sample(p.activations->logits.slice(0, tail.rows()), drawn, results);
  };
  const int bad = p.backend->run(std::ref(step));  // the function itself would be copied to the heap
  if (bad != Backend::kFinite) {
    const int layer = bad - 1;
    std::string found = p.weights->find_not_finite(layer);
    if (found.empty()) found = p.weights->find_not_finite(-1);  // the per-layer inputs enter at every layer
    const std::string where = layer < 0 ? "the embedding" : str("layer ", layer);
    throw Error(found.empty() ? ErrorCode::internal : ErrorCode::corrupt_file,
                found.empty() ? str("the hidden state after ", where, " is not finite although its weights are")
                              : str(found, ": the file is damaged, download it again (", p.checkpoint->path(), ")"));
  }
  if (is_padded) std::copy_n(results.begin(), tokens.size(), tokens.begin());
  return p.activations->logits.slice(0, static_cast<int64_t>(given.logit_rows.size()));
}

}  // namespace gemmantle
