// Every op on every backend, instruction set and thread count, against plain loops in double, at sizes around the
// borders of vectors; what a row gets must not depend on its company.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "backend/ops.h"
#include "core/error.h"
#include "support/machines.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using formats::FormatId;
using test::all_formats;
using test::Machine;
using test::NamedFormat;
using test::Random;
using test::RandomWeight;
using test::Rows;

constexpr int64_t kSizes[] = {1, 7, 8, 15, 16, 17, 31, 33, 50, 64, 257};
constexpr int64_t kRowCounts[] = {0, 1, 2, 3, 5, 13};

double gelu(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

class OpsTest : public ::testing::TestWithParam<Machine> {
 protected:
  void SetUp() override {
    if (!GetParam().missing.empty()) GTEST_SKIP() << GetParam().missing;
    backend_ = GetParam().make();
  }
  template <class Step>
  int run(Step&& step) {
    return backend_->run(step);
  }
  std::unique_ptr<Backend> backend_;
};

// One rounding of the result and a few of the inputs' products.
void expect_near(float found, double wanted, double scale, const char* what, int64_t r, int64_t c) {
  ASSERT_LE(std::abs(found - wanted), 2e-6 * scale + 1e-30)
      << what << " at " << r << ", " << c << ": " << found << " for " << wanted;
}

void expect_same_bits(const Rows& a, int64_t ra, const Rows& b, int64_t rb, const char* what) {
  ASSERT_EQ(a.cols, b.cols);
  for (int64_t c = 0; c < a.cols; ++c) {
    const float x = a.at(ra, c), y = b.at(rb, c);
    ASSERT_EQ(std::memcmp(&x, &y, sizeof x), 0)
        << what << " row " << ra << " column " << c << ": " << x << " and " << y;
  }
}

void expect_product(const Rows& y, const Rows& x, const RandomWeight& w) {
  for (int64_t r = 0; r < y.rows; ++r) {
    for (int64_t o = 0; o < y.cols; ++o) {
      double sum = 0, size = 0;
      for (int64_t i = 0; i < x.cols; ++i) {
        const double product = double{x.at(r, i)} * w.at(o, i);
        sum += product;
        size += std::abs(product);
      }
      ASSERT_NO_FATAL_FAILURE(expect_near(y.at(r, o), sum, size, "product", r, o));
    }
  }
}

TEST_P(OpsTest, linear_is_the_product_in_every_format) {
  Random random(1);
  for (const NamedFormat& format : all_formats()) {
    SCOPED_TRACE(format.name);
    for (const int64_t blocks : {1, 3}) {
      const int64_t cols = format.group == 1 ? 40 * blocks + 1 : format.group * blocks;
      RandomWeight w(random, format.id, 37, cols);
      for (const int64_t rows : kRowCounts) {
        Rows x(random, rows, cols), y(rows, 37);
        run([&](Ops& ops) { ops.linear(y.tensor(), x.tensor(), w.weight); });
        ASSERT_NO_FATAL_FAILURE(expect_product(y, x, w));
        ASSERT_TRUE(y.gaps_untouched());
      }
    }
  }
}

TEST_P(OpsTest, linear_takes_every_width_height_and_alignment) {
  Random random(2);
  for (const FormatId format : {FormatId::f32, FormatId::bf16, FormatId::f16}) {
    for (const int64_t cols : kSizes) {
      for (const int64_t outputs : {int64_t{1}, int64_t{5}, int64_t{8}, int64_t{9}, int64_t{70}}) {
        RandomWeight w(random, format, outputs, cols, 1, static_cast<size_t>(cols % 4));
        for (const int64_t rows : {1, 4, 7}) {
          Rows x(random, rows, cols), y(rows, outputs);
          run([&](Ops& ops) { ops.linear(y.tensor(), x.tensor(), w.weight); });
          ASSERT_NO_FATAL_FAILURE(expect_product(y, x, w));
        }
      }
    }
  }
}

TEST_P(OpsTest, a_row_of_linear_has_the_same_bits_alone_and_in_a_batch) {
  if (GetParam().device == "reference")
    GTEST_SKIP() << "Eigen's sums depend on the shape; the reference promises doubles";
  Random random(3);
  for (const NamedFormat& format : all_formats()) {
    const int64_t cols = format.group == 1 ? 333 : 3 * format.group;
    RandomWeight w(random, format.id, 130, cols);
    Rows x(random, 29, cols), all(29, 130);
    run([&](Ops& ops) { ops.linear(all.tensor(), x.tensor(), w.weight); });
    for (const int64_t n : {1, 2, 4, 6, 7}) {
      for (int64_t first = 0; first + n <= 29; first += 5) {
        Rows part(n, 130);
        run([&](Ops& ops) { ops.linear(part.tensor(), x.tensor().slice(first, n), w.weight); });
        for (int64_t r = 0; r < n; ++r) ASSERT_NO_FATAL_FAILURE(expect_same_bits(part, r, all, first + r, format.name));
      }
    }
  }
}

TEST_P(OpsTest, linear_of_a_slice_is_a_slice_of_linear) {
  Random random(4);
  RandomWeight w(random, FormatId::q8_0, 40, 64);
  Rows x(random, 3, 64), all(3, 40), part(3, 11);
  run([&](Ops& ops) {
    ops.linear(all.tensor(), x.tensor(), w.weight);
    ops.linear(part.tensor(), x.tensor(), w.weight.slice(17, 11));
  });
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 0; c < 11; ++c) EXPECT_NEAR(part.at(r, c), all.at(r, 17 + c), 1e-5);
  }
}

TEST_P(OpsTest, embed_reads_scaled_rows_of_every_format) {
  Random random(5);
  for (const NamedFormat& format : all_formats()) {
    const int64_t cols = format.group == 1 ? 50 : 2 * format.group;
    RandomWeight table(random, format.id, 9, cols);
    const std::vector<int32_t> ids = {8, 0, 3, 3, 7};
    Rows y(5, cols);
    run([&](Ops& ops) { ops.embed(y.tensor(), table.weight, ids, 1.75f); });
    for (int64_t r = 0; r < 5; ++r) {
      for (int64_t c = 0; c < cols; ++c)
        ASSERT_EQ(y.at(r, c), table.at(ids[static_cast<size_t>(r)], c) * 1.75f) << format.name;
    }
    EXPECT_TRUE(y.gaps_untouched());
  }
}

TEST_P(OpsTest, rms_norm_is_by_group_with_and_without_weight_and_in_place) {
  Random random(6);
  for (const int64_t group : kSizes) {
    for (const int64_t groups : {1, 3}) {
      const std::vector<float> weight = random.normals(group);
      for (const bool weighted : {true, false}) {
        for (const bool in_place : {true, false}) {
          Rows x(random, 4, group * groups, 3.0f), y(4, group * groups);
          const Rows before = x;
          Rows& out = in_place ? x : y;
          run([&](Ops& ops) {
            ops.rms_norm(out.tensor(), x.tensor(), weighted ? weight.data() : nullptr, group, 1e-6f);
          });
          for (int64_t r = 0; r < 4; ++r) {
            for (int64_t c = 0; c < x.cols; ++c) {
              double squares = 0;
              for (int64_t i = 0; i < group; ++i) squares += std::pow(double{before.at(r, c / group * group + i)}, 2);
              const double wanted = before.at(r, c) / std::sqrt(squares / double(group) + 1e-6) *
                                    (weighted ? weight[static_cast<size_t>(c % group)] : 1.0f);
              ASSERT_NO_FATAL_FAILURE(expect_near(out.at(r, c), wanted, std::abs(wanted), "norm", r, c));
            }
          }
          ASSERT_TRUE(out.gaps_untouched());
        }
      }
    }
  }
}

TEST_P(OpsTest, element_wise_ops_are_exact_to_a_rounding) {
  Random random(7);
  for (const int64_t cols : kSizes) {
    for (const int64_t rows : kRowCounts) {
      Rows a(random, rows, cols, 3.0f), b(random, rows, cols);
      const std::vector<float> weight = random.normals(cols);
      Rows sum = a, scaled(rows, cols), plain(rows, cols), product = a, capped = a;
      run([&](Ops& ops) {
        ops.add(sum.tensor(), b.tensor(), 0.75f);
        ops.scale(scaled.tensor(), a.tensor(), weight.data(), 0.3f);
        ops.scale(plain.tensor(), a.tensor(), nullptr, 0.3f);
        ops.gelu_mul(product.tensor(), product.tensor(), b.tensor());
        ops.softcap(capped.tensor(), 2.5f);
      });
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const double x = a.at(r, c), y = b.at(r, c), w = weight[static_cast<size_t>(c)];
          ASSERT_NO_FATAL_FAILURE(expect_near(sum.at(r, c), (x + y) * 0.75, std::abs(x) + std::abs(y), "add", r, c));
          ASSERT_NO_FATAL_FAILURE(expect_near(scaled.at(r, c), x * 0.3f * w, std::abs(x * w), "scale", r, c));
          ASSERT_NO_FATAL_FAILURE(expect_near(plain.at(r, c), x * 0.3f, std::abs(x), "scale", r, c));
          // The polynomial is relative, but x^3 is rounded before its exponential is taken.
          ASSERT_NO_FATAL_FAILURE(expect_near(product.at(r, c), gelu(x) * y, std::abs(x * y), "gelu_mul", r, c));
          ASSERT_NO_FATAL_FAILURE(expect_near(capped.at(r, c), 2.5 * std::tanh(x / 2.5), std::abs(x), "softcap", r, c));
        }
      }
      for (const Rows* out : {&sum, &scaled, &plain, &product, &capped}) ASSERT_TRUE(out->gaps_untouched());
    }
  }
}

TEST_P(OpsTest, activations_hold_at_the_ends_of_the_number_line) {
  const std::vector<float> xs = {0.0f,  -0.0f, 1e-30f, -1e-30f, 1e-6f,   0.3f, 0.62f, 0.63f, -0.63f, 5.0f,
                                 -5.0f, 20.0f, -20.0f, 100.0f,  -100.0f, 1e4f, -1e4f, 1e30f, -1e30f};
  const auto n = static_cast<int64_t>(xs.size());
  Rows gate(1, n), one(1, n), capped(1, n);
  for (int64_t c = 0; c < n; ++c) {
    gate.at(0, c) = capped.at(0, c) = xs[static_cast<size_t>(c)];
    one.at(0, c) = 1.0f;
  }
  run([&](Ops& ops) {
    ops.gelu_mul(gate.tensor(), gate.tensor(), one.tensor());
    ops.softcap(capped.tensor(), 30.0f);
  });
  for (int64_t c = 0; c < n; ++c) {
    const double x = xs[static_cast<size_t>(c)];
    EXPECT_LE(std::abs(gate.at(0, c) - gelu(x)), 1e-6 * std::abs(gelu(x)) + 1e-6 * std::min(1.0, std::abs(x))) << x;
    EXPECT_LE(std::abs(capped.at(0, c) - 30 * std::tanh(x / 30)), 1e-6 * std::min(30.0, std::abs(x))) << x;
  }
}

TEST_P(OpsTest, long_rows_are_cut_without_a_trace) {
  Random random(8);
  Rows x(random, 2, 70001, 10.0f);
  Rows y = x;
  run([&](Ops& ops) { ops.softcap(y.tensor(), 30.0f); });
  for (int64_t r = 0; r < 2; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      ASSERT_NO_FATAL_FAILURE(
          expect_near(y.at(r, c), 30 * std::tanh(x.at(r, c) / 30.0), std::abs(x.at(r, c)), "softcap", r, c));
    }
  }
}

TEST_P(OpsTest, rope_turns_halves_of_every_head) {
  Random random(9);
  for (const int64_t dim : {2, 6, 16, 34, 64, 256}) {
    std::vector<float> freq(static_cast<size_t>(dim / 2));
    for (int64_t i = 0; i < dim / 2; ++i) {
      freq[static_cast<size_t>(i)] =
          i % 5 == 4 ? 0.0f : static_cast<float>(std::pow(10000.0, -2.0 * double(i) / double(dim)));
    }
    const std::vector<int32_t> positions = {0, 1, 77, 131071};
    Rows x(random, 4, 3 * dim);
    const Rows before = x;
    run([&](Ops& ops) { ops.rope(x.tensor(), dim, {freq.data()}, positions); });
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < x.cols; ++c) {
        const int64_t i = c % dim % (dim / 2), head = c / dim * dim;
        const double angle = double(positions[static_cast<size_t>(r)]) * freq[static_cast<size_t>(i)];
        const double a = before.at(r, head + i), b = before.at(r, head + i + dim / 2);
        const double wanted =
            c % dim < dim / 2 ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
        ASSERT_NO_FATAL_FAILURE(expect_near(x.at(r, c), wanted, std::abs(a) + std::abs(b), "rope", r, c));
      }
    }
  }
}

// Two sequences in blocks that lie anywhere, with a window for some rows.
struct AttendCase {
  HeadLayout heads;
  int64_t block_size, positions;
  Rows k, v, q;
  std::vector<int32_t> table, sequence, begin, end;
  int64_t max_blocks;

  AttendCase(Random& random, HeadLayout layout, int64_t block, int64_t length, int64_t rows)
      : heads(layout),
        block_size(block),
        positions(length),
        k(0, 0),
        v(0, 0),
        q(random, rows, layout.q_dim()),
        max_blocks((length + block - 1) / block + 1) {
    const int64_t blocks = 2 * max_blocks + 1;
    k = Rows(random, blocks * block, layout.kv_dim(), 0.5f);
    v = Rows(random, blocks * block, layout.kv_dim());
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = blocks - 1; i > 0; --i)
      std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(random.below(i + 1))]);
    table.assign(order.begin(), order.begin() + 2 * max_blocks);
    for (int64_t r = 0; r < rows; ++r) {
      sequence.push_back(static_cast<int32_t>(r % 2));
      end.push_back(static_cast<int32_t>(1 + random.below(length)));
      begin.push_back(r % 3 == 0 ? 0 : static_cast<int32_t>(random.below(end.back())));
    }
  }

  Batch::Group group(int64_t first, int64_t n) const {
    Batch::Group g;
    g.block_table = table;
    g.max_blocks = max_blocks;
    g.kv_begin = std::span(begin).subspan(static_cast<size_t>(first), static_cast<size_t>(n));
    g.kv_end = std::span(end).subspan(static_cast<size_t>(first), static_cast<size_t>(n));
    return g;
  }
  void run(Ops& ops, Rows& y, int64_t first, int64_t n) {
    ops.attend(y.tensor(), q.tensor().slice(first, n), heads, {k.tensor(), v.tensor(), block_size}, group(first, n),
               std::span<const int32_t>(sequence).subspan(static_cast<size_t>(first), static_cast<size_t>(n)), 0.7f);
  }

  void expect(const Rows& y) const {
    for (int64_t r = 0; r < q.rows; ++r) {
      const auto at = static_cast<size_t>(r);
      for (int64_t h = 0; h < heads.query; ++h) {
        const int64_t qc = h * heads.dim, kc = h / (heads.query / heads.kv) * heads.dim;
        std::vector<double> scores;
        std::vector<int64_t> slots;
        for (int64_t p = begin[at]; p < end[at]; ++p) {
          const int32_t block = table[static_cast<size_t>(sequence[at] * max_blocks + p / block_size)];
          slots.push_back(block * block_size + p % block_size);
          double score = 0;
          for (int64_t i = 0; i < heads.dim; ++i) score += double{q.at(r, qc + i)} * k.at(slots.back(), kc + i);
          scores.push_back(0.7 * score);
        }
        const double top = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (double& s : scores) total += s = std::exp(s - top);
        for (int64_t i = 0; i < heads.dim; ++i) {
          double value = 0;
          for (size_t j = 0; j < slots.size(); ++j) value += scores[j] / total * v.at(slots[j], kc + i);
          ASSERT_NEAR(y.at(r, qc + i), value, 5e-6) << "row " << r << " head " << h << " column " << i;
        }
      }
    }
  }
};

TEST_P(OpsTest, attend_is_softmax_over_the_range_through_the_block_table) {
  Random random(10);
  for (const HeadLayout heads : {HeadLayout{1, 1, 1}, HeadLayout{4, 1, 16}, HeadLayout{6, 2, 17}, HeadLayout{5, 5, 33},
                                 HeadLayout{8, 1, 64}, HeadLayout{40, 2, 12}}) {
    for (const int64_t block : {1, 5, 16}) {
      AttendCase c(random, heads, block, 200, 9);
      Rows y(9, heads.q_dim());
      run([&](Ops& ops) { c.run(ops, y, 0, 9); });
      ASSERT_NO_FATAL_FAILURE(c.expect(y));
      ASSERT_TRUE(y.gaps_untouched());
    }
  }
}

TEST_P(OpsTest, a_row_of_attend_has_the_same_bits_alone_and_in_a_batch_over_long_contexts) {
  Random random(11);
  AttendCase c(random, {2, 1, 20}, 16, 3500, 8);
  c.end[0] = 3500;
  c.end[1] = 1025;
  c.begin[1] = 1000;
  Rows all(8, c.heads.q_dim());
  run([&](Ops& ops) { c.run(ops, all, 0, 8); });
  ASSERT_NO_FATAL_FAILURE(c.expect(all));
  for (int64_t r = 0; r < 8; ++r) {
    Rows one(1, c.heads.q_dim());
    run([&](Ops& ops) { c.run(ops, one, r, 1); });
    ASSERT_NO_FATAL_FAILURE(expect_same_bits(one, 0, all, r, "attend"));
  }
}

TEST_P(OpsTest, scores_of_any_size_leave_attention_finite) {
  Random random(12);
  AttendCase c(random, {2, 1, 16}, 16, 100, 4);
  for (float& x : c.q.values) x *= 1e4f;
  Rows y(4, 32);
  run([&](Ops& ops) { c.run(ops, y, 0, 4); });
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t i = 0; i < 32; ++i) ASSERT_TRUE(std::isfinite(y.at(r, i)));
  }
}

TEST_P(OpsTest, store_kv_and_copy_rows_move_rows) {
  Random random(13);
  Rows k(random, 3, 10), v(random, 3, 10), pool_k(20, 10), pool_v(20, 10), picked(4, 10);
  const std::vector<int32_t> slots = {19, 0, 7}, rows = {2, 2, 0, 1};
  run([&](Ops& ops) {
    ops.store_kv({pool_k.tensor(), pool_v.tensor(), 4}, k.tensor(), v.tensor(), slots);
    ops.copy_rows(picked.tensor(), k.tensor(), rows);
  });
  for (int64_t r = 0; r < 3; ++r) {
    expect_same_bits(pool_k, slots[static_cast<size_t>(r)], k, r, "k");
    expect_same_bits(pool_v, slots[static_cast<size_t>(r)], v, r, "v");
  }
  for (int64_t r = 0; r < 4; ++r) expect_same_bits(picked, r, k, rows[static_cast<size_t>(r)], "copy");
  EXPECT_EQ(pool_k.at(1, 0), -77.0f);
}

struct Routes {
  std::vector<int32_t> ids;
  Rows weights;
  Routes(int64_t rows, int64_t used) : ids(static_cast<size_t>(rows * used)), weights(rows, used) {}
  Routing routing() { return {{ids.data(), DType::i32, weights.rows, weights.cols, weights.cols}, weights.tensor()}; }
  int32_t id(int64_t r, int64_t j) const { return ids[static_cast<size_t>(r * weights.cols + j)]; }
};

TEST_P(OpsTest, route_takes_the_most_probable_experts_in_order) {
  Random random(14);
  Rows logits(random, 6, 13, 2.0f);
  for (int64_t e = 0; e < 13; ++e) logits.at(5, e) = e < 4 ? -1.0f : 0.25f;  // ties
  const std::vector<float> scales = random.normals(13);
  Routes routes(6, 4);
  run([&](Ops& ops) { ops.route(routes.routing(), logits.tensor(), scales.data()); });
  for (int64_t r = 0; r < 6; ++r) {
    std::vector<int32_t> order(13);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return logits.at(r, a) > logits.at(r, b); });
    double total = 0;
    for (int j = 0; j < 4; ++j) total += std::exp(double{logits.at(r, order[static_cast<size_t>(j)])});
    for (int j = 0; j < 4; ++j) {
      const int32_t e = order[static_cast<size_t>(j)];
      ASSERT_EQ(routes.id(r, j), e);
      EXPECT_NEAR(routes.weights.at(r, j), std::exp(double{logits.at(r, e)}) / total * scales[static_cast<size_t>(e)],
                  1e-6);
    }
  }
}

TEST_P(OpsTest, route_stays_in_range_whatever_the_logits) {
  Rows logits(1, 5);
  for (int64_t e = 0; e < 5; ++e) logits.at(0, e) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scales(5, 1.0f);
  Routes routes(1, 3);
  run([&](Ops& ops) { ops.route(routes.routing(), logits.tensor(), scales.data()); });
  for (int j = 0; j < 3; ++j) EXPECT_TRUE(routes.id(0, j) >= 0 && routes.id(0, j) < 5);
}

TEST_P(OpsTest, experts_add_up_by_weight_fused_or_apart) {
  Random random(15);
  constexpr int64_t kHidden = 64, kWidth = 32, kUsed = 3;
  constexpr int32_t kCount = 7;
  for (const FormatId format : {FormatId::bf16, FormatId::q8_0}) {
    RandomWeight gate_up(random, format, 2 * kWidth, kHidden, kCount), down(random, format, kHidden, kWidth, kCount);
    RandomWeight gate(random, format, kWidth, kHidden, kCount), up(random, format, kWidth, kHidden, kCount);
    for (const bool apart : {false, true}) {
      for (const int64_t rows : {int64_t{0}, int64_t{1}, int64_t{9}}) {
        Rows x(random, rows, kHidden), y(rows, kHidden), scratch(rows * kUsed, 3 * kWidth);
        Routes routes(rows, kUsed);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t first = random.below(kCount);
          for (int64_t j = 0; j < kUsed; ++j) {
            routes.ids[static_cast<size_t>(r * kUsed + j)] = static_cast<int32_t>((first + 2 * j) % kCount);
            routes.weights.at(r, j) = random.normal();
          }
        }
        const auto apply = [&](Ops& ops, Tensor out, Tensor in, Routing routing) {
          ops.experts(out, in, routing, apart ? gate.weight : gate_up.weight, apart ? up.weight : Weight{}, down.weight,
                      scratch.tensor());
        };
        run([&](Ops& ops) { apply(ops, y.tensor(), x.tensor(), routes.routing()); });
        for (int64_t r = 0; r < rows; ++r) {
          std::vector<double> wanted(kHidden), size(kHidden);
          for (int64_t j = 0; j < kUsed; ++j) {
            const int64_t e = routes.id(r, j);
            for (int64_t f = 0; f < kWidth; ++f) {
              double g = 0, u = 0;
              for (int64_t i = 0; i < kHidden; ++i) {
                g += double{x.at(r, i)} * (apart ? gate.at(e * kWidth + f, i) : gate_up.at(e * 2 * kWidth + f, i));
                u += double{x.at(r, i)} *
                     (apart ? up.at(e * kWidth + f, i) : gate_up.at(e * 2 * kWidth + kWidth + f, i));
              }
              for (int64_t o = 0; o < kHidden; ++o) {
                const double part = routes.weights.at(r, j) * gelu(g) * u * down.at(e * kHidden + o, f);
                wanted[static_cast<size_t>(o)] += part;
                size[static_cast<size_t>(o)] += std::abs(part);
              }
            }
          }
          for (int64_t o = 0; o < kHidden; ++o) {
            ASSERT_NO_FATAL_FAILURE(
                expect_near(y.at(r, o), wanted[static_cast<size_t>(o)], size[static_cast<size_t>(o)], "experts", r, o));
          }
        }
        if (GetParam().device == "reference") continue;  // Eigen's sums depend on the shape
        for (int64_t r = 0; r < rows; ++r) {
          Rows one(1, kHidden);
          Routes alone(1, kUsed);
          std::copy_n(routes.ids.begin() + r * kUsed, kUsed, alone.ids.begin());
          for (int64_t j = 0; j < kUsed; ++j) alone.weights.at(0, j) = routes.weights.at(r, j);
          run([&](Ops& ops) { apply(ops, one.tensor(), x.tensor().slice(r, 1), alone.routing()); });
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(one, 0, y, r, "experts"));
        }
      }
    }
  }
}

TEST_P(OpsTest, the_smallest_tag_of_a_tensor_that_is_not_finite_comes_back) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  Rows good(3, 50), huge(3, 50);
  for (float& x : good.values) x = 1.0f;
  for (float& x : huge.values) x = 3e38f;
  EXPECT_EQ(run([&](Ops& ops) {
              ops.check_finite(good.tensor(), 3);
              ops.check_finite(huge.tensor(), 4);
            }),
            Backend::kFinite);
  for (const float bad : {inf, -inf, nan}) {
    for (const int64_t column : {0, 15, 16, 47, 49}) {
      Rows x = good;
      x.at(2, column) = bad;
      EXPECT_EQ(run([&](Ops& ops) {
                  ops.check_finite(good.tensor(), 1);
                  ops.check_finite(x.tensor(), 2);
                  ops.check_finite(x.tensor(), 5);
                }),
                2);
    }
  }
  EXPECT_EQ(run([&](Ops& ops) { ops.check_finite(good.tensor(), 1); }), Backend::kFinite)
      << "a step forgets the one before";
  Rows gap = good;
  gap.at(0, 51) = nan;  // between the rows
  EXPECT_EQ(run([&](Ops& ops) { ops.check_finite(gap.tensor(), 1); }), Backend::kFinite);
}

TEST_P(OpsTest, sample_takes_the_largest_logit_of_each_row) {
  Random random(16);
  Rows logits(random, 5, 300);
  std::vector<SampleRow> rows(5);
  std::vector<SampledToken> tokens(5);
  for (SampleRow& row : rows) row.temperature = 0;
  run([&](Ops& ops) { ops.sample(logits.tensor(), rows, tokens); });
  for (int64_t r = 0; r < 5; ++r) {
    int32_t best = 0;
    for (int32_t i = 1; i < 300; ++i) best = logits.at(r, i) > logits.at(r, best) ? i : best;
    EXPECT_EQ(tokens[static_cast<size_t>(r)].id, best);
  }
}

TEST_P(OpsTest, fusions_are_their_composition) {
  Random random(17);
  for (const int64_t rows : {0, 1, 2, 11}) {
    for (const int64_t cols : {int64_t{33}, int64_t{64}, int64_t{257}}) {
      const std::vector<float> post = random.normals(cols), next = random.normals(cols);
      for (const float* following : {next.data(), static_cast<const float*>(nullptr)}) {
        Rows h(random, rows, cols), y(random, rows, cols), x(rows, cols);
        Rows h2 = h, y2 = y, x2 = x;
        run([&](Ops& ops) {
          ops.add_norm(h.tensor(), y.tensor(), post.data(), 0.6f, following, x.tensor(), 1e-6f);
          ops.Ops::add_norm(h2.tensor(), y2.tensor(), post.data(), 0.6f, following, x2.tensor(), 1e-6f);
        });
        for (int64_t r = 0; r < rows; ++r) {
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(h, r, h2, r, "add_norm h"));
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(x, r, x2, r, "add_norm x"));
        }
      }
    }
    for (const float cap : {0.0f, 2.0f}) {
      RandomWeight w(random, FormatId::bf16, 29, 40);
      Rows x(random, rows, 40), y(rows, 29), y2(rows, 29);
      run([&](Ops& ops) {
        ops.head(y.tensor(), x.tensor(), w.weight, cap);
        ops.Ops::head(y2.tensor(), x.tensor(), w.weight, cap);
      });
      for (int64_t r = 0; r < rows; ++r) ASSERT_NO_FATAL_FAILURE(expect_same_bits(y, r, y2, r, "head"));
    }
    for (const NamedFormat& format : all_formats()) {
      const int64_t cols = format.group == 1 ? 50 : format.group, width = format.group == 1 ? 70 : format.group;
      RandomWeight gate(random, format.id, width, cols), up(random, format.id, width, cols),
          down(random, format.id, cols, width);
      Rows x(random, rows, cols), y(rows, cols), y2(rows, cols), scratch(rows, 2 * width), scratch2(rows, 2 * width);
      run([&](Ops& ops) {
        ops.geglu(y.tensor(), x.tensor(), gate.weight, up.weight, down.weight, scratch.tensor());
        ops.Ops::geglu(y2.tensor(), x.tensor(), gate.weight, up.weight, down.weight, scratch2.tensor());
      });
      for (int64_t r = 0; r < rows; ++r) ASSERT_NO_FATAL_FAILURE(expect_same_bits(y, r, y2, r, format.name));
    }
  }
}

TEST_P(OpsTest, prepare_qkv_is_its_composition) {
  using Values = QkvHeads::Values;
  Random random(18);
  constexpr int64_t kDim = 32, kSlots = 9;
  const std::vector<float> q_norm = random.normals(kDim), k_norm = random.normals(kDim);
  std::vector<float> freq(kDim / 2, 0.0f);
  for (size_t i = 0; i < 10; ++i) freq[i] = std::pow(1e4f, -static_cast<float>(i) / 16);
  const std::vector<int32_t> positions = {0, 3, 9000}, slots = {8, 0, 4};
  for (const Values values : {Values::given, Values::normed, Values::normed_keys}) {
    for (const auto& [queries, keys] : {std::pair{3, 2}, {3, 0}, {0, 2}}) {
      Rows q(random, 3, queries * kDim), k(random, 3, keys * kDim), v(random, 3, keys * kDim);
      Rows pool_k(kSlots, keys * kDim), pool_v = pool_k;
      Rows q2 = q, k2 = k, v2 = v, pool_k2 = pool_k, pool_v2 = pool_v;
      const auto heads = [&](Rows& of_q, Rows& of_k, Rows& of_v) -> QkvHeads {
        return {of_q.tensor(), of_k.tensor(), of_v.tensor(), kDim,         q_norm.data(),
                k_norm.data(), values,        1e-6f,         {freq.data()}};
      };
      run([&](Ops& ops) {
        ops.prepare_qkv(heads(q, k, v), {pool_k.tensor(), pool_v.tensor(), 3}, positions, slots);
        ops.Ops::prepare_qkv(heads(q2, k2, v2), {pool_k2.tensor(), pool_v2.tensor(), 3}, positions, slots);
      });
      EXPECT_EQ(q.values, q2.values);
      EXPECT_EQ(pool_k.values, pool_k2.values);
      EXPECT_EQ(pool_v.values, pool_v2.values);
    }
  }
}

TEST_P(OpsTest, memory_is_zeroed_aligned_and_copied) {
  const Buffer zero = backend_->allocate(1000);
  EXPECT_EQ(zero.bytes, 1000u);
  for (size_t i = 0; i < zero.bytes; ++i) ASSERT_EQ(zero.data[i], std::byte{0});
  const std::vector<float> values = {1, 2, 3};
  const Buffer copy = backend_->upload(values.data(), sizeof(float) * 3);
  EXPECT_EQ(std::memcmp(copy.data, values.data(), sizeof(float) * 3), 0);
  const uintptr_t alignment = GetParam().device == "cpu" ? 64 : alignof(float);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(zero.data) % alignment, 0u);
  EXPECT_NO_THROW(backend_->allocate(0));
}

TEST_P(OpsTest, shapes_that_do_not_fit_are_refused) {
  Random random(18);
  RandomWeight w(random, FormatId::f32, 4, 8);
  Rows x(random, 2, 9), y(2, 4);
  EXPECT_THROW(run([&](Ops& ops) { ops.linear(y.tensor(), x.tensor(), w.weight); }), Error);
}

INSTANTIATE_TEST_SUITE_P(machines, OpsTest, ::testing::ValuesIn(test::all_machines()),
                         [](const auto& machine) { return machine.param.name(); });

}  // namespace
}  // namespace gemmantle
