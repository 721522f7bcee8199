// Any bytes as a .safetensors file, and as the index of a sharded set: an Error or tensors whose values can be read.
#include "checkpoint/safetensors.h"

#include <cstdlib>
#include <vector>

#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace gemmantle;
  try {
    const TensorDirectory directory = parse_safetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
    std::vector<float> values;
    for (const StoredTensor& tensor : directory.tensors) {
      const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
      values.resize(static_cast<size_t>(tensor.elements()));
      if (cols > 0) read_rows(tensor, 0, tensor.elements() / cols, values.data());
    }
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt_file) std::abort();
  }
  try {
    parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt_file) std::abort();
  }
  return 0;
}
