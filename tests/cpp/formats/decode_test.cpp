// Every format against PyPI `gguf`: blocks.bin holds random blocks and their values (tools/make_format_fixture.py).
#include "kernels/formats/decode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace gemmantle::formats {
namespace {

struct Record {
  uint32_t group = 0, block_bytes = 0, count = 0;
  std::vector<uint8_t> blocks;
  std::vector<float> values;
};

std::map<std::string, Record> read_fixture() {
  const std::string path = GEMMANTLE_SOURCE_DIR "/tests/cpp/formats/data/blocks.bin";
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  std::map<std::string, Record> records;
  char name[16];
  while (in.read(name, sizeof name)) {
    Record record;
    in.read(reinterpret_cast<char*>(&record.group), 3 * sizeof(uint32_t));
    record.blocks.resize(size_t{record.count} * record.block_bytes);
    in.read(reinterpret_cast<char*>(record.blocks.data()), static_cast<std::streamsize>(record.blocks.size()));
    record.values.resize(size_t{record.count} * record.group);
    in.read(reinterpret_cast<char*>(record.values.data()), static_cast<std::streamsize>(4 * record.values.size()));
    EXPECT_TRUE(in) << name;
    records.emplace(name, std::move(record));
  }
  return records;
}

template <class F>
class DecodeTest : public testing::Test {};

using AllFormats = testing::Types<F32, BF16, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL>;
TYPED_TEST_SUITE(DecodeTest, AllFormats);

void expect_same_bits(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(wanted[i])) {
      EXPECT_TRUE(std::isnan(got[i])) << "value " << i;
    } else {
      ASSERT_EQ(f32_bits(got[i]), f32_bits(wanted[i])) << "value " << i << ": " << got[i] << " for " << wanted[i];
    }
  }
}

TYPED_TEST(DecodeTest, values_equal_the_independent_reading_bit_for_bit) {
  const auto records = read_fixture();
  ASSERT_TRUE(records.contains(TypeParam::name)) << TypeParam::name;
  const Record& record = records.at(TypeParam::name);
  ASSERT_EQ(record.group, static_cast<uint32_t>(TypeParam::group));
  ASSERT_EQ(record.block_bytes, static_cast<uint32_t>(TypeParam::block_bytes));
  std::vector<float> values(record.values.size());
  decode_row<TypeParam>(record.blocks.data(), static_cast<int64_t>(values.size()), values.data());
  expect_same_bits(values, record.values);
}

TYPED_TEST(DecodeTest, any_alignment_and_the_run_time_tag_give_the_same_values) {
  const auto records = read_fixture();
  const Record& record = records.at(TypeParam::name);
  for (size_t shift = 1; shift < 4; ++shift) {
    std::vector<uint8_t> moved(record.blocks.size() + shift);
    std::memcpy(moved.data() + shift, record.blocks.data(), record.blocks.size());
    std::vector<float> values(record.values.size());
    decode_row(TypeParam::id, moved.data() + shift, static_cast<int64_t>(values.size()), values.data());
    expect_same_bits(values, record.values);
  }
}

TYPED_TEST(DecodeTest, the_run_time_tag_knows_name_and_sizes) {
  EXPECT_STREQ(info(TypeParam::id).name, TypeParam::name);
  EXPECT_EQ(info(TypeParam::id).group, TypeParam::group);
  EXPECT_EQ(info(TypeParam::id).block_bytes, TypeParam::block_bytes);
}

TEST(DecodeFixture, covers_every_listed_format) {
  const auto records = read_fixture();
#define GEMMANTLE_FORMAT(enumerator, type) EXPECT_TRUE(records.contains(#enumerator)) << #enumerator;
#include "kernels/formats/formats.def"
#undef GEMMANTLE_FORMAT
}

}  // namespace
}  // namespace gemmantle::formats
