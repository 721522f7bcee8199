#include "backend/cuda/weight_store.h"

#include <algorithm>
#include <thread>

#include "backend/cuda/planes.h"
#include "core/error.h"

namespace gemmantle::cuda {
namespace {

constexpr size_t kStagingBytes = size_t{16} << 20;
constexpr size_t kRowsPerThread = 64;  // fewer are not worth a thread

// work(first, last) over parts of [0, n), at once.
template <class Work>
void in_parallel(size_t n, Work&& work) {
  const size_t cores = std::max<size_t>(1, std::min<size_t>(8, std::thread::hardware_concurrency()));
  const size_t parts = std::clamp<size_t>(n / kRowsPerThread, 1, cores);
  std::vector<std::jthread> threads;
  for (size_t p = 1; p < parts; ++p) threads.emplace_back([&, p] { work(n * p / parts, n * (p + 1) / parts); });
  work(0, n / parts);
}

}  // namespace

Weight WeightStore::place(const Weight& source) {
  const PlaneLayout layout(source);
  const size_t row = layout.value_row_bytes() + layout.scale_row_bytes() + layout.offset_row_bytes();
  for (Lane& lane : lanes_) {
    if (lane.staging.bytes() < std::max(row, kStagingBytes)) lane.staging = PinnedMemory(std::max(row, kStagingBytes));
  }
  DeviceMemory memory(layout.bytes());
  const size_t rows = layout.all_rows(), most = lanes_[0].staging.bytes() / row;
  size_t turn = 0;
  for (size_t first = 0; first < rows; first += most, ++turn) {
    Lane& lane = lanes_[turn % lanes_.size()];
    lane.stream.wait();  // its staging has arrived
    const size_t n = std::min(most, rows - first);
    std::byte* values = lane.staging.data();
    std::byte* scales = values + n * layout.value_row_bytes();
    std::byte* offsets = scales + n * layout.scale_row_bytes();
    in_parallel(n, [&](size_t begin, size_t end) {
      for (size_t r = begin; r < end; ++r) {
        layout.split_row(source.row(static_cast<int64_t>(first + r)), values + r * layout.value_row_bytes(),
                         scales + r * layout.scale_row_bytes(), offsets + r * layout.offset_row_bytes());
      }
    });
    const auto send = [&](size_t at, const std::byte* from, size_t row_bytes) {
      if (row_bytes > 0) lane.stream.upload(memory.data() + at + first * row_bytes, from, n * row_bytes);
    };
    send(0, values, layout.value_row_bytes());
    send(layout.scales_at(), scales, layout.scale_row_bytes());
    send(layout.offsets_at(), offsets, layout.offset_row_bytes());
  }
  for (Lane& lane : lanes_) lane.stream.wait();

  Weight placed = source;
  placed.row_bytes = static_cast<int64_t>(layout.value_row_bytes());
  placed.data = memory.data();
  placed_.emplace(placed.data, layout.at(memory.data()));
  memory_.push_back(std::move(memory));
  return placed;
}

const Matrix& WeightStore::find(const Weight& placed) const {
  const auto found = placed_.find(placed.data);
  GEMMANTLE_CHECK(found != placed_.end(), "a weight that place() did not give back");
  return found->second;
}

}  // namespace gemmantle::cuda
