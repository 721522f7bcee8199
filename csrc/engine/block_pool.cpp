#include "engine/block_pool.h"

#include "core/error.h"

namespace gemmantle {

BlockPool::BlockPool(int64_t blocks) : counts_(static_cast<size_t>(blocks), 0) {
  free_.reserve(counts_.size());
  for (int64_t block = blocks; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
}

int32_t BlockPool::take() {
  if (free_.empty()) return -1;
  const int32_t block = free_.back();
  free_.pop_back();
  counts_[static_cast<size_t>(block)] = 1;
  return block;
}

void BlockPool::share(int32_t block) {
  GEMMANTLE_CHECK(block >= 0 && block < total() && counts_[static_cast<size_t>(block)] > 0, "block ", block);
  ++counts_[static_cast<size_t>(block)];
}

void BlockPool::give_back(int32_t block) {
  GEMMANTLE_CHECK(block >= 0 && block < total() && counts_[static_cast<size_t>(block)] > 0, "block ", block);
  if (--counts_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

}  // namespace gemmantle
