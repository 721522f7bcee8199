#include "text/channels.h"

#include <utility>

namespace gemmantle {
namespace {

constexpr std::string_view kThoughtName = "thought\n";
constexpr std::string_view kModelHeader = "model\n";

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

bool is_blank(std::string_view text) {
  for (const char c : text) {
    if (!is_blank(c)) return false;
  }
  return true;
}

}  // namespace

const char* name(Channel channel) noexcept {
  switch (channel) {
    case Channel::content: return "content";
    case Channel::thought: return "thought";
    case Channel::call: return "call";
    case Channel::call_end: return "call_end";
  }
  return "unknown";
}

Channels::Channels(const SpecialIds& special, bool start_in_thought)
    : state_(start_in_thought ? State::thought : State::content) {
  static const std::unordered_map<std::string_view, Marker> kMarkers = {
      {"<|channel>", Marker::open_channel},
      {"<channel|>", Marker::close_channel},
      {"<|tool_call>", Marker::open_call},
      {"<tool_call|>", Marker::close_call},
      {"<|tool_response>", Marker::open_response},
      {"<tool_response|>", Marker::close_response},
      {"<|\"|>", Marker::quote},
      {"<|turn>", Marker::open_turn},
      {"<turn|>", Marker::end},
      {"<eos>", Marker::end},
  };
  for (const auto& [spelling, id] : special) {
    const auto found = kMarkers.find(spelling);
    special_[id] = {found == kMarkers.end() ? Marker::other : found->second, spelling};
  }
}

std::vector<Piece> Channels::feed(int32_t id, std::string_view text) {
  const auto found = special_.find(id);
  if (found == special_.end()) {
    on_text(text);
  } else {
    on_marker(found->second);
  }
  at_start_ = false;
  return take();
}

std::vector<Piece> Channels::finish() {
  close_name();
  return take();
}

Channel Channels::current() const {
  switch (state_) {
    case State::content:
    case State::turn_header:
    case State::after_call: return Channel::content;
    case State::channel_name:
    case State::thought:
    case State::nested_name: return Channel::thought;
    case State::call: return Channel::call;
  }
  return Channel::content;
}

void Channels::on_text(std::string_view text) {
  switch (state_) {
    case State::content: emit_content(text); break;
    case State::thought: emit(Channel::thought, text); break;
    case State::turn_header:
    case State::channel_name:
    case State::nested_name: on_name_text(text); break;
    case State::call:
      for (const char c : text) {
        if (!is_blank(c)) last_visible_ = c;
      }
      emit(Channel::call, text);
      break;
    case State::after_call:
      blanks_ += text;
      if (is_blank(text)) break;
      state_ = State::content;
      emit_content(blanks_);
      break;
  }
}

// A name is compared as text: the newline behind it may be one token with more newlines.
void Channels::on_name_text(std::string_view text) {
  const std::string_view wanted = state_ == State::turn_header ? kModelHeader : kThoughtName;
  name_ += text;
  const std::string_view got = name_;
  if (got.size() < wanted.size() && wanted.starts_with(got)) return;

  const bool is_name = got.starts_with(wanted);
  const std::string rest(is_name ? got.substr(wanted.size()) : got);
  name_.clear();
  // Only a channel whose name is "thought" is a thought. What stands in a nested one belongs to the thought around it.
  const bool to_thought = state_ == State::nested_name || (state_ == State::channel_name && is_name);
  state_ = to_thought ? State::thought : State::content;
  if (to_thought) {
    emit(Channel::thought, rest);
  } else {
    emit_content(rest);
  }
}

// A name that was never completed: with the word "thought" or a part of it nothing was said yet, so nothing is lost.
void Channels::close_name() {
  switch (state_) {
    case State::channel_name: state_ = State::content; break;
    case State::nested_name: state_ = State::thought; break;
    case State::turn_header:
      state_ = State::content;
      emit_content(name_);
      break;
    default: break;
  }
  name_.clear();
}

void Channels::on_marker(const Special& special) {
  if (state_ == State::call) {
    on_marker_in_call(special);
    return;
  }
  const bool channel_was_open = current() == Channel::thought;
  close_name();
  if (state_ == State::after_call && special.marker != Marker::close_call && special.marker != Marker::close_response) {
    state_ = State::content;
  }
  switch (special.marker) {
    case Marker::open_channel: state_ = state_ == State::thought ? State::nested_name : State::channel_name; break;
    case Marker::close_channel:
      state_ = State::content;
      trim_newlines_ = trim_newlines_ || channel_was_open;
      break;
    case Marker::open_call:
      state_ = State::call;
      trim_newlines_ = false;
      in_string_ = false;
      last_visible_ = 0;
      break;
    case Marker::quote:
      if (state_ == State::thought) emit(Channel::thought, special.spelling);
      break;
    case Marker::open_turn:
      if (at_start_ && state_ == State::content) state_ = State::turn_header;
      break;
    // Where stops are ignored the reply goes on as content.
    case Marker::open_response:
    case Marker::end: state_ = State::content; break;
    case Marker::close_call:
    case Marker::close_response:
    case Marker::other:
    case Marker::none: break;
  }
}

void Channels::on_marker_in_call(const Special& special) {
  switch (special.marker) {
    case Marker::end: return;  // the call stays open: finish() leaves it to the reader
    case Marker::open_response:
      if (in_string_) return;
      close_call();
      state_ = State::content;
      return;
    case Marker::open_call:
      if (in_string_) break;
      close_call();
      on_marker(special);
      return;
    case Marker::close_call:
      // A lost delimiter must not swallow the rest of the reply: after a closing brace the marker is believed.
      if (in_string_ && last_visible_ != '}') break;
      close_call();
      return;
    case Marker::quote: in_string_ = !in_string_; break;
    default: break;
  }
  last_visible_ = special.spelling.back();
  emit(Channel::call, special.spelling);
}

void Channels::close_call() {
  pieces_.push_back({Channel::call_end, {}});
  blanks_.clear();
  state_ = State::after_call;
}

void Channels::emit_content(std::string_view text) {
  if (trim_newlines_) {
    const size_t first = text.find_first_not_of('\n');
    if (first == std::string_view::npos) return;
    text.remove_prefix(first);
    trim_newlines_ = false;
  }
  emit(Channel::content, text);
}

void Channels::emit(Channel channel, std::string_view text) {
  if (text.empty()) return;
  if (!pieces_.empty() && pieces_.back().channel == channel) {
    pieces_.back().text += text;
  } else {
    pieces_.push_back({channel, std::string(text)});
  }
}

std::vector<Piece> Channels::take() { return std::exchange(pieces_, {}); }

}  // namespace gemmantle
