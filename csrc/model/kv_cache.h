// kv_cache.h: bytes of K and V: two groups of layers, each a pool of blocks.
//
// A block of a group holds block_size positions of every layer of that group that owns KV. This file knows bytes;
// engine/block_pool.h knows which sequence holds which block.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/batch.h"
#include "model/config.h"
#include "model/placement.h"

namespace gemmantle {

struct KvLayout {
  // Throws invalid_argument for a block size that the backend cannot use.
  KvLayout(const ModelConfig& config, const Backend& backend, int64_t block_size = 16);

  int64_t block_size;
  std::array<int64_t, kKvGroups> block_bytes;  // of one block over all owning layers of the group; 0: group has none
};

// Bytes of cache that fit the free memory of all devices, whatever blocks it is made of; -1 where that is the memory of
// the host.
int64_t free_for_kv(const ModelConfig& config, const KvLayout& layout, const Placement& placement);

class KvCache {
 public:
  // `blocks[g]` blocks in group g, of each layer where the layer is. Throws out_of_memory.
  KvCache(const ModelConfig& config, const KvLayout& layout, std::array<int64_t, kKvGroups> blocks,
          const Placement& placement);

  // K and V that `layer` reads (those of its kv_source).
  KvView view(int layer) const { return views_[static_cast<size_t>(layer)]; }
  int64_t block_size() const { return layout_.block_size; }
  int64_t blocks(int group) const { return blocks_[static_cast<size_t>(group)]; }
  size_t bytes() const;

 private:
  KvLayout layout_;
  std::array<int64_t, kKvGroups> blocks_;
  std::vector<Buffer> buffers_;
  std::vector<KvView> views_;
};

}  // namespace gemmantle
