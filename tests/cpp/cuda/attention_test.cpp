// Attention against double: prompts, single rows, drafts, windows, image spans, splits and empty ranges.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/device_weight.h"

namespace gemmantle::cuda {
namespace {

using test::DeviceArray;
using test::DeviceRows;
using test::in_every_order;
using test::Random;
using test::round_bf16;
using test::SameBits;

constexpr double kAttention = 6e-3;

struct Range {
  int sequence, begin, end;
};

// KV of several sequences in shuffled blocks, what each row sees, and the answers.
class Scene {
 public:
  Scene(Random& random, int dim, int heads, int kv_heads, int block_size, const std::vector<Range>& ranges,
        float scale = 0.1f)
      : dim_(dim),
        heads_(heads),
        kv_heads_(kv_heads),
        block_size_(block_size),
        ranges_(ranges),
        scale_(scale),
        q(random, static_cast<int>(ranges.size()), heads * dim) {
    int sequences = 0, longest = 0;
    for (const Range& r : ranges) {
      sequences = std::max(sequences, r.sequence + 1);
      longest = std::max(longest, r.end);
    }
    max_blocks_ = (longest + block_size - 1) / block_size + 1;
    const int blocks = sequences * max_blocks_;
    table_.assign(static_cast<size_t>(blocks), -1);
    std::vector<int32_t> free(static_cast<size_t>(blocks) + 2);
    std::iota(free.begin(), free.end(), 0);
    for (size_t i = free.size() - 1; i > 0; --i)
      std::swap(free[i], free[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    // Values of blocks that nobody may look at are NaN, and so are those before and behind every range of a sequence.
    k_.assign(free.size() * static_cast<size_t>(block_size * kv_heads * dim), 0x7fc0);
    v_ = k_;
    for (int s = 0; s < sequences; ++s) {
      int begin = longest, end = 0;
      for (const Range& r : ranges) {
        if (r.sequence != s || r.begin >= r.end) continue;
        begin = std::min(begin, r.begin);
        end = std::max(end, r.end);
      }
      for (int position = begin; position < end; ++position) {
        int32_t& block = table_[static_cast<size_t>(s * max_blocks_ + position / block_size)];
        if (block < 0) {
          block = free.back();
          free.pop_back();
        }
        for (int i = 0; i < kv_heads * dim; ++i) {
          k_[slot(s, position) * static_cast<size_t>(kv_heads * dim) + static_cast<size_t>(i)] =
              f32_to_bf16(random.normal());
          v_[slot(s, position) * static_cast<size_t>(kv_heads * dim) + static_cast<size_t>(i)] =
              f32_to_bf16(random.normal());
        }
      }
    }
  }

  // Cuts the rows into tiles of one sequence each, at most `most` rows, and adds one that does nothing.
  std::vector<AttendTile> tiles(int most) const {
    std::vector<AttendTile> out;
    for (size_t r = 0; r < ranges_.size(); ++r) {
      if (!out.empty() && out.back().sequence == ranges_[r].sequence && out.back().rows < most) {
        ++out.back().rows;
      } else {
        out.push_back({static_cast<int32_t>(r), 1, ranges_[r].sequence});
      }
    }
    out.push_back({});
    return out;
  }

  void check(int tile_rows, int splits, const std::vector<AttendTile>* given = nullptr) const {
    SameBits<float> bits;
    in_every_order([&](const std::string& order) { bits.expect(order, run(tile_rows, splits, order, given)); });
  }

  std::vector<float> run(int tile_rows, int splits, const std::string& what,
                         const std::vector<AttendTile>* given = nullptr) const {
    const std::vector<AttendTile> cut = given == nullptr ? tiles(tile_rows) : *given;
    const DeviceArray<AttendTile> device_tiles(cut);
    std::vector<int32_t> begin, end;
    for (const Range& r : ranges_) {
      begin.push_back(r.begin);
      end.push_back(r.end);
    }
    const DeviceArray<int32_t> device_begin(begin), device_end(end), table(table_),
        max_blocks(std::vector<int32_t>{max_blocks_});
    const DeviceArray<Bf16> k(k_), v(v_);
    const int rows = static_cast<int>(ranges_.size());
    const DeviceArray<float> partial(attend_scratch_bytes(rows, heads_, dim_, splits) / sizeof(float));
    const DeviceRows y(rows, heads_ * dim_);
    AttendArgs a;
    a.y = y.view();
    a.q = q.input();
    a.heads = heads_;
    a.kv_heads = kv_heads_;
    a.dim = dim_;
    a.scale = scale_;
    a.k = k.data();
    a.v = v.data();
    a.block_size = block_size_;
    a.block_table = table.data();
    a.max_blocks = max_blocks.data();
    a.kv_begin = device_begin.data();
    a.kv_end = device_end.data();
    a.tiles = device_tiles.data();
    a.n_tiles = static_cast<int>(cut.size());
    a.tile_rows = tile_rows;
    a.splits = splits;
    a.partial = partial.data();
    attend(nullptr, a);
    if (wanted_.empty()) compute();
    y.expect(what, kAttention, [&](int r, int c) { return wanted_[static_cast<size_t>(r * heads_ * dim_ + c)]; });
    return y.values();
  }

 private:
  size_t slot(int sequence, int position) const {
    return static_cast<size_t>(table_[static_cast<size_t>(sequence * max_blocks_ + position / block_size_)] *
                                   block_size_ +
                               position % block_size_);
  }

  void compute() const {
    const int group = heads_ / kv_heads_;
    for (size_t r = 0; r < ranges_.size(); ++r) {
      const Range& range = ranges_[r];
      for (int h = 0; h < heads_; ++h) {
        const auto at = [&](int position) {
          return (slot(range.sequence, position) * static_cast<size_t>(kv_heads_) + static_cast<size_t>(h / group)) *
                 static_cast<size_t>(dim_);
        };
        std::vector<double> weight;
        double top = -INFINITY, sum = 0;
        for (int p = range.begin; p < range.end; ++p) {
          double dot = 0;
          for (int c = 0; c < dim_; ++c)
            dot += double{round_bf16(q.at(static_cast<int>(r), h * dim_ + c))} *
                   bf16_to_f32(k_[at(p) + static_cast<size_t>(c)]);
          weight.push_back(dot * double{scale_});
          top = std::max(top, weight.back());
        }
        for (double& w : weight) sum += w = std::exp(w - top);
        for (int c = 0; c < dim_; ++c) {
          double value = 0;
          for (int p = range.begin; p < range.end; ++p)
            value +=
                weight[static_cast<size_t>(p - range.begin)] / sum * bf16_to_f32(v_[at(p) + static_cast<size_t>(c)]);
          wanted_.push_back(value);
        }
      }
    }
  }

  int dim_, heads_, kv_heads_, block_size_;
  std::vector<Range> ranges_;
  float scale_;
  int max_blocks_ = 0;
  std::vector<int32_t> table_;
  std::vector<uint16_t> k_, v_;
  mutable std::vector<double> wanted_;

 public:
  DeviceRows q;
};

// Rows `first` to `first + n` of a prompt, each seeing itself and `window - 1` before.
std::vector<Range> prompt(int sequence, int first, int n, int window) {
  std::vector<Range> ranges;
  for (int i = first; i < first + n; ++i) ranges.push_back({sequence, std::max(0, i + 1 - window), i + 1});
  return ranges;
}

constexpr int kAll = 1 << 30;

TEST(CudaAttention, a_prompt_at_width_512) {
  Random random(21);
  const Scene scene(random, 512, 8, 1, 16, prompt(0, 41, 13, kAll));
  scene.check(attend_tile_rows(512, 8, true), 1);
}

TEST(CudaAttention, a_prompt_at_width_512_where_blocks_have_99_KB) {
  Random random(22);
  const simt::Config before = simt::config;
  simt::config.shared_limit = 99 * 1024;
  ASSERT_EQ(attend_tile_rows(512, 4, true), 8);
  const Scene scene(random, 512, 4, 1, 16, prompt(0, 30, 11, kAll));
  scene.check(attend_tile_rows(512, 4, true), 1);
  simt::config = before;
}

TEST(CudaAttention, a_prompt_in_a_window_at_width_256) {
  Random random(23);
  const Scene scene(random, 256, 4, 2, 16, prompt(0, 70, 37, 29));
  scene.check(attend_tile_rows(256, 2, true), 1);
}

TEST(CudaAttention, single_rows_of_many_sequences) {
  Random random(24);
  const std::vector<Range> ranges = {{0, 0, 1}, {1, 0, 77}, {2, 5, 5}, {3, 33, 96}, {4, 0, 32}};
  for (const int dim : {256, 512}) {
    const Scene scene(random, dim, 8, 2, 16, ranges);
    for (const int splits : {1, 3}) scene.check(attend_tile_rows(dim, 4, false), splits);
  }
}

TEST(CudaAttention, drafts_share_a_block) {
  Random random(25);
  const Scene scene(random, 512, 4, 1, 64, prompt(0, 130, 4, kAll));
  for (const int splits : {1, 2}) scene.check(4, splits);
}

TEST(CudaAttention, a_wide_group_and_other_block_sizes) {
  Random random(26);
  const Scene scene(random, 256, 16, 1, 24, prompt(0, 50, 3, kAll));
  scene.check(attend_tile_rows(256, 16, true), 1);
  scene.check(attend_tile_rows(256, 16, false), 2);
}

// An image span: rows see keys that come after them.
TEST(CudaAttention, ranges_are_the_whole_mask) {
  Random random(27);
  std::vector<Range> ranges = prompt(0, 20, 12, 16);
  for (size_t i = 3; i < 9; ++i) ranges[i].end = 29;
  ranges[5] = {0, 0, 0};
  const Scene scene(random, 256, 4, 2, 16, ranges);
  scene.check(attend_tile_rows(256, 2, true), 1);
}

TEST(CudaAttention, a_row_has_the_same_bits_whatever_shares_its_block) {
  Random random(28);
  const Scene scene(random, 256, 2, 1, 16, prompt(0, 60, 8, 24));
  const std::vector<AttendTile> together = {{0, 8, 0}}, apart = {{0, 1, 0}, {1, 4, 0}, {5, 3, 0}};
  EXPECT_EQ(scene.run(8, 1, "together", &together), scene.run(8, 1, "apart", &apart));
}

// Scores far beyond what an exponent holds.
TEST(CudaAttention, large_scores) {
  Random random(29);
  const Scene scene(random, 256, 2, 1, 16, prompt(0, 90, 2, kAll), 40.0f);
  scene.check(8, 1);
  scene.check(8, 3);
}

}  // namespace
}  // namespace gemmantle::cuda
