#include "model/kv_cache.h"

#include "core/error.h"

namespace gemmantle {

KvLayout::KvLayout(const ModelConfig& config, const Backend& backend, int64_t block)
    : block_size(block), block_bytes{} {
  if (block % backend.kv_positions() != 0) {
    throw Error(ErrorCode::invalid_argument,
                str("block_size is ", block, "; the KV cache of this device and mode wants a multiple of ",
                    backend.kv_positions()),
                "block_size");
  }
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& spec = config.layers[l];
    if (spec.kv_source != static_cast<int>(l)) continue;
    block_bytes[static_cast<size_t>(spec.group())] += 2 * backend.kv_bytes(spec.heads, block);
  }
}

KvCache::KvCache(const ModelConfig& config, const KvLayout& layout, std::array<int64_t, kKvGroups> blocks,
                 Backend& backend)
    : layout_(layout), blocks_(blocks), views_(config.layers.size()) {
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& spec = config.layers[l];
    if (spec.kv_source != static_cast<int>(l)) {
      views_[l] = views_[static_cast<size_t>(spec.kv_source)];
      continue;
    }
    const int64_t rows = blocks[static_cast<size_t>(spec.group())] * layout.block_size;
    const int64_t cols = spec.heads.kv_dim();
    for (Tensor* t : {&views_[l].k, &views_[l].v}) {
      buffers_.push_back(backend.allocate(static_cast<size_t>(backend.kv_bytes(spec.heads, rows))));
      *t = {buffers_.back().data, backend.kv_dtype(), rows, cols, cols};
    }
    views_[l].heads = spec.heads.kv;
    views_[l].block_size = layout.block_size;
  }
}

size_t KvCache::bytes() const {
  size_t sum = 0;
  for (const Buffer& b : buffers_) sum += b.bytes;
  return sum;
}

}  // namespace gemmantle
