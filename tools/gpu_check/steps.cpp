// steps.cpp: whole steps of the released models on a GPU, through the graph and the backend: `steps BANDWIDTH [small]`.
//
// Decode of 1, 8 and 64 sequences at 2K and of one at 32K, prefill of 2K and 32K, in bf16; decode of 1 and 8 in 8 and 4
// bits. Random weights, random K and V.
// A time is that of CudaBackend::run from the plan to the drawn tokens. A decode floor is the bytes of weights, K and V
// over BANDWIDTH (bytes a second, from `program probe`); a prefill floor the operations over the rate of one large
// product. `small` shrinks every size, for a run without a GPU.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "core/error.h"
#include "model/activations.h"
#include "model/gemma4.h"
#include "model/kv_cache.h"
#include "random_weights.h"
#include "shapes.h"
#include "step.h"

using namespace gemmantle;
using namespace gemmantle::gpu_check;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One of the shapes on the device.
class Machine {
 public:
  Machine(const Shape& shape, const NamedFormat& format, bool small, double bandwidth)
      : name_(str(shape.name, " ", format.name)),
        small_(small),
        bandwidth_(bandwidth),
        config_(config_of(small ? scaled_down(shape, true) : shape)),
        placement_(backends()) {
    placement_.cut({{0, static_cast<int>(config_.layers.size()), true, true}});
    constexpr size_t kCacheBytes = size_t{256} << 20;  // more than any L2
    weights_ = std::make_unique<RandomWeights>(config_, backend(), format.id, small ? 0 : kCacheBytes);
    activations_ = std::make_unique<Activations>(config_);
  }

  void decode(int sequences, int64_t context) {
    const std::string what = str("decode ", sequences, " at ", context);
    Step step(config_, sequences, context, 1);
    const std::unique_ptr<KvCache> kv = cache(what, step, sequences, sequences);
    if (kv == nullptr) return;
    const Batch& batch = step.rows(context - 1, 1, Logits::all);
    const int warm = 3, times = small_ ? 1 : 20;  // issued, recorded, replayed once
    for (int i = 0; i < warm; ++i) run(batch, batch, *kv);
    std::vector<double> seconds;
    for (int i = 0; i < times; ++i) {
      const auto start = Clock::now();
      run(batch, batch, *kv);
      seconds.push_back(seconds_since(start));
    }
    std::sort(seconds.begin(), seconds.end());
    const double bytes = weights_->bytes(sequences, sequences) + sequences * kv_bytes(context);
    report(what, seconds[seconds.size() / 2], bytes / bandwidth_, sequences / seconds[seconds.size() / 2]);
  }

  void prefill(int64_t tokens, double rate) {
    const std::string what = str("prefill ", tokens);
    const int64_t chunk = std::min<int64_t>(tokens, config_.has_moe() ? 4096 : 2048);
    Step step(config_, 1, tokens, chunk);
    const std::unique_ptr<KvCache> kv = cache(what, step, chunk, 1);
    if (kv == nullptr) return;
    double seconds = 0;
    for (int turn = 0; turn < 2; ++turn) {  // the first one warms up
      const auto start = Clock::now();
      for (int64_t p = 0; p < tokens; p += chunk) {
        const int64_t n = std::min(chunk, tokens - p);
        const bool is_last = p + n == tokens;
        const Batch& all = step.rows(p, n, is_last ? Logits::last : Logits::none);
        run(all, step.tail(all), *kv);
      }
      seconds = seconds_since(start);
    }
    report(what, seconds, operations(tokens) / rate, static_cast<double>(tokens) / seconds);
  }

  // Operations a second of one large product: the ceiling of prefill.
  double product_rate() {
    const int64_t n = small_ ? 64 : 8192;
    Weight w;
    w.format = formats::FormatId::bf16;
    w.rows = w.cols = n;
    w.row_bytes = n * 2;
    const std::vector<uint16_t> values(static_cast<size_t>(n * n), f32_to_bf16(0.013f));
    w.data = reinterpret_cast<const std::byte*>(values.data());
    const Weight placed = backend().place(w, nullptr);
    const Buffer x = backend().allocate(static_cast<size_t>(n * n * 4)), y = backend().allocate(x.bytes);
    const Tensor to{y.data, DType::f32, n, n, n}, from{x.data, DType::f32, n, n, n};
    double best = 1e30;
    for (int i = 0; i < (small_ ? 1 : 10); ++i) {
      const auto start = Clock::now();
      backend().run([&](Ops& ops) { ops.linear(to, from, placed); });
      best = std::min(best, seconds_since(start));
    }
    return 2.0 * std::pow(static_cast<double>(n), 3) / best;
  }

 private:
  static std::vector<std::unique_ptr<Backend>> backends() {
    std::vector<std::unique_ptr<Backend>> one;
    one.push_back(cuda::make_backend({}));
    return one;
  }
  Backend& backend() { return placement_.first(); }

  // K and V of random numbers; null, with a line that says so, where the device has no room.
  std::unique_ptr<KvCache> cache(const std::string& what, const Step& step, int64_t rows, int64_t logit_rows) {
    const KvLayout layout(config_, backend(), kBlock);
    int64_t wanted = activations_->bytes_for(rows, logit_rows);
    for (size_t g = 0; g < kKvGroups; ++g) wanted += step.blocks()[g] * layout.block_bytes[g];
    if (wanted > backend().free_bytes() / 10 * 9) {
      std::printf("{\"left_out\": \"%s, %s\", \"wants_gib\": %.1f, \"free_gib\": %.1f}\n", name_.c_str(), what.c_str(),
                  static_cast<double>(wanted) / (1 << 30), static_cast<double>(backend().free_bytes()) / (1 << 30));
      return nullptr;
    }
    activations_->reserve(rows, logit_rows, backend());
    auto kv = std::make_unique<KvCache>(config_, layout, step.blocks(), placement_);
    std::vector<uint16_t> noise((size_t{4} << 20) + 1);
    std::mt19937 bits(2);
    std::normal_distribution<float> normal;
    for (uint16_t& v : noise) v = f32_to_bf16(normal(bits));
    for (size_t l = 0; l < config_.layers.size(); ++l) {
      if (config_.layers[l].kv_source != static_cast<int>(l)) continue;
      const KvView view = kv->view(static_cast<int>(l));
      for (const Tensor& t : {view.k, view.v}) {
        const size_t bytes = static_cast<size_t>(t.rows * t.cols) * 2, tile = noise.size() * 2;
        for (size_t at = 0; at < bytes; at += tile) {
          backend().write(static_cast<std::byte*>(t.data) + at, noise.data(), std::min(tile, bytes - at));
        }
      }
    }
    return kv;
  }

  void run(const Batch& all, const Batch& tail, const KvCache& kv) {
    std::vector<SampleRow> draws(static_cast<size_t>(tail.rows()));
    for (SampleRow& draw : draws) draw.temperature = 0;
    std::vector<SampledToken> tokens(draws.size());
    backend().run([&](Ops& ops) {
      decoder_forward(ops, config_, weights_->weights(), *activations_, kv, placement_.stretch(0), all, tail);
      if (!draws.empty()) ops.sample(activations_->logits.slice(0, tail.rows()), draws, tokens);
    });
  }

  // K and V that a row at the end of `context` reads.
  double kv_bytes(int64_t context) const {
    double sum = 0;
    for (const LayerSpec& s : config_.layers) {
      const int64_t seen = s.sliding ? std::min(context, s.window) : context;
      sum += 2.0 * 2.0 * static_cast<double>(seen * s.heads.kv_dim());
    }
    return sum;
  }

  // Products and attention of a prompt; layers that reuse K and V see its last row only.
  double operations(int64_t tokens) const {
    const int owners = config_.first_shared, layers = static_cast<int>(config_.layers.size());
    const auto n = static_cast<double>(tokens);
    double sum = n * weights_->operations(0, owners) + weights_->operations(owners, layers);
    for (int l = 0; l < owners; ++l) {
      const LayerSpec& s = config_.layers[static_cast<size_t>(l)];
      const double window = static_cast<double>(s.sliding ? std::min(tokens, s.window) : tokens);
      const double pairs = s.sliding ? n * window - window * (window - 1) / 2 : n * (n + 1) / 2;
      sum += 4.0 * pairs * static_cast<double>(s.heads.q_dim());
    }
    return sum;
  }

  void report(const std::string& what, double seconds, double floor, double rate) const {
    std::printf(
        "{\"kernel\": \"%s, %s\", \"microseconds\": %.1f, \"floor\": %.1f, \"share\": %.3f, \"rate\": %.1f, \"unit\": "
        "\"tokens/s\"}\n",
        name_.c_str(), what.c_str(), seconds * 1e6, floor * 1e6, floor / seconds, rate);
    std::fflush(stdout);
  }

  std::string name_;
  bool small_;
  double bandwidth_;
  ModelConfig config_;
  Placement placement_;
  std::unique_ptr<RandomWeights> weights_;
  std::unique_ptr<Activations> activations_;
};

}  // namespace

int main(int argc, char** argv) {
  const double bandwidth = argc > 1 ? std::atof(argv[1]) : 0;
  if (!(bandwidth > 0)) {
    std::fprintf(stderr, "usage: steps BANDWIDTH [small]\n");
    return 2;
  }
  const bool small = argc > 2 && std::string(argv[2]) == "small";
  const int64_t near = small ? 48 : 2048, far = small ? 80 : 32768;
  try {
    for (const Shape& shape : kShapes) {
      Machine machine(shape, kFormats[0], small, bandwidth);
      const double rate = machine.product_rate();
      for (const int sequences : {1, 8, small ? 9 : 64}) machine.decode(sequences, near);
      machine.decode(1, far);
      for (const int64_t tokens : {near, far}) machine.prefill(tokens, rate);
    }
    for (const Shape& shape : kShapes) {
      for (const NamedFormat& format : {kFormats[1], kFormats[2]}) {
        Machine machine(shape, format, small, bandwidth);
        for (const int sequences : {1, 8}) machine.decode(sequences, near);
      }
    }
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
