#include "kernels/common/float.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace gemmantle {
namespace {

TEST(Float, every_bf16_survives_the_way_to_f32_and_back) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float value = bf16_to_f32(static_cast<uint16_t>(half));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value)))) << half;
    } else {
      ASSERT_EQ(f32_to_bf16(value), half);
    }
  }
}

TEST(Float, every_f16_is_its_defined_value_and_survives_the_way_back) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const int exponent = static_cast<int>((half >> 10) & 31);
    const int mantissa = static_cast<int>(half & 1023);
    const float value = f16_to_f32(static_cast<uint16_t>(half));
    ASSERT_EQ(std::signbit(value), half >= 0x8000) << half;
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(value) && std::isnan(f16_to_f32(f32_to_f16(value)))) << half;
      continue;
    }
    double wanted = exponent == 31  ? std::numeric_limits<double>::infinity()
                    : exponent == 0 ? std::ldexp(mantissa, -24)
                                    : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(std::fabs(value), wanted) << half;
    ASSERT_EQ(f32_to_f16(value), half);
  }
}

// Both neighbours of a narrow value: halfway goes to the even one, a bit past halfway to the nearer one.
TEST(Float, narrowing_rounds_to_nearest_even) {
  for (uint32_t half = 0; half < 0x7bff; ++half) {
    const double low = f16_to_f32(static_cast<uint16_t>(half));
    const double high = f16_to_f32(static_cast<uint16_t>(half + 1));
    const auto middle = static_cast<float>((low + high) / 2);  // exact: one bit more than a half has
    ASSERT_EQ(f32_to_f16(middle), half + (half & 1)) << half;
    ASSERT_EQ(f32_to_f16(std::nextafterf(middle, 0)), half) << half;
    ASSERT_EQ(f32_to_f16(std::nextafterf(middle, 1e9f)), half + 1) << half;
  }
  for (uint32_t half = 0; half < 0x7f7f; ++half) {
    const float middle = f32_from_bits((half << 16) | 0x8000u);
    ASSERT_EQ(f32_to_bf16(middle), half + (half & 1)) << half;
    ASSERT_EQ(f32_to_bf16(f32_from_bits((half << 16) | 0x7fffu)), half) << half;
    ASSERT_EQ(f32_to_bf16(f32_from_bits((half << 16) | 0x8001u)), half + 1) << half;
  }
}

TEST(Float, values_out_of_range_become_infinity_and_tiny_ones_zero) {
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-1e30f), 0xfc00);
  EXPECT_EQ(f32_to_f16(std::ldexp(1.0f, -25)), 0x0000);
  EXPECT_EQ(f32_to_f16(-std::ldexp(1.0f, -26)), 0x8000);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

}  // namespace
}  // namespace gemmantle
