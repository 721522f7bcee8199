// channels.h: which part of a reply a sampled id belongs to: content, thought or tool call.
//
// The state machine of prompting 8.2, by id: ordinary text that looks like a marker stays text. It moves text to
// channels and drops markers; it does not read calls, and trims only the newlines after a closed channel. Text may be
// the raw bytes of a token: pieces are cut where tokens are, so whoever shows them completes code points per channel.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/vocabulary.h"

namespace gemmantle {

enum class Channel : uint8_t { content, thought, call, call_end };

const char* name(Channel channel) noexcept;  // "content", "thought", "call", "call_end"

// A `call_end` piece has no text: it says that the call whose text came before is complete.
struct Piece {
  Channel channel;
  std::string text;

  bool operator==(const Piece&) const = default;
};

class Channels {
 public:
  // Markers that `special` lacks never match. start_in_thought: the prompt ended with "<|channel>thought\n".
  explicit Channels(const SpecialIds& special, bool start_in_thought = false);

  // One sampled id with its text. Adjacent pieces of one channel are joined. The text of an id in `special` is ignored:
  // its spelling counts where it is kept (the string delimiter in a call), nothing elsewhere.
  std::vector<Piece> feed(int32_t id, std::string_view text);

  // The generation ended. A call that is still open gets no `call_end`: cut by a limit it is to be dropped, else it is
  // to be repaired (prompting 8.3).
  std::vector<Piece> finish();

  // Where text of the next id would go. A channel whose name is still being written counts as a thought.
  Channel current() const;
  bool call_is_open() const { return state_ == State::call; }
  // Inside a thought whose name is complete: what comes next is the model's own.
  bool in_thought() const { return state_ == State::thought || state_ == State::nested_name; }

 private:
  enum class State : uint8_t { content, turn_header, channel_name, thought, nested_name, call, after_call };
  enum class Marker : uint8_t {
    none,            // ordinary text
    open_channel,    // <|channel>
    close_channel,   // <channel|>
    open_call,       // <|tool_call>
    close_call,      // <tool_call|>
    open_response,   // <|tool_response>: the model waits for a result, which ends the generation
    close_response,  // <tool_response|>
    quote,           // <|"|>
    open_turn,       // <|turn>
    end,             // <turn|>, <eos>
    other,           // every other control string: never text
  };

  struct Special {
    Marker marker;
    std::string spelling;
  };

  void on_text(std::string_view text);
  void on_marker(const Special& special);
  void on_marker_in_call(const Special& special);
  void on_name_text(std::string_view text);
  void close_name();
  void close_call();
  void emit(Channel channel, std::string_view text);
  void emit_content(std::string_view text);
  std::vector<Piece> take();

  std::unordered_map<int32_t, Special> special_;
  State state_ = State::content;
  std::string name_;            // channel name or turn header seen so far
  std::string blanks_;          // after a call: they count only where text follows
  bool in_string_ = false;      // call: an odd number of delimiters so far
  char last_visible_ = 0;       // call: last character of the call that is no blank
  bool trim_newlines_ = false;  // content: directly after a closed channel
  bool at_start_ = true;        // no id seen yet
  std::vector<Piece> pieces_;
};

}  // namespace gemmantle
