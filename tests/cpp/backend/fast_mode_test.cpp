// Mode "fast" of device cpu: near mode "exact" where products round x, equal to it where they do not, and blind to
// the company of a row and to the number of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/ops.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using formats::FormatId;
using test::all_formats;
using test::NamedFormat;
using test::Random;
using test::RandomWeight;
using test::Rows;

class FastModeTest : public ::testing::TestWithParam<CpuIsa> {
 protected:
  void SetUp() override {
    if (!GetParam().usable()) GTEST_SKIP() << GetParam().missing();
    for (auto [backend, mode, threads] :
         {std::tuple{&exact_, Mode::exact, 1}, std::tuple{&one_, Mode::fast, 1}, std::tuple{&three_, Mode::fast, 3}}) {
      BackendOptions options;
      options.threads = threads;
      options.mode = mode;
      *backend = make_cpu_backend(options, GetParam());
    }
  }
  bool rounds(const NamedFormat& format) const {
    const cpu::CpuKernels& k = *GetParam().kernels;
    return (k.coded != nullptr && k.coded->takes(format.id)) || (k.halves != nullptr && k.halves->takes(format.id));
  }

  std::unique_ptr<Backend> exact_, one_, three_;
};

bool same(const Rows& a, const Rows& b) {
  return std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0;
}

// |a - b| / |a|, over all values.
double distance(const Rows& a, const Rows& b) {
  double apart = 0, size = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.cols; ++c) {
      apart += std::pow(double{a.at(r, c)} - b.at(r, c), 2);
      size += std::pow(double{a.at(r, c)}, 2);
    }
  }
  return std::sqrt(apart / size);
}

TEST_P(FastModeTest, linear_is_near_where_x_is_rounded_and_equal_elsewhere) {
  Random random(41);
  for (const NamedFormat& format : all_formats()) {
    const int64_t cols = format.group == 1 ? 333 : 768;
    RandomWeight w(random, format.id, 90, cols);
    for (const int64_t rows : {1, 2, 6}) {
      Rows x(random, rows, cols), exact(rows, 90), one(rows, 90), three(rows, 90);
      exact_->run([&](Ops& ops) { ops.linear(exact.tensor(), x.tensor(), w.weight); });
      one_->run([&](Ops& ops) { ops.linear(one.tensor(), x.tensor(), w.weight); });
      three_->run([&](Ops& ops) { ops.linear(three.tensor(), x.tensor(), w.weight); });
      EXPECT_TRUE(same(one, three)) << format.name;
      EXPECT_TRUE(one.gaps_untouched()) << format.name;
      EXPECT_EQ(same(exact, one), !rounds(format)) << format.name;
      EXPECT_LT(distance(exact, one), 0.02) << format.name;
    }
  }
}

TEST_P(FastModeTest, a_row_has_the_same_bits_alone_and_in_a_batch) {
  Random random(42);
  RandomWeight gate(random, FormatId::q4_0, 64, 96), up(random, FormatId::q8_0, 64, 96);
  RandomWeight down(random, FormatId::q5_0, 33, 64);
  Rows x(random, 9, 96), all(9, 33), scratch(9, 128), one(1, 33);
  three_->run(
      [&](Ops& ops) { ops.geglu(all.tensor(), x.tensor(), gate.weight, up.weight, down.weight, scratch.tensor()); });
  for (int64_t r = 0; r < 9; ++r) {
    one_->run([&](Ops& ops) {
      ops.geglu(one.tensor(), x.tensor().slice(r, 1), gate.weight, up.weight, down.weight,
                scratch.tensor().slice(0, 1));
    });
    EXPECT_EQ(std::memcmp(&one.at(0, 0), &all.at(r, 0), 33 * sizeof(float)), 0) << r;
  }
}

TEST_P(FastModeTest, geglu_and_experts_mix_formats) {
  Random random(43);
  constexpr int64_t kRows = 5, kHidden = 64, kWidth = 32, kExperts = 4, kUsed = 2;
  for (const auto& [first, second, third] : {std::tuple{FormatId::q4_0, FormatId::q4_0, FormatId::q8_0},
                                             std::tuple{FormatId::q4_0, FormatId::f16, FormatId::f32},
                                             std::tuple{FormatId::bf16, FormatId::q5_1, FormatId::q4_1}}) {
    RandomWeight gate(random, first, kWidth, kHidden, kExperts), up(random, second, kWidth, kHidden, kExperts);
    RandomWeight down(random, third, kHidden, kWidth, kExperts);
    Rows x(random, kRows, kHidden), logits(random, kRows, kExperts), weights(kRows, kUsed, 0);
    std::vector<int32_t> ids(kRows * kUsed);
    const std::vector<float> scales(kExperts, 1.0f);
    const Routing routing = {{ids.data(), DType::i32, kRows, kUsed, kUsed}, weights.tensor()};
    Rows exact(kRows, kHidden), fast(kRows, kHidden), scratch(kRows * kUsed, 3 * kWidth);
    for (auto [backend, y] : {std::pair{exact_.get(), &exact}, std::pair{three_.get(), &fast}}) {
      backend->run([&](Ops& ops) {
        ops.route(routing, logits.tensor(), scales.data());
        ops.experts(y->tensor(), x.tensor(), routing, gate.weight, up.weight, down.weight, scratch.tensor());
      });
    }
    EXPECT_LT(distance(exact, fast), 0.02);
    Rows pair(kRows, 2 * kWidth);
    for (auto [backend, y] : {std::pair{exact_.get(), &exact}, std::pair{three_.get(), &fast}}) {
      backend->run([&](Ops& ops) {
        ops.geglu(y->tensor(), x.tensor(), gate.weight.expert(1), up.weight.expert(1), down.weight.expert(1),
                  pair.tensor());
      });
    }
    EXPECT_LT(distance(exact, fast), 0.02);
  }
}

INSTANTIATE_TEST_SUITE_P(isas, FastModeTest, ::testing::ValuesIn(cpu_isas().begin(), cpu_isas().end()),
                         [](const auto& isa) { return std::string(isa.param.name); });

}  // namespace
}  // namespace gemmantle
