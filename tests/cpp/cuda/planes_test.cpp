// Every format, split into planes and placed, gives the values the format defines; rows of the embedding kernel show
// it.
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "backend/cuda/weight_store.h"
#include "cuda/device_rows.h"
#include "kernels/common/float.h"
#include "support/random.h"

namespace gemmantle::cuda {
namespace {

using gemmantle::test::all_formats;
using gemmantle::test::NamedFormat;
using gemmantle::test::RandomWeight;
using test::DeviceArray;
using test::DeviceRows;
using test::in_every_order;
using test::Random;

TEST(CudaPlanes, embedding_gives_the_values_of_every_format) {
  Random random(1);
  constexpr float kScale = 1.5f;
  for (const NamedFormat& format : all_formats()) {
    for (const int blocks : {1, 3}) {
      const int64_t cols = format.group == 1 ? 37 * blocks : format.group * blocks;
      const RandomWeight w(random, format.id, 70, cols, 2);
      WeightStore store;
      const Weight placed = store.place(w.weight);
      const std::vector<int32_t> ids = {69, 0, 70, 139};
      const DeviceArray<int32_t> on_device(ids);
      in_every_order([&](const std::string& order) {
        const DeviceRows y(4, static_cast<int>(cols));
        embed(nullptr, y.view(), store.find(placed), on_device.data(), kScale);
        y.expect(order + ", " + format.name, 1e-6, [&](int r, int c) {
          const float value = w.at(ids[static_cast<size_t>(r)], c);
          return double{kScale} * (format.group == 1 ? bf16_to_f32(f32_to_bf16(value)) : value);
        });
      });
    }
  }
}

TEST(CudaPlanes, rows_are_padded_with_zeros_and_start_on_sixteen_bytes) {
  Random random(2);
  const RandomWeight w(random, formats::FormatId::f32, 3, 33);
  WeightStore store;
  const Matrix& m = store.find(store.place(w.weight));
  EXPECT_EQ(m.padded_cols, 64);
  EXPECT_EQ(m.row_bytes() % 16, 0);
  for (int r = 0; r < 3; ++r) {
    for (int c = 33; c < 64; ++c) EXPECT_EQ(reinterpret_cast<const Bf16*>(m.values + r * m.row_bytes())[c], 0);
  }
}

TEST(CudaPlanes, a_weight_larger_than_the_staging_memory_arrives_whole) {
  Random random(3);
  constexpr int kRows = 40000, kCols = 512;  // 39 MiB of bf16
  std::vector<uint16_t> values(size_t{kRows} * kCols);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i * 2654435761u >> 16);
  const Weight weight{formats::FormatId::bf16, kRows, kCols, 1, kCols * 2, reinterpret_cast<std::byte*>(values.data())};
  WeightStore store;
  const Weight placed = store.place(weight);
  EXPECT_EQ(std::memcmp(placed.data, values.data(), values.size() * 2), 0);
}

}  // namespace
}  // namespace gemmantle::cuda
