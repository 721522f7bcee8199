#include "checkpoint/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/bytes.h"
#include "core/error.h"
#include "core/json.h"

namespace gemmantle {
namespace {

using formats::FormatId;
using nlohmann::json;

struct Dtype {
  const char* name;
  int64_t bits;
  std::optional<FormatId> format;
};

constexpr Dtype kDtypes[] = {
    {"F32", 32, FormatId::f32},   {"BF16", 16, FormatId::bf16}, {"F16", 16, FormatId::f16},
    {"F64", 64, std::nullopt},    {"I64", 64, std::nullopt},    {"U64", 64, std::nullopt},
    {"I32", 32, std::nullopt},    {"U32", 32, std::nullopt},    {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},    {"I8", 8, std::nullopt},      {"U8", 8, std::nullopt},
    {"BOOL", 8, std::nullopt},    {"F8_E4M3", 8, std::nullopt}, {"F8_E5M2", 8, std::nullopt},
    {"F8_E8M0", 8, std::nullopt}, {"C64", 64, std::nullopt},
};

const Dtype* find_dtype(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const Dtype& d) { return d.name == name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

// One entry of the header, on its way to a StoredTensor.
class EntryReader {
 public:
  EntryReader(const std::string& path, const std::string& name, const json& entry, uint64_t data_bytes)
      : path_(path), name_(name), entry_(entry), data_bytes_(data_bytes) {
    if (!entry.is_object())
      refuse("is ", entry.type_name(), "; an object with dtype, shape and data_offsets is needed");
  }

  std::string dtype() const {
    const json& value = field("dtype");
    if (!value.is_string()) refuse("has a dtype of type ", value.type_name(), "; a string such as 'BF16' is needed");
    return value.get<std::string>();
  }

  std::vector<int64_t> shape() const {
    std::vector<int64_t> dims;
    for (const json& dim : array("shape")) dims.push_back(static_cast<int64_t>(unsigned_number(dim, "shape")));
    return dims;
  }

  std::pair<uint64_t, uint64_t> offsets() const {
    const json& value = array("data_offsets");
    if (value.size() != 2) refuse("has ", value.size(), " data_offsets; two are needed, begin and end");
    const uint64_t begin = unsigned_number(value[0], "data_offsets");
    const uint64_t end = unsigned_number(value[1], "data_offsets");
    if (begin > end) refuse("has data_offsets [", begin, ", ", end, "]; the begin must not be behind the end");
    if (end > data_bytes_) {
      refuse("has data_offsets [", begin, ", ", end, "]; the file holds ", data_bytes_,
             " bytes of data. Is it cut short? Fetch it again");
    }
    return {begin, end};
  }

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path_), ": tensor ", quote(name_), " ", parts...));
  }

 private:
  const json& field(const char* key) const {
    const auto found = entry_.find(key);
    if (found == entry_.end()) refuse("has no ", key, "; dtype, shape and data_offsets are needed");
    return *found;
  }

  const json& array(const char* key) const {
    const json& value = field(key);
    if (!value.is_array()) refuse("has ", key, " of type ", value.type_name(), "; a list of whole numbers is needed");
    return value;
  }

  uint64_t unsigned_number(const json& value, const char* key) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX) {
      refuse("has ", quote(value.dump(-1, ' ', true), 40), " in its ", key,
             "; whole numbers from 0 to 9223372036854775807 are needed");
    }
    return value.get<uint64_t>();
  }

  const std::string& path_;
  const std::string& name_;
  const json& entry_;
  const uint64_t data_bytes_;
};

struct Range {
  uint64_t begin, end;
  const std::string* name;
};

void check_tiling(std::vector<Range>& ranges, uint64_t data_bytes, const std::string& path) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t at = 0;
  const std::string* previous = nullptr;
  for (const Range& range : ranges) {
    if (range.begin < at) {
      throw Error(ErrorCode::corrupt_file,
                  str("file ", quote(path), ": tensors ", quote(*previous), " and ", quote(*range.name),
                      " overlap: one ends at data byte ", at, ", the other begins at ", range.begin,
                      "; no two tensors may share bytes"));
    }
    if (range.begin > at) {
      throw Error(ErrorCode::corrupt_file,
                  str("file ", quote(path), ": tensor ", quote(*range.name), " begins at data byte ", range.begin, "; ",
                      at, " is needed, since tensors follow each other without a gap"));
    }
    at = range.end;
    previous = range.name;
  }
  if (at != data_bytes) {
    throw Error(ErrorCode::corrupt_file,
                str("file ", quote(path), " holds ", data_bytes, " bytes of data; its header describes ", at,
                    ". Header and data are not of the same file"));
  }
}

}  // namespace

TensorDirectory parse_safetensors(std::span<const std::byte> bytes, const std::string& path) {
  ByteReader reader(bytes, path);
  const auto header_bytes = reader.read<uint64_t>("the length of its header");
  if (header_bytes > kMaxSafetensorsHeader) {
    throw Error(ErrorCode::corrupt_file,
                str("file ", quote(path), " claims a header of ", header_bytes, " bytes; at most ",
                    kMaxSafetensorsHeader, " are read. Is it a safetensors file?"));
  }
  const std::string_view text = reader.text(header_bytes, "its header");
  if (text.empty() || text.front() != '{') {
    throw Error(ErrorCode::corrupt_file,
                str("file ", quote(path), " has a header that does not begin with '{'; is it a safetensors file?"));
  }
  const JsonLimits limits{kMaxSafetensorsHeader, 8, size_t{4} << 20, true};
  const json header = parse_json(text, str("header of file ", quote(path)), limits);
  const auto data = bytes.subspan(reader.position());

  TensorDirectory directory;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const EntryReader read(path, name, entry, data.size());
    const std::string dtype_name = read.dtype();
    StoredTensor tensor;
    tensor.name = name;
    tensor.shape = read.shape();
    const auto [begin, end] = read.offsets();
    const int64_t elements = checked_elements(tensor.shape);
    if (elements < 0) read.refuse("has shape ", shape_text(tensor.shape), ", more elements than a file can hold");
    if (const Dtype* dtype = find_dtype(dtype_name)) {
      int64_t bits = 0;
      if (__builtin_mul_overflow(elements, dtype->bits, &bits) || static_cast<uint64_t>(bits / 8) != end - begin) {
        read.refuse("has ", end - begin, " bytes; shape ", shape_text(tensor.shape), " of ", dtype_name,
                    " does not take as many");
      }
      if (dtype->format) {
        tensor.format = *dtype->format;
      } else {
        directory.unreadable.emplace(name, str("its dtype is ", dtype_name, "; F32, BF16 and F16 are read"));
      }
    } else {
      directory.unreadable.emplace(
          name, str("its dtype ", quote(dtype_name, 40), " is not known; F32, BF16 and F16 are read"));
    }
    tensor.bytes = data.subspan(begin, end - begin);
    directory.tensors.push_back(std::move(tensor));
  }
  const std::byte* base = data.data();
  for (const StoredTensor& tensor : directory.tensors) {
    const auto begin = static_cast<uint64_t>(tensor.bytes.data() - base);
    ranges.push_back({begin, begin + tensor.bytes.size(), &tensor.name});
  }
  check_tiling(ranges, data.size(), path);
  std::erase_if(directory.tensors, [&](const StoredTensor& t) { return directory.unreadable.contains(t.name); });
  std::sort(directory.tensors.begin(), directory.tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.bytes.data() < b.bytes.data(); });
  return directory;
}

std::map<std::string, std::string, std::less<>> parse_safetensors_index(std::string_view text,
                                                                        const std::string& path) {
  const auto refuse = [&](const auto&... parts) {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path), " ", parts...));
  };
  const JsonLimits limits{kMaxSafetensorsHeader, 8, size_t{4} << 20, true};
  const json index = parse_json(text, str("file ", quote(path)), limits);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    refuse("has no weight_map; an object of tensor name and file name is needed");
  }
  std::map<std::string, std::string, std::less<>> files;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string()) {
      refuse("gives tensor ", quote(name), " a file of type ", file.type_name(), "; a file name is needed");
    }
    const auto& file_name = file.get_ref<const std::string&>();
    constexpr std::string_view kForbidden("/\\\0", 3);
    if (file_name.find_first_of(kForbidden) != std::string::npos || file_name.starts_with('.') ||
        !file_name.ends_with(".safetensors")) {
      refuse("puts tensor ", quote(name), " into ", quote(file_name),
             "; a plain name ending in .safetensors is needed, a file beside the index");
    }
    files.emplace(name, file_name);
  }
  return files;
}

}  // namespace gemmantle
