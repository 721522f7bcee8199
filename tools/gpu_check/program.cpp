// program.cpp: what `python tools/gpu_check` runs on a GPU: bandwidth, results of kernels at real sizes, their speed.
//
//   program probe | kernels | speed [small]
//
// Needs nothing but the CUDA tool kit. Prints one JSON object a line. Times are of a replayed recording of many
// launches, over data that is random and larger than the L2 cache; a floor is bytes over the measured bandwidth.
// `small` shrinks every size, for a run without a GPU.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/device.h"
#include "core/error.h"
#include "kernels/common/float.h"
#include "kernels/cuda/launch.h"
#include "report.h"

using namespace gemmantle;
using namespace gemmantle::cuda;
using gpu_check::report_result;

namespace {

constexpr size_t kCacheBytes = size_t{256} << 20;  // more than any L2

int shrink = 1;
std::mt19937 random_bits(1);

// Random numbers of a normal distribution, tiled from one block: full-size weights take no minutes to make.
template <class T>
std::vector<T> random_values(size_t n, float deviation) {
  static const std::vector<float> block = [] {
    std::vector<float> values(1 << 20);
    std::normal_distribution<float> normal;
    for (float& v : values) v = normal(random_bits);
    return values;
  }();
  std::vector<T> out(n);
  for (size_t i = 0; i < n; ++i) {
    const float value = deviation * block[(i + i / block.size() * 7919) % block.size()];
    if constexpr (sizeof(T) == 2) {
      out[i] = f32_to_bf16(value);
    } else {
      out[i] = static_cast<T>(value);
    }
  }
  return out;
}

template <class T>
struct OnDevice {
  DeviceMemory memory;
  std::vector<T> host;
  explicit OnDevice(std::vector<T> values) : memory(values.size() * sizeof(T)), host(std::move(values)) {
    DeviceStream stream;
    stream.upload(memory.data(), host.data(), host.size() * sizeof(T));
    stream.wait();
  }
  T* data() const { return reinterpret_cast<T*>(memory.data()); }
  std::vector<T> read() const {
    std::vector<T> out(host.size());
    DeviceStream stream;
    stream.download(out.data(), memory.data(), out.size() * sizeof(T));
    stream.wait();
    return out;
  }
};

// Median seconds of one call of work(i), which enqueues on the stream; i counts calls, to go around among buffers.
double seconds_of(DeviceStream& stream, const std::function<void(int)>& work) {
  const int calls = shrink > 1 ? 1 : 50, replays = shrink > 1 ? 1 : 20;
  for (int i = 0; i < 2; ++i) work(i);
  stream.wait();
  const auto recorded = stream.record([&] {
    for (int i = 0; i < calls; ++i) work(i);
  });
  stream.replay(*recorded);
  stream.wait();
  std::vector<double> times;
  for (int r = 0; r < replays; ++r) {
    const auto start = std::chrono::steady_clock::now();
    stream.replay(*recorded);
    stream.wait();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Bytes read and written a second by a plain kernel over memory larger than the cache.
double bandwidth(DeviceStream& stream) {
  const int cols = 1 << 18, rows = std::max(1, 4096 / shrink / shrink);
  const size_t bytes = size_t{4} * static_cast<size_t>(cols) * static_cast<size_t>(rows);
  const DeviceMemory from(bytes), to(bytes);
  stream.zero(from.data(), bytes);
  const Rows y{reinterpret_cast<float*>(to.data()), rows, cols, cols};
  const ConstRows x{reinterpret_cast<const float*>(from.data()), rows, cols, cols};
  return 2 * static_cast<double>(bytes) / seconds_of(stream, [&](int) { scale(stream.handle(), y, x, nullptr, 1); });
}

struct Product {
  const char* name;
  int outputs, inputs;
};
const Product kProducts[] = {
    {"e2b qkv", 2560, 1536}, {"e2b down", 1536, 6144}, {"12b gate", 15360, 3840}, {"e2b head", 262144, 1536}};

Matrix bf16_matrix(const Bf16* values, int outputs, int inputs) {
  Matrix w;
  w.rows = outputs;
  w.cols = w.padded_cols = inputs;
  w.values = reinterpret_cast<const uint8_t*>(values);
  return w;
}

// ||found - wanted|| / ||wanted|| of a product, over at most 64 outputs.
double product_error(const std::vector<float>& y, const std::vector<float>& x, const std::vector<Bf16>& w, int rows,
                     int outputs, int inputs) {
  double error = 0, norm = 0;
  const int step = std::max(1, outputs / 64);
  for (int r = 0; r < rows; ++r) {
    for (int o = 0; o < outputs; o += step) {
      double sum = 0;
      for (int i = 0; i < inputs; ++i) {
        const auto row = static_cast<size_t>(r) * static_cast<size_t>(inputs), out = static_cast<size_t>(o);
        sum += double{bf16_to_f32(f32_to_bf16(x[row + static_cast<size_t>(i)]))} *
               bf16_to_f32(w[out * static_cast<size_t>(inputs) + static_cast<size_t>(i)]);
      }
      const double found = y[static_cast<size_t>(r) * static_cast<size_t>(outputs) + static_cast<size_t>(o)];
      error += (found - sum) * (found - sum);
      norm += sum * sum;
    }
  }
  return std::sqrt(error / norm);
}

// `floor` and `seconds` of the same work.
void report_speed(const std::string& name, double seconds, double floor, double per_second, const char* unit) {
  std::printf(
      "{\"kernel\": \"%s\", \"microseconds\": %.2f, \"floor\": %.2f, \"share\": %.3f, \"rate\": %.1f, \"unit\": "
      "\"%s\"}\n",
      name.c_str(), seconds * 1e6, floor * 1e6, floor / seconds, per_second, unit);
  std::fflush(stdout);
}

// One attention over `keys` keys of one sequence, `rows` rows at its end.
class Attention {
 public:
  Attention(int rows, int keys, int heads, int kv_heads, int dim, int splits)
      : q_(random_values<float>(cells(rows, heads * dim), 1)),
        y_(std::vector<float>(q_.host.size())),
        k_(random_values<Bf16>(cells(keys, kv_heads * dim), 1)),
        v_(random_values<Bf16>(cells(keys, kv_heads * dim), 1)),
        table_(blocks(keys)),
        begin_(std::vector<int32_t>(static_cast<size_t>(rows), 0)),
        end_(last_rows(rows, keys)),
        width_({static_cast<int32_t>(table_.host.size())}),
        tiles_(tiles(rows, attend_tile_rows(dim, heads / kv_heads, rows > 1))),
        partial_(std::max<size_t>(1, attend_scratch_bytes(rows, heads, dim, splits))) {
    args_.y = {y_.data(), rows, heads * dim, heads * dim};
    args_.q = {q_.data(), rows, heads * dim, heads * dim};
    args_.heads = heads;
    args_.kv_heads = kv_heads;
    args_.dim = dim;
    args_.scale = 1.0f / std::sqrt(static_cast<float>(dim));
    args_.k = k_.data();
    args_.v = v_.data();
    args_.block_size = kBlock;
    args_.block_table = table_.data();
    args_.max_blocks = width_.data();
    args_.kv_begin = begin_.data();
    args_.kv_end = end_.data();
    args_.tiles = tiles_.data();
    args_.n_tiles = static_cast<int>(tiles_.host.size());
    args_.tile_rows = attend_tile_rows(dim, heads / kv_heads, rows > 1);
    args_.splits = splits;
    args_.partial = reinterpret_cast<float*>(partial_.data());
  }

  void launch(DeviceStream& stream) const { attend(stream.handle(), args_); }
  double bytes() const { return 2.0 * static_cast<double>(k_.host.size() + v_.host.size()); }

  // Against double, for the first and the last head of the last row.
  double error() const {
    const std::vector<float> found = y_.read();
    double error = 0, norm = 0;
    const int row = args_.q.rows - 1, keys = end_.host.back(), dim = args_.dim;
    for (const int head : {0, args_.heads - 1}) {
      const size_t from = static_cast<size_t>((row * args_.heads + head) * dim);
      const int kv = head / (args_.heads / args_.kv_heads);
      std::vector<double> p(static_cast<size_t>(keys)), sum(static_cast<size_t>(dim));
      double most = -1e30, total = 0;
      for (int key = 0; key < keys; ++key) {
        double score = 0;
        for (int d = 0; d < dim; ++d) score += double{q_.host[from + size(d)]} * at(k_, key, kv, d);
        p[size(key)] = score * double{args_.scale};
        most = std::max(most, p[size(key)]);
      }
      for (double& value : p) total += value = std::exp(value - most);
      for (int key = 0; key < keys; ++key) {
        for (int d = 0; d < dim; ++d) sum[size(d)] += p[size(key)] / total * at(v_, key, kv, d);
      }
      for (int d = 0; d < dim; ++d) {
        error += std::pow(found[from + size(d)] - sum[size(d)], 2);
        norm += std::pow(sum[size(d)], 2);
      }
    }
    return std::sqrt(error / norm);
  }

 private:
  static constexpr int kBlock = 16;
  static size_t size(int n) { return static_cast<size_t>(n); }
  static size_t cells(int rows, int cols) { return size((rows + kBlock - 1) / kBlock * kBlock) * size(cols); }
  static std::vector<int32_t> blocks(int keys) {  // in reverse, so that a table that is ignored shows
    std::vector<int32_t> table(size((keys + kBlock - 1) / kBlock));
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(table.size() - 1 - i);
    return table;
  }
  static std::vector<int32_t> last_rows(int rows, int keys) {
    std::vector<int32_t> end;
    for (int r = 0; r < rows; ++r) end.push_back(keys - rows + r + 1);
    return end;
  }
  static std::vector<AttendTile> tiles(int rows, int most) {
    std::vector<AttendTile> out;
    for (int r = 0; r < rows; r += most) out.push_back({r, std::min(most, rows - r), 0});
    return out;
  }
  double at(const OnDevice<Bf16>& cache, int key, int kv, int d) const {
    const size_t slot = size(table_.host[size(key / kBlock)]) * kBlock + size(key % kBlock);
    return bf16_to_f32(cache.host[(slot * size(args_.kv_heads) + size(kv)) * size(args_.dim) + size(d)]);
  }

  OnDevice<float> q_, y_;
  OnDevice<Bf16> k_, v_;
  OnDevice<int32_t> table_, begin_, end_, width_;
  OnDevice<AttendTile> tiles_;
  DeviceMemory partial_;
  AttendArgs args_;
};

int probe() {
  const DeviceProperties device = device_properties();
  DeviceStream stream;
  std::printf(
      "{\"device\": \"%s\", \"capability\": %d, \"multiprocessors\": %d, \"memory_gib\": %.1f, \"free_gib\": %.1f, "
      "\"bandwidth_gb_s\": %.5g}\n",
      device.name.c_str(), device.capability, device.multiprocessors,
      static_cast<double>(device.memory_bytes) / (1 << 30), static_cast<double>(device.free_bytes) / (1 << 30),
      bandwidth(stream) / 1e9);
  return 0;
}

int kernels() {
  DeviceStream stream;
  bool right = true;
  for (const auto& [name, all_outputs, inputs] : kProducts) {
    const int outputs = std::max(96, all_outputs / shrink / shrink);
    const OnDevice<Bf16> w(random_values<Bf16>(static_cast<size_t>(outputs) * static_cast<size_t>(inputs), 0.02f));
    for (const int rows : {1, 5, 16, shrink > 1 ? 17 : 300}) {
      const OnDevice<float> x(random_values<float>(static_cast<size_t>(rows) * static_cast<size_t>(inputs), 1));
      const OnDevice<float> y(std::vector<float>(static_cast<size_t>(rows) * static_cast<size_t>(outputs)));
      const DeviceMemory rounded(x.host.size() * 2);
      const Rows to{y.data(), rows, outputs, outputs};
      const ConstRows from{x.data(), rows, inputs, inputs};
      auto* bits = reinterpret_cast<Bf16*>(rounded.data());
      if (rows <= kFewRows) {
        product_few(stream.handle(), to, from, bf16_matrix(w.data(), outputs, inputs));
      } else {
        round_rows(stream.handle(), {bits, rows, inputs, inputs}, from);
        gemm(stream.handle(), to, {bits, rows, inputs, inputs}, {w.data(), outputs, inputs, inputs});
      }
      stream.wait();
      right &= report_result(str("product ", name, ", ", rows, " rows"),
                             product_error(y.read(), x.host, w.host, rows, outputs, inputs), 1e-5);
    }
  }
  for (const int dim : {256, 512}) {
    for (const int rows : {1, 5, 100 / shrink}) {
      for (const int splits : {1, 7}) {
        const Attention attention(rows, 3001 / shrink, 8, 2, dim, splits);
        attention.launch(stream);
        stream.wait();
        right &=
            report_result(str("attention ", dim, ", ", rows, " rows, ", splits, " splits"), attention.error(), 6e-3);
      }
    }
  }
  return right ? 0 : 1;
}

int speed() {
  DeviceStream stream;
  const double rate = bandwidth(stream);
  for (const auto& [name, all_outputs, inputs] : kProducts) {
    const int outputs = std::max(96, all_outputs / shrink / shrink);
    const size_t cells = static_cast<size_t>(outputs) * static_cast<size_t>(inputs);
    const int copies = shrink > 1 ? 1 : static_cast<int>(kCacheBytes / (cells * 2) + 1);
    std::vector<OnDevice<Bf16>> weights;
    for (int i = 0; i < copies; ++i) weights.emplace_back(random_values<Bf16>(cells, 0.02f));
    for (const int rows : {1, 8, shrink > 1 ? 17 : 64, shrink > 1 ? 33 : 2048}) {
      if (outputs > 100000 && rows > 64) continue;  // no prompt wants logits of every row
      const OnDevice<float> x(random_values<float>(static_cast<size_t>(rows) * static_cast<size_t>(inputs), 1));
      const DeviceMemory y(static_cast<size_t>(rows) * static_cast<size_t>(outputs) * 4), rounded(x.host.size() * 2);
      const Rows to{reinterpret_cast<float*>(y.data()), rows, outputs, outputs};
      const ConstRows from{x.data(), rows, inputs, inputs};
      auto* bits = reinterpret_cast<Bf16*>(rounded.data());
      const double seconds = seconds_of(stream, [&](int i) {
        const Bf16* w = weights[static_cast<size_t>(i % copies)].data();
        if (rows <= kFewRows) {
          product_few(stream.handle(), to, from, bf16_matrix(w, outputs, inputs));
        } else {
          round_rows(stream.handle(), {bits, rows, inputs, inputs}, from);
          gemm(stream.handle(), to, {bits, rows, inputs, inputs}, {w, outputs, inputs, inputs});
        }
      });
      const double flops = 2.0 * rows * static_cast<double>(cells);
      const double bytes = 2.0 * static_cast<double>(cells) + 4.0 * rows * (inputs + outputs);
      report_speed(str("product ", name, ", ", rows, " rows"), seconds, bytes / rate,
                   rows > 64 ? flops / seconds / 1e12 : bytes / seconds / 1e9, rows > 64 ? "TFLOP/s" : "GB/s");
    }
  }
  for (const int dim : {256, 512}) {
    for (const int keys : {2048 / shrink, 32768 / shrink / shrink}) {
      const Attention attention(1, keys, 8, 1, dim, std::clamp(keys / 256, 1, 32));
      const double seconds = seconds_of(stream, [&](int) { attention.launch(stream); });
      report_speed(str("attention ", dim, ", 1 row, ", keys, " keys"), seconds, attention.bytes() / rate,
                   attention.bytes() / seconds / 1e9, "GB/s, in L2");
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string stage = argc > 1 ? argv[1] : "";
  if (argc > 2 && std::string(argv[2]) == "small") shrink = 16;
  try {
    if (stage == "probe") return probe();
    if (stage == "kernels") return kernels();
    if (stage == "speed") return speed();
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  std::fprintf(stderr, "usage: program probe | kernels | speed [small]\n");
  return 2;
}
