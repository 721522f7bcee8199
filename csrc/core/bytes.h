// bytes.h: reading untrusted little-endian bytes, and putting untrusted names into messages.
//
// A ByteReader never passes its end: each read says what it is after, and a short file becomes a corrupt_file error
// with the offset. Nothing here allocates by a length that the file claims.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace gemmantle {

static_assert(std::endian::native == std::endian::little, "file formats are read in place as little-endian");

bool is_utf8(std::string_view text) noexcept;

// 'text' in single quotes, fit for a message: invalid UTF-8 and control characters as \xNN, long text cut at `limit`.
std::string quote(std::string_view text, size_t limit = 200);

template <class T>
T load(const std::byte* bytes) noexcept {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

class ByteReader {
 public:
  // `file` names the source in messages and must outlive the reader.
  ByteReader(std::span<const std::byte> bytes, std::string_view file) : bytes_(bytes), file_(file) {}

  size_t position() const noexcept { return position_; }
  size_t remaining() const noexcept { return bytes_.size() - position_; }

  // `what` completes "file 'x' ends inside ...".
  template <class T>
  T read(const char* what) {
    need(sizeof(T), what);
    const T value = load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return value;
  }
  std::span<const std::byte> take(uint64_t count, const char* what);
  std::string_view text(uint64_t count, const char* what);

 private:
  void need(uint64_t count, const char* what) const {
    if (count > remaining()) [[unlikely]]
      ends_inside(count, what);
  }
  [[noreturn]] void ends_inside(uint64_t count, const char* what) const;

  std::span<const std::byte> bytes_;
  std::string_view file_;
  size_t position_ = 0;
};

}  // namespace gemmantle
