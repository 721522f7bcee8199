#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>

#include "checkpoint/directory.h"
#include "checkpoint/gguf.h"
#include "checkpoint/safetensors.h"
#include "core/bytes.h"
#include "core/error.h"
#include "core/json.h"
#include "core/mapped_file.h"
#include "kernels/formats/decode.h"

namespace gemmantle {

namespace fs = std::filesystem;

struct Checkpoint::Parts {
  Container container = Container::safetensors;
  std::string path;
  std::vector<std::string> files;
  std::vector<std::shared_ptr<const MappedFile>> maps;
  TensorDirectory directory;
  std::unordered_map<std::string_view, const StoredTensor*> by_name;
  nlohmann::json config = nlohmann::json::object();
  nlohmann::json generation_config = nlohmann::json::object();
  GgufMetadata metadata;

  void add_file(std::shared_ptr<const MappedFile> map) {
    files.push_back(map->path());
    maps.push_back(std::move(map));
  }
};

namespace {

using Index = std::map<std::string, std::string, std::less<>>;

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

nlohmann::json parse_object(std::string_view text, const std::string& what) {
  nlohmann::json value = parse_json(text, what);
  if (!value.is_object()) {
    throw Error(ErrorCode::corrupt_file,
                str(what, " holds a value of type ", value.type_name(), "; an object is needed"));
  }
  return value;
}

nlohmann::json read_object(const fs::path& path) {
  return parse_object(text_of(*MappedFile::open(path.string())), str("file ", quote(path.string())));
}

// Names of the *.safetensors files of a folder, sorted, and whether other model files lie there.
struct FolderListing {
  std::vector<std::string> safetensors;
  std::optional<std::string> gguf;
  std::optional<std::string> pickle;
};

FolderListing list(const fs::path& folder) {
  FolderListing listing;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.ends_with(".safetensors") && is_file(it->path())) listing.safetensors.push_back(name);
    if (name.ends_with(".gguf")) listing.gguf = name;
    if (name.ends_with(".bin") && name.find("model") != std::string::npos) listing.pickle = name;
  }
  if (error) {
    throw Error(ErrorCode::invalid_argument, str("folder ", quote(folder.string()),
                                                 " cannot be listed: ", error.message(), "; check its permissions"));
  }
  std::sort(listing.safetensors.begin(), listing.safetensors.end());
  return listing;
}

[[noreturn]] void no_weights(const fs::path& folder, const FolderListing& listing) {
  const std::string shown = quote(folder.string());
  if (listing.safetensors.size() > 1) {
    throw Error(
        ErrorCode::not_found,
        str("folder ", shown, " has ", listing.safetensors.size(),
            " .safetensors files and no model.safetensors.index.json that says which tensor is where; add the index"));
  }
  if (listing.gguf) {
    throw Error(ErrorCode::not_found, str("folder ", shown, " has no .safetensors file; to use ", quote(*listing.gguf),
                                          ", give the path of that file"));
  }
  if (listing.pickle) {
    throw Error(ErrorCode::unsupported, str("folder ", shown, " has its weights in ", quote(*listing.pickle),
                                            ", a pickle file; save them as safetensors (safe_serialization=True)"));
  }
  throw Error(ErrorCode::not_found, str("folder ", shown, " has no .safetensors file; is the download complete?"));
}

void append(TensorDirectory& all, TensorDirectory part, int file, const Index* index, const std::string& file_name) {
  // The index is the authority: a tensor it places elsewhere, or leaves out, is not part of the model.
  const auto belongs = [&](const std::string& name) {
    if (index == nullptr) return true;
    const auto found = index->find(name);
    return found != index->end() && found->second == file_name;
  };
  for (StoredTensor& tensor : part.tensors) {
    if (!belongs(tensor.name)) continue;
    tensor.file = file;
    all.tensors.push_back(std::move(tensor));
  }
  for (auto& [name, reason] : part.unreadable) {
    if (belongs(name)) all.unreadable.emplace(name, reason);
  }
}

}  // namespace

int64_t StoredTensor::elements() const { return checked_elements(shape); }

int64_t checked_elements(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(elements, dim, &elements)) return -1;
  }
  return elements;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  constexpr size_t kShown = 8;
  std::string out = "[";
  for (size_t i = 0; i < std::min(shape.size(), kShown); ++i) out += str(i == 0 ? "" : ", ", shape[i]);
  if (shape.size() > kShown) out += str(", ... ", shape.size(), " in all");
  return out + "]";
}

FormatSize format_size(formats::FormatId format) {
  const formats::FormatInfo info = formats::info(format);
  return {info.group, info.block_bytes};
}

const char* format_name(formats::FormatId format) { return formats::info(format).name; }

int64_t row_bytes(formats::FormatId format, int64_t cols) {
  const FormatSize size = format_size(format);
  GEMMANTLE_CHECK(cols >= 0 && cols % size.group == 0, "rows of ", cols, " values as ", format_name(format));
  return cols / size.group * size.block_bytes;
}

void read_rows(const StoredTensor& tensor, int64_t first, int64_t count, float* out) {
  const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
  const int64_t rows = cols == 0 ? 0 : tensor.elements() / cols;
  GEMMANTLE_CHECK(first >= 0 && count >= 0 && first <= rows && count <= rows - first, "rows [", first, ", +", count,
                  ") of ", rows, " of tensor ", quote(tensor.name));
  if (count == 0) return;
  const int64_t stride = row_bytes(tensor.format, cols);
  const auto* bytes = reinterpret_cast<const uint8_t*>(tensor.bytes.data()) + first * stride;
  // Rows are whole blocks and follow each other, so many rows decode as one long one.
  formats::decode_row(tensor.format, bytes, count * cols, out);
}

Checkpoint::Checkpoint(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {
  for (const StoredTensor& tensor : parts_->directory.tensors) parts_->by_name.emplace(tensor.name, &tensor);
}

Checkpoint::~Checkpoint() = default;

std::shared_ptr<const Checkpoint> Checkpoint::open(const std::string& path) {
  auto parts = std::make_unique<Parts>();
  parts->path = path;
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) {
    auto map = MappedFile::open(path);
    if (!looks_like_gguf(map->bytes())) {
      if (path.ends_with(".safetensors")) {
        throw Error(ErrorCode::unsupported, str("file ", quote(path),
                                                " is one .safetensors file; give the folder that "
                                                "holds it and its config.json"));
      }
      throw Error(path.ends_with(".gguf") ? ErrorCode::corrupt_file : ErrorCode::unsupported,
                  str("file ", quote(path),
                      " does not begin with 'GGUF'; give a GGUF file, or a folder with config.json "
                      "and .safetensors files"));
    }
    GgufFile file = parse_gguf(map->bytes(), path);
    parts->container = Container::gguf;
    parts->metadata = std::move(file.metadata);
    parts->directory = std::move(file.directory);
    parts->add_file(std::move(map));
    return std::shared_ptr<const Checkpoint>(new Checkpoint(std::move(parts)));
  }

  const fs::path folder(path);
  const FolderListing listing = list(folder);
  const fs::path index_path = folder / "model.safetensors.index.json";
  const bool single =
      is_file(folder / "model.safetensors") || (listing.safetensors.size() == 1 && !is_file(index_path));
  if (!single && !is_file(index_path)) no_weights(folder, listing);
  if (!is_file(folder / "config.json")) {
    throw Error(ErrorCode::not_found,
                str("folder ", quote(path), " has no config.json; it is needed beside the weights"));
  }
  parts->config = read_object(folder / "config.json");
  if (is_file(folder / "generation_config.json"))
    parts->generation_config = read_object(folder / "generation_config.json");

  if (single) {
    const bool usual = is_file(folder / "model.safetensors");
    auto map = MappedFile::open((folder / (usual ? "model.safetensors" : listing.safetensors.front())).string());
    append(parts->directory, parse_safetensors(map->bytes(), map->path()), 0, nullptr, {});
    parts->add_file(std::move(map));
    return std::shared_ptr<const Checkpoint>(new Checkpoint(std::move(parts)));
  }

  const Index index = parse_safetensors_index(text_of(*MappedFile::open(index_path.string())), index_path.string());
  std::set<std::string> shards;
  for (const auto& [name, file_name] : index) shards.insert(file_name);
  for (const std::string& file_name : shards) {
    const fs::path shard = folder / file_name;
    if (!is_file(shard)) {
      throw Error(ErrorCode::not_found,
                  str("file ", quote(shard.string()), " is named by ", quote(index_path.filename().string()),
                      " and is not there; is the download complete?"));
    }
    auto map = MappedFile::open(shard.string());
    TensorDirectory part = parse_safetensors(map->bytes(), map->path());
    append(parts->directory, std::move(part), static_cast<int>(parts->files.size()), &index, file_name);
    parts->add_file(std::move(map));
  }
  std::set<std::string_view> present;
  for (const StoredTensor& tensor : parts->directory.tensors) present.insert(tensor.name);
  for (const auto& [name, file_name] : index) {
    if (!present.contains(name) && !parts->directory.unreadable.contains(name)) {
      throw Error(ErrorCode::corrupt_file,
                  str("file ", quote(index_path.string()), " puts tensor ", quote(name), " into ", quote(file_name),
                      ", which does not hold it; are they of one download?"));
    }
  }
  return std::shared_ptr<const Checkpoint>(new Checkpoint(std::move(parts)));
}

std::shared_ptr<const Checkpoint> Checkpoint::from_config(std::string_view config_json) {
  auto parts = std::make_unique<Parts>();
  parts->path = "memory";
  parts->config = parse_object(config_json, "config.json");
  return std::shared_ptr<const Checkpoint>(new Checkpoint(std::move(parts)));
}

std::shared_ptr<const Checkpoint> Checkpoint::from_gguf(std::span<const std::byte> bytes) {
  auto parts = std::make_unique<Parts>();
  parts->path = "memory";
  parts->container = Container::gguf;
  GgufFile file = parse_gguf(bytes, parts->path);
  parts->metadata = std::move(file.metadata);
  parts->directory = std::move(file.directory);
  return std::shared_ptr<const Checkpoint>(new Checkpoint(std::move(parts)));
}

Container Checkpoint::container() const { return parts_->container; }
const std::string& Checkpoint::path() const { return parts_->path; }
const std::vector<std::string>& Checkpoint::files() const { return parts_->files; }
const std::vector<StoredTensor>& Checkpoint::tensors() const { return parts_->directory.tensors; }
const nlohmann::json& Checkpoint::config() const { return parts_->config; }
const nlohmann::json& Checkpoint::generation_config() const { return parts_->generation_config; }
const GgufMetadata& Checkpoint::metadata() const { return parts_->metadata; }

const StoredTensor* Checkpoint::find(std::string_view name) const {
  const auto found = parts_->by_name.find(name);
  return found == parts_->by_name.end() ? nullptr : found->second;
}

const std::string* Checkpoint::unreadable(std::string_view name) const {
  const auto found = parts_->directory.unreadable.find(name);
  return found == parts_->directory.unreadable.end() ? nullptr : &found->second;
}

}  // namespace gemmantle
