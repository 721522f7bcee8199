#include "text/detokenizer.h"

namespace gemmantle {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

}  // namespace

std::string Detokenizer::push(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + 3);
  for (const char c : bytes) {
    const auto byte = static_cast<uint8_t>(c);
    if (missing_ > 0) {
      if (byte >= low_ && byte <= high_) {
        held_[held_size_++] = c;
        low_ = 0x80;
        high_ = 0xBF;
        if (--missing_ == 0) {
          out.append(held_, static_cast<size_t>(held_size_));
          held_size_ = 0;
        }
        continue;
      }
      out += kReplacement;  // the subpart ends here; this byte is looked at again as a first byte
      held_size_ = 0;
      missing_ = 0;
    }
    low_ = 0x80;
    high_ = 0xBF;
    if (byte < 0x80) {
      out += c;
      continue;
    }
    if (byte >= 0xC2 && byte <= 0xDF) {
      missing_ = 1;
    } else if (byte >= 0xE0 && byte <= 0xEF) {
      missing_ = 2;
      if (byte == 0xE0) low_ = 0xA0;   // below: overlong
      if (byte == 0xED) high_ = 0x9F;  // above: surrogates
    } else if (byte >= 0xF0 && byte <= 0xF4) {
      missing_ = 3;
      if (byte == 0xF0) low_ = 0x90;   // below: overlong
      if (byte == 0xF4) high_ = 0x8F;  // above: beyond U+10FFFF
    } else {
      out += kReplacement;
      continue;
    }
    held_[0] = c;
    held_size_ = 1;
  }
  return out;
}

std::string Detokenizer::flush() {
  const bool had_bytes = holds_bytes();
  *this = Detokenizer();
  return had_bytes ? std::string(kReplacement) : std::string();
}

}  // namespace gemmantle
