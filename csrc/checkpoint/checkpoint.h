// checkpoint.h: a folder of safetensors or one GGUF file as named, mapped arrays.
//
// Owns the maps and checks every offset before anybody sees it. Knows nothing of Gemma: names, shapes, formats and
// metadata only. Safe to share between threads once open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/formats/format.h"

namespace gemmantle {

// An array in a file. `shape` is outermost first, whichever container it came from; the last dimension is contiguous.
struct StoredTensor {
  std::string name;
  formats::FormatId format{};
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
  int file = 0;  // index into Checkpoint::files()

  int64_t elements() const;
};

enum class Container { safetensors, gguf };

class GgufMetadata;

class Checkpoint {
 public:
  // `path`: a folder with config.json and *.safetensors (single, or sharded with an index), or a .gguf file.
  // Throws not_found, corrupt_file or unsupported, naming file, tensor, found and wanted.
  static std::shared_ptr<const Checkpoint> open(const std::string& path);
  // Without a file: a folder that has a config.json only, and a GGUF file that lies in memory and stays there.
  static std::shared_ptr<const Checkpoint> from_config(std::string_view config_json);
  static std::shared_ptr<const Checkpoint> from_gguf(std::span<const std::byte> bytes);
  ~Checkpoint();
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

  Container container() const;
  const std::string& path() const;
  const std::vector<std::string>& files() const;
  const std::vector<StoredTensor>& tensors() const;       // in file order
  const StoredTensor* find(std::string_view name) const;  // nullptr when absent or unreadable
  // Why the values of a tensor that the file holds cannot be read ("its dtype is I64; ..."), or nullptr.
  const std::string* unreadable(std::string_view name) const;
  const nlohmann::json& config() const;             // config.json; an empty object for GGUF
  const nlohmann::json& generation_config() const;  // generation_config.json or an empty object
  const GgufMetadata& metadata() const;             // empty for safetensors

 private:
  struct Parts;
  explicit Checkpoint(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

// Rows [first, first + count) of a matrix (all leading dimensions flattened into rows), dequantised exactly to f32.
// `out` holds count * shape.back() values; a tensor without dimensions is one row of one value.
void read_rows(const StoredTensor& tensor, int64_t first, int64_t count, float* out);

struct FormatSize {
  int group;  // values in a block
  int block_bytes;
};
FormatSize format_size(formats::FormatId format);
const char* format_name(formats::FormatId format);
int64_t row_bytes(formats::FormatId format, int64_t cols);  // cols must be a multiple of the format's group

}  // namespace gemmantle
