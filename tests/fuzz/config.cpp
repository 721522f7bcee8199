// Any bytes as a config.json, or as a GGUF file where they begin like one: an Error or a configuration that keeps its
// own promises.
#include "model/config.h"

#include <cstdlib>
#include <memory>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gemmantle;
  const std::span<const std::byte> bytes{reinterpret_cast<const std::byte*>(data), size};
  try {
    const std::shared_ptr<const Checkpoint> checkpoint =
        looks_like_gguf(bytes) ? Checkpoint::from_gguf(bytes)
                               : Checkpoint::from_config({reinterpret_cast<const char*>(data), size});
    const ModelConfig config = ModelConfig::from(*checkpoint);
    if (config.vocab <= 0 || config.hidden <= 0 || config.layers.empty()) std::abort();
    for (const LayerSpec& layer : config.layers) {
      if (layer.kv_source < 0 || layer.kv_source >= static_cast<int>(config.layers.size())) std::abort();
      if (layer.ffn <= 0) std::abort();
    }
  } catch (const Error& error) {
    if (error.code() == ErrorCode::internal) std::abort();
  }
  return 0;
}
