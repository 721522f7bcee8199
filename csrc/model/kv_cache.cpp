#include "model/kv_cache.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace gemmantle {
namespace {

// Bytes of one block of a group over the owning layers [first, last).
int64_t bytes_of_block(const ModelConfig& config, const Backend& backend, int group, int64_t positions, int first,
                       int last) {
  int64_t sum = 0;
  for (int l = first; l < last; ++l) {
    const LayerSpec& spec = config.layers[static_cast<size_t>(l)];
    if (spec.kv_source == l && spec.group() == group) sum += 2 * backend.kv_bytes(spec.heads, positions);
  }
  return sum;
}

}  // namespace

KvLayout::KvLayout(const ModelConfig& config, const Backend& backend, int64_t block)
    : block_size(block), block_bytes{} {
  if (block % backend.kv_positions() != 0) {
    throw Error(ErrorCode::invalid_argument,
                str("block_size is ", block, "; the KV cache of this device and mode wants a multiple of ",
                    backend.kv_positions()),
                "block_size");
  }
  const int layers = static_cast<int>(config.layers.size());
  for (int g = 0; g < kKvGroups; ++g) {
    block_bytes[static_cast<size_t>(g)] = bytes_of_block(config, backend, g, block, 0, layers);
  }
}

int64_t free_for_kv(const ModelConfig& config, const KvLayout& layout, const Placement& placement) {
  int64_t room = std::numeric_limits<int64_t>::max();
  for (int d = 0; d < placement.devices(); ++d) {
    const Backend& backend = placement.backend(d);
    const int64_t free = backend.free_bytes();
    if (free < 0) return -1;
    if (placement.devices() == 1) return free;
    // The device's share of a block is largest for one of the groups: if the cache were all of that one, it would fit.
    const Stretch& stretch = placement.stretch(d);
    for (int g = 0; g < kKvGroups; ++g) {
      const int64_t all = layout.block_bytes[static_cast<size_t>(g)];
      const int64_t own = bytes_of_block(config, backend, g, layout.block_size, stretch.first, stretch.last);
      if (own == 0) continue;
      const double share = static_cast<double>(own) / static_cast<double>(all);
      room = std::min(room, static_cast<int64_t>(static_cast<double>(free) / share));
    }
  }
  return room;
}

KvCache::KvCache(const ModelConfig& config, const KvLayout& layout, std::array<int64_t, kKvGroups> blocks,
                 const Placement& placement)
    : layout_(layout), blocks_(blocks), views_(config.layers.size()) {
  for (size_t l = 0; l < config.layers.size(); ++l) {
    const LayerSpec& spec = config.layers[l];
    if (spec.kv_source != static_cast<int>(l)) {
      views_[l] = views_[static_cast<size_t>(spec.kv_source)];
      continue;
    }
    Backend& backend = placement.of_layer(static_cast<int>(l));
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
