#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <set>

#include "core/error.h"

namespace gemmantle {
namespace {

TEST(BlockPool, hands_out_every_block_once) {
  BlockPool pool(5);
  std::set<int32_t> blocks;
  for (int i = 0; i < 5; ++i) blocks.insert(pool.take());
  EXPECT_EQ(blocks, (std::set<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.take(), -1);
  EXPECT_EQ(pool.available(), 0);
  pool.give_back(3);
  EXPECT_EQ(pool.take(), 3);
}

TEST(BlockPool, a_shared_block_is_free_when_its_last_holder_lets_go) {
  BlockPool pool(1);
  const int32_t block = pool.take();
  pool.share(block);
  pool.give_back(block);
  EXPECT_EQ(pool.available(), 0);
  pool.give_back(block);
  EXPECT_EQ(pool.available(), 1);
}

TEST(BlockPool, a_kept_block_stays_until_nothing_else_is_left_the_oldest_first) {
  BlockPool pool(4);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(pool.take(), i);
  for (const int32_t block : {0, 1, 2}) pool.keep(block);
  for (const int32_t block : {1, 0, 2, 3}) pool.give_back(block);
  EXPECT_EQ(pool.available(), 4);
  EXPECT_EQ(pool.kept(), 3);
  pool.share(0);  // found again
  EXPECT_EQ(pool.available(), 3);
  EXPECT_EQ(pool.take(), 3);
  EXPECT_EQ(pool.take(), 1);
  EXPECT_EQ(pool.take(), 2);
  EXPECT_EQ(pool.take(), -1);
  pool.give_back(1);
  EXPECT_EQ(pool.kept(), 0);  // it was taken for other contents
  EXPECT_THROW(pool.share(1), Error);
  pool.give_back(0);
  EXPECT_EQ(pool.kept(), 1);
}

TEST(BlockPool, a_block_that_nobody_holds_is_refused) {
  BlockPool pool(2);
  EXPECT_THROW(pool.give_back(0), Error);
  EXPECT_THROW(pool.give_back(2), Error);
  EXPECT_THROW(pool.give_back(-1), Error);
  EXPECT_THROW(pool.share(1), Error);
}

}  // namespace
}  // namespace gemmantle
