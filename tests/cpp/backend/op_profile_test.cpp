// The profile of ops: what is counted for each, and that it changes nothing.
#include "backend/op_profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/registry.h"
#include "core/error.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using test::Random;
using test::RandomWeight;
using test::Rows;

std::unique_ptr<Backend> cpu(int threads, Mode mode) {
  BackendOptions options;
  options.device = "cpu";
  options.threads = threads;
  options.mode = mode;
  return make_backend(options);
}

const OpProfile::Entry* find(const std::vector<OpProfile::Entry>& entries, const std::string& op) {
  const auto at = std::find_if(entries.begin(), entries.end(), [&](const auto& entry) { return entry.op == op; });
  return at == entries.end() ? nullptr : &*at;
}

TEST(OpProfile, counts_weights_once_and_products_for_every_row) {
  Random random(71);
  RandomWeight w(random, formats::FormatId::q8_0, 40, 64);
  Rows x(random, 3, 64), plain(3, 40), timed(3, 40);
  const auto profile = std::make_shared<OpProfile>();
  const auto backend = cpu(2, Mode::fast);
  const auto timed_backend = profiled(cpu(2, Mode::fast), profile);
  for (int i = 0; i < 2; ++i) {
    backend->run([&](Ops& ops) { ops.linear(plain.tensor(), x.tensor(), w.weight); });
    timed_backend->run([&](Ops& ops) { ops.linear(timed.tensor(), x.tensor(), w.weight); });
  }
  EXPECT_EQ(plain.values, timed.values);
  const std::vector<OpProfile::Entry> entries = profile->take();
  ASSERT_EQ(entries.size(), 1u);
  const OpProfile::Entry& linear = entries[0];
  EXPECT_EQ(linear.op, "linear");
  EXPECT_EQ(linear.format, "q8_0");
  EXPECT_EQ(linear.rows, 40);
  EXPECT_EQ(linear.cols, 64);
  EXPECT_EQ(linear.use.calls, 2);
  EXPECT_EQ(linear.use.bytes, 2 * 40 * 64 / 32 * 34);
  EXPECT_EQ(linear.use.operations, 2 * 2 * 3 * 40 * 64);
  EXPECT_GT(linear.use.seconds, 0);
  EXPECT_TRUE(profile->take().empty());
}

TEST(OpProfile, counts_every_position_that_a_sequence_sees_once) {
  Random random(72);
  constexpr int64_t kBlock = 4, kDim = 8;
  Rows k(random, 16, kDim, 1, 0), v(random, 16, kDim, 1, 0), q(random, 3, 2 * kDim), y(3, 2 * kDim);
  // Rows 0 and 1 of one sequence see positions 0..4 and 1..5, row 2 of another one 0..1.
  const std::vector<int32_t> sequence = {0, 0, 1}, table = {0, 1, 2, 3}, begin = {0, 1, 0}, end = {5, 6, 2};
  Batch::Group group;
  group.block_table = table;
  group.max_blocks = 2;
  group.kv_begin = begin;
  group.kv_end = end;
  const auto profile = std::make_shared<OpProfile>();
  profiled(cpu(1, Mode::exact), profile)->run([&](Ops& ops) {
    ops.attend(y.tensor(), q.tensor(), {2, 1, kDim}, {k.tensor(), v.tensor(), kBlock}, group, sequence, 1.0f);
  });
  const std::vector<OpProfile::Entry> entries = profile->take();
  const OpProfile::Entry* attend = find(entries, "attend");
  ASSERT_NE(attend, nullptr);
  EXPECT_EQ(attend->use.bytes, (6 + 2) * 2 * kDim * 4);
  EXPECT_EQ(attend->use.operations, 4 * 2 * kDim * (5 + 5 + 2));
}

TEST(OpProfile, refuses_devices_that_run_behind_the_caller) {
  class Elsewhere final : public Backend {
   public:
    BackendInfo info() const override { return {"cuda", "", 1}; }
    DType activation_dtype() const override { return DType::f32; }
    Buffer allocate(size_t) override { return {}; }
    Buffer upload(const void*, size_t) override { return {}; }
    Weight place(const Weight& mapped, std::shared_ptr<const void>) override { return mapped; }
    int run(const std::function<void(Ops&)>&) override { return kFinite; }
  };
  try {
    profiled(std::make_unique<Elsewhere>(), std::make_shared<OpProfile>());
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_EQ(error.param(), "profile");
  }
}

}  // namespace
}  // namespace gemmantle
