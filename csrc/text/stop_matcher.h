// stop_matcher.h: finds the caller's stop strings in text that arrives in pieces.
//
// The first stop string that is complete wins; of several that end at the same byte, the one that began first (the
// longest). Text is cut where the winner begins. That rule needs no look-ahead, so the result does not depend on how
// the text was cut into pieces. Text that may still become a stop string is held back. Time is linear in the text,
// times the number of stop strings (Knuth, Morris and Pratt: no byte is read twice).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gemmantle {

class StopMatcher {
 public:
  StopMatcher() = default;
  explicit StopMatcher(const std::vector<std::string>& stops);  // an empty string is refused

  // Text that is safe to emit. After a match nothing more comes out.
  std::string push(std::string_view text);

  // The generation ended otherwise, or text of another kind follows: what was held back is emitted after all.
  std::string flush();

  bool matched() const { return matched_ >= 0; }
  int matched_index() const { return matched_; }  // in the order given; -1 without a match
  const std::string& matched_stop() const;        // needs matched()

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // border[i]: longest proper prefix of text[0..i] that is also its suffix
    size_t state = 0;            // bytes of `text` that the end of the input matches
  };

  std::vector<Stop> stops_;
  std::string held_;  // the end of the input that is not emitted yet: the longest prefix of a stop string
  int matched_ = -1;
};

}  // namespace gemmantle
