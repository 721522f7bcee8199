// decode.h: every format by its struct, and by its id at run time.
//
// Rows are whole blocks: `cols` is a multiple of the format's group (the checkpoint readers refuse anything else). All
// names here have internal linkage; include it in source files only.
#pragma once

#include "kernels/formats/blocks32.h"
#include "kernels/formats/dense.h"
#include "kernels/formats/format.h"
#include "kernels/formats/k_quants.h"

namespace gemmantle::formats {

struct FormatInfo {
  const char* name;
  int group;
  int block_bytes;
};

// Calls visitor.operator()<F>() with the struct of `id`: the one place where the run-time tag becomes a type.
template <class Visitor>
static inline auto with_format(FormatId id, Visitor&& visitor) {
  switch (id) {
#define GEMMANTLE_FORMAT(enumerator, type) \
  case FormatId::enumerator: return visitor.template operator()<type>();
#include "kernels/formats/formats.def"
#undef GEMMANTLE_FORMAT
  }
  __builtin_unreachable();
}

static inline FormatInfo info(FormatId id) noexcept {
  FormatInfo found{};
  with_format(id, [&]<class F>() { found = {F::name, F::group, F::block_bytes}; });
  return found;
}

template <class F>
GEMMANTLE_HD static inline void decode_row(const uint8_t* row, int64_t cols, float* values) noexcept {
  for (int64_t c = 0; c < cols; c += F::group, row += F::block_bytes) F::decode(row, values + c);
}

static inline void decode_row(FormatId id, const uint8_t* row, int64_t cols, float* values) noexcept {
  with_format(id, [&]<class F>() { decode_row<F>(row, cols, values); });
}

}  // namespace gemmantle::formats
