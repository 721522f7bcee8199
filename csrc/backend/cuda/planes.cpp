#include "backend/cuda/planes.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/error.h"
#include "kernels/common/float.h"
#include "kernels/formats/decode.h"

namespace gemmantle::cuda {
namespace {

constexpr int kPadding = 32;  // columns of a row are a multiple of this
constexpr size_t kAlign = 256;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// The codes of one block and what they are multiplied by, in the order of the columns.
struct Codes {
  int8_t values[256];
  float scales[16];
  float offsets[16];
};

// How a format is split; the primary template is that of the dense formats.
template <class F>
struct Split {
  static constexpr Plane plane = Plane::bf16;
};

// Formats of blocks32.h: one f16 scale, and a minimum `m` behind it in some.
template <Plane kPlane, bool kOffsets, bool kWide = false>
struct Split32 {
  static constexpr Plane plane = kPlane;
  static constexpr bool wide = kWide, offsets = kOffsets;
  static constexpr int group = 32;
};

// code(j) for the 4-bit codes of 32 values at `bytes`.
int nibble(const uint8_t* bytes, int j) { return j < 16 ? bytes[j] & 15 : bytes[j - 16] >> 4; }

template <>
struct Split<formats::Q4_0> : Split32<Plane::int4, false> {
  static void run(const uint8_t* block, Codes& out) {
    out.scales[0] = f16_to_f32(load_u16(block));
    for (int j = 0; j < 32; ++j) out.values[j] = static_cast<int8_t>(nibble(block + 2, j) - 8);
  }
};

template <>
struct Split<formats::Q4_1> : Split32<Plane::int4, true, true> {
  static void run(const uint8_t* block, Codes& out) {
    out.scales[0] = f16_to_f32(load_u16(block));
    out.offsets[0] = f16_to_f32(load_u16(block + 2)) + 8 * out.scales[0];
    for (int j = 0; j < 32; ++j) out.values[j] = static_cast<int8_t>(nibble(block + 4, j) - 8);
  }
};

template <>
struct Split<formats::Q5_0> : Split32<Plane::int8, false> {
  static void run(const uint8_t* block, Codes& out) {
    out.scales[0] = f16_to_f32(load_u16(block));
    const uint32_t fifth = load_u32(block + 2);
    for (int j = 0; j < 32; ++j) {
      out.values[j] = static_cast<int8_t>((nibble(block + 6, j) | static_cast<int>((fifth >> j & 1u) << 4)) - 16);
    }
  }
};

template <>
struct Split<formats::Q5_1> : Split32<Plane::int8, true> {
  static void run(const uint8_t* block, Codes& out) {
    out.scales[0] = f16_to_f32(load_u16(block));
    out.offsets[0] = f16_to_f32(load_u16(block + 2));
    const uint32_t fifth = load_u32(block + 4);
    for (int j = 0; j < 32; ++j) {
      out.values[j] = static_cast<int8_t>(nibble(block + 8, j) | static_cast<int>((fifth >> j & 1u) << 4));
    }
  }
};

template <>
struct Split<formats::Q8_0> : Split32<Plane::int8, false> {
  static void run(const uint8_t* block, Codes& out) {
    out.scales[0] = f16_to_f32(load_u16(block));
    std::memcpy(out.values, block + 2, 32);
  }
};

template <>
struct Split<formats::IQ4_NL> : Split32<Plane::int8, false> {
  static void run(const uint8_t* block, Codes& out) {
    // The levels are those of a block whose scale is one.
    uint8_t unit[formats::IQ4_NL::block_bytes];
    std::memcpy(unit, block, sizeof unit);
    const uint16_t one = f32_to_f16(1.0f);
    std::memcpy(unit, &one, sizeof one);
    float levels[32];
    formats::IQ4_NL::decode(unit, levels);
    out.scales[0] = f16_to_f32(load_u16(block));
    for (int j = 0; j < 32; ++j) out.values[j] = static_cast<int8_t>(levels[j]);
  }
};

// Scales and minima of Q4_K and Q5_K, as products of two parts each.
void k_steps(const uint8_t* block, Codes& out) {
  const float d = f16_to_f32(load_u16(block)), dmin = f16_to_f32(load_u16(block + 2));
  for (int g = 0; g < 8; ++g) {
    int scale, min;
    formats::k_scale_min(block + 4, g, &scale, &min);
    out.scales[g] = d * static_cast<float>(scale);
    out.offsets[g] = -dmin * static_cast<float>(min);
  }
}

template <>
struct Split<formats::Q4_K> : Split32<Plane::int4, true, true> {
  static void run(const uint8_t* block, Codes& out) {
    k_steps(block, out);
    for (int g = 0; g < 8; ++g) {
      out.offsets[g] += 8 * out.scales[g];
      const uint8_t* codes = block + 16 + 32 * (g / 2);
      for (int j = 0; j < 32; ++j) out.values[32 * g + j] = static_cast<int8_t>((codes[j] >> 4 * (g % 2) & 15) - 8);
    }
  }
};

template <>
struct Split<formats::Q5_K> : Split32<Plane::int8, true, true> {
  static void run(const uint8_t* block, Codes& out) {
    k_steps(block, out);
    for (int g = 0; g < 8; ++g) {
      const uint8_t* codes = block + 48 + 32 * (g / 2);
      for (int j = 0; j < 32; ++j) {
        const int fifth = block[16 + j] >> g & 1;
        out.values[32 * g + j] = static_cast<int8_t>((codes[j] >> 4 * (g % 2) & 15) | fifth << 4);
      }
    }
  }
};

template <>
struct Split<formats::Q6_K> {
  static constexpr Plane plane = Plane::int8;
  static constexpr bool wide = true, offsets = false;
  static constexpr int group = 16;
  static void run(const uint8_t* block, Codes& out) {
    const float d = f16_to_f32(load_u16(block + 208));
    for (int g = 0; g < 16; ++g) {
      const auto scale = static_cast<int8_t>(block[192 + g]);
      out.scales[g] = d * static_cast<float>(scale);
    }
    for (int i = 0; i < 256; ++i) {
      const int half = i / 128, run = i % 128 / 32, j = i % 32;
      const int low = block[64 * half + 32 * (run % 2) + j] >> 4 * (run / 2) & 15;
      const int upper = block[128 + 32 * half + j] >> 2 * run & 3;
      out.values[i] = static_cast<int8_t>((low | upper << 4) - 32);
    }
  }
};

void store_scale(std::byte* to, bool wide, size_t at, float value) {
  if (wide) {
    std::memcpy(to + 4 * at, &value, 4);
  } else {
    const uint16_t half = f32_to_f16(value);
    std::memcpy(to + 2 * at, &half, 2);
  }
}

void store_codes(std::byte* to, Plane plane, const int8_t* codes, int first, int n) {
  if (plane == Plane::int8) {
    std::memcpy(to + first, codes, static_cast<size_t>(n));
    return;
  }
  for (int g = 0; g < n; g += 32) {
    for (int j = 0; j < 16; ++j) {
      to[(first + g) / 2 + j] = static_cast<std::byte>((codes[g + j] + 8) | (codes[g + j + 16] + 8) << 4);
    }
  }
}

}  // namespace

PlaneLayout::PlaneLayout(const Weight& weight) : format_(weight.format) {
  shape_.rows = static_cast<int>(weight.rows);
  shape_.cols = static_cast<int>(weight.cols);
  shape_.padded_cols = (shape_.cols + kPadding - 1) / kPadding * kPadding;
  shape_.count = weight.count;
  bool offsets = false;
  formats::with_format(format_, [&]<class F>() {
    shape_.plane = Split<F>::plane;
    if constexpr (Split<F>::plane != Plane::bf16) {
      shape_.wide_scales = Split<F>::wide;
      shape_.group = Split<F>::group;
      offsets = Split<F>::offsets;
    }
  });
  if (shape_.plane != Plane::bf16) {
    const auto groups = static_cast<size_t>(shape_.padded_cols / shape_.group);
    scale_row_bytes_ = groups * (shape_.wide_scales ? 4 : 2);
    offset_row_bytes_ = offsets ? scale_row_bytes_ : 0;
  }
  scales_at_ = aligned(value_row_bytes() * all_rows());
  offsets_at_ = scales_at_ + aligned(scale_row_bytes_ * all_rows());
}

Matrix PlaneLayout::at(const std::byte* base) const {
  Matrix m = shape_;
  m.values = reinterpret_cast<const uint8_t*>(base);
  if (scale_row_bytes_ > 0) m.scales = base + scales_at_;
  if (offset_row_bytes_ > 0) m.offsets = base + offsets_at_;
  return m;
}

void PlaneLayout::split_row(const std::byte* row, std::byte* values, std::byte* scales, std::byte* offsets) const {
  const auto* block = reinterpret_cast<const uint8_t*>(row);
  formats::with_format(format_, [&]<class F>() {
    if constexpr (Split<F>::plane == Plane::bf16) {
      std::memset(values, 0, value_row_bytes());
      if constexpr (std::is_same_v<F, formats::BF16>) {
        std::memcpy(values, row, static_cast<size_t>(shape_.cols) * 2);
      } else {
        for (int c = 0; c < shape_.cols; ++c, block += F::block_bytes) {
          float value;
          F::decode(block, &value);
          const uint16_t bits = f32_to_bf16(value);
          std::memcpy(values + 2 * c, &bits, 2);
        }
      }
    } else {
      Codes codes;
      constexpr int kGroups = F::group / Split<F>::group;
      for (int c = 0; c < shape_.cols; c += F::group, block += F::block_bytes) {
        Split<F>::run(block, codes);
        store_codes(values, shape_.plane, codes.values, c, F::group);
        for (int g = 0; g < kGroups; ++g) {
          const auto at = static_cast<size_t>(c / Split<F>::group + g);
          store_scale(scales, shape_.wide_scales, at, codes.scales[g]);
          if (Split<F>::offsets) store_scale(offsets, shape_.wide_scales, at, codes.offsets[g]);
        }
      }
    }
  });
}

}  // namespace gemmantle::cuda
