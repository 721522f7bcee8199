// model.h: a configuration, its placed weights and its devices: one call runs one step.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/placement.h"

namespace gemmantle {

class Checkpoint;
class ModelWeights;
class Activations;
class OpProfile;

struct ModelInfo {
  BackendInfo backend;
  Mode mode = Mode::exact;
  DType kv = DType::f32;     // type of K and V
  int64_t parameters = 0;    // used by the decoder
  int64_t weight_bytes = 0;  // as stored
  std::vector<std::string> formats;
  std::vector<int> layers_per_device;  // of one device: all of them
};

// With several devices each runs its stretch of the layers and hands its rows to the next through host memory.
// Not safe for concurrent forward calls: the engine's worker is its only caller.
class Model {
 public:
  // With `profile` every op is timed into it. Throws not_found, corrupt_file, unsupported, invalid_argument, naming
  // file, tensor and what was wanted.
  static std::shared_ptr<Model> load(const std::string& path, const BackendOptions& options,
                                     std::shared_ptr<OpProfile> profile = nullptr);
  ~Model();

  const ModelConfig& config() const;
  const ModelInfo& info() const;
  const Placement& placement() const;

  // Makes room for steps of up to `rows` rows and `logit_rows` wanted rows; forward grows it when a step needs more.
  void reserve(int64_t rows, int64_t logit_rows);
  int64_t work_bytes() const;  // of all devices

  // Runs one step: writes K and V of every row, and the logits after softcap of batch.logit_rows, one row each, f32.
  // Layers that reuse KV run only for the rows whose logits are wanted (architecture 1.6). The tensor is valid until
  // the next call. tokens[r] is drawn from row r of it as draws[r] says; without draws nothing is drawn. Throws
  // corrupt_file naming the first bad weight when a hidden state is not finite.
  Tensor forward(const Batch& batch, KvCache& kv, std::span<const SampleRow> draws, std::span<SampledToken> tokens);

 private:
  Model();
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace gemmantle
