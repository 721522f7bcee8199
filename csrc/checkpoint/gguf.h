// gguf.h: the header, metadata and tensor directory of a GGUF file, versions 2 and 3.
//
// Counts and lengths are compared with what the file can hold before anything is allocated. Values stay in the map and
// are read when asked for: opening a file with a vocabulary of 262,144 copies no token. Big-endian files, arrays of
// arrays and files split into parts are refused in words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/directory.h"

namespace gemmantle {

// Numbers are those of the file format.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

const char* name(GgufType type) noexcept;

// The strings of an array, one after the other in the map; the range was checked when the file was opened.
class GgufStrings {
 public:
  class Iterator {
   public:
    using value_type = std::string_view;
    using difference_type = std::ptrdiff_t;

    Iterator() = default;
    explicit Iterator(const std::byte* at) : at_(at) {}
    std::string_view operator*() const;
    Iterator& operator++();
    Iterator operator++(int);
    bool operator==(const Iterator&) const = default;

   private:
    const std::byte* at_ = nullptr;
  };

  GgufStrings() = default;
  GgufStrings(uint64_t count, std::span<const std::byte> bytes) : count_(count), bytes_(bytes) {}
  uint64_t size() const { return count_; }
  Iterator begin() const { return Iterator(bytes_.data()); }
  Iterator end() const { return Iterator(bytes_.data() + bytes_.size()); }

 private:
  uint64_t count_ = 0;
  std::span<const std::byte> bytes_;
};

class GgufMetadata {
 public:
  struct Entry {
    std::string_view key;
    GgufType type{};
    GgufType element{};                // of an array
    uint64_t count = 1;                // of an array
    std::span<const std::byte> bytes;  // without the type, length and count in front
  };

  GgufMetadata() = default;
  explicit GgufMetadata(std::string path) : path_(std::move(path)) {}

  const std::vector<Entry>& entries() const { return entries_; }  // in file order
  const Entry* find(std::string_view key) const;                  // nullptr when absent
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  bool is_array(std::string_view key) const;

  // Any integer type of the file is accepted where the value fits. Throw corrupt_file when the key is absent, of
  // another type or out of range.
  uint64_t get_u64(std::string_view key) const;
  int64_t get_i64(std::string_view key) const;
  double get_f64(std::string_view key) const;  // integers too
  bool get_bool(std::string_view key) const;
  std::string_view get_string(std::string_view key) const;
  GgufStrings get_strings(std::string_view key) const;
  std::vector<int64_t> get_i64s(std::string_view key) const;  // integers or booleans (0, 1)
  std::vector<float> get_f32s(std::string_view key) const;

  // The value, or `otherwise` where the key is absent; a present key of another type is an error all the same.
  uint64_t get_u64(std::string_view key, uint64_t otherwise) const { return contains(key) ? get_u64(key) : otherwise; }
  double get_f64(std::string_view key, double otherwise) const { return contains(key) ? get_f64(key) : otherwise; }
  bool get_bool(std::string_view key, bool otherwise) const { return contains(key) ? get_bool(key) : otherwise; }
  std::string_view get_string(std::string_view key, std::string_view otherwise) const {
    return contains(key) ? get_string(key) : otherwise;
  }

  // False when the key is already there.
  bool add(const Entry& entry);

 private:
  const Entry& require(std::string_view key, const char* wanted) const;
  [[noreturn]] void wrong_type(const Entry& entry, const char* wanted) const;

  std::string path_;
  std::vector<Entry> entries_;
  std::map<std::string_view, size_t> index_;
};

struct GgufFile {
  GgufMetadata metadata;
  TensorDirectory directory;
};

bool looks_like_gguf(std::span<const std::byte> bytes) noexcept;

// `bytes`: the whole file; `path` is for messages. Throws corrupt_file or unsupported.
GgufFile parse_gguf(std::span<const std::byte> bytes, const std::string& path);

}  // namespace gemmantle
