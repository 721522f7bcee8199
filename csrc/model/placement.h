// placement.h: several devices as one: each runs a stretch of the layers and hands its rows to the next.
//
// The first device embeds, the last one has the head; a stretch may be empty of layers. A layer that reuses K and V
// stays with the layer that wrote them. Where the borders are is computed from bytes before a weight is placed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemmantle {

class Checkpoint;

struct Stretch {
  int first = 0;  // layers [first, last)
  int last = 0;
  bool embeds = true;
  bool has_head = true;
};

// Bytes of the parts of a model once they are placed.
struct PartSizes {
  int64_t embedding = 0;  // and what else runs before layer 0
  std::vector<int64_t> layers;
  int64_t head = 0;
  bool tied = false;  // the head is the embedding: both on one device are there once

  // Of the parts of one stretch.
  int64_t of(const Stretch& stretch) const;
};

// Reads headers, no weights. `like`: a device of the kind that is meant.
PartSizes measure_parts(std::shared_ptr<const Checkpoint> checkpoint, const ModelConfig& config, const Backend& like);

// One stretch for each device, so that the fullest one is as empty as it can be. `room[d]`: bytes of device d for
// weights. Throws out_of_memory, naming what is wanted and what there is, where no split fits.
std::vector<Stretch> split_layers(const ModelConfig& config, const PartSizes& sizes, std::span<const int64_t> room);

// The devices of a model, and which of them holds what.
class Placement {
 public:
  // Not valid before cut().
  explicit Placement(std::vector<std::unique_ptr<Backend>> backends) : backends_(std::move(backends)) {}
  void cut(std::vector<Stretch> stretches) { stretches_ = std::move(stretches); }

  int devices() const { return static_cast<int>(backends_.size()); }
  Backend& backend(int device) const { return *backends_[static_cast<size_t>(device)]; }
  const Stretch& stretch(int device) const { return stretches_[static_cast<size_t>(device)]; }

  Backend& first() const { return *backends_.front(); }
  Backend& last() const { return *backends_.back(); }
  Backend& of_layer(int layer) const;

 private:
  std::vector<std::unique_ptr<Backend>> backends_;
  std::vector<Stretch> stretches_;
};

}  // namespace gemmantle
