// random.h: random rows and weights whose seed is printed with every failure; GEMMANTLE_TEST_SEED brings one back.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "backend/weight.h"
#include "core/tensor.h"

namespace gemmantle::test {

inline uint64_t chosen_seed(uint64_t seed) {
  const char* text = std::getenv("GEMMANTLE_TEST_SEED");
  return text == nullptr ? seed : std::strtoull(text, nullptr, 0);
}

class Random {
 public:
  explicit Random(uint64_t seed)
      : seed_(chosen_seed(seed)),
        engine_(seed_),
        trace_(__FILE__, __LINE__, "GEMMANTLE_TEST_SEED=" + std::to_string(seed_)) {}

  float normal() { return normal_(engine_); }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  uint8_t byte() { return static_cast<uint8_t>(engine_() >> 24); }
  std::vector<float> normals(int64_t n, float deviation = 1.0f) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = deviation * normal();
    return values;
  }

 private:
  uint64_t seed_;
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
  ::testing::ScopedTrace trace_;
};

// A matrix of f32 with room between its rows, so that a stride that is ignored is found out.
struct Rows {
  int64_t rows = 0, cols = 0, stride = 0;
  std::vector<float> values;

  Rows(int64_t r, int64_t c, int64_t gap = 3)
      : rows(r), cols(c), stride(c + gap), values(static_cast<size_t>(r * stride), -77.0f) {}
  Rows(Random& random, int64_t r, int64_t c, float deviation = 1.0f, int64_t gap = 3) : Rows(r, c, gap) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) at(i, j) = deviation * random.normal();
    }
  }
  float& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * stride + c)]; }
  float at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * stride + c)]; }
  Tensor tensor() { return {values.data(), DType::f32, rows, cols, stride}; }
  // True while nobody wrote between the rows.
  bool gaps_untouched() const {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = cols; c < stride; ++c) {
        if (at(r, c) != -77.0f) return false;
      }
    }
    return true;
  }
};

// Random weights of a format, starting `misaligned` bytes past an aligned address, and their values.
struct RandomWeight {
  std::vector<std::byte> bytes;
  std::vector<float> values;  // [count * rows, cols], as the format defines them
  Weight weight;

  RandomWeight(Random& random, formats::FormatId format, int64_t rows, int64_t cols, int32_t count = 1,
               size_t misaligned = 1);
  float at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * weight.cols + c)]; }
};

// Every format there is, with its name, for parameterised tests.
struct NamedFormat {
  formats::FormatId id;
  const char* name;
  int group;
};
const std::vector<NamedFormat>& all_formats();

}  // namespace gemmantle::test
