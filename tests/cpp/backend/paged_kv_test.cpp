// K and V of mode "fast": what is stored comes back rounded and no further, whoever else is there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/ops.h"
#include "kernels/common/float.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using test::Random;
using test::Rows;

constexpr float kScale = 0.7f;

std::unique_ptr<Backend> make(const CpuIsa& isa, DType kv, int threads) {
  BackendOptions options;
  options.threads = threads;
  options.mode = Mode::fast;
  options.kv = kv;
  return make_cpu_backend(options, isa);
}

double to_half(float x) { return double{bf16_to_f32(f32_to_bf16(x))}; }

// One head of one position as the cache holds it.
std::vector<double> kept(const Rows& x, int64_t row, int64_t column, int64_t dim, DType kv) {
  std::vector<double> out;
  for (int64_t i = 0; i < dim; ++i) {
    const float value = x.at(row, column + i);
    if (kv == DType::bf16) {
      out.push_back(to_half(value));
      continue;
    }
    float most = 0;  // of its group of 32
    for (int64_t j = i / 32 * 32; j < std::min(dim, i / 32 * 32 + 32); ++j) {
      most = std::max(most, std::abs(x.at(row, column + j)));
    }
    out.push_back(to_half(std::nearbyint(value * (127.0f / most)) * (most / 127.0f)));
  }
  return out;
}

// Positions of two sequences in blocks that lie anywhere, stored by one backend and read by runs of rows.
struct Case {
  HeadLayout heads;
  int64_t block_size, length, max_blocks;
  Rows k, v;  // of position p of sequence s in row s * length + p
  Rows q;
  std::vector<int32_t> table, slots, sequence, begin, end;

  Case(Random& random, HeadLayout layout, int64_t block, int64_t positions, int64_t rows)
      : heads(layout),
        block_size(block),
        length(positions),
        max_blocks((positions + block - 1) / block),
        k(random, 2 * positions, layout.kv_dim(), 0.5f),
        v(random, 2 * positions, layout.kv_dim()),
        q(random, rows, layout.q_dim()),
        table(static_cast<size_t>(2 * max_blocks)) {
    std::iota(table.begin(), table.end(), 0);
    for (size_t i = table.size() - 1; i > 0; --i) {
      std::swap(table[i], table[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    }
    for (int64_t s = 0; s < 2; ++s) {
      for (int64_t p = 0; p < length; ++p) slots.push_back(static_cast<int32_t>(slot(s, p)));
    }
    // Runs of neighbouring rows at neighbouring positions, with a window for the second sequence.
    for (int64_t r = 0; r < rows; ++r) {
      const bool second = r >= rows * 2 / 3;
      sequence.push_back(second ? 1 : 0);
      end.push_back(static_cast<int32_t>(std::max<int64_t>(1, length - rows + r + 1)));
      begin.push_back(second ? static_cast<int32_t>(std::max<int64_t>(0, end.back() - 70)) : 0);
    }
  }

  int64_t slot(int64_t s, int64_t p) const {
    return table[static_cast<size_t>(s * max_blocks + p / block_size)] * block_size + p % block_size;
  }
  int64_t all_slots() const { return 2 * max_blocks * block_size; }

  // Fills a cache of `backend`, in which `before` lay everywhere.
  KvView fill(Backend& backend, Buffer (&memory)[2], uint8_t before) {
    for (Buffer& buffer : memory) {
      buffer = backend.allocate(static_cast<size_t>(backend.kv_bytes(heads, all_slots())));
      std::memset(buffer.data, before, buffer.bytes);
    }
    const auto view = [&](const Buffer& b) {
      return Tensor{b.data, backend.kv_dtype(), all_slots(), heads.kv_dim(), heads.kv_dim()};
    };
    const KvView kv = {view(memory[0]), view(memory[1]), block_size, heads.kv};
    backend.run([&](Ops& ops) { ops.store_kv(kv, k.tensor(), v.tensor(), slots); });
    return kv;
  }

  void attend(Backend& backend, KvView kv, Rows& y, int64_t first, int64_t n) {
    const auto part = [&](const std::vector<int32_t>& all) {
      return std::span<const int32_t>(all).subspan(static_cast<size_t>(first), static_cast<size_t>(n));
    };
    Batch::Group g;
    g.block_table = table;
    g.max_blocks = max_blocks;
    g.kv_begin = part(begin);
    g.kv_end = part(end);
    backend.run(
        [&](Ops& ops) { ops.attend(y.tensor(), q.tensor().slice(first, n), heads, kv, g, part(sequence), kScale); });
  }

  // Weights are rounded too, each by up to 2^-8 of itself.
  void expect(const Rows& y, DType kv) const {
    for (int64_t r = 0; r < q.rows; ++r) {
      const auto at = static_cast<size_t>(r);
      for (int64_t h = 0; h < heads.query; ++h) {
        const int64_t qc = h * heads.dim, kc = h / (heads.query / heads.kv) * heads.dim;
        std::vector<double> scores;
        for (int64_t p = begin[at]; p < end[at]; ++p) {
          const std::vector<double> key = kept(k, sequence[at] * length + p, kc, heads.dim, kv);
          double score = 0;
          for (int64_t i = 0; i < heads.dim; ++i)
            score += to_half(kScale * q.at(r, qc + i)) * key[static_cast<size_t>(i)];
          scores.push_back(score);
        }
        const double top = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (double& s : scores) total += s = std::exp(s - top);
        std::vector<double> want(static_cast<size_t>(heads.dim)), size(want.size());
        for (int64_t p = begin[at]; p < end[at]; ++p) {
          const std::vector<double> value = kept(v, sequence[at] * length + p, kc, heads.dim, kv);
          const double weight = scores[static_cast<size_t>(p - begin[at])] / total;
          for (size_t i = 0; i < value.size(); ++i) {
            want[i] += weight * value[i];
            size[i] += weight * std::abs(value[i]);
          }
        }
        for (int64_t i = 0; i < heads.dim; ++i) {
          const auto c = static_cast<size_t>(i);
          ASSERT_NEAR(y.at(r, qc + i), want[c], size[c] / 250 + 2e-6)
              << "row " << r << " head " << h << " column " << i;
        }
      }
    }
  }
};

class PagedKvTest : public ::testing::TestWithParam<std::tuple<CpuIsa, DType>> {
 protected:
  void SetUp() override {
    if (!isa().usable()) GTEST_SKIP() << isa().missing();
  }
  const CpuIsa& isa() const { return std::get<0>(GetParam()); }
  DType kv() const { return std::get<1>(GetParam()); }
};

TEST_P(PagedKvTest, attention_is_softmax_over_what_the_cache_holds) {
  Random random(51);
  const auto one = make(isa(), kv(), 1), three = make(isa(), kv(), 3);
  for (const auto& [heads, block, length, rows] :
       {std::tuple{HeadLayout{8, 1, 256}, 16, 150, 11}, std::tuple{HeadLayout{4, 1, 512}, 16, 70, 3},
        std::tuple{HeadLayout{6, 2, 34}, 48, 100, 40}, std::tuple{HeadLayout{3, 3, 2}, 16, 17, 5},
        std::tuple{HeadLayout{80, 1, 6}, 16, 9, 3}, std::tuple{HeadLayout{8, 1, 64}, 32, 1100, 4}}) {
    Case c(random, heads, block, length, rows);
    Rows y(rows, heads.q_dim()), again(rows, heads.q_dim());
    Buffer memory[2];
    // What lies in slots that nobody wrote must not matter, even if it is not a number.
    c.attend(*one, c.fill(*one, memory, 0xff), y, 0, rows);
    ASSERT_NO_FATAL_FAILURE(c.expect(y, kv())) << heads.query << " heads of " << heads.dim;
    EXPECT_TRUE(y.gaps_untouched());
    c.attend(*three, c.fill(*three, memory, 0), again, 0, rows);
    EXPECT_EQ(std::memcmp(y.values.data(), again.values.data(), y.values.size() * sizeof(float)), 0) << heads.dim;
  }
}

TEST_P(PagedKvTest, a_row_has_the_same_bits_alone_and_in_a_batch) {
  Random random(52);
  const auto backend = make(isa(), kv(), 3);
  Case c(random, {8, 2, 36}, 16, 1300, 45);
  Rows all(45, c.heads.q_dim());
  Buffer memory[2];
  const KvView cache = c.fill(*backend, memory, 0xff);
  c.attend(*backend, cache, all, 0, 45);
  for (const int64_t n : {1, 4, 13}) {
    for (int64_t first = 0; first + n <= 45; first += n) {
      Rows some(n, c.heads.q_dim());
      c.attend(*backend, cache, some, first, n);
      for (int64_t r = 0; r < n; ++r) {
        ASSERT_EQ(std::memcmp(&some.at(r, 0), &all.at(first + r, 0), static_cast<size_t>(c.heads.q_dim()) * 4), 0)
            << n << " rows from " << first << ": " << r;
      }
    }
  }
}

TEST_P(PagedKvTest, what_is_not_finite_is_seen) {
  Random random(53);
  const auto backend = make(isa(), kv(), 1);
  for (const bool in_key : {true, false}) {
    Case c(random, {2, 1, 64}, 16, 20, 1);
    (in_key ? c.k : c.v).at(20 + 7, 5) = std::numeric_limits<float>::quiet_NaN();
    Rows y(1, c.heads.q_dim());
    Buffer memory[2];
    c.attend(*backend, c.fill(*backend, memory, 0), y, 0, 1);
    EXPECT_TRUE(std::isnan(y.at(0, 5))) << in_key;
  }
}

std::vector<std::tuple<CpuIsa, DType>> all_caches() {
  std::vector<std::tuple<CpuIsa, DType>> all;
  for (const CpuIsa& isa : cpu_isas()) {
    for (const DType kv : {DType::bf16, DType::i8}) all.emplace_back(isa, kv);
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(isas, PagedKvTest, ::testing::ValuesIn(all_caches()), [](const auto& param) {
  return std::string(std::get<0>(param.param).name) + (std::get<1>(param.param) == DType::i8 ? "_q8" : "_bf16");
});

TEST(paged_kv, mode_exact_keeps_f32) {
  BackendOptions options;
  options.kv = DType::bf16;
  try {
    make_cpu_backend(options);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.param(), "kv");
  }
}

}  // namespace
}  // namespace gemmantle
