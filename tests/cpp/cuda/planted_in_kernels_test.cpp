// The shim finds mistakes in our own kernels: each barrier, wait, guard and layout that one comes by is wrong once, and
// some order of threads and copies then gives other bits, or ends the program.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "cuda/device_weight.h"

namespace gemmantle::cuda {
namespace {

using simt::Fault;
using simt::Place;
using test::DeviceArray;
using test::DeviceRows;
using test::DeviceWeight;
using test::in_every_order;
using test::kWeightKinds;
using test::Random;

// Rows of one sequence, or a row of each of two, over scattered blocks; what nobody looks at is NaN.
std::vector<float> attention(bool prompt) {
  Random random(1);
  constexpr int kDim = 256, kHeads = 2, kBlock = 16, kKeys = 45, kBlocks = 7;
  const std::vector<int32_t> table = {5, 1, 3, 2, 6, 4};  // block 0 is nobody's
  std::vector<Bf16> k(kBlocks * kBlock * kDim, 0x7fc0), v = k;
  for (int key = 0; key < 2 * kKeys; ++key) {
    const int in_sequence = key % kKeys, block = table[static_cast<size_t>(key / kKeys * 3 + in_sequence / kBlock)];
    for (int c = 0; c < kDim; ++c) {
      const auto at = static_cast<size_t>((block * kBlock + in_sequence % kBlock) * kDim + c);
      k[at] = f32_to_bf16(random.normal());
      v[at] = f32_to_bf16(random.normal());
    }
  }
  std::vector<int32_t> begin, end;
  std::vector<AttendTile> tiles;
  if (prompt) {
    for (int r = 0; r < 35; ++r) {
      begin.push_back(0);
      end.push_back(kKeys - 34 + r);
    }
    tiles = {{0, 32, 0}, {32, 3, 0}};
  } else {
    begin = {0, 3};
    end = {kKeys, kKeys};
    tiles = {{0, 1, 0}, {1, 1, 1}};
  }
  const auto rows = static_cast<int>(begin.size());
  const DeviceRows q(random, rows, kHeads * kDim), y(rows, kHeads * kDim);
  const DeviceArray<Bf16> k_cache(k), v_cache(v);
  const DeviceArray<int32_t> blocks(table), width(std::vector<int32_t>{3}), first(begin), last(end);
  const DeviceArray<AttendTile> on_device(tiles);
  AttendArgs a;
  a.y = y.view();
  a.q = q.input();
  a.heads = kHeads;
  a.kv_heads = 1;
  a.dim = kDim;
  a.scale = 0.1f;
  a.k = k_cache.data();
  a.v = v_cache.data();
  a.block_size = kBlock;
  a.block_table = blocks.data();
  a.max_blocks = width.data();
  a.kv_begin = first.data();
  a.kv_end = last.data();
  a.tiles = on_device.data();
  a.n_tiles = 2;
  a.tile_rows = prompt ? 32 : 1;
  attend(nullptr, a);
  return y.values();
}
std::vector<float> prompt_attention() { return attention(true); }
std::vector<float> single_row_attention() { return attention(false); }

std::vector<float> many_rows() {
  Random random(2);
  constexpr int kRows = 70, kOutputs = 40, kCols = 160;
  const DeviceWeight w(random, kWeightKinds[0], kOutputs, kCols);
  const DeviceRows x(random, kRows, kCols), y(kRows, kOutputs);
  const DeviceArray<Bf16> rounded(kRows * kCols);
  round_rows(nullptr, {rounded.data(), kRows, kCols, kCols}, x.input());
  gemm(nullptr, y.view(), {rounded.data(), kRows, kCols, kCols},
       {reinterpret_cast<const Bf16*>(w.matrix().values), kOutputs, kCols, kCols});
  return y.values();
}

std::vector<float> few_rows() {
  Random random(3);
  constexpr int kRows = 11, kOutputs = 21, kCols = 2100;  // staged in three parts
  const DeviceWeight w(random, kWeightKinds[1], kOutputs, kCols);
  const DeviceRows x(random, kRows, kCols), y(kRows, kOutputs);
  product_few(nullptr, y.view(), x.input(), w.matrix());
  return y.values();
}

std::vector<float> norms() {
  Random random(4);
  constexpr int kCols = 700;
  const DeviceRows h(random, 2, kCols), y(random, 2, kCols), x(2, kCols);
  const DeviceArray<float> post(random.normals(kCols)), next(random.normals(kCols));
  add_norm(nullptr, h.view(), y.input(), post.data(), 0.5f, next.data(), x.view(), 1e-6f);
  return x.values();
}

struct Kernel {
  const char* name;
  std::vector<float> (*run)();
  bool stores_what_guards_keep_out = true;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// In a process of its own, since what is found may end it.
bool is_found(const Kernel& kernel, const Place& place, const std::vector<float>& right) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    alarm(60);
    simt::planted = place;
    bool same = true;
    in_every_order([&](const std::string&) { same = same && same_bits(kernel.run(), right); });
    _exit(same ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

class CudaPlantedBugs : public testing::TestWithParam<Kernel> {};

TEST_P(CudaPlantedBugs, every_one_is_found) {
#if defined(SIMT_THREAD_SANITIZER)
  GTEST_SKIP() << "the thread sanitizer names races itself";
#endif
  const Kernel& kernel = GetParam();
  std::set<Place> places;
  simt::places = &places;
  const std::vector<float> right = kernel.run();
  simt::places = nullptr;
  EXPECT_FALSE(places.empty());
  in_every_order([&](const std::string& order) { EXPECT_TRUE(same_bits(kernel.run(), right)) << order; });
  for (const Place& place : places) {
    if (place.fault == Fault::no_guard && !kernel.stores_what_guards_keep_out) continue;
    EXPECT_TRUE(is_found(kernel, place, right))
        << place.file << ":" << place.line << ": fault " << static_cast<int>(place.fault) << " is not found";
  }
}

INSTANTIATE_TEST_SUITE_P(kernels, CudaPlantedBugs,
                         testing::Values(Kernel{"prompt_attention", prompt_attention},
                                         Kernel{"single_row_attention", single_row_attention},
                                         Kernel{"many_rows", many_rows, false}, Kernel{"few_rows", few_rows},
                                         Kernel{"norms", norms}),
                         [](const auto& kernel) { return kernel.param.name; });

}  // namespace
}  // namespace gemmantle::cuda
