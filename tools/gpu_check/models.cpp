// models.cpp: whole random models on a GPU against the reference backend, with nvcc alone: `models STAGE [small]`.
//
//   compare    five scaled-down models with true head widths and formats, and E2B at full size: prompts in chunks, then
//              forced single rows, which are issued, recorded and replayed; names the first layer that departs
//   behaviour  with `deterministic` a row has the same bits alone, in a batch and in any chunk; draws are the
//   reference's
//
// Prints one JSON object a line. `small` leaves out what fibers cannot bear, for a run without a GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/cuda_backend.h"
#include "backend/reference/reference_backend.h"
#include "core/error.h"
#include "model/activations.h"
#include "model/gemma4.h"
#include "model/kv_cache.h"
#include "model/padding.h"
#include "random_weights.h"
#include "report.h"
#include "shapes.h"
#include "step.h"

using namespace gemmantle;
using namespace gemmantle::gpu_check;
using formats::FormatId;

namespace {

// Between rows, of their norm, behind so many layers: products take bf16 and K and V are kept in it, which adds as much
// in each layer. On the host rows end at 0.4 to 0.85 of this.
double limit_behind(int layers) { return 6.5e-3 * std::sqrt(static_cast<double>(std::max(layers, 1))); }

// Rows of the scaled-down models, past their window.
struct Lengths {
  int64_t prompt, forced;
};
Lengths lengths(bool small) { return small ? Lengths{41, 6} : Lengths{41, 32}; }

// A row of every position of every sequence: logits, or what stands behind a layer.
struct Outputs {
  int64_t cols = 0;
  std::vector<float> values;

  size_t rows() const { return values.size() / static_cast<size_t>(cols); }
  const float* row(size_t r) const { return values.data() + r * static_cast<size_t>(cols); }
};

// A model of random weights on one backend.
class Decoder {
 public:
  Decoder(const ModelConfig& config, FormatId format, std::unique_ptr<Backend> backend)
      : config_(config), placement_(list_of(std::move(backend))), activations_(config) {
    placement_.cut({{0, layers(), true, true}});
    constexpr size_t kAll = size_t{1} << 60;
    weights_ = std::make_unique<RandomWeights>(config_, placement_.first(), format, kAll);
  }

  int layers() const { return static_cast<int>(config_.layers.size()); }

  // Logits of sequences read in chunks.
  Outputs logits(int sequences, const std::vector<int64_t>& chunks) {
    return read(sequences, chunks, Logits::all, {0, layers(), true, true});
  }
  // The same of their last rows: layers that reuse K and V see no other.
  Outputs last_logits(int sequences, const std::vector<int64_t>& chunks) {
    return read(sequences, chunks, Logits::last, {0, layers(), true, true});
  }
  // What stands behind the first `count` layers; none: the embedding.
  Outputs residual(int sequences, const std::vector<int64_t>& chunks, int count) {
    return read(sequences, chunks, Logits::all, {0, count, true, false});
  }

  // Whether the first step of single rows gave the same bits when it was issued, recorded and replayed.
  bool replays_alike() const { return replays_alike_; }

 private:
  static std::vector<std::unique_ptr<Backend>> list_of(std::unique_ptr<Backend> backend) {
    std::vector<std::unique_ptr<Backend>> one;
    one.push_back(std::move(backend));
    return one;
  }

  Outputs read(int sequences, const std::vector<int64_t>& chunks, Logits wanted, const Stretch& stretch) {
    const int64_t length = std::accumulate(chunks.begin(), chunks.end(), int64_t{0});
    const int64_t longest = *std::max_element(chunks.begin(), chunks.end());
    Step step(config_, sequences, length, longest);
    const KvLayout layout(config_, placement_.first(), kBlock);
    const KvCache kv(config_, layout, step.blocks(), placement_);
    activations_.reserve(std::max<int64_t>(sequences * longest, placement_.first().padded_rows(sequences)),
                         sequences * longest, placement_.first());
    Outputs out;
    out.cols = stretch.has_head ? config_.vocab : config_.hidden;
    const int64_t kept = wanted == Logits::last ? 1 : length;
    out.values.resize(static_cast<size_t>(sequences * kept * out.cols));
    bool met_single_rows = false;
    int64_t first = 0;
    for (const int64_t n : chunks) {
      const Logits of_chunk = wanted == Logits::last && first + n < length ? Logits::none : wanted;
      const Batch& all = step.rows(first, n, of_chunk);
      std::vector<float> found = run(all, step, kv, stretch, out.cols);
      if (n == 1 && !met_single_rows) {
        for (int again = 0; again < 2; ++again) replays_alike_ &= found == run(all, step, kv, stretch, out.cols);
        met_single_rows = true;
      }
      if (of_chunk != Logits::none) {
        const int64_t rows = wanted == Logits::last ? 1 : n, at = wanted == Logits::last ? 0 : first;
        for (int64_t s = 0; s < sequences; ++s) {
          std::copy_n(found.begin() + s * rows * out.cols, rows * out.cols,
                      out.values.begin() + (s * kept + at) * out.cols);
        }
      }
      first += n;
    }
    return out;
  }

  // The wanted rows of one step, filled up as Model does.
  std::vector<float> run(const Batch& given, Step& step, const KvCache& kv, const Stretch& stretch, int64_t cols) {
    Backend& backend = placement_.first();
    const bool may_pad = !config_.has_moe() && is_decode_step(given);
    const int64_t rows = may_pad ? backend.padded_rows(given.rows()) : given.rows();
    const Batch& all = rows > given.rows() ? padding_.fill(given, rows) : given;
    const Batch& tail = step.tail(all);
    const int bad = backend.run(
        [&](Ops& ops) { decoder_forward(ops, config_, weights_->weights(), activations_, kv, stretch, all, tail); });
    if (bad != Backend::kFinite) throw Error(ErrorCode::internal, str("not finite behind layer ", bad - 1));
    std::vector<float> found(given.logit_rows.size() * static_cast<size_t>(cols));
    const Tensor& from = stretch.has_head ? activations_.logits : activations_.x;
    if (!found.empty()) backend.read(found.data(), from.data, found.size() * sizeof(float));
    return found;
  }

  const ModelConfig& config_;
  Placement placement_;
  Activations activations_;
  Padding padding_;
  std::unique_ptr<RandomWeights> weights_;
  bool replays_alike_ = true;
};

// Distance of the median row: a mixture may send single rows to other experts. Infinite where a row is no number.
double distance(const Outputs& found, const Outputs& wanted) {
  std::vector<double> each;
  for (size_t r = 0; r < wanted.rows(); ++r) {
    double error = 0, norm = 0;
    for (int64_t c = 0; c < wanted.cols; ++c) {
      const double a = found.row(r)[c], b = wanted.row(r)[c];
      error += (a - b) * (a - b);
      norm += b * b;
    }
    each.push_back(std::sqrt(error / norm));
    if (!std::isfinite(each.back())) return HUGE_VAL;
  }
  std::nth_element(each.begin(), each.begin() + static_cast<std::ptrdiff_t>(each.size() / 2), each.end());
  return each[each.size() / 2];
}

std::vector<int64_t> prompt_and_forced(Lengths length) {
  std::vector<int64_t> chunks;
  if (length.prompt > kBlock + 1) chunks.push_back(kBlock + 1);
  chunks.push_back(length.prompt - (chunks.empty() ? 0 : chunks.front()));
  chunks.insert(chunks.end(), static_cast<size_t>(length.forced), 1);
  return chunks;
}

// One model on both backends.
class Comparison {
 public:
  Comparison(std::string name, const ModelConfig& config, FormatId format, int sequences, Lengths length)
      : name_(std::move(name)),
        sequences_(sequences),
        chunks_(prompt_and_forced(length)),
        whole_({length.prompt + length.forced}),
        reference_(config, format, make_reference_backend({})),
        cuda_(config, format, cuda::make_backend({})) {}

  bool run() {
    const double limit = limit_behind(cuda_.layers());
    const double error = distance(cuda_.logits(sequences_, chunks_), reference_.logits(sequences_, whole_));
    bool right = report_result(name_, error, limit);
    if (!right) std::printf("{\"departs\": \"%s: %s\"}\n", name_.c_str(), first_departure().c_str());
    const double of_last = distance(cuda_.last_logits(sequences_, whole_), reference_.last_logits(sequences_, whole_));
    // One row of each sequence: the median of so few is not as steady.
    right &= report_result(name_ + ", last rows of a prompt", of_last, 1.5 * limit);
    return right & report_result(name_ + ", replayed", cuda_.replays_alike() ? 0 : 1, 0);
  }

 private:
  bool departs_behind(int layers) {
    return distance(cuda_.residual(sequences_, chunks_, layers), reference_.residual(sequences_, whole_, layers)) >
           limit_behind(layers);
  }

  // By halving: whatever follows what departs departs, too.
  std::string first_departure() {
    int fine = -1, departed = cuda_.layers() + 1;  // layers behind which to look; one more is the head
    while (departed - fine > 1) {
      const int middle = fine + (departed - fine) / 2;
      (departs_behind(middle) ? departed : fine) = middle;
    }
    if (departed > cuda_.layers()) return "the head";
    return departed == 0 ? "the embedding" : str("layer ", departed - 1);
  }

  std::string name_;
  int sequences_;
  std::vector<int64_t> chunks_, whole_;
  Decoder reference_, cuda_;
};

// Bytes that programs may still take, as Linux says; none where it does not.
int64_t free_host_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string word;
  int64_t kilobytes = 0;
  while (file >> word) {
    if (word == "MemAvailable:" && file >> kilobytes) break;
  }
  return kilobytes * 1024;
}

bool compare_all(bool small) {
  bool right = true;
  for (const Shape& shape : kShapes) {
    const ModelConfig config = config_of(scaled_down(shape, small));
    for (const NamedFormat& format : kFormats) {
      const int sequences = format.id == FormatId::bf16 ? 3 : 5;
      right &= Comparison(str(shape.name, " scaled down, ", format.name), config, format.id, sequences, lengths(small))
                   .run();
    }
  }
  // 5.1 G parameters in bf16; on the host their largest matrix once more, on its way to the device.
  constexpr int64_t kDeviceBytes = int64_t{11} << 30, kHostBytes = int64_t{16} << 30;
  if (small) {
    std::printf("{\"left_out\": \"E2B at full size: hours on the host\"}\n");
  } else if (free_host_bytes() < kHostBytes || cuda::make_backend({})->free_bytes() < kDeviceBytes) {
    std::printf("{\"left_out\": \"E2B at full size: it wants 16 GiB on the host and 11 GiB on the device\"}\n");
  } else {
    const ModelConfig config = config_of(kShapes[0]);
    right &= Comparison("E2B at full size", config, FormatId::bf16, 1, {8, 4}).run();
  }
  return right;
}

// Rows of the first sequence of `found` have the bits of `wanted`.
bool same_bits(const Outputs& found, const Outputs& wanted) {
  return std::memcmp(found.values.data(), wanted.values.data(), wanted.values.size() * sizeof(float)) == 0;
}

bool deterministic_rows(const Shape& shape, bool small) {
  const ModelConfig config = config_of(scaled_down(shape, small));
  BackendOptions options;
  options.deterministic = true;
  Decoder decoder(config, FormatId::bf16, cuda::make_backend(options));
  const int64_t n = lengths(small).prompt;
  const Outputs whole = decoder.logits(1, {n});
  const auto check = [&](const char* how, int sequences, const std::vector<int64_t>& chunks) {
    const bool same = same_bits(decoder.logits(sequences, chunks), whole);
    return report_result(str(shape.name, ": the same bits ", how), same ? 0 : 1, 0);
  };
  bool right = check("in chunks", 1, {17, 1, n - 18});
  right &= check("row by row", 1, std::vector<int64_t>(static_cast<size_t>(n), 1));
  right &= check("in a batch", 3, {n});
  right &= check("in chunks of a batch", 4, prompt_and_forced({n - 5, 5}));
  return right;
}

// Every filter, on logits of a whole vocabulary, against the reference.
bool draws(bool small) {
  const int64_t vocabulary = small ? 3001 : kVocabulary, count = 6;
  std::mt19937 bits(4);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(static_cast<size_t>(count * vocabulary));
  for (float& value : logits) value = normal(bits);
  std::vector<uint32_t> allowed(static_cast<size_t>(vocabulary + 31) / 32);
  for (uint32_t& word : allowed) word = static_cast<uint32_t>(bits() & bits());
  const std::vector<TokenCount> seen = {{3, 2}, {999, 0}};
  std::vector<SampleRow> rows(static_cast<size_t>(count));
  const char* const names[] = {"greedy", "plain", "top_k", "top_p with penalties", "min_p", "masked"};
  rows[0].temperature = 0;
  rows[2].top_k = 20;
  rows[3].top_p = 0.7f;
  rows[3].seen = seen.data(), rows[3].n_seen = 2;
  rows[3].frequency_penalty = 0.5f, rows[3].repetition_penalty = 1.3f;
  rows[4].min_p = 0.05f;
  rows[5].allowed = allowed.data();
  rows[5].top_logprobs = 4;

  const std::unique_ptr<Backend> cuda = cuda::make_backend({}), reference = make_reference_backend({});
  const int steps = small ? 10 : 30;
  std::vector<int> others(rows.size());
  const auto draw = [&](Backend& backend) {
    const Buffer buffer = backend.upload(logits.data(), logits.size() * sizeof(float));
    const Tensor tensor{buffer.data, DType::f32, count, vocabulary, vocabulary};
    std::vector<SampledToken> tokens(rows.size());
    std::vector<int32_t> ids;
    for (int step = 0; step < steps; ++step) {
      for (size_t r = 0; r < rows.size(); ++r) rows[r].seed = 11 * r, rows[r].position = static_cast<uint64_t>(step);
      backend.run([&](Ops& ops) { ops.sample(tensor, rows, tokens); });
      for (const SampledToken& token : tokens) ids.push_back(token.id);
    }
    return ids;
  };
  const std::vector<int32_t> found = draw(*cuda), wanted = draw(*reference);
  for (size_t i = 0; i < found.size(); ++i) others[i % rows.size()] += found[i] != wanted[i];
  bool right = true;
  for (size_t r = 0; r < rows.size(); ++r) {
    // A number between two sums that differ in their last bit may fall to either side.
    const double share = static_cast<double>(others[r]) / steps;
    right &= report_result(str("draws that are not the reference's, ", names[r]), share, r == 0 ? 0 : 0.04);
  }
  return right;
}

bool behaviour(bool small) {
  bool right = true;
  for (const Shape& shape : kShapes) right &= deterministic_rows(shape, small);
  return right & draws(small);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string stage = argc > 1 ? argv[1] : "";
  const bool small = argc > 2 && std::string(argv[2]) == "small";
  try {
    if (stage == "compare") return compare_all(small) ? 0 : 1;
    if (stage == "behaviour") return behaviour(small) ? 0 : 1;
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  std::fprintf(stderr, "usage: models compare | behaviour [small]\n");
  return 2;
}
