// Where the layers of a model go: fits, borders that K and V allow, refusals in words.
#include "model/placement.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace gemmantle {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;

// `layers` alternate five sliding and one full; those from `first_shared` on read K and V of the last two before.
ModelConfig config_of(int layers, int first_shared) {
  ModelConfig config;
  config.first_shared = first_shared;
  for (int l = 0; l < layers; ++l) {
    LayerSpec spec;
    spec.sliding = l % 6 != 5;
    spec.kv_source = l;
    for (int source = first_shared - 1; l >= first_shared; --source) {
      if ((source % 6 != 5) != spec.sliding) continue;
      spec.kv_source = source;
      break;
    }
    config.layers.push_back(spec);
  }
  return config;
}

PartSizes sizes_of(int layers, int64_t layer, int64_t embedding) {
  return {embedding, std::vector<int64_t>(static_cast<size_t>(layers), layer), embedding, true};
}

std::string refusal(const ModelConfig& config, const PartSizes& sizes, const std::vector<int64_t>& room) {
  try {
    split_layers(config, sizes, room);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    return error.message();
  }
  return "";
}

// 31B in bf16: 60 layers of 488 M weights and a table of 262,144 x 5,376, tied.
const PartSizes kLarge = sizes_of(60, int64_t{2} * 488'000'000, int64_t{2} * 262'144 * 5'376);

TEST(Placement, a_31b_in_bf16_fits_two_cards_of_48_gb_and_not_one) {
  const ModelConfig config = config_of(60, 60);
  const int64_t room = 44 * kGiB;
  const std::vector<Stretch> two = split_layers(config, kLarge, std::vector{room, room});
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(two[0].first, 0);
  EXPECT_EQ(two[0].last, two[1].first);
  EXPECT_EQ(two[1].last, 60);
  EXPECT_TRUE(two[0].embeds && !two[0].has_head && !two[1].embeds && two[1].has_head);
  for (const Stretch& stretch : two) EXPECT_LT(kLarge.of(stretch), room * 4 / 5);

  const std::string one = refusal(config, kLarge, {room});
  EXPECT_NE(one.find("device='cuda:0,1'"), std::string::npos) << one;
  EXPECT_NE(one.find(std::to_string(kLarge.of({0, 60, true, true}))), std::string::npos) << one;
}

TEST(Placement, layers_follow_the_memory) {
  const std::vector<Stretch> cut = split_layers(config_of(60, 60), kLarge, std::vector{20 * kGiB, 60 * kGiB});
  EXPECT_LT(cut[0].last, 20);
  EXPECT_GT(cut[0].last, 10);
}

TEST(Placement, layers_that_reuse_k_and_v_stay_with_their_owners) {
  const ModelConfig config = config_of(30, 18);  // layers 16 and 17 are read by those behind them
  for (int64_t embedding = 1; embedding <= 100'000; embedding *= 10) {
    const PartSizes sizes = sizes_of(30, 100, embedding);
    const std::vector<int64_t> room = {200'000, 200'000, 200'000};
    for (const Stretch& s : split_layers(config, sizes, room)) {
      EXPECT_TRUE(s.first <= 16 || s.first == 30) << embedding << ": " << s.first << " to " << s.last;
    }
  }
}

TEST(Placement, a_device_may_hold_the_embedding_alone) {
  const ModelConfig config = config_of(4, 2);
  ModelConfig shared = config;
  shared.layers[2].kv_source = 0;
  shared.layers[3].kv_source = 1;
  const std::vector<Stretch> cut = split_layers(shared, sizes_of(4, 100, 1000), std::vector<int64_t>{1500, 1500, 1500});
  EXPECT_EQ(cut[0].last, 0);
  EXPECT_EQ(cut[1].last, 4);
  EXPECT_EQ(cut[2].first, 4);
}

TEST(Placement, what_fits_nowhere_is_refused_with_numbers) {
  const std::string two = refusal(config_of(60, 60), kLarge, {20 * kGiB, 21 * kGiB});
  EXPECT_NE(two.find("no split fits"), std::string::npos) << two;
  EXPECT_NE(two.find(std::to_string(21 * kGiB)), std::string::npos) << two;
}

}  // namespace
}  // namespace gemmantle
