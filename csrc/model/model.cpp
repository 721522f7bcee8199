#include "model/model.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "backend/op_profile.h"
#include "backend/registry.h"
#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "core/mapped_file.h"
#include "model/activations.h"
#include "model/gemma4.h"
#include "model/padding.h"
#include "model/tail_batch.h"
#include "model/weights.h"

namespace gemmantle {
namespace {

void check_batch(const Batch& b, const ModelConfig& config) {
  const auto rows = static_cast<size_t>(b.rows());
  GEMMANTLE_CHECK(b.positions.size() == rows && b.sequence.size() == rows);
  for (const Batch::Group& g : b.groups)
    GEMMANTLE_CHECK(g.slots.size() == rows && g.kv_begin.size() == rows && g.kv_end.size() == rows);
  for (const int32_t id : b.ids) GEMMANTLE_CHECK(id >= 0 && id < config.vocab, "token id ", id, " of ", config.vocab);
}

// What a device of the kind that has memory of its own can take of the weights. A sixteenth is left to scratch and
// recorded steps; a step of this many rows is reckoned with.
constexpr int64_t kReckonedRows = 512, kReckonedLogitRows = 16;

int64_t room_for_weights(const ModelConfig& config, int64_t free_bytes) {
  return std::max<int64_t>(
      0, free_bytes - free_bytes / 16 - Activations(config).bytes_for(kReckonedRows, kReckonedLogitRows));
}

std::vector<Stretch> cut_layers(const std::shared_ptr<const Checkpoint>& checkpoint, const ModelConfig& config,
                                const Placement& placement) {
  if (placement.first().free_bytes() < 0) return {{0, static_cast<int>(config.layers.size()), true, true}};
  std::vector<int64_t> room;
  for (int d = 0; d < placement.devices(); ++d) {
    room.push_back(room_for_weights(config, placement.backend(d).free_bytes()));
  }
  return split_layers(config, measure_parts(checkpoint, config, placement.first()), room);
}

}  // namespace

struct Model::Parts {
  std::shared_ptr<const Checkpoint> checkpoint;
  ModelConfig config;
  ModelInfo info;
  std::unique_ptr<Placement> placement;
  std::unique_ptr<ModelWeights> weights;
  std::vector<Activations> activations;  // of each device
  Padding padding;
  TailBatch tail;
  Buffer staging;  // between two devices

  void hand_over(int from, int64_t rows);
  [[noreturn]] void refuse_not_finite(int tag) const;
};

// What the stretch of device `from` left becomes what the next one starts with.
void Model::Parts::hand_over(int from, int64_t rows) {
  const Activations& left = activations[static_cast<size_t>(from)];
  Activations& next = activations[static_cast<size_t>(from) + 1];
  next.begin(rows);
  const std::pair<Tensor, Tensor> moved[] = {
      {left.x, next.x}, {left.normed, next.normed}, {left.per_layer, next.per_layer}};
  for (const auto& [source, target] : moved) {
    const auto bytes = static_cast<size_t>(rows * source.cols * size_bytes(source.dtype));
    if (bytes == 0) continue;
    if (staging.bytes < bytes) staging = placement->first().staging(bytes);
    placement->backend(from).read(staging.data, source.data, bytes);
    placement->backend(from + 1).write(target.data, staging.data, bytes);
  }
}

void Model::Parts::refuse_not_finite(int tag) const {
  const int layer = tag - 1;
  std::string found = weights->find_not_finite(layer);
  if (found.empty()) found = weights->find_not_finite(kEmbeddingPart);  // the per-layer inputs enter at every layer
  const std::string where = layer < 0 ? "the embedding" : str("layer ", layer);
  throw Error(found.empty() ? ErrorCode::internal : ErrorCode::corrupt_file,
              found.empty() ? str("the hidden state after ", where, " is not finite although its weights are")
                            : str(found, ": the file is damaged, download it again (", checkpoint->path(), ")"));
}

Model::Model() : parts_(std::make_unique<Parts>()) {}
Model::~Model() = default;

std::shared_ptr<Model> Model::load(const std::string& path, const BackendOptions& options,
                                   std::shared_ptr<OpProfile> profile) {
  std::shared_ptr<Model> model(new Model);
  Parts& p = *model->parts_;
  p.checkpoint = Checkpoint::open(path);
  p.config = ModelConfig::from(*p.checkpoint);
  std::vector<std::unique_ptr<Backend>> backends = make_backends(options);
  if (profile) {
    for (std::unique_ptr<Backend>& backend : backends) backend = profiled(std::move(backend), profile);
  }
  p.placement = std::make_unique<Placement>(std::move(backends));
  p.placement->cut(cut_layers(p.checkpoint, p.config, *p.placement));
  p.weights = std::make_unique<ModelWeights>(p.checkpoint, p.config, [&](int part) -> Backend& {
    if (part == kEmbeddingPart) return p.placement->first();
    return part == kHeadPart ? p.placement->last() : p.placement->of_layer(part);
  });
  p.info = {p.placement->first().info(),
            options.mode,
            p.placement->first().kv_dtype(),
            p.weights->parameters,
            p.weights->bytes,
            p.weights->formats,
            {}};
  if (p.placement->devices() > 1) p.info.backend.device = options.device;
  for (int d = 0; d < p.placement->devices(); ++d) {
    p.activations.emplace_back(p.config);
    p.info.layers_per_device.push_back(p.placement->stretch(d).last - p.placement->stretch(d).first);
  }
  return model;
}

const ModelConfig& Model::config() const { return parts_->config; }
const ModelInfo& Model::info() const { return parts_->info; }
const Placement& Model::placement() const { return *parts_->placement; }

int64_t Model::work_bytes() const {
  int64_t sum = 0;
  for (const Activations& a : parts_->activations) sum += a.bytes();
  return sum;
}

void Model::reserve(int64_t rows, int64_t logit_rows) {
  for (size_t d = 0; d < parts_->activations.size(); ++d) {
    parts_->activations[d].reserve(rows, logit_rows, parts_->placement->backend(static_cast<int>(d)));
  }
}

Tensor Model::forward(const Batch& given, KvCache& kv, std::span<const SampleRow> draws,
                      std::span<SampledToken> tokens) {
  Parts& p = *parts_;
  check_batch(given, p.config);
  // A row of padding in a mixture would read the weights of experts that nobody asked for.
  const bool may_pad = !p.config.has_moe() && is_decode_step(given);
  const int64_t rows = may_pad ? p.placement->first().padded_rows(given.rows()) : given.rows();
  const bool is_padded = rows > given.rows();
  const Batch& batch = is_padded ? p.padding.fill(given, rows) : given;
  const std::span<const SampleRow> drawn = is_padded ? p.padding.fill(draws, rows) : draws;
  const std::span<SampledToken> results = is_padded ? p.padding.tokens() : tokens;
  const Batch& tail = p.tail.make(batch);
  reserve(batch.rows(), tail.rows());
  for (int d = 0; d < p.placement->devices(); ++d) {
    const Stretch& stretch = p.placement->stretch(d);
    const int64_t kept = rows_at(p.config, stretch.first, batch, tail).rows();
    if (kept == 0) break;  // nobody wants logits, and all K and V are written
    if (d > 0) p.hand_over(d - 1, kept);
    Activations& a = p.activations[static_cast<size_t>(d)];
    const auto step = [&](Ops& ops) {
      decoder_forward(ops, p.config, *p.weights, a, kv, stretch, batch, tail);
      if (stretch.has_head && !drawn.empty()) ops.sample(a.logits.slice(0, tail.rows()), drawn, results);
    };
    // The function itself would be copied to the heap.
    const int bad = p.placement->backend(d).run(std::ref(step));
    if (bad != Backend::kFinite) p.refuse_not_finite(bad);
  }
  release_pages(p.weights->mapped_rows);
  if (is_padded) std::copy_n(results.begin(), tokens.size(), tokens.begin());
  return p.activations.back().logits.slice(0, static_cast<int64_t>(given.logit_rows.size()));
}

}  // namespace gemmantle
