#include "model/placement.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace gemmantle {
namespace {

// Whether a device may end before layer `border`: no layer behind it reads K and V of one before it.
bool is_border(const ModelConfig& config, int border) {
  for (int l = border; l < static_cast<int>(config.layers.size()); ++l) {
    if (config.layers[static_cast<size_t>(l)].kv_source < border) return false;
  }
  return true;
}

std::string listed(std::span<const int64_t> room) {
  std::string text;
  for (const int64_t bytes : room) text += str(text.empty() ? "" : ", ", bytes);
  return text;
}

}  // namespace

int64_t PartSizes::of(const Stretch& stretch) const {
  int64_t sum = 0;
  for (int l = stretch.first; l < stretch.last; ++l) sum += layers[static_cast<size_t>(l)];
  if (stretch.embeds) sum += embedding;
  if (stretch.has_head && !(tied && stretch.embeds)) sum += head;
  return sum;
}

std::vector<Stretch> split_layers(const ModelConfig& config, const PartSizes& sizes, std::span<const int64_t> room) {
  const int layers = static_cast<int>(config.layers.size()), devices = static_cast<int>(room.size());
  const auto stretch = [&](int device, int first, int last) {
    return Stretch{first, last, device == 0, device == devices - 1};
  };
  // fullest[d][l]: the share of its room that the fullest of devices 0 to d takes when they hold layers [0, l).
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const auto cells = static_cast<size_t>(layers) + 1;
  std::vector<std::vector<double>> fullest(room.size(), std::vector<double>(cells, kNever));
  std::vector<std::vector<int>> begins(room.size(), std::vector<int>(cells, 0));
  for (int d = 0; d < devices; ++d) {
    for (int last = 0; last <= layers; ++last) {
      if (d == devices - 1 ? last < layers : !is_border(config, last)) continue;
      for (int first = 0; first <= (d == 0 ? 0 : last); ++first) {
        const double before = d == 0 ? 0 : fullest[static_cast<size_t>(d) - 1][static_cast<size_t>(first)];
        const auto bytes = static_cast<double>(sizes.of(stretch(d, first, last)));
        const double share = bytes / static_cast<double>(std::max<int64_t>(1, room[static_cast<size_t>(d)]));
        const double most = std::max(before, share);
        double& best = fullest[static_cast<size_t>(d)][static_cast<size_t>(last)];
        if (most >= best) continue;
        best = most;
        begins[static_cast<size_t>(d)][static_cast<size_t>(last)] = first;
      }
    }
  }
  if (fullest.back().back() > 1) {
    throw Error(ErrorCode::out_of_memory,
                str("the weights take ", sizes.of({0, layers, true, true}), " bytes; ",
                    devices == 1 ? "the device has room for " : "the devices have room for ", listed(room),
                    devices == 1 ? ": split the layers over several (device='cuda:0,1')" : ", and no split fits",
                    ", or use a checkpoint of fewer bits"),
                "device");
  }
  std::vector<Stretch> out(room.size());
  for (int d = devices - 1, last = layers; d >= 0; --d) {
    const int first = begins[static_cast<size_t>(d)][static_cast<size_t>(last)];
    out[static_cast<size_t>(d)] = stretch(d, first, last);
    last = first;
  }
  return out;
}

Backend& Placement::of_layer(int layer) const {
  const auto holds = [&](const Stretch& s) { return layer >= s.first && layer < s.last; };
  const auto found = std::find_if(stretches_.begin(), stretches_.end(), holds);
  GEMMANTLE_CHECK(found != stretches_.end(), "layer ", layer);
  return backend(static_cast<int>(found - stretches_.begin()));
}

}  // namespace gemmantle
