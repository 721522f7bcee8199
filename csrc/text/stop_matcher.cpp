#include "text/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace gemmantle {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  stops_.reserve(stops.size());
  for (const std::string& text : stops) {
    if (text.empty()) {
      throw Error(ErrorCode::invalid_argument, "a stop string is empty: it would end every reply at once; leave it out",
                  "stop");
    }
    Stop stop{text, std::vector<size_t>(text.size(), 0)};
    for (size_t i = 1, k = 0; i < text.size(); ++i) {
      while (k > 0 && text[i] != text[k]) k = stop.border[k - 1];
      if (text[i] == text[k]) ++k;
      stop.border[i] = k;
    }
    stops_.push_back(std::move(stop));
  }
}

std::string StopMatcher::push(std::string_view text) {
  if (matched()) return {};
  if (stops_.empty()) return std::string(text);
  const size_t before = held_.size();
  held_ += text;
  for (size_t at = before; at < held_.size(); ++at) {
    const char c = held_[at];
    size_t longest = 0;
    for (size_t i = 0; i < stops_.size(); ++i) {
      Stop& stop = stops_[i];
      while (stop.state > 0 && c != stop.text[stop.state]) stop.state = stop.border[stop.state - 1];
      if (c == stop.text[stop.state]) ++stop.state;
      if (stop.state < stop.text.size()) continue;
      if (stop.state > longest) {
        longest = stop.state;
        matched_ = static_cast<int>(i);
      }
      stop.state = stop.border[stop.state - 1];  // keeps the invariant state < size for the other stops' sake
    }
    if (matched()) {
      held_.resize(at + 1 - longest);
      return std::exchange(held_, {});
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.state);
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, out.size());
  return out;
}

std::string StopMatcher::flush() {
  for (Stop& stop : stops_) stop.state = 0;
  return std::exchange(held_, {});
}

const std::string& StopMatcher::matched_stop() const {
  GEMMANTLE_CHECK(matched(), "no stop string was found");
  return stops_[static_cast<size_t>(matched_)].text;
}

}  // namespace gemmantle
