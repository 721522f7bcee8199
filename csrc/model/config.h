// config.h: the facts of a model, read once from its checkpoint.
//
// The only place that knows the JSON and GGUF names of these facts. A layer is described by its LayerSpec: nothing
// after this file computes "every sixth layer". architecture 1, 4.1, 6.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/batch.h"

namespace gemmantle {

class Checkpoint;

enum class Family { gemma3, gemma4 };

struct LayerSpec {
  bool sliding = false;
  HeadLayout heads;
  int64_t window = 0;         // positions a row sees, itself included; 0: all
  int kv_source = 0;          // layer whose K and V are read; its own index when it writes them
  bool value_is_key = false;  // V is the un-rotated K projection, architecture 2.6
  int64_t ffn = 0;            // width of the dense MLP
  double rope_theta = 0;
  double rope_fraction = 1;  // share of the pairs that turn, architecture 2.5
  double rope_divisor = 1;   // linear position scaling, Gemma 3 only

  int group() const { return sliding ? kSliding : kFull; }
};

struct ModelConfig {
  Family family = Family::gemma4;
  std::string model_type;
  int64_t vocab = 0;
  int64_t hidden = 0;
  int64_t context = 0;  // positions the model was trained for
  int64_t window = 0;   // of the sliding layers
  float norm_eps = 1e-6f;
  float final_softcap = 0;  // 0: none
  float attention_scale = 1;
  float embedding_scale = 1;   // sqrt(hidden) rounded to bf16, architecture 2.1
  bool norm_adds_one = false;  // the file stores w of x * (1 + w): Gemma 3 safetensors
  int64_t per_layer = 0;       // width of the per-layer input; 0: none
  float per_layer_scale = 1;   // sqrt(per_layer) rounded to bf16, architecture 2.2
  int first_shared = 0;        // first layer that reuses the KV of an earlier one; the layer count when none does
  int experts = 0;
  int experts_used = 0;
  int64_t expert_ffn = 0;
  std::string description;  // what the checkpoint says of itself, may be empty
  std::string series;       // "e" or "large": which form of the chat template it was trained with
  std::vector<LayerSpec> layers;

  bool has_moe() const { return experts > 0; }

  // Throws unsupported for another architecture, corrupt_file for a value that cannot be, naming the key.
  static ModelConfig from(const Checkpoint& checkpoint);
};

}  // namespace gemmantle
