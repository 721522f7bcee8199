// A step filled up with rows of padding: its own rows stay, the rest have no id, no slot and no range.
#include "model/padding.h"

#include <gtest/gtest.h>

#include <vector>

namespace gemmantle {
namespace {

// Three sequences with one row each, whose tables have two blocks.
struct Step {
  std::vector<int32_t> ids = {5, 6, 7}, positions = {9, 0, 17}, sequence = {0, 1, 2}, slots = {3, 1, 8};
  std::vector<int32_t> table = {0, 4, 2, -1, 1, 3}, begin = {1, 0, 2}, end = {10, 1, 18}, logit_rows = {0, 1, 2};
  Batch batch;

  Step() {
    batch.ids = ids;
    batch.positions = positions;
    batch.sequence = sequence;
    batch.logit_rows = logit_rows;
    for (Batch::Group& group : batch.groups) group = {slots, table, 2, begin, end};
  }
};

std::vector<int32_t> list(std::span<const int32_t> values) { return {values.begin(), values.end()}; }

TEST(Padding, own_rows_stay_and_the_rest_see_and_write_nothing) {
  const Step step;
  Padding padding;
  const Batch& filled = padding.fill(step.batch, 4);
  EXPECT_EQ(list(filled.ids), (std::vector<int32_t>{5, 6, 7, -1}));
  EXPECT_EQ(list(filled.positions), (std::vector<int32_t>{9, 0, 17, 0}));
  EXPECT_EQ(list(filled.sequence), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(list(filled.logit_rows), (std::vector<int32_t>{0, 1, 2, 3}));
  for (const Batch::Group& group : filled.groups) {
    EXPECT_EQ(list(group.slots), (std::vector<int32_t>{3, 1, 8, -1}));
    EXPECT_EQ(list(group.block_table), (std::vector<int32_t>{0, 4, 2, -1, 1, 3, -1, -1}));
    EXPECT_EQ(group.max_blocks, 2);
    EXPECT_EQ(list(group.kv_begin), (std::vector<int32_t>{1, 0, 2, 0}));
    EXPECT_EQ(list(group.kv_end), (std::vector<int32_t>{10, 1, 18, 0}));
  }
}

TEST(Padding, rows_of_padding_draw_nothing) {
  Padding padding;
  EXPECT_TRUE(padding.fill(std::span<const SampleRow>{}, 4).empty());
  std::vector<SampleRow> draws(3);
  draws[2].seed = 11;
  const std::span<const SampleRow> filled = padding.fill(draws, 4);
  ASSERT_EQ(filled.size(), 4u);
  EXPECT_EQ(filled[2].seed, 11u);
  EXPECT_LT(filled[2].forced, 0);
  EXPECT_EQ(filled[3].forced, 0);
  EXPECT_EQ(filled[3].top_logprobs, -1);
  EXPECT_EQ(padding.tokens().size(), 4u);
}

TEST(Padding, only_a_step_of_one_wanted_row_per_sequence_is_a_decode_step) {
  EXPECT_TRUE(is_decode_step(Step().batch));
  EXPECT_FALSE(is_decode_step({}));
  Step prompt;
  prompt.sequence[1] = 0;
  EXPECT_FALSE(is_decode_step(prompt.batch));
  Step unread;
  unread.batch.logit_rows = unread.batch.logit_rows.first(2);
  EXPECT_FALSE(is_decode_step(unread.batch));
}

}  // namespace
}  // namespace gemmantle
