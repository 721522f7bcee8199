// Any bytes as a GGUF file: an Error, or metadata and tensors of which every value can be read.
#include "checkpoint/gguf.h"

#include <cstdlib>
#include <vector>

#include "core/error.h"

namespace {

using namespace gemmantle;

template <class Action>
void refused_or_done(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::corrupt_file && error.code() != ErrorCode::unsupported) std::abort();
  }
}

void read_all(const GgufFile& file) {
  for (const auto& entry : file.metadata.entries()) {
    const std::string_view key = entry.key;
    refused_or_done([&] { file.metadata.get_u64(key); });
    refused_or_done([&] { file.metadata.get_i64(key); });
    refused_or_done([&] { file.metadata.get_f64(key); });
    refused_or_done([&] { file.metadata.get_bool(key); });
    refused_or_done([&] { file.metadata.get_string(key); });
    refused_or_done([&] { file.metadata.get_i64s(key); });
    refused_or_done([&] { file.metadata.get_f32s(key); });
    refused_or_done([&] {
      uint64_t count = 0, bytes = 0;
      for (const std::string_view text : file.metadata.get_strings(key)) {
        ++count;
        bytes += text.size() + sizeof(uint64_t);
      }
      if (count != entry.count || bytes != entry.bytes.size()) std::abort();
    });
  }
  std::vector<float> values;
  for (const StoredTensor& tensor : file.directory.tensors) {
    const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
    values.resize(static_cast<size_t>(tensor.elements()));
    if (cols > 0) read_rows(tensor, 0, tensor.elements() / cols, values.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  refused_or_done([&] { read_all(parse_gguf({reinterpret_cast<const std::byte*>(data), size}, "fuzz")); });
  return 0;
}
