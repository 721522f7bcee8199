// text_flow.h: sampled ids to text: channels, whole UTF-8, stop strings, in this order.
//
// Stop strings are looked for in content only (prompting 8.3). Bytes of an unfinished character and text that may
// become a stop string are held back until they are decided or the channel changes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/sampling.h"
#include "text/channels.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"
#include "text/vocabulary.h"

namespace gemmantle {

class TextFlow {
 public:
  // Without a vocabulary there is no text.
  TextFlow(std::shared_ptr<const Vocabulary> vocabulary, const SamplingParams& params);

  struct Step {
    std::vector<Piece> pieces;
    Channel channel = Channel::content;  // where the token belongs
    bool stopped = false;                // a stop string is complete, or the one call that was wanted
    const std::string* stop = nullptr;   // the stop string
  };

  // `is_end`: an end id: it moves the channels but its own text is dropped. `match`: stop strings count.
  Step feed(int32_t id, bool is_end, bool match);
  std::vector<Piece> finish();  // what was held back, where the output did not end in a stop string

  std::string_view text(int32_t id) const;  // the token's own bytes; empty for control ids and unknown ones
  bool in_thought() const { return channels_ && channels_->in_thought(); }

 private:
  void add(Piece&& piece, Step& step);
  void flush(std::vector<Piece>& out);
  bool knows(int32_t id) const { return vocabulary_ && id >= 0 && id < vocabulary_->size(); }

  std::shared_ptr<const Vocabulary> vocabulary_;
  std::optional<Channels> channels_;
  Detokenizer detokenizer_;
  StopMatcher stops_;
  Channel last_ = Channel::content;  // of the text in detokenizer_
  bool match_ = true;                // of the last feed
  bool include_stop_;
  bool single_call_;
};

}  // namespace gemmantle
