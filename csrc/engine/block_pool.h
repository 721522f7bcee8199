// block_pool.h: KV blocks of one group as a free list with reference counts.
//
// A block is a number. The pool knows how many hold it; it does not know layers, devices or bytes: model/kv_cache.h
// does. Used by the engine's worker only.
#pragma once

#include <cstdint>
#include <vector>

namespace gemmantle {

class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t total() const { return static_cast<int64_t>(counts_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }

  int32_t take();             // a block held once; -1 when none is free
  void share(int32_t block);  // one more holder
  void give_back(int32_t block);

 private:
  std::vector<int32_t> counts_;
  std::vector<int32_t> free_;  // the next to hand out is at the end: blocks that were used last are warm
};

}  // namespace gemmantle
