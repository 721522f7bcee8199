// The kernel tables themselves, without threads and backends: every instruction set that runs here.
#include "kernels/cpu/kernel_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_isa.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using test::all_formats;
using test::NamedFormat;
using test::Random;
using test::RandomWeight;

class KernelTableTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!GetParam().usable()) GTEST_SKIP() << GetParam().missing();
  }
  const cpu::CpuKernels& k() const { return *GetParam().kernels; }
};

cpu::WeightRows rows_of(const Weight& w) {
  return {w.format, reinterpret_cast<const uint8_t*>(w.data), w.row_bytes, w.cols};
}

// x holds a single one, so that a product is a weight: fast readers must give the bits of the format's definition.
TEST_P(KernelTableTest, products_with_unit_rows_are_the_weights_to_the_bit) {
  Random random(21);
  for (const NamedFormat& format : all_formats()) {
    const int64_t cols = format.group == 1 ? 67 : 2 * format.group;
    RandomWeight w(random, format.id, 11, cols);
    std::vector<float> scratch(static_cast<size_t>(k().linear_scratch(cols)));
    std::vector<float> x(static_cast<size_t>(cols * cols)), y(static_cast<size_t>(cols * 11));
    for (int64_t i = 0; i < cols; ++i) x[static_cast<size_t>(i * cols + i)] = 1.0f;
    for (const bool together : {true, false}) {
      for (int64_t r = 0; r < cols; r += together ? cols : 1) {
        const cpu::LinearArgs args = {
            y.data() + r * 11, x.data() + r * cols, 11, cols, together ? cols : 1, nullptr, nullptr,
            nullptr,           rows_of(w.weight)};
        k().linear(&args, 0, 11, scratch.data());
      }
      for (int64_t r = 0; r < cols; ++r) {
        for (int64_t o = 0; o < 11; ++o) {
          ASSERT_EQ(y[static_cast<size_t>(r * 11 + o)], w.at(o, r)) << format.name << " row " << o << " column " << r;
        }
      }
    }
  }
}

TEST_P(KernelTableTest, linear_writes_its_range_and_no_more) {
  Random random(22);
  RandomWeight w(random, formats::FormatId::q8_0, 40, 64);
  std::vector<float> scratch(static_cast<size_t>(k().linear_scratch(64)));
  const std::vector<float> x = random.normals(3 * 64);
  for (const int64_t rows : {1, 3}) {
    std::vector<float> y(3 * 40, 5.0f);
    const cpu::LinearArgs args = {y.data(), x.data(), 40, 64, rows, nullptr, nullptr, nullptr, rows_of(w.weight)};
    k().linear(&args, 13, 30, scratch.data());
    for (int64_t r = 0; r < 3; ++r) {
      for (int64_t o = 0; o < 40; ++o) {
        EXPECT_EQ(y[static_cast<size_t>(r * 40 + o)] == 5.0f, r >= rows || o < 13 || o >= 30) << r << ", " << o;
      }
    }
  }
}

TEST_P(KernelTableTest, linear_gathers_scatters_and_adds) {
  Random random(23);
  RandomWeight w(random, formats::FormatId::f32, 9, 20);
  std::vector<float> scratch(static_cast<size_t>(k().linear_scratch(20)));
  const std::vector<float> x = random.normals(4 * 20), factor = {2.0f, -0.5f, 3.0f};
  const std::vector<int32_t> from = {3, 0, 3}, to = {1, 0, 2};
  std::vector<float> plain(4 * 9), y(3 * 9, 1.0f);
  const cpu::LinearArgs all = {plain.data(), x.data(), 9, 20, 4, nullptr, nullptr, nullptr, rows_of(w.weight)};
  k().linear(&all, 0, 9, scratch.data());
  const cpu::LinearArgs some = {y.data(), x.data(), 9, 20, 3, from.data(), to.data(), factor.data(), rows_of(w.weight)};
  k().linear(&some, 0, 9, scratch.data());
  for (size_t r = 0; r < 3; ++r) {
    for (size_t o = 0; o < 9; ++o) {
      const float product = plain[static_cast<size_t>(from[r]) * 9 + o];
      EXPECT_NEAR(y[static_cast<size_t>(to[r]) * 9 + o], 1.0f + factor[r] * product, 1e-5);
    }
  }
}

TEST_P(KernelTableTest, attention_over_parts_merges_to_the_whole) {
  Random random(24);
  constexpr int kHeads = 3, kDim = 21;
  constexpr int64_t kPositions = 300;
  const std::vector<float> q = random.normals(kHeads * kDim), keys = random.normals(kPositions * kDim),
                           values = random.normals(kPositions * kDim);
  std::vector<int32_t> blocks(kPositions / 4);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = static_cast<int32_t>(blocks.size() - 1 - i);
  const cpu::AttendArgs args = {q.data(), kHeads, kDim, keys.data(), values.data(), kDim, kDim, blocks.data(), 4, 0.3f};
  std::vector<float> scratch(cpu::kAttendScratch);
  std::vector<float> memory[3];
  cpu::AttendState state[3];
  for (int i = 0; i < 3; ++i) {
    memory[i].resize(kHeads * (kDim + 2));
    state[i] = {memory[i].data(), memory[i].data() + kHeads, memory[i].data() + 2 * kHeads};
  }
  k().attend(&args, 5, 290, state[0], scratch.data());
  k().attend(&args, 5, 64, state[1], scratch.data());
  for (const auto& [begin, end] : {std::pair{64, 130}, std::pair{130, 131}, std::pair{131, 290}}) {
    k().attend(&args, begin, end, state[2], scratch.data());
    k().attend_merge(state[1], state[2], kHeads, kDim);
  }
  std::vector<float> whole(kHeads * kDim), merged(kHeads * kDim);
  k().attend_finish(whole.data(), state[0], kHeads, kDim);
  k().attend_finish(merged.data(), state[1], kHeads, kDim);
  for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(whole[i], merged[i], 2e-6) << i;
}

TEST_P(KernelTableTest, values_do_not_depend_on_where_a_run_starts) {
  Random random(25);
  const std::vector<float> x = random.normals(100, 3.0f);
  const std::vector<float> ones(100, 1.0f);
  std::vector<float> whole(100), cut(100), capped = x, capped_cut = x;
  k().gelu_mul(whole.data(), x.data(), ones.data(), 100);
  k().softcap(capped.data(), 100, 2.0f);
  for (int64_t first = 0, n = 1; first < 100; first += n, n += 2) {
    const int64_t count = std::min(n, 100 - first);
    k().gelu_mul(cut.data() + first, x.data() + first, ones.data(), count);
    k().softcap(capped_cut.data() + first, count, 2.0f);
  }
  EXPECT_EQ(std::memcmp(whole.data(), cut.data(), 400), 0);
  EXPECT_EQ(std::memcmp(capped.data(), capped_cut.data(), 400), 0);
}

INSTANTIATE_TEST_SUITE_P(isas, KernelTableTest, ::testing::ValuesIn(cpu_isas().begin(), cpu_isas().end()),
                         [](const auto& isa) { return std::string(isa.param.name); });

}  // namespace
}  // namespace gemmantle
