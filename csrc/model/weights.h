// weights.h: the arrays of a checkpoint as the fields the graph reads.
//
// One table in weights.cpp names every tensor of the decoder once, for safetensors and GGUF, with its shape and when
// it must be there. architecture 3, 4.2.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace gemmantle {

class Checkpoint;
struct StoredTensor;

// Vectors are f32 in backend memory; null where the layer has none.
struct LayerWeights {
  const float* input_norm = nullptr;
  const float* next_norm = nullptr;  // what follows the layer: the next one's input norm, or the last norm of all
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  const float* post_attention_norm = nullptr;
  const float* pre_ffn_norm = nullptr;
  const float* post_ffn_norm = nullptr;
  const float* pre_ffn_norm_2 = nullptr;   // routed branch
  const float* post_ffn_norm_1 = nullptr;  // dense branch of a mixture
  const float* post_ffn_norm_2 = nullptr;  // routed branch
  const float* post_per_layer_norm = nullptr;
  const float* router_scale = nullptr;
  const float* expert_scale = nullptr;
  const float* rope_freq = nullptr;
  float scalar = 1;

  Weight q, k, v, o;
  Weight gate, up, down;
  Weight per_layer_gate, per_layer_projection;
  Weight router;
  Weight experts_gate_up;  // gate rows, then up rows; or the gate alone, with experts_up
  Weight experts_up;
  Weight experts_down;
};

// All that the graph reads.
struct DecoderWeights {
  Weight embedding;
  Weight head;  // the embedding again where they are tied
  Weight per_layer_embedding;
  Weight per_layer_model_projection;
  const float* first_norm = nullptr;  // layer 0's input norm, where the embedding is
  const float* per_layer_norm = nullptr;
  std::vector<LayerWeights> layers;
};

// Parts of a model beside its layers, which count from 0.
constexpr int kEmbeddingPart = -1;  // what runs before layer 0
constexpr int kHeadPart = -2;

class ModelWeights : public DecoderWeights {
 public:
  using BackendOfPart = std::function<Backend&(int part)>;

  // Throws corrupt_file naming tensor, found and wanted; unsupported for tensors this decoder does not know.
  ModelWeights(std::shared_ptr<const Checkpoint> checkpoint, const ModelConfig& config,
               const BackendOfPart& backend_of);

  // The per-layer table where it is read in the map: a few rows a step, each of which brings up to 2 MiB of neighbours
  // into memory, if the page cache holds the file in large pieces.
  std::span<const std::byte> mapped_rows;

  bool is_tied = false;  // the table is the head, too: placed once where both are on one device
  int64_t parameters = 0;
  int64_t bytes = 0;
  std::vector<std::string> formats;  // names met, sorted

  // The first weight with a value that is not finite among those of a layer (-1: those outside layers), in words; an
  // empty string when there is none. Reads the whole layer: used after a step has failed.
  std::string find_not_finite(int layer) const;

 private:
  struct Named {
    int layer;
    const StoredTensor* stored;
  };
  void add(int layer, const StoredTensor& stored);
  const float* upload(std::vector<float> values, Backend& backend);

  std::shared_ptr<const Checkpoint> checkpoint_;
  std::vector<Buffer> buffers_;
  std::vector<Named> used_;
};

}  // namespace gemmantle
