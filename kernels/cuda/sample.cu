// sample.cu: from logits to a token, by the rules of kernels/common/sampling.h and kernels/reference/sample.h.
//
// Three launches. `scan` moves the logits (bias, penalties, mask) and finds the best of each slice of the vocabulary;
// `weigh` turns them into weights against the maximum; `choose`, a block for each row, cuts and draws. A weight is an
// integer multiple of 2^-44 of the largest: sums of integers do not depend on the order of threads, and 2^18 of them do
// not overflow. Ids that are 30 times e below the maximum weigh nothing and are never drawn.
//
// Equal logits are ordered by id, everywhere: greedy rows take the lowest, and at the border of top_k the lower ids
// stay. Exponents are doubles, so a row draws the id that the CPU draws unless a random number falls within 2^-26 or so
// of a border between two ids.
// budget: scan_kernel 48
// budget: weigh_kernel 64
// budget: choose_kernel 128
#include <float.h>

#include "kernels/common/philox.h"
#include "kernels/cuda/common.cuh"

namespace gemmantle::cuda {
namespace {

using Mass = unsigned long long;  // what atomicAdd takes

constexpr int kSlices = 64;
constexpr int kThreads = 256;
constexpr int kChooseThreads = 512;
constexpr int kBins =
    1024;  // of the logarithm of a weight, 32 to a factor of e; the last one holds what weighs nothing
constexpr int kSortedInShared = 2048;
constexpr double kUnit = 17592186044416.0;  // 2^44

struct Best {
  float value = -INFINITY;
  int id = -1;
};

// What `scan` and `weigh` leave of a slice.
struct Slice {
  float raw_top;  // of the logits as they came
  Best best;      // of the moved ones
  Mass mass;      // of what may be drawn, where nothing is cut
  Mass raw_mass;  // of the logits as they came, against their maximum
};

struct Scratch {
  Slice* slices;         // [rows][kSlices]
  Best* alternatives;    // [rows][kSlices][kMaxTopLogprobs]
  uint32_t* bin_counts;  // [rows][kBins]
  Mass* bin_masses;      // [rows][kBins]
  float* z;              // [rows][vocabulary] moved logits
  uint64_t* keys;        // [rows][sorted_room(vocabulary)]
  size_t bytes;
};

__host__ __device__ inline int sorted_room(int vocabulary) {
  int room = kSortedInShared;
  while (room < vocabulary) room *= 2;
  return room;
}

Scratch layout(void* base, int rows, int vocabulary) {
  Scratch s{};
  const auto take = [&]<class T>(T*& part, size_t n) {
    constexpr size_t kAlignment = 256;
    if (base != nullptr) part = reinterpret_cast<T*>(static_cast<uint8_t*>(base) + s.bytes);
    s.bytes += (static_cast<size_t>(rows) * n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  };
  take(s.slices, kSlices);
  take(s.alternatives, kSlices * kMaxTopLogprobs);
  take(s.bin_counts, kBins);
  take(s.bin_masses, kBins);
  take(s.z, static_cast<size_t>(vocabulary));
  take(s.keys, static_cast<size_t>(sorted_room(vocabulary)));
  return s;
}

__device__ __forceinline__ float as_number(float logit) {
  if (logit != logit) return -INFINITY;
  return logit > FLT_MAX ? FLT_MAX : logit;
}

__device__ __forceinline__ float moved(float from, float to) {
  return from > -INFINITY ? fminf(fmaxf(to, -FLT_MAX), FLT_MAX) : -INFINITY;
}

__device__ __forceinline__ bool is_before(Best a, Best b) {
  return a.value > b.value || (a.value == b.value && a.id >= 0 && (b.id < 0 || a.id < b.id));
}

__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const Best other{simt::shfl_xor(best.value, mask), simt::shfl_xor(best.id, mask)};
    if (is_before(other, best)) best = other;
  }
  return best;
}

// Three kinds of row: one that only wants log-probabilities, a greedy one, and one that draws.
__device__ __forceinline__ bool is_forced(const SampleRow& row) { return row.forced >= 0; }
__device__ __forceinline__ bool draws(const SampleRow& row) {
  return !is_forced(row) && row.temperature > 0 && row.top_k != 1;
}
__device__ __forceinline__ bool cuts_k(const SampleRow& row, int vocabulary) {
  return row.top_k > 0 && row.top_k < vocabulary;
}
__device__ __forceinline__ bool cuts_p(const SampleRow& row) { return row.top_p < 1; }
__device__ __forceinline__ bool cuts(const SampleRow& row, int vocabulary) {
  return cuts_k(row, vocabulary) || cuts_p(row);
}

// The maximum always survives.
__device__ __forceinline__ double least_weight(const SampleRow& row) {
  return fmin(fmax(static_cast<double>(row.min_p), 0.0), 1.0);
}
__device__ __forceinline__ double weight(float z, float top, double per_temperature) {
  return exp((static_cast<double>(z) - static_cast<double>(top)) * per_temperature);
}
__device__ __forceinline__ Mass in_units(double w) { return static_cast<Mass>(w * kUnit + 0.5); }

// Rises as z falls, and so keeps the order of ids.
__device__ __forceinline__ int bin_of(float z, float top, float bins_per_unit) {
  return static_cast<int>(fminf((top - z) * bins_per_unit, static_cast<float>(kBins - 1)));
}
__device__ __forceinline__ float bins_per_unit_of(const SampleRow& row) {
  return fminf(32.0f / row.temperature, FLT_MAX);  // never infinite: the maximum itself is in bin 0
}

// Ids [first, last) of slice `slice`.
struct Span {
  int first, last;
  __device__ __forceinline__ Span(int slice, int vocabulary) {
    const int length = (vocabulary + kSlices - 1) / kSlices;
    first = min(slice * length, vocabulary);
    last = min(first + length, vocabulary);
  }
};

struct ScanShared {
  float tops[kThreads / kWarp];
  Best bests[kThreads / kWarp];
};

// The best over the block, the same in every thread. Two barriers.
__device__ __forceinline__ Best block_best(ScanShared& s, Best best) {
  const int t = static_cast<int>(threadIdx.x);
  best = warp_best(best);
  if (t % kWarp == 0) s.bests[t / kWarp] = best;
  __syncthreads();
  for (const Best& other : s.bests) {
    if (is_before(other, best)) best = other;
  }
  __syncthreads();
  return best;
}

// Block (i, r): slice i of row r.
__global__ void __launch_bounds__(kThreads) scan_kernel(ConstRows logits, const SampleRow* rows, Scratch scratch) {
  begin_in_order();
  auto& s = simt::shared<ScanShared>();
  const int t = static_cast<int>(threadIdx.x), slice = static_cast<int>(blockIdx.x), r = static_cast<int>(blockIdx.y);
  const SampleRow& row = rows[r];
  const Span span(slice, logits.cols);
  const float* raw = logits.data + r * logits.stride;
  float* z = scratch.z + static_cast<int64_t>(r) * logits.cols;
  const auto is_here = [&](int id) { return id >= span.first && id < span.last; };

  for (int i = t; i < kBins / kSlices; i += kThreads) {
    scratch.bin_counts[r * kBins + slice * (kBins / kSlices) + i] = 0;
    scratch.bin_masses[r * kBins + slice * (kBins / kSlices) + i] = 0;
  }
  float raw_top = -INFINITY;
  for (int i = span.first + t; i < span.last; i += kThreads) {
    const float value = as_number(raw[i]);
    raw_top = fmaxf(raw_top, value);
    z[i] = value;
  }
  raw_top = warp_max(raw_top);
  if (t % kWarp == 0) s.tops[t / kWarp] = raw_top;
  __syncthreads();
  for (const float top : s.tops) raw_top = fmaxf(raw_top, top);

  for (int64_t i = t; i < row.n_bias; i += kThreads) {
    const TokenBias bias = row.bias[i];
    if (is_here(bias.id)) z[bias.id] = moved(z[bias.id], z[bias.id] + bias.bias);
  }
  __syncthreads();
  for (int64_t i = t; i < row.n_seen; i += kThreads) {
    const TokenCount seen = row.seen[i];
    if (!is_here(seen.id)) continue;
    const float value = z[seen.id];
    float less = value > 0 ? value / row.repetition_penalty : value * row.repetition_penalty;
    less = moved(value, less) - row.frequency_penalty * static_cast<float>(seen.count);
    if (seen.count > 0) less -= row.presence_penalty;
    z[seen.id] = moved(value, less);
  }
  __syncthreads();
  for (int64_t i = t; i < row.n_banned; i += kThreads) {
    if (is_here(row.banned[i])) z[row.banned[i]] = -INFINITY;
  }
  __syncthreads();
  Best best;
  for (int i = span.first + t; i < span.last; i += kThreads) {
    if (row.allowed != nullptr && (row.allowed[i / 32] >> i % 32 & 1u) == 0) z[i] = -INFINITY;
    if (z[i] > best.value) best = {z[i], i};
  }
  best = block_best(s, best);
  if (t == 0) {
    Slice& out = scratch.slices[r * kSlices + slice];
    out.raw_top = raw_top;
    out.best = best;
    out.mass = out.raw_mass = 0;
  }

  Best previous{INFINITY, -1};
  const int alternatives = min(row.top_logprobs, kMaxTopLogprobs);
  for (int j = 0; j < alternatives; ++j) {
    Best next;
    for (int i = span.first + t; i < span.last; i += kThreads) {
      const Best here{as_number(raw[i]), i};
      if (is_before(previous, here) && is_before(here, next)) next = here;
    }
    previous = block_best(s, next);
    if (t == 0) scratch.alternatives[(r * kSlices + slice) * kMaxTopLogprobs + j] = previous;
    if (previous.id < 0) previous.value = -INFINITY, previous.id = logits.cols;  // nothing is left
  }
}

// The largest of a row's slices, the same in every lane of a warp.
__device__ __forceinline__ Best row_best(const Slice* slices) {
  Best best;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < kSlices; i += kWarp) {
    if (is_before(slices[i].best, best)) best = slices[i].best;
  }
  return warp_best(best);
}
__device__ __forceinline__ float row_raw_top(const Slice* slices) {
  float top = -INFINITY;
  for (int i = static_cast<int>(threadIdx.x) % kWarp; i < kSlices; i += kWarp) top = fmaxf(top, slices[i].raw_top);
  return warp_max(top);
}

struct WeighShared {
  uint32_t counts[kBins];
  Mass masses[kBins];
  Mass mass, raw_mass;
};

__global__ void __launch_bounds__(kThreads) weigh_kernel(ConstRows logits, const SampleRow* rows, Scratch scratch) {
  begin_in_order();
  auto& s = simt::shared<WeighShared>();
  const int t = static_cast<int>(threadIdx.x), slice = static_cast<int>(blockIdx.x), r = static_cast<int>(blockIdx.y);
  const SampleRow& row = rows[r];
  const Span span(slice, logits.cols);
  const float* raw = logits.data + r * logits.stride;
  const float* z = scratch.z + static_cast<int64_t>(r) * logits.cols;
  const float top = row_best(scratch.slices + r * kSlices).value, raw_top = row_raw_top(scratch.slices + r * kSlices);
  const bool is_cut = cuts(row, logits.cols);

  for (int i = t; i < kBins; i += kThreads) {
    s.counts[i] = 0;
    s.masses[i] = 0;
  }
  if (t == 0) s.mass = s.raw_mass = 0;
  __syncthreads();
  if (draws(row) && top > -INFINITY) {
    const double least = least_weight(row), per_temperature = 1.0 / static_cast<double>(row.temperature);
    const float bins_per_unit = bins_per_unit_of(row);
    Mass sum = 0;
    for (int i = span.first + t; i < span.last; i += kThreads) {
      const int bin = bin_of(z[i], top, bins_per_unit);
      if (bin == kBins - 1) continue;
      const double w = weight(z[i], top, per_temperature);
      if (is_cut) {
        atomicAdd(&s.counts[bin], 1u);
        atomicAdd(&s.masses[bin], in_units(w));
      } else if (w >= least) {
        sum += in_units(w);
      }
    }
    if (!is_cut) atomicAdd(&s.mass, sum);
  }
  if (row.top_logprobs >= 0 && raw_top > -INFINITY) {
    Mass sum = 0;
    for (int i = span.first + t; i < span.last; i += kThreads) sum += in_units(weight(as_number(raw[i]), raw_top, 1.0));
    atomicAdd(&s.raw_mass, sum);
  }
  __syncthreads();
  for (int i = t; i < kBins; i += kThreads) {
    if (s.counts[i] == 0) continue;
    atomicAdd(&scratch.bin_counts[r * kBins + i], s.counts[i]);
    atomicAdd(&scratch.bin_masses[r * kBins + i], s.masses[i]);
  }
  if (t == 0) {
    scratch.slices[r * kSlices + slice].mass = s.mass;
    scratch.slices[r * kSlices + slice].raw_mass = s.raw_mass;
  }
}

struct ChooseShared {
  uint64_t keys[kSortedInShared];
  Mass warp_sums[kChooseThreads / kWarp];
  Mass before;
  int index, n;
  SampledToken token;
};

// Where a running sum reaches what is needed: the first such item, and the sum before it.
struct Reached {
  int index;
  Mass before;
};

// The first i in [0, n) for which amount(0) + ... + amount(i) >= need; the last one where the sum stays below.
template <class Amount>
__device__ __forceinline__ Reached first_reaching(ChooseShared& s, int n, Mass need, Amount amount) {
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp;
  const int run = (n + kChooseThreads - 1) / kChooseThreads, first = min(t * run, n), last = min(first + run, n);
  Mass own = 0;
  for (int i = first; i < last; ++i) own += amount(i);
  Mass before = own;  // becomes the sum of all threads up to this one
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Mass left = simt::shfl(before, lane >= step ? lane - step : lane);
    if (lane >= step) before += left;
  }
  if (lane == kWarp - 1) s.warp_sums[warp] = before;
  if (t == 0) s.index = -1;
  __syncthreads();
  before -= own;
  for (int w = 0; w < warp; ++w) before += s.warp_sums[w];
  if (before < need && before + own >= need) {
    int i = first;
    for (Mass next = amount(i); before + next < need; next = amount(++i)) before += next;
    s.index = i;
    s.before = before;
  }
  __syncthreads();
  Reached reached{s.index, s.before};
  if (reached.index < 0) reached = {n - 1, 0};
  __syncthreads();
  return reached;
}

// The same bits in every thread.
template <class Amount>
__device__ __forceinline__ Mass block_total(ChooseShared& s, int n, Amount amount) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) s.before = 0;
  __syncthreads();
  Mass own = 0;
  for (int i = t; i < n; i += kChooseThreads) own += amount(i);
  atomicAdd(&s.before, own);
  __syncthreads();
  const Mass total = s.before;
  __syncthreads();
  return total;
}

// What a running sum must reach for the draw `uniform` in [0, 1) out of `total`.
__device__ __forceinline__ Mass need_of(double uniform, Mass total) {
  const Mass below = static_cast<Mass>(uniform * static_cast<double>(total));
  return min(below, total - 1) + 1;
}

// Keys sort ascending as candidates come: larger logits first, then lower ids.
__device__ __forceinline__ uint64_t key_of(float z, int id) {
  const uint32_t bits = __float_as_uint(z + 0.0f);  // one zero
  const uint32_t rising = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 32 | static_cast<uint32_t>(id);
}
__device__ __forceinline__ int id_of(uint64_t key) { return static_cast<int>(key & 0xffffffffu); }

// Sorts keys[0, n), n a power of two.
__device__ __forceinline__ void sort(uint64_t* keys, int n) {
  for (int width = 2; width <= n; width *= 2) {
    for (int apart = width / 2; apart > 0; apart /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < n / 2; i += kChooseThreads) {
        const int low = i / apart * apart * 2 + i % apart, high = low + apart;
        const bool is_rising = (low & width) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) == is_rising) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// Collects the candidates of bins [0, last_bin], `n` of them, and sorts them.
__device__ __forceinline__ const uint64_t* sorted_candidates(ChooseShared& s, const Slice* slices, const float* z,
                                                             int vocabulary, float top, float bins_per_unit,
                                                             int last_bin, int n, uint64_t* room) {
  const int t = static_cast<int>(threadIdx.x);
  uint64_t* keys = n <= kSortedInShared ? s.keys : room;
  int padded = 1;
  while (padded < n) padded *= 2;
  for (int i = n + t; i < padded; i += kChooseThreads) keys[i] = ~uint64_t{0};
  if (t == 0) s.n = 0;
  __syncthreads();
  for (int slice = 0; slice < kSlices; ++slice) {
    if (slices[slice].best.id < 0 || bin_of(slices[slice].best.value, top, bins_per_unit) > last_bin) continue;
    const Span span(slice, vocabulary);
    for (int i = span.first + t; i < span.last; i += kChooseThreads) {
      if (bin_of(z[i], top, bins_per_unit) <= last_bin) keys[atomicAdd(&s.n, 1)] = key_of(z[i], i);
    }
  }
  __syncthreads();
  sort(keys, padded);
  return keys;
}

__device__ __forceinline__ int draw(ChooseShared& s, const SampleRow& row, const Scratch& scratch, int r,
                                    int vocabulary, float top) {
  const Slice* slices = scratch.slices + r * kSlices;
  const float* z = scratch.z + static_cast<int64_t>(r) * vocabulary;
  const double least = least_weight(row);
  const double per_temperature = 1.0 / static_cast<double>(row.temperature);
  const float bins_per_unit = bins_per_unit_of(row);
  const double uniform = philox_uniform(row.seed, row.choice, row.position);
  const auto mass_of = [&](int id) {
    if (bin_of(z[id], top, bins_per_unit) == kBins - 1) return Mass{0};
    return in_units(weight(z[id], top, per_temperature));
  };
  const auto surviving_mass_of = [&](int id) {
    if (bin_of(z[id], top, bins_per_unit) == kBins - 1) return Mass{0};
    const double w = weight(z[id], top, per_temperature);
    return w >= least ? in_units(w) : Mass{0};
  };

  if (!cuts(row, vocabulary)) {
    const auto mass_of_slice = [&](int i) { return slices[i].mass; };
    const Mass need = need_of(uniform, block_total(s, kSlices, mass_of_slice));
    const Reached slice = first_reaching(s, kSlices, need, mass_of_slice);
    const Span span(slice.index, vocabulary);
    const auto mass_in_slice = [&](int i) { return surviving_mass_of(span.first + i); };
    return span.first + first_reaching(s, span.last - span.first, need - slice.before, mass_in_slice).index;
  }

  const auto count_in_bin = [&](int bin) { return static_cast<Mass>(scratch.bin_counts[r * kBins + bin]); };
  const auto mass_in_bin = [&](int bin) { return scratch.bin_masses[r * kBins + bin]; };
  const auto need_for_p = [&](Mass total) {
    return static_cast<Mass>(ceil(fmax(static_cast<double>(row.top_p) * static_cast<double>(total), 1.0)));
  };
  const bool is_cut_k = cuts_k(row, vocabulary);
  const Mass all = block_total(s, kBins, mass_in_bin);
  constexpr int kWeighing = kBins - 1;  // what weighs nothing is no candidate
  const int last_bin = is_cut_k ? first_reaching(s, kWeighing, static_cast<Mass>(row.top_k), count_in_bin).index
                                : first_reaching(s, kWeighing, need_for_p(all), mass_in_bin).index;
  int n = static_cast<int>(block_total(s, last_bin + 1, count_in_bin));
  uint64_t* room = scratch.keys + static_cast<int64_t>(r) * sorted_room(vocabulary);
  const uint64_t* keys = sorted_candidates(s, slices, z, vocabulary, top, bins_per_unit, last_bin, n, room);
  const auto mass_at = [&](int i) { return mass_of(id_of(keys[i])); };
  const auto surviving_mass_at = [&](int i) { return surviving_mass_of(id_of(keys[i])); };
  if (is_cut_k) n = min(n, row.top_k);
  if (cuts_p(row)) {
    const Mass total = is_cut_k ? block_total(s, n, mass_at) : all;
    n = first_reaching(s, n, need_for_p(total), mass_at).index + 1;
  }
  const Mass need = need_of(uniform, block_total(s, n, surviving_mass_at));
  return id_of(keys[first_reaching(s, n, need, surviving_mass_at).index]);
}

// By one warp: the log-probabilities of the logits as they came.
__device__ __forceinline__ void log_probabilities(SampledToken& token, const SampleRow& row, const Scratch& scratch,
                                                  const float* raw, int r, int vocabulary) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Slice* slices = scratch.slices + r * kSlices;
  const float raw_top = row_raw_top(slices);
  Mass sum = 0;
  for (int i = 0; i < kSlices; ++i) sum += slices[i].raw_mass;
  const double log_sum = raw_top > -INFINITY ? raw_top + log(static_cast<double>(sum) / kUnit) : 0.0;
  const int n = min(min(row.top_logprobs, kMaxTopLogprobs), vocabulary);
  Best previous{INFINITY, -1};
  for (int j = 0; j < n; ++j) {
    Best next;
    for (int i = lane; i < kSlices * n; i += kWarp) {
      const Best here = scratch.alternatives[(r * kSlices + i / n) * kMaxTopLogprobs + i % n];
      if (here.id >= 0 && is_before(previous, here) && is_before(here, next)) next = here;
    }
    previous = warp_best(next);
    if (lane == 0) {
      token.top_ids[j] = previous.id;
      token.top_logprobs[j] = static_cast<float>(previous.value - log_sum);
    }
  }
  if (lane == 0) {
    token.n_top = n;
    token.logprob = token.id < 0 ? -INFINITY : static_cast<float>(as_number(raw[token.id]) - log_sum);
  }
}

__global__ void __launch_bounds__(kChooseThreads, 1)
    choose_kernel(SampledToken* tokens, ConstRows logits, const SampleRow* rows, Scratch scratch) {
  begin_in_order();
  auto& s = simt::shared<ChooseShared>();
  const int t = static_cast<int>(threadIdx.x), r = static_cast<int>(blockIdx.x);
  const SampleRow& row = rows[r];
  const Best best = row_best(scratch.slices + r * kSlices);
  int id = is_forced(row) ? row.forced : best.id;
  if (draws(row) && best.id >= 0) id = draw(s, row, scratch, r, logits.cols, best.value);
  if (t < kMaxTopLogprobs) {
    s.token.top_ids[t] = 0;
    s.token.top_logprobs[t] = 0;
  }
  if (t == 0) {
    s.token.id = id;
    s.token.n_top = 0;
    s.token.logprob = 0;
  }
  __syncthreads();
  if (t >= kWarp) return;
  if (row.top_logprobs >= 0) log_probabilities(s.token, row, scratch, logits.data + r * logits.stride, r, logits.cols);
  simt::syncwarp();
  if (t == 0) tokens[r] = s.token;
}

static_assert(sizeof(WeighShared) <= 48 * 1024 && sizeof(ChooseShared) <= 48 * 1024);

}  // namespace

size_t sample_scratch_bytes(int rows, int vocabulary) { return layout(nullptr, rows, vocabulary).bytes; }

void sample(Stream stream, SampledToken* tokens, ConstRows in, const SampleRow* rows, void* scratch) {
  if (in.rows == 0) return;
  const Scratch s = layout(scratch, in.rows, in.cols);
  const dim3 slices(kSlices, static_cast<unsigned>(in.rows));
  simt::launch(scan_kernel, slices, kThreads, sizeof(ScanShared), as_stream(stream), in, rows, s);
  simt::launch(weigh_kernel, slices, kThreads, sizeof(WeighShared), as_stream(stream), in, rows, s);
  simt::launch(choose_kernel, static_cast<unsigned>(in.rows), kChooseThreads, sizeof(ChooseShared), as_stream(stream),
               tokens, in, rows, s);
}

}  // namespace gemmantle::cuda
