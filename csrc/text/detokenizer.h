// detokenizer.h: bytes of tokens in, whole UTF-8 out.
//
// A code point can be spread over several tokens (byte fallback). Its bytes are held back until it is complete, so that
// nobody downstream sees half a character. Bytes that are no UTF-8 become U+FFFD, one for each maximal subpart, which
// is what `bytes.decode("utf-8", "replace")` gives: whole text and streamed text are equal.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gemmantle {

class Detokenizer {
 public:
  std::string push(std::string_view bytes);
  std::string flush();  // an incomplete tail becomes U+FFFD; the object is fresh afterwards

  bool holds_bytes() const { return held_size_ > 0; }

 private:
  char held_[4] = {};  // a valid prefix of one code point, at most 3 bytes
  int held_size_ = 0;
  int missing_ = 0;     // continuation bytes still to come
  uint8_t low_ = 0x80;  // bounds of the next continuation byte: the second byte of E0, ED, F0, F4 has its own
  uint8_t high_ = 0xBF;
};

}  // namespace gemmantle
