// The CUDA backend, on the host, against the reference backend: every op and fusion at ragged sizes, and replay.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/reference/reference_backend.h"
#include "core/error.h"
#include "kernels/common/float.h"
#include "kernels/cuda/launch.h"
#include "simt_fibers.h"
#include "support/random.h"

namespace gemmantle {
namespace {

using formats::FormatId;
using test::all_formats;
using test::NamedFormat;
using test::Random;
using test::RandomWeight;
using test::Rows;

constexpr double kF32 = 1e-5;
constexpr double kBf16 = 4e-3;       // activations rounded to bf16
constexpr double kAttention = 6e-3;  // and probabilities
constexpr float kEps = 1e-6f;

// ||found - wanted|| <= tolerance ||wanted||, no NaN, gaps between rows untouched.
void expect_close(const Rows& found, const Rows& wanted, double tolerance, const std::string& what) {
  double error = 0, norm = 0;
  for (int64_t r = 0; r < found.rows; ++r) {
    for (int64_t c = 0; c < found.cols; ++c) {
      const double a = found.at(r, c), b = wanted.at(r, c);
      ASSERT_FALSE(std::isnan(a)) << what << ": NaN at " << r << ", " << c;
      error += (a - b) * (a - b);
      norm += b * b;
    }
  }
  EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(norm) + 1e-30)
      << what << ": relative distance " << std::sqrt(error / norm);
  EXPECT_TRUE(found.gaps_untouched()) << what;
}

class CudaBackendTest : public ::testing::Test {
 protected:
  // Runs `step(ops, y)` on both machines from the same `y` and compares what it became.
  template <class Step>
  void compare(const Rows& before, double tolerance, const std::string& what, Step&& step) {
    Rows found = before, wanted = before;
    EXPECT_EQ(cuda_->run([&](Ops& ops) { step(ops, found.tensor(), true); }), Backend::kFinite);
    reference_->run([&](Ops& ops) { step(ops, wanted.tensor(), false); });
    expect_close(found, wanted, tolerance, what);
  }

  // A weight for each machine: where it lies in host memory, and placed.
  struct Pair {
    Weight host, placed;
    const Weight& of(bool on_cuda) const { return on_cuda ? placed : host; }
  };
  Pair place(const RandomWeight& w) { return {w.weight, cuda_->place(w.weight, nullptr)}; }

  std::unique_ptr<Backend> cuda_ = cuda::make_backend({});
  std::unique_ptr<Backend> reference_ = make_reference_backend({});
};

TEST_F(CudaBackendTest, linear_in_every_format_for_few_and_many_rows) {
  Random random(1);
  for (const NamedFormat& format : all_formats()) {
    const int64_t cols = format.group == 1 ? 41 : std::max(64, format.group);
    const RandomWeight w(random, format.id, 37, cols);
    const Pair pair = place(w);
    for (const int64_t rows : {0, 1, 5, 16, 17, 40}) {
      Rows x(random, rows, cols);
      compare(Rows(rows, 37), kBf16, str(format.name, ", ", rows, " rows"),
              [&](Ops& ops, Tensor y, bool on_cuda) { ops.linear(y, x.tensor(), pair.of(on_cuda)); });
    }
  }
}

TEST_F(CudaBackendTest, head_is_its_parts) {
  Random random(12);
  for (const FormatId format : {FormatId::bf16, FormatId::q4_0}) {
    const RandomWeight w(random, format, 300, 64);
    const Pair pair = place(w);
    for (const int64_t rows : {1, 16, 40}) {
      Rows x(random, rows, 64);
      for (const float cap : {0.0f, 3.0f}) {
        compare(Rows(rows, 300), kBf16, str("head, ", rows, " rows, cap ", cap),
                [&](Ops& ops, Tensor y, bool on_cuda) { ops.head(y, x.tensor(), pair.of(on_cuda), cap); });
      }
    }
  }
}

TEST_F(CudaBackendTest, geglu_is_its_parts) {
  Random random(2);
  for (const FormatId format : {FormatId::bf16, FormatId::q4_0, FormatId::q6_k}) {
    const int64_t width = 256, cols = 256;
    const RandomWeight gate(random, format, width, cols), up(random, format, width, cols),
        down(random, FormatId::q8_0, 50, width);
    const Pair g = place(gate), u = place(up), d = place(down);
    for (const int64_t rows : {1, 3, 19}) {
      Rows x(random, rows, cols, 0.2f);
      compare(Rows(rows, 50), 2 * kBf16, "geglu", [&](Ops& ops, Tensor y, bool on_cuda) {
        Rows scratch(rows, 2 * width);
        ops.geglu(y, x.tensor(), g.of(on_cuda), u.of(on_cuda), d.of(on_cuda), scratch.tensor());
      });
    }
  }
}

TEST_F(CudaBackendTest, norms_and_sums) {
  Random random(3);
  for (const int64_t n : {1, 33, 300}) {
    Rows x(random, 3, 2 * n), h(random, 3, 2 * n), next(3, 2 * n);
    const std::vector<float> weight = random.normals(n), post = random.normals(2 * n), after = random.normals(2 * n);
    compare(h, kF32, "rms_norm",
            [&](Ops& ops, Tensor y, bool) { ops.rms_norm(y, x.tensor(), weight.data(), n, kEps); });
    compare(h, kF32, "add", [&](Ops& ops, Tensor y, bool) { ops.add(y, x.tensor(), 0.5f); });
    compare(h, kF32, "scale", [&](Ops& ops, Tensor y, bool) { ops.scale(y, x.tensor(), post.data(), 0.5f); });
    compare(h, kF32, "gelu_mul", [&](Ops& ops, Tensor y, bool) { ops.gelu_mul(y, y, x.tensor()); });
    compare(h, kF32, "softcap", [&](Ops& ops, Tensor y, bool) { ops.softcap(y, 3.0f); });
    compare(h, kF32, "add_norm, the sum", [&](Ops& ops, Tensor y, bool) {
      Rows given = x;
      ops.add_norm(y, given.tensor(), post.data(), 0.7f, after.data(), next.tensor(), kEps);
    });
    compare(next, kF32, "add_norm, the next norm", [&](Ops& ops, Tensor y, bool) {
      Rows given = x, residual = h;
      ops.add_norm(residual.tensor(), given.tensor(), post.data(), 0.7f, after.data(), y, kEps);
    });
  }
}

TEST_F(CudaBackendTest, rows_by_number) {
  Random random(4);
  const RandomWeight table(random, FormatId::q4_k, 20, 256);
  const Pair pair = place(table);
  const std::vector<int32_t> ids = {19, 0, 7}, positions = {5, 0, 70000};
  Rows x(random, 20, 256);
  std::vector<float> freq(32);
  for (size_t i = 0; i < 20; ++i) freq[i] = std::pow(1e4f, -static_cast<float>(i) / 32);
  compare(Rows(3, 256), kF32, "embed",
          [&](Ops& ops, Tensor y, bool on_cuda) { ops.embed(y, pair.of(on_cuda), ids, 7.0f); });
  compare(Rows(3, 256), 0, "copy_rows", [&](Ops& ops, Tensor y, bool) { ops.copy_rows(y, x.tensor(), ids); });
  compare(Rows(random, 3, 256), kF32, "rope",
          [&](Ops& ops, Tensor y, bool) { ops.rope(y, 64, {freq.data()}, positions); });
}

TEST_F(CudaBackendTest, prepare_qkv_is_its_parts) {
  using Values = QkvHeads::Values;
  Random random(10);
  constexpr int64_t kSlots = 5;
  const std::vector<int32_t> positions = {5, 0, 70000}, slots = {4, 0, 2};
  for (const int64_t dim : {64, 256, 512}) {  // 64: the parts themselves
    const std::vector<float> q_norm = random.normals(dim), k_norm = random.normals(dim);
    std::vector<float> freq(static_cast<size_t>(dim / 2));
    for (size_t i = 0; i < 20; ++i) freq[i] = std::pow(1e4f, -static_cast<float>(i) / 32);
    for (const Values values : {Values::given, Values::normed, Values::normed_keys}) {
      const Rows k(random, 3, 2 * dim), v(random, 3, 2 * dim);
      const Buffer found_k = cuda_->allocate(kSlots * 2 * dim * 2), found_v = cuda_->allocate(kSlots * 2 * dim * 2);
      Rows wanted_k(kSlots, 2 * dim, 0), wanted_v = wanted_k;
      compare(Rows(random, 3, 3 * dim), kF32, str("q, dim ", dim), [&](Ops& ops, Tensor q, bool on_cuda) {
        const auto pool = [&](const Buffer& found, Rows& wanted) -> Tensor {
          return on_cuda ? Tensor{found.data, DType::bf16, kSlots, 2 * dim, 2 * dim} : wanted.tensor();
        };
        Rows keys = k, given = v;  // they are overwritten
        const QkvHeads heads{q,      keys.tensor(), given.tensor(), dim, q_norm.data(), k_norm.data(),
                             values, kEps,          {freq.data()}};
        ops.prepare_qkv(heads, {pool(found_k, wanted_k), pool(found_v, wanted_v), 1, 2}, positions, slots);
      });
      for (const auto& [found, wanted] : {std::pair{&found_k, &wanted_k}, {&found_v, &wanted_v}}) {
        std::vector<uint16_t> bits(static_cast<size_t>(kSlots * 2 * dim));
        cuda_->read(bits.data(), found->data, found->bytes);
        Rows stored(3, 2 * dim), of_reference(3, 2 * dim);
        for (int64_t r = 0; r < 3; ++r) {
          for (int64_t c = 0; c < 2 * dim; ++c) {
            const int64_t slot = slots[static_cast<size_t>(r)];
            stored.at(r, c) = bf16_to_f32(bits[static_cast<size_t>(slot * 2 * dim + c)]);
            of_reference.at(r, c) = wanted->at(slot, c);
          }
        }
        expect_close(stored, of_reference, kBf16, str("K or V, dim ", dim));
      }
    }
  }
}

// Two sequences whose blocks lie scattered: one a prompt of several tiles, one a single late row.
class CudaAttendTest : public CudaBackendTest {
 protected:
  static constexpr int64_t kBlock = 16, kBlocks = 12, kMaxBlocks = 6;
  std::vector<int32_t> table = {7, 2, 11, 0, -1, -1, 3, 9, 1, 5, 10, 4};
  std::vector<int32_t> positions, sequence, slots, begin, end;

  void row(int32_t of, int32_t position, int32_t window) {
    sequence.push_back(of);
    positions.push_back(position);
    slots.push_back(table[static_cast<size_t>(of * kMaxBlocks + position / kBlock)] * static_cast<int32_t>(kBlock) +
                    position % static_cast<int32_t>(kBlock));
    begin.push_back(std::max(0, position + 1 - window));
    end.push_back(position + 1);
  }
};

TEST_F(CudaAttendTest, scattered_blocks_windows_and_prompts) {
  Random random(5);
  for (const HeadLayout heads : {HeadLayout{4, 2, 256}, {8, 1, 512}, {2, 2, 256}, {16, 1, 256}}) {
    for (const int window : {1000, 20}) {
      table.assign({7, 2, 11, 0, -1, -1, 3, 9, 1, 5, 10, 4});
      for (auto* list : {&positions, &sequence, &slots, &begin, &end}) list->clear();
      for (int32_t p = 0; p < 45; ++p) row(0, p, window);
      for (int32_t p = 0; p < 90; ++p) row(1, p, window);
      const auto rows = static_cast<int64_t>(positions.size());
      Rows k(random, rows, heads.kv_dim()), v(random, rows, heads.kv_dim());
      const float scale = 0.06f;

      const int64_t cells = kBlocks * kBlock;
      Rows cache_k(cells, heads.kv_dim(), 0), cache_v = cache_k;
      Buffer cuda_k = cuda_->allocate(static_cast<size_t>(cells * heads.kv_dim() * 2));
      Buffer cuda_v = cuda_->allocate(static_cast<size_t>(cells * heads.kv_dim() * 2));
      const KvView host{cache_k.tensor(), cache_v.tensor(), kBlock, heads.kv};
      const KvView device{{cuda_k.data, DType::bf16, cells, heads.kv_dim(), heads.kv_dim()},
                          {cuda_v.data, DType::bf16, cells, heads.kv_dim(), heads.kv_dim()},
                          kBlock,
                          heads.kv};
      cuda_->run([&](Ops& ops) { ops.store_kv(device, k.tensor(), v.tensor(), slots); });
      reference_->run([&](Ops& ops) { ops.store_kv(host, k.tensor(), v.tensor(), slots); });

      // All rows as a prompt, then the last row of each sequence alone, as in decoding.
      for (const bool prompt : {true, false}) {
        std::vector<int32_t> of = sequence, from = begin, to = end;
        if (!prompt) {
          of = {0, 1};
          from = {begin[44], begin.back()};
          to = {45, 90};
        }
        Batch::Group group;
        group.block_table = table;
        group.max_blocks = kMaxBlocks;
        group.kv_begin = from;
        group.kv_end = to;
        Rows q(random, static_cast<int64_t>(of.size()), heads.q_dim());
        compare(Rows(q.rows, heads.q_dim()), kAttention, str("attend, dim ", heads.dim, ", window ", window),
                [&](Ops& ops, Tensor y, bool on_cuda) {
                  ops.attend(y, q.tensor(), heads, on_cuda ? device : host, group, of, scale);
                });
      }
    }
  }
}

TEST_F(CudaBackendTest, heads_that_no_released_model_has_are_refused_in_words) {
  Rows q(1, 64), y(1, 64);
  const std::vector<int32_t> zero = {0}, one = {1};
  Batch::Group group;
  group.block_table = zero;
  group.max_blocks = 1;
  group.kv_begin = zero;
  group.kv_end = one;
  const KvView kv{{q.values.data(), DType::bf16, 1, 64, 64}, {q.values.data(), DType::bf16, 1, 64, 64}, 1};
  try {
    cuda_->run([&](Ops& ops) { ops.attend(y.tensor(), q.tensor(), {1, 1, 64}, kv, group, zero, 1); });
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::unsupported);
    EXPECT_NE(e.message().find("heads of 64"), std::string::npos) << e.message();
  }
}

TEST_F(CudaBackendTest, router_and_experts) {
  Random random(6);
  const int64_t experts = 8, used = 3, hidden = 64, width = 32;
  for (const bool split : {false, true}) {
    for (const FormatId format : {FormatId::bf16, FormatId::q4_0}) {
      const RandomWeight gate_up(random, format, split ? width : 2 * width, hidden, experts);
      const RandomWeight up(random, format, width, hidden, experts), down(random, format, hidden, width, experts);
      const Pair gu = place(gate_up), u = place(up), d = place(down);
      const std::vector<float> scales = random.normals(experts);
      for (const int64_t rows : {1, 5, 40}) {
        Rows x(random, rows, hidden, 0.3f), logits(random, rows, experts);
        compare(Rows(rows, hidden), 2 * kBf16, str("experts, ", rows, " rows"), [&](Ops& ops, Tensor y, bool on_cuda) {
          Rows weights(rows, used, 0), scratch(rows * used, 3 * width);
          std::vector<int32_t> ids(static_cast<size_t>(rows * used));
          const Routing routing{{ids.data(), DType::i32, rows, used, used}, weights.tensor()};
          ops.route(routing, logits.tensor(), scales.data());
          ops.experts(y, x.tensor(), routing, gu.of(on_cuda), split ? u.of(on_cuda) : Weight{}, d.of(on_cuda),
                      scratch.tensor());
        });
      }
    }
  }
}

TEST_F(CudaBackendTest, the_first_tag_that_is_not_finite_is_told) {
  Random random(7);
  Rows fine(random, 2, 50), bad = fine;
  bad.at(1, 49) = std::numeric_limits<float>::infinity();
  const auto tags = [&](std::vector<std::pair<Rows*, int>> checks) {
    return cuda_->run([&](Ops& ops) {
      for (auto& [x, tag] : checks) ops.check_finite(x->tensor(), tag);
    });
  };
  EXPECT_EQ(tags({{&fine, 1}, {&fine, 2}}), Backend::kFinite);
  EXPECT_EQ(tags({{&fine, 1}, {&bad, 5}, {&bad, 3}}), 3);
  EXPECT_EQ(tags({{&fine, 1}, {&fine, 2}}), Backend::kFinite);
}

TEST_F(CudaBackendTest, sampling_is_the_reference) {
  Random random(8);
  const int64_t vocabulary = 1000;
  Rows logits(random, 5, vocabulary, 3.0f, 0);
  const std::vector<TokenCount> seen = {{3, 2}, {999, 0}};
  const std::vector<TokenBias> bias = {{7, 4.0f}};
  const std::vector<int32_t> banned = {0, 1, 2};
  std::vector<uint32_t> allowed(32, 0x0f0f0f0fu);
  std::vector<SampleRow> rows(5);
  rows[0].temperature = 0;
  rows[1].top_k = 20;
  rows[2].top_p = 0.7f;
  rows[2].seen = seen.data();
  rows[2].n_seen = 2;
  rows[2].frequency_penalty = 0.5f;
  rows[2].repetition_penalty = 1.3f;
  rows[3].min_p = 0.05f;
  rows[3].bias = bias.data();
  rows[3].n_bias = 1;
  rows[3].banned = banned.data();
  rows[3].n_banned = 3;
  rows[4].allowed = allowed.data();
  rows[4].top_logprobs = 4;
  for (uint64_t position = 0; position < 20; ++position) {
    for (size_t r = 0; r < rows.size(); ++r) {
      rows[r].seed = 11 * r;
      rows[r].position = position;
    }
    std::vector<SampledToken> found(5), wanted(5);
    Rows copy = logits;
    cuda_->run([&](Ops& ops) { ops.sample(copy.tensor(), rows, found); });
    copy = logits;
    reference_->run([&](Ops& ops) { ops.sample(copy.tensor(), rows, wanted); });
    for (size_t r = 0; r < rows.size(); ++r) {
      EXPECT_EQ(found[r].id, wanted[r].id) << "row " << r << ", position " << position;
      EXPECT_EQ(found[r].n_top, wanted[r].n_top);
      for (int i = 0; i < found[r].n_top; ++i) EXPECT_EQ(found[r].top_ids[i], wanted[r].top_ids[i]);
    }
    EXPECT_NEAR(found[4].logprob, wanted[4].logprob, 1e-4);
  }
}

TEST_F(CudaBackendTest, a_step_of_a_known_shape_is_replayed_with_what_it_brings) {
  Random random(9);
  const RandomWeight table(random, FormatId::bf16, 50, 40), w(random, FormatId::bf16, 30, 40);
  const Pair t = place(table), p = place(w);
  Rows x(2, 40), y(2, 30), wanted_x(2, 40), wanted(2, 30);
  const int before = simt::host::replays;
  std::vector<int32_t> ids(2);
  for (int step = 0; step < 5; ++step) {
    ids = {static_cast<int32_t>(random.below(50)), static_cast<int32_t>(random.below(50))};
    const auto work = [&](Ops& ops, Rows& to, Rows& inner, bool on_cuda) {
      ops.embed(inner.tensor(), t.of(on_cuda), ids, 1.0f);
      ops.linear(to.tensor(), inner.tensor(), p.of(on_cuda));
      ops.check_finite(to.tensor(), 1);
    };
    EXPECT_EQ(cuda_->run([&](Ops& ops) { work(ops, y, x, true); }), Backend::kFinite);
    reference_->run([&](Ops& ops) { work(ops, wanted, wanted_x, false); });
    expect_close(y, wanted, kBf16, str("step ", step));
  }
  EXPECT_EQ(simt::host::replays - before, 4);  // all but the first
  cuda_->run([&](Ops& ops) { ops.add(y.tensor(), y.tensor(), 1.0f); });
  EXPECT_EQ(simt::host::replays - before, 4);  // another step is no replay
}

TEST_F(CudaBackendTest, a_step_that_draws_waits_once_and_is_replayed_while_its_lists_change) {
  Random random(11);
  const int64_t vocabulary = 300;
  const RandomWeight w(random, FormatId::bf16, vocabulary, 40);
  const Pair p = place(w);
  Rows x(random, 2, 40), logits(2, vocabulary);
  const std::vector<uint32_t> allowed(10, 0x55555555u);
  std::vector<TokenCount> seen;
  const int replays = simt::host::replays, waits = simt::host::waits;
  constexpr int kSteps = 6;
  for (int step = 0; step < kSteps; ++step) {
    seen.push_back({step, 1});
    std::vector<SampleRow> rows(2);
    rows[0].seen = seen.data();
    rows[0].n_seen = static_cast<int64_t>(seen.size());
    rows[0].presence_penalty = 2;
    rows[1].allowed = step % 2 == 0 ? allowed.data() : nullptr;
    rows[0].position = rows[1].position = static_cast<uint64_t>(step);
    std::vector<SampledToken> found(2), wanted(2);
    cuda_->run([&](Ops& ops) {
      ops.linear(logits.tensor(), x.tensor(), p.placed);
      ops.sample(logits.tensor(), rows, found);
    });
    reference_->run([&](Ops& ops) { ops.sample(logits.tensor(), rows, wanted); });
    for (size_t r = 0; r < rows.size(); ++r) EXPECT_EQ(found[r].id, wanted[r].id) << "row " << r << ", step " << step;
  }
  EXPECT_EQ(simt::host::waits - waits, kSteps);
  EXPECT_EQ(simt::host::replays - replays, kSteps - 1);
}

TEST_F(CudaBackendTest, rows_of_padding_are_zeros_and_write_nothing) {
  EXPECT_EQ(cuda_->padded_rows(1), 1);
  EXPECT_EQ(cuda_->padded_rows(5), 8);
  EXPECT_EQ(cuda_->padded_rows(64), 64);
  EXPECT_EQ(cuda_->padded_rows(65), 65);

  Random random(13);
  constexpr int64_t kDim = 256, kSlots = 2;
  const RandomWeight table(random, FormatId::q4_0, 20, kDim), w(random, FormatId::bf16, kDim, kDim);
  const Pair t = place(table), p = place(w);
  const std::vector<float> norm = random.normals(kDim);
  const std::vector<float> freq(kDim / 2, 0.1f);
  const std::vector<int32_t> ids = {7, -1}, positions = {3, 0}, sequence = {0, 1}, slots = {1, -1},
                             block_table = {0, -1};
  const std::vector<int32_t> begin = {1, 0}, end = {2, 0};
  const Buffer k = cuda_->allocate(kSlots * kDim * 2), v = cuda_->allocate(kSlots * kDim * 2);
  const KvView kv{{k.data, DType::bf16, kSlots, kDim, kDim}, {v.data, DType::bf16, kSlots, kDim, kDim}, kSlots, 1};
  Batch::Group group;
  group.block_table = block_table;
  group.max_blocks = 1;
  group.kv_begin = begin;
  group.kv_end = end;
  Rows x(2, kDim), q(2, kDim), key(2, kDim), value(2, kDim), y(2, kDim), h(2, kDim), scratch(2, 2 * kDim);
  cuda_->run([&](Ops& ops) {
    ops.embed(h.tensor(), t.placed, ids, 2.0f);
    ops.rms_norm(x.tensor(), h.tensor(), norm.data(), kDim, kEps);
    for (Rows* to : {&q, &key, &value}) ops.linear(to->tensor(), x.tensor(), p.placed);
    const QkvHeads heads{q.tensor(),   key.tensor(), value.tensor(),           kDim,
                         norm.data(),  norm.data(),  QkvHeads::Values::normed, kEps,
                         {freq.data()}};
    ops.prepare_qkv(heads, kv, positions, slots);
    ops.attend(y.tensor(), q.tensor(), {1, 1, kDim}, kv, group, sequence, 1.0f);
    ops.add_norm(h.tensor(), y.tensor(), norm.data(), 1.0f, norm.data(), x.tensor(), kEps);
    ops.geglu(y.tensor(), x.tensor(), p.placed, p.placed, p.placed, scratch.tensor());
  });
  std::vector<uint16_t> stored(kSlots * kDim);
  cuda_->read(stored.data(), k.data, k.bytes);
  for (int64_t c = 0; c < kDim; ++c) {
    EXPECT_EQ(h.at(1, c), 0) << c;
    EXPECT_EQ(y.at(1, c), 0) << c;
    EXPECT_EQ(stored[static_cast<size_t>(c)], 0) << c;
    EXPECT_NE(stored[static_cast<size_t>(kDim + c)], 0) << c;
  }
  EXPECT_NE(y.at(0, 0), 0);
}

TEST_F(CudaBackendTest, other_types_of_k_and_v_are_refused) {
  BackendOptions options;
  options.kv = DType::bf16;
  EXPECT_NO_THROW(cuda::make_backend(options));
  options.kv = DType::f32;
  EXPECT_THROW(cuda::make_backend(options), Error);
}

TEST_F(CudaBackendTest, memory_is_zeroed_and_read_back) {
  const Buffer zeroed = cuda_->allocate(1000);
  std::vector<std::byte> found(1000, std::byte{1});
  cuda_->read(found.data(), zeroed.data, 1000);
  EXPECT_EQ(found, std::vector<std::byte>(1000));
  const std::vector<float> values = {1, 2, 3};
  const Buffer kept = cuda_->upload(values.data(), sizeof(float) * 3);
  std::vector<float> back(3);
  cuda_->read(back.data(), kept.data, sizeof(float) * 3);
  EXPECT_EQ(back, values);
  EXPECT_EQ(cuda_->kv_dtype(), DType::bf16);
  EXPECT_GT(cuda_->free_bytes(), 0);
}

}  // namespace
}  // namespace gemmantle
