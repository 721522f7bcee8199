// block_pool.h: KV blocks of one group as a free list with reference counts.
//
// A block is a number. The pool knows how many hold it; it does not know layers, devices or bytes: model/kv_cache.h
// does. A block marked as kept stays as it is after its last holder until the pool has nothing else left; then the one
// that was given back first goes first. Used by the engine's worker only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gemmantle {

class BlockPool {
 public:
  explicit BlockPool(int64_t blocks);

  int64_t total() const { return static_cast<int64_t>(counts_.size()); }
  int64_t available() const { return static_cast<int64_t>(free_.size()) + kept_; }  // kept ones that nobody holds too
  int64_t kept() const { return kept_; }                                            // that nobody holds
  int32_t holders(int32_t block) const { return counts_[static_cast<size_t>(block)]; }

  int32_t take();             // a block held once and no longer kept; -1 when all are held
  void share(int32_t block);  // one more holder of a block that is held or kept
  void give_back(int32_t block);
  void keep(int32_t block);  // a held block, from now on

 private:
  void link(int32_t block);  // behind all kept ones
  void unlink(int32_t block);

  std::vector<int32_t> counts_;
  std::vector<bool> is_kept_;
  std::vector<int32_t> free_;  // the next to hand out is at the end: blocks that were used last are warm
  // The kept blocks that nobody holds, a ring through one entry behind the last block.
  std::vector<int32_t> before_, after_;
  int64_t kept_ = 0;
};

}  // namespace gemmantle
