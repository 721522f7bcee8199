#include "engine/block_pool.h"

#include "core/error.h"

namespace gemmantle {

BlockPool::BlockPool(int64_t blocks)
    : counts_(static_cast<size_t>(blocks), 0),
      is_kept_(counts_.size(), false),
      before_(counts_.size() + 1, -1),
      after_(counts_.size() + 1, -1) {
  before_.back() = after_.back() = static_cast<int32_t>(blocks);
  free_.reserve(counts_.size());
  for (int64_t block = blocks; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
}

int32_t BlockPool::take() {
  int32_t block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (kept_ > 0) {
    block = after_.back();
    unlink(block);
    is_kept_[static_cast<size_t>(block)] = false;
  } else {
    return -1;
  }
  counts_[static_cast<size_t>(block)] = 1;
  return block;
}

void BlockPool::share(int32_t block) {
  GEMMANTLE_CHECK(block >= 0 && block < total(), "block ", block);
  int32_t& count = counts_[static_cast<size_t>(block)];
  GEMMANTLE_CHECK(count > 0 || is_kept_[static_cast<size_t>(block)], "block ", block);
  if (count == 0) unlink(block);
  ++count;
}

void BlockPool::give_back(int32_t block) {
  GEMMANTLE_CHECK(block >= 0 && block < total() && counts_[static_cast<size_t>(block)] > 0, "block ", block);
  if (--counts_[static_cast<size_t>(block)] > 0) return;
  if (is_kept_[static_cast<size_t>(block)]) {
    link(block);
  } else {
    free_.push_back(block);
  }
}

void BlockPool::keep(int32_t block) {
  GEMMANTLE_CHECK(block >= 0 && block < total() && counts_[static_cast<size_t>(block)] > 0, "block ", block);
  is_kept_[static_cast<size_t>(block)] = true;
}

void BlockPool::link(int32_t block) {
  const auto end = static_cast<int32_t>(total());
  const int32_t last = before_.back();
  before_[static_cast<size_t>(block)] = last;
  after_[static_cast<size_t>(block)] = end;
  after_[static_cast<size_t>(last)] = block;
  before_.back() = block;
  ++kept_;
}

void BlockPool::unlink(int32_t block) {
  const int32_t before = before_[static_cast<size_t>(block)];
  const int32_t after = after_[static_cast<size_t>(block)];
  after_[static_cast<size_t>(before)] = after;
  before_[static_cast<size_t>(after)] = before;
  --kept_;
}

}  // namespace gemmantle
