#include "core/bytes.h"

#include "core/error.h"

namespace gemmantle {
namespace {

// Length of the UTF-8 sequence at the start of `text`, or 0 when it is not one (overlong forms, surrogates and values
// above U+10FFFF included).
size_t utf8_length(std::string_view text) noexcept {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  const unsigned char second = byte(1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f)) return 0;
  if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) return 0;
  return length;
}

}  // namespace

bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string quote(std::string_view text, size_t limit) {
  constexpr const char* kHex = "0123456789abcdef";
  std::string out = "'";
  size_t i = 0;
  while (i < text.size() && i < limit) {
    const size_t length = utf8_length(text.substr(i));
    const auto byte = static_cast<unsigned char>(text[i]);
    if (length == 0 || byte < 0x20 || byte == 0x7f) {
      out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
      ++i;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  if (i < text.size()) out += str("... (", text.size(), " bytes)");
  return out + "'";
}

std::span<const std::byte> ByteReader::take(uint64_t count, const char* what) {
  need(count, what);
  const auto part = bytes_.subspan(position_, count);
  position_ += count;
  return part;
}

std::string_view ByteReader::text(uint64_t count, const char* what) {
  const auto part = take(count, what);
  return {reinterpret_cast<const char*>(part.data()), part.size()};
}

void ByteReader::ends_inside(uint64_t count, const char* what) const {
  throw Error(ErrorCode::corrupt_file,
              str("file ", quote(file_), " ends inside ", what, ": byte ", position_, " needs ", count, " more, ",
                  remaining(), " are left; is it cut short or damaged? Fetch it again"));
}

}  // namespace gemmantle
