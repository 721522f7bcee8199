// device_rows.h: arrays and matrices in device memory for tests of kernels, and the thread orders they run in.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "simt_host.h"
#include "support/random.h"

namespace gemmantle::cuda::test {

using gemmantle::test::Random;

// A copy of a vector in device memory; its end is exact, so that an overrun is found.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : size_(n), memory_(n * sizeof(T)) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (!values.empty()) DeviceStream().upload(memory_.data(), values.data(), values.size() * sizeof(T));
  }
  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  size_t size() const { return size_; }
  std::vector<T> values() const {
    std::vector<T> out(size_);
    DeviceStream stream;
    stream.download(out.data(), memory_.data(), size_ * sizeof(T));
    stream.wait();
    return out;
  }

 private:
  size_t size_;
  DeviceMemory memory_;
};

// A matrix of f32 in device memory with a gap between its rows, so that a stride that is ignored is found out.
class DeviceRows {
 public:
  DeviceRows(int rows, int cols, int gap = 3)
      : rows_(rows), cols_(cols), stride_(cols + gap), host_(size(), kGap), device_(host_) {}
  DeviceRows(Random& random, int rows, int cols, float deviation = 1.0f, int gap = 3) : DeviceRows(rows, cols, gap) {
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) host_[at_index(r, c)] = deviation * random.normal();
    }
    device_ = DeviceArray<float>(host_);
  }
  DeviceRows(const DeviceRows& other)
      : rows_(other.rows_), cols_(other.cols_), stride_(other.stride_), host_(other.values()), device_(host_) {}

  Rows view() const { return {device_.data(), rows_, cols_, stride_}; }
  ConstRows input() const { return {device_.data(), rows_, cols_, stride_}; }
  int rows() const { return rows_; }
  int cols() const { return cols_; }

  // What was there when this was made, or last read back by expect() or values().
  float at(int r, int c) const { return host_[at_index(r, c)]; }
  const std::vector<float>& values() const { return host_ = device_.values(); }
  bool untouched() const { return values() == std::vector<float>(size(), kGap); }

  // Reads back; ||found - wanted(r, c)|| <= tolerance * ||wanted||, no NaN, and nothing written between the rows.
  void expect(const std::string& what, double tolerance, const std::function<double(int, int)>& wanted) const {
    values();
    double error = 0, norm = 0;
    for (int r = 0; r < rows_; ++r) {
      for (int c = 0; c < stride_; ++c) {
        const double found = host_[at_index(r, c)];
        if (c >= cols_) {
          ASSERT_EQ(found, kGap) << what << ": written behind row " << r;
          continue;
        }
        const double value = wanted(r, c);
        ASSERT_FALSE(std::isnan(found)) << what << ": NaN at " << r << ", " << c << ", wanted " << value;
        error += (found - value) * (found - value);
        norm += value * value;
      }
    }
    EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(norm) + 1e-30)
        << what << ": relative distance " << std::sqrt(error / norm);
  }

 private:
  static constexpr float kGap = -77.0f;
  size_t at_index(int r, int c) const {
    return static_cast<size_t>(r) * static_cast<size_t>(stride_) + static_cast<size_t>(c);
  }
  size_t size() const { return static_cast<size_t>(rows_) * static_cast<size_t>(stride_); }

  int rows_, cols_, stride_;
  mutable std::vector<float> host_;
  DeviceArray<float> device_;
};

// The thread sanitizer sees a race in any order, and takes its time.
#if defined(SIMT_THREAD_SANITIZER)
inline constexpr bool kEarlyCopies[] = {false};
inline constexpr std::pair<simt::Order, const char*> kOrders[] = {{simt::Order::shuffled, "shuffled"}};
#else
inline constexpr bool kEarlyCopies[] = {false, true};
inline constexpr std::pair<simt::Order, const char*> kOrders[] = {
    {simt::Order::forward, "forward"}, {simt::Order::reverse, "reverse"}, {simt::Order::shuffled, "shuffled"}};
#endif

// Runs `body(name)` with ready threads taken forward, in reverse and shuffled, with late and with early copies, and the
// shuffled ones begin before the kernel ahead has ended. Results a body hands to SameBits must not differ.
template <class Body>
void in_every_order(Body&& body) {
  const simt::Config before = simt::config;
  for (const bool early : kEarlyCopies) {
    for (const auto& [order, name] : kOrders) {
      simt::config.order = order;
      simt::config.early_copies = early;
      simt::config.hides_previous = order == simt::Order::shuffled;
      body(std::string(name) + (early ? ", early copies" : ", late copies"));
    }
  }
  simt::config = before;
}

// Holds the first result it is given and wants every later one to have its bits.
template <class T>
class SameBits {
 public:
  void expect(const std::string& what, const std::vector<T>& values) {
    if (first_.empty()) first_ = values;
    ASSERT_EQ(first_.size(), values.size());
    EXPECT_EQ(std::memcmp(first_.data(), values.data(), values.size() * sizeof(T)), 0)
        << what << ": other bits than in the first order of threads";
  }

 private:
  std::vector<T> first_;
};

}  // namespace gemmantle::cuda::test
