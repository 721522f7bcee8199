// planes.h: a weight of a file as the device wants it: values in one array, scales in another (kernels/cuda/launch.h).
//
// Blocks with a scale inside them would break every 16-byte load, so rows are split while they are placed. Codes stay
// what the file has; a value comes out as the format defines it, up to one rounding of f32. Dense formats become bf16.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/weight.h"
#include "kernels/cuda/launch.h"

namespace gemmantle::cuda {

// The planes of a whole weight, laid out in one piece of memory: values, then scales, then offsets, 256-byte aligned.
class PlaneLayout {
 public:
  explicit PlaneLayout(const Weight& weight);

  size_t bytes() const { return offsets_at_ + offset_row_bytes_ * all_rows(); }
  // The weight as kernels see it once its bytes lie at `base`.
  Matrix at(const std::byte* base) const;

  size_t all_rows() const { return static_cast<size_t>(shape_.rows) * static_cast<size_t>(shape_.count); }
  size_t value_row_bytes() const { return static_cast<size_t>(shape_.row_bytes()); }
  size_t scale_row_bytes() const { return scale_row_bytes_; }
  size_t offset_row_bytes() const { return offset_row_bytes_; }  // 0: the format has no offsets
  size_t scales_at() const { return scales_at_; }
  size_t offsets_at() const { return offsets_at_; }

  // Splits one row of the file; `scales` and `offsets` are not written where their size is 0.
  void split_row(const std::byte* row, std::byte* values, std::byte* scales, std::byte* offsets) const;

 private:
  formats::FormatId format_;
  Matrix shape_;
  size_t scale_row_bytes_ = 0;
  size_t offset_row_bytes_ = 0;
  size_t scales_at_ = 0;
  size_t offsets_at_ = 0;
};

}  // namespace gemmantle::cuda
