// file_builder.h: small safetensors and GGUF files in memory, right or deliberately wrong.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf.h"
#include "core/error.h"

namespace gemmantle::testing_files {

inline std::span<const std::byte> as_bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

inline std::string safetensors(std::string_view header, std::string_view data) {
  return raw<uint64_t>(header.size()).append(header).append(data);
}

class Gguf {
 public:
  static std::string text(std::string_view value) { return raw<uint64_t>(value.size()).append(value); }
  static std::string type(GgufType value) { return raw(static_cast<uint32_t>(value)); }

  Gguf& key(std::string_view key, GgufType value_type, const std::string& value) {
    keys_ += text(key) + type(value_type) + value;
    ++key_count;
    return *this;
  }
  Gguf& array(std::string_view name, GgufType element, uint64_t count, const std::string& values) {
    return key(name, GgufType::array, type(element) + raw(count) + values);
  }
  // `shape` innermost first, as in the file.
  Gguf& tensor(std::string_view name, const std::vector<uint64_t>& shape, uint32_t tensor_type, uint64_t offset) {
    tensors_ += text(name) + raw(static_cast<uint32_t>(shape.size()));
    for (const uint64_t size : shape) tensors_ += raw(size);
    tensors_ += raw(tensor_type) + raw(offset);
    ++tensor_count;
    return *this;
  }
  Gguf& data(size_t bytes) {
    data_bytes = bytes;
    return *this;
  }

  std::string str() const {
    std::string out = "GGUF" + raw(version) + raw(tensor_count) + raw(key_count) + keys_ + tensors_;
    out.resize((out.size() + 31) / 32 * 32);
    return out + std::string(data_bytes, '\1');
  }

  uint32_t version = 3;
  uint64_t tensor_count = 0, key_count = 0;
  size_t data_bytes = 0;

 private:
  std::string keys_, tensors_;
};

// Runs `action`, expects an Error of `code` whose message has every one of `parts`.
template <class Action>
void expect_refused(Action&& action, ErrorCode code, const std::vector<std::string>& parts) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(name(error.code()), std::string(name(code))) << error.message();
    for (const std::string& part : parts) {
      EXPECT_NE(error.message().find(part), std::string::npos) << "'" << part << "' is not in: " << error.message();
    }
    return;
  }
  ADD_FAILURE() << "was not refused";
}

// A folder of its own for each test, removed behind it.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "gemmantle-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) ADD_FAILURE() << "no temporary folder: " << pattern;
    path_ = pattern;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string path() const { return path_.string(); }
  std::string write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return (path_ / name).string();
  }

 private:
  std::filesystem::path path_;
};

}  // namespace gemmantle::testing_files
