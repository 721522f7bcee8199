#include "support/random.h"

#include <cstring>

#include "kernels/common/float.h"
#include "kernels/formats/decode.h"

namespace gemmantle::test {
namespace {

using formats::FormatId;

void put_f16(uint8_t* at, float value) {
  const uint16_t half = f32_to_f16(value);
  std::memcpy(at, &half, sizeof half);
}

// Codes are random bytes as they are; scales must be numbers of a sensible size.
void set_scales(Random& random, FormatId format, uint8_t* block) {
  const auto scale = [&] { return 0.01f * random.normal(); };
  switch (format) {
    case FormatId::q6_k: put_f16(block + 208, 0.01f * scale()); break;
    case FormatId::q4_1:
    case FormatId::q5_1:
    case FormatId::q4_k:
    case FormatId::q5_k: put_f16(block + 2, scale()); [[fallthrough]];
    default: put_f16(block, scale());
  }
}

}  // namespace

RandomWeight::RandomWeight(Random& random, FormatId format, int64_t rows, int64_t cols, int32_t count,
                           size_t misaligned) {
  const formats::FormatInfo info = formats::info(format);
  const int64_t row_bytes = cols / info.group * info.block_bytes;
  bytes.resize(static_cast<size_t>(rows * count * row_bytes) + misaligned);
  auto* block = reinterpret_cast<uint8_t*>(bytes.data()) + misaligned;
  weight = {format, rows, cols, count, row_bytes, bytes.data() + misaligned};
  for (int64_t b = 0; b < rows * count * (cols / info.group); ++b, block += info.block_bytes) {
    const float value = 0.2f * random.normal();
    const uint16_t bf16 = f32_to_bf16(value);
    switch (format) {
      case FormatId::f32: std::memcpy(block, &value, sizeof value); break;
      case FormatId::bf16: std::memcpy(block, &bf16, sizeof bf16); break;
      case FormatId::f16: put_f16(block, value); break;
      default:
        for (int i = 0; i < info.block_bytes; ++i) block[i] = random.byte();
        set_scales(random, format, block);
    }
  }
  values.resize(static_cast<size_t>(rows * count * cols));
  for (int64_t r = 0; r < rows * count; ++r) {
    formats::decode_row(format, reinterpret_cast<const uint8_t*>(weight.row(r)), cols, values.data() + r * cols);
  }
}

const std::vector<NamedFormat>& all_formats() {
  static const std::vector<NamedFormat> list = {
#define GEMMANTLE_FORMAT(id, type) {FormatId::id, formats::type::name, formats::type::group},
#include "kernels/formats/formats.def"
#undef GEMMANTLE_FORMAT
  };
  return list;
}

}  // namespace gemmantle::test
