// device_weight.h: random weights in device memory in any plane, and their values as kernels round them.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/device_rows.h"
#include "kernels/common/float.h"
#include "simt_memory.h"

namespace gemmantle::cuda::test {

struct WeightKind {
  const char* name;  // of a test, so no blanks
  Plane plane;
  int group = 32;
  bool wide_scales = false;
  bool has_offsets = false;
};

inline constexpr WeightKind kWeightKinds[] = {
    {"bf16", Plane::bf16},
    {"int8", Plane::int8},
    {"int8_groups_of_16", Plane::int8, 16, true},
    {"int8_offsets", Plane::int8, 32, true, true},
    {"int4", Plane::int4},
    {"int4_offsets", Plane::int4, 32, true, true},
};

inline std::string weight_kind_name(const testing::TestParamInfo<WeightKind>& kind) { return kind.param.name; }

inline float round_bf16(float value) { return bf16_to_f32(f32_to_bf16(value)); }

class DeviceWeight {
 public:
  DeviceWeight(Random& random, const WeightKind& kind, int rows, int cols, int count = 1)
      : rows_(rows), padded_((cols + 31) / 32 * 32) {
    const size_t all = static_cast<size_t>(count) * static_cast<size_t>(rows) * static_cast<size_t>(padded_);
    const size_t groups = all / static_cast<size_t>(kind.group);
    values_.assign(all, 0);
    std::vector<uint8_t> bytes(kind.plane == Plane::bf16 ? 2 * all : kind.plane == Plane::int8 ? all : all / 2, 0);
    std::vector<float> scales(groups), offsets(groups);
    for (size_t i = 0; i < groups; ++i) {
      scales[i] = f16_to_f32(f32_to_f16(0.01f * (1.0f + std::fabs(random.normal()))));
      offsets[i] = kind.has_offsets ? f16_to_f32(f32_to_f16(0.05f * random.normal())) : 0.0f;
    }
    for (size_t i = 0; i < all; ++i) {
      if (kind.plane == Plane::bf16) {
        const uint16_t bits =
            static_cast<int>(i % static_cast<size_t>(padded_)) < cols ? f32_to_bf16(random.normal()) : uint16_t{0};
        std::memcpy(&bytes[2 * i], &bits, 2);
        values_[i] = bf16_to_f32(bits);
        continue;
      }
      int q = kind.plane == Plane::int8 ? static_cast<int>(random.below(256)) - 128
                                        : static_cast<int>(random.below(16)) - 8;
      if (kind.plane == Plane::int8) {
        bytes[i] = static_cast<uint8_t>(q);
      } else {
        const size_t c = i % 32, byte = i / 32 * 16 + c % 16;
        bytes[byte] = static_cast<uint8_t>(bytes[byte] | static_cast<unsigned>(q + 8) << (c < 16 ? 0 : 4));
      }
      const size_t g = i / static_cast<size_t>(kind.group);
      values_[i] = round_bf16(std::fma(static_cast<float>(q), round_bf16(scales[g]), round_bf16(offsets[g])));
    }
    device_values_ = DeviceArray<uint8_t>(bytes);
    device_scales_ = on_device(scales, kind.wide_scales);
    device_offsets_ = on_device(offsets, kind.wide_scales);
    for (const auto* array : {&device_values_, &device_scales_, &device_offsets_}) {
      simt::host::mark_constant(array->data());
    }
    matrix_.plane = kind.plane;
    matrix_.wide_scales = kind.wide_scales;
    matrix_.group = kind.group;
    matrix_.rows = rows;
    matrix_.cols = cols;
    matrix_.padded_cols = padded_;
    matrix_.count = count;
    matrix_.values = device_values_.data();
    if (kind.plane != Plane::bf16) matrix_.scales = device_scales_.data();
    if (kind.has_offsets) matrix_.offsets = device_offsets_.data();
  }

  const Matrix& matrix() const { return matrix_; }
  // Value (row, col) of matrix `of`, as the kernels round it to bf16.
  double value(int row, int col, int of = 0) const {
    return double{values_[(static_cast<size_t>(of) * static_cast<size_t>(rows_) + static_cast<size_t>(row)) *
                              static_cast<size_t>(padded_) +
                          static_cast<size_t>(col)]};
  }

 private:
  static DeviceArray<uint8_t> on_device(const std::vector<float>& numbers, bool wide) {
    std::vector<uint8_t> bytes(numbers.size() * (wide ? 4 : 2));
    for (size_t i = 0; i < numbers.size(); ++i) {
      const uint16_t half = f32_to_f16(numbers[i]);
      wide ? std::memcpy(&bytes[4 * i], &numbers[i], 4) : std::memcpy(&bytes[2 * i], &half, 2);
    }
    return DeviceArray<uint8_t>(bytes);
  }

  int rows_, padded_;
  std::vector<float> values_;
  DeviceArray<uint8_t> device_values_{0}, device_scales_{0}, device_offsets_{0};
  Matrix matrix_;
};

}  // namespace gemmantle::cuda::test
