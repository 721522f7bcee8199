#include "engine/text_flow.h"

#include <string>
#include <utility>

namespace gemmantle {

TextFlow::TextFlow(std::shared_ptr<const Vocabulary> vocabulary, const SamplingParams& params)
    : vocabulary_(std::move(vocabulary)),
      stops_(params.stop),
      include_stop_(params.include_stop),
      single_call_(params.single_call) {
  if (vocabulary_ && params.channels) channels_.emplace(vocabulary_->special(), params.start_in_thought);
  if (channels_) last_ = channels_->current();
}

std::string_view TextFlow::text(int32_t id) const { return knows(id) ? vocabulary_->text(id) : std::string_view(); }

TextFlow::Step TextFlow::feed(int32_t id, bool is_end, bool match) {
  Step step;
  match_ = match;
  const std::string_view text = knows(id) && !is_end ? vocabulary_->text(id) : std::string_view();
  if (!channels_) {
    add({Channel::content, std::string(text)}, step);
    return step;
  }
  const Channel before = channels_->current();
  std::vector<Piece> pieces = channels_->feed(id, text);
  const Channel after = channels_->current();
  // A marker that closes something belongs to what it closes.
  step.channel = knows(id) && vocabulary_->is_control(id) && after == Channel::content ? before : after;
  for (Piece& piece : pieces) {
    add(std::move(piece), step);
    if (step.stopped) break;
  }
  return step;
}

void TextFlow::add(Piece&& piece, Step& step) {
  if (piece.channel != last_) flush(step.pieces);
  last_ = piece.channel;
  if (piece.channel == Channel::call_end) {
    step.pieces.push_back(std::move(piece));
    step.stopped = single_call_;
    return;
  }
  std::string text = detokenizer_.push(piece.text);
  if (piece.channel == Channel::content && match_) {
    text = stops_.push(text);
    if (stops_.matched()) {
      step.stopped = true;
      step.stop = &stops_.matched_stop();
      if (include_stop_) text += *step.stop;
    }
  }
  if (!text.empty()) step.pieces.push_back({piece.channel, std::move(text)});
}

// The held text belongs to the channel that was left.
void TextFlow::flush(std::vector<Piece>& out) {
  std::string text = detokenizer_.flush();
  if (last_ == Channel::content) text = stops_.flush() + text;
  if (!text.empty()) out.push_back({last_, std::move(text)});
}

std::vector<Piece> TextFlow::finish() {
  Step step;
  if (channels_) {
    for (Piece& piece : channels_->finish()) add(std::move(piece), step);
  }
  if (!step.stopped) flush(step.pieces);
  return std::move(step.pieces);
}

}  // namespace gemmantle
