// The part of placement.h that reads a checkpoint: its weights are bound twice, first by backends that only count.
#include <map>
#include <utility>

#include "core/error.h"
#include "model/placement.h"
#include "model/weights.h"

namespace gemmantle {
namespace {

// Counts what one part of a model would take on a device like `like`.
class Meter final : public Backend {
 public:
  explicit Meter(const Backend& like) : like_(like) {}
  int64_t bytes() const { return bytes_; }

  BackendInfo info() const override { return like_.info(); }
  DType activation_dtype() const override { return like_.activation_dtype(); }
  Buffer allocate(size_t bytes) override {
    bytes_ += static_cast<int64_t>(bytes);
    return staging(bytes);
  }
  Buffer upload(const void*, size_t bytes) override { return allocate(bytes); }
  Weight place(const Weight& mapped, std::shared_ptr<const void>) override {
    bytes_ += like_.placed_bytes(mapped);
    return mapped;
  }
  int run(const std::function<void(Ops&)>&) override { GEMMANTLE_CHECK(false, "a meter runs nothing"); }

 private:
  const Backend& like_;
  int64_t bytes_ = 0;
};

}  // namespace

PartSizes measure_parts(std::shared_ptr<const Checkpoint> checkpoint, const ModelConfig& config, const Backend& like) {
  std::map<int, Meter> meters;
  const auto meter_of = [&](int part) -> Backend& { return meters.try_emplace(part, like).first->second; };
  const ModelWeights weights(std::move(checkpoint), config, meter_of);
  PartSizes sizes;
  sizes.embedding = meters.at(kEmbeddingPart).bytes();
  sizes.head = meters.at(kHeadPart).bytes();
  sizes.tied = weights.is_tied;
  for (int l = 0; l < static_cast<int>(config.layers.size()); ++l) sizes.layers.push_back(meters.at(l).bytes());
  return sizes;
}

}  // namespace gemmantle
