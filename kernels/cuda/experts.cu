// experts.cu: which experts a row uses, and what they give.
//
// A few rows read the weights of their own experts: a block for sixteen values of one expert and row, then a warp for
// each expert. Many rows are grouped by expert on the device, and each group meets its weights in tiles; no count
// reaches the host. Either way the experts of a row are added in the order in which it ranks them.
// budget: route_kernel 48
// budget: few_up_kernel 128
// budget: few_down_kernel 128
// budget: group_kernel 48
// budget: many_up_kernel 128
// budget: many_down_kernel 128
// budget: combine_kernel 40
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/product.cuh"

namespace gemmantle::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxExperts = 1024;
using Tile = GemmShape<64, 128, 32, 32, 3>;
static_assert(sizeof(GemmShared<Tile>) <= 48 * 1024);

// A warp takes a row: the next expert in order (logit, then the lower id), `used` times.
__global__ void __launch_bounds__(kThreads)
    route_kernel(View<int32_t> ids, Rows weights, ConstRows logits, const float* expert_scale) {
  begin_in_order();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  if (row >= logits.rows) return;
  const float* from = logits.data + row * logits.stride;
  int32_t* chosen = ids.data + row * ids.stride;
  float* to = weights.data + row * weights.stride;
  float previous = INFINITY, top = 0, total = 0;
  int before = -1;
  for (int j = 0; j < ids.cols; ++j) {
    float best = -INFINITY;
    int id = logits.cols;
    for (int e = lane; e < logits.cols; e += kWarp) {
      const float logit = from[e];
      const bool is_left = logit < previous || (logit == previous && e > before);
      if (is_left && (logit > best || (logit == best && e < id))) {
        best = logit;
        id = e;
      }
    }
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      const float other = simt::shfl_xor(best, mask);
      const int other_id = simt::shfl_xor(id, mask);
      if (other > best || (other == best && other_id < id)) {
        best = other;
        id = other_id;
      }
    }
    if (id == logits.cols) id = 0;  // logits that are not numbers end the step anyway, but not out of bounds
    if (j == 0) top = best;
    total += expf(best - top);
    previous = best;
    before = id;
    if (lane == 0) {
      chosen[j] = id;
      to[j] = best;
    }
  }
  simt::syncwarp();
  for (int j = lane; j < ids.cols; j += kWarp) to[j] = expf(to[j] - top) / total * expert_scale[chosen[j]];
}

// Rows of one expert that a tile takes: positions [first, first + rows) of the grouped order.
struct ExpertTile {
  int32_t expert, first, rows;
};

// Where everything between the steps of a call lies.
struct Scratch {
  float* few = nullptr;         // [rows * used, width]
  Bf16* x = nullptr;            // [rows, gate_up.padded_cols]
  Bf16* hidden = nullptr;       // [rows * used, down.padded_cols], in grouped order
  float* out = nullptr;         // [rows * used, down.rows], as rows rank their experts
  int32_t* order = nullptr;     // [rows * used] what stands at each position: row * used + rank
  ExpertTile* tiles = nullptr;  // [n_tiles], rows 0 behind the last
  int n_tiles = 0;
  size_t bytes = 0;
};

bool is_few(const ExpertArgs& a) { return a.x.rows <= kFewExpertRows; }

Scratch layout(const ExpertArgs& a) {
  constexpr size_t kAlignment = 256;
  Scratch s;
  const auto take = [&]<class T>(T*& part, int64_t n) {
    if (a.scratch != nullptr) part = reinterpret_cast<T*>(static_cast<uint8_t*>(a.scratch) + s.bytes);
    s.bytes += (static_cast<size_t>(n) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  };
  const int64_t pairs = static_cast<int64_t>(a.x.rows) * a.ids.cols;
  if (is_few(a)) {
    take(s.few, pairs * a.down.cols);
    return s;
  }
  s.n_tiles = static_cast<int>(pairs / Tile::kX + min(pairs, static_cast<int64_t>(a.down.count)));
  take(s.x, static_cast<int64_t>(a.x.rows) * a.gate_up.padded_cols);
  take(s.hidden, pairs * a.down.padded_cols);
  take(s.out, pairs * a.down.rows);
  take(s.order, pairs);
  take(s.tiles, s.n_tiles);
  return s;
}

// The matrix with the rows of `up`, and the first of them that belongs to `expert`.
__device__ __forceinline__ MatrixRow first_up_row(const ExpertArgs& a, int expert) {
  if (a.up.values != nullptr) return {&a.up, static_cast<int64_t>(expert) * a.up.rows};
  return {&a.gate_up, static_cast<int64_t>(expert) * a.gate_up.rows + a.down.cols};
}

// Block (i, j, r): sixteen values of what expert ids[r, j] makes of row r.
template <Plane plane>
__global__ void __launch_bounds__(kProductThreads, 2)
    few_up_kernel(const __grid_constant__ ExpertArgs a, float* hidden) {
  begin_in_order();
  auto& s = simt::shared<ProductShared<1, 2>>();
  const int base = static_cast<int>(blockIdx.x) * kTileRows, rank = static_cast<int>(blockIdx.y);
  const int row = static_cast<int>(blockIdx.z), left = a.down.cols - base;
  const int expert = a.ids.data[row * a.ids.stride + rank];
  const MatrixRow up = first_up_row(a, expert);
  const int64_t first[2] = {static_cast<int64_t>(expert) * a.gate_up.rows + base, up.row + base};
  const int lefts[2] = {left, left};
  const ConstRows x{a.x.data + row * a.x.stride, 1, a.x.cols, a.x.stride};
  product_block<plane, 1, 2>(s, a.gate_up, *up.matrix, first, lefts, x);
  const int t = static_cast<int>(threadIdx.x);
  if (t < kTileRows && t < left) {
    hidden[(static_cast<int64_t>(row) * a.ids.cols + rank) * a.down.cols + base + t] =
        gelu_tanh(s.total(0, t)) * s.total(0, kTileRows + t);
  }
}

struct FewDownShared {
  static constexpr int kCols = 1024;
  uint4 x[kProductWarps][kCols / 8 + 4];
  float sums[kProductWarps][kTileRows];
};

// Block (i, r): sixteen outputs of row r. Warp w takes the experts of rank w, w + 8, ...
template <Plane plane>
__global__ void __launch_bounds__(kProductThreads, 2)
    few_down_kernel(const __grid_constant__ ExpertArgs a, const float* hidden) {
  begin_in_order();
  auto& s = simt::shared<FewDownShared>();
  const int t = static_cast<int>(threadIdx.x), lane = t % kWarp, warp = t / kWarp, g = lane / 4;
  const int base = static_cast<int>(blockIdx.x) * kTileRows, row = static_cast<int>(blockIdx.y);
  const int left = a.down.rows - base;
  float upper = 0, lower = 0;
  for (int rank = warp; rank < a.ids.cols; rank += kProductWarps) {
    const int64_t first = static_cast<int64_t>(a.ids.data[row * a.ids.stride + rank]) * a.down.rows + base;
    const float* from = hidden + (static_cast<int64_t>(row) * a.ids.cols + rank) * a.down.cols;
    float sum[1][1][4] = {};
    WeightTile<plane> w[1];
    w[0].begin(a.down, first, left);
    for (int start = 0; start < a.down.padded_cols; start += FewDownShared::kCols) {
      const int cols = min(FewDownShared::kCols, a.down.padded_cols - start);
      w[0].load(a.down, start);
      simt::syncwarp();  // the warp has read what lay here
      for (int unit = lane; unit < (cols + kTurn - 1) / kTurn * kTurnUnits; unit += kWarp) {
        s.x[warp][unit] = stage_unit<plane>(from, start, unit, a.down.cols);
      }
      simt::syncwarp();
      for (int col = 0; col < cols; col += kTurn) {
        if (col > 0) w[0].load(a.down, start + col);
        multiply_turn<plane, 1, 1>(
            sum, w, [&](int, int unit) { return g > 0 ? make_uint4(0, 0, 0, 0) : s.x[warp][col / 8 + unit]; });
      }
    }
    const float weight = a.weights.data[row * a.weights.stride + rank];
    upper += weight * sum[0][0][0];
    lower += weight * sum[0][0][2];
  }
  if (lane % 4 == 0) {
    s.sums[warp][g] = upper;
    s.sums[warp][g + 8] = lower;
  }
  __syncthreads();
  if (t < kTileRows && t < left) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kProductWarps; ++w) sum += s.sums[w][t];
    a.y.data[row * a.y.stride + base + t] = sum;
  }
}

struct GroupShared {
  int count[kMaxExperts], first[kMaxExperts], tile[kMaxExperts];
  int n_tiles;
};

// One block sorts (row, rank) pairs by expert and cuts the experts into tiles. Pairs of one expert come in any order;
// nothing that is computed from them depends on it.
__global__ void __launch_bounds__(kThreads) group_kernel(const __grid_constant__ ExpertArgs a, Scratch scratch) {
  begin_in_order();
  auto& s = simt::shared<GroupShared>();
  const int t = static_cast<int>(threadIdx.x), experts = a.down.count, pairs = a.x.rows * a.ids.cols;
  const auto expert_of = [&](int i) { return a.ids.data[i / a.ids.cols * a.ids.stride + i % a.ids.cols]; };
  for (int e = t; e < experts; e += kThreads) s.count[e] = 0;
  __syncthreads();
  for (int i = t; i < pairs; i += kThreads) atomicAdd(&s.count[expert_of(i)], 1);
  __syncthreads();
  if (t == 0) {
    int position = 0, tile = 0;
    for (int e = 0; e < experts; ++e) {
      s.first[e] = position;
      s.tile[e] = tile;
      position += s.count[e];
      tile += (s.count[e] + Tile::kX - 1) / Tile::kX;
    }
    s.n_tiles = tile;
  }
  __syncthreads();
  for (int e = t; e < experts; e += kThreads) {
    for (int i = 0; i * Tile::kX < s.count[e]; ++i) {
      scratch.tiles[s.tile[e] + i] = {e, s.first[e] + i * Tile::kX, min(Tile::kX, s.count[e] - i * Tile::kX)};
    }
  }
  for (int i = s.n_tiles + t; i < scratch.n_tiles; i += kThreads) scratch.tiles[i] = {0, 0, 0};
  __syncthreads();
  for (int i = t; i < pairs; i += kThreads) scratch.order[atomicAdd(&s.first[expert_of(i)], 1)] = i;
}

// hidden = gelu_tanh(gate x) * (up x) of a tile, rounded to bf16. Eight rows of gate and eight of up take turns, so
// that a lane holds both sums of a value.
template <Plane plane>
__global__ void __launch_bounds__(kGemmThreads, 2)
    many_up_kernel(const __grid_constant__ ExpertArgs a, Scratch scratch) {
  begin_in_order();
  auto& s = simt::shared<GemmShared<Tile>>();
  const ExpertTile tile = scratch.tiles[blockIdx.x];
  if (tile.rows == 0) return;
  const int c0 = static_cast<int>(blockIdx.y) * (Tile::kW / 2), used = a.ids.cols;
  const MatrixRow up = first_up_row(a, tile.expert);
  GemmSums<Tile> sums = {};
  gemm_block<Tile, plane>(
      s, sums, a.gate_up.padded_cols, a.gate_up.values,
      [&](int r) -> const Bf16* {
        if (r >= tile.rows) return nullptr;
        return scratch.x + static_cast<int64_t>(scratch.order[tile.first + r] / used) * a.gate_up.padded_cols;
      },
      [&](int r) -> MatrixRow {
        const int c = c0 + r / 16 * 8 + r % 8;
        if (c >= a.down.cols) return {};
        if (r % 16 >= 8) return {up.matrix, up.row + c};
        return {&a.gate_up, static_cast<int64_t>(tile.expert) * a.gate_up.rows + c};
      });
#pragma unroll
  for (int i = 0; i < Tile::kWarpX / 16; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kWarpW / 8; j += 2) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = Tile::row_of(i, e), place = Tile::column_of(j, e), c = c0 + place / 16 * 8 + place % 8;
        if (row >= tile.rows || c >= a.down.padded_cols) continue;
        scratch.hidden[static_cast<int64_t>(tile.first + row) * a.down.padded_cols + c] =
            to_bf16(gelu_tanh(sums[i][j][e]) * sums[i][j + 1][e]);
      }
    }
  }
}

template <Plane plane>
__global__ void __launch_bounds__(kGemmThreads, 2)
    many_down_kernel(const __grid_constant__ ExpertArgs a, Scratch scratch) {
  begin_in_order();
  auto& s = simt::shared<GemmShared<Tile>>();
  const ExpertTile tile = scratch.tiles[blockIdx.x];
  if (tile.rows == 0) return;
  const int c0 = static_cast<int>(blockIdx.y) * Tile::kW;
  GemmSums<Tile> sums = {};
  gemm_block<Tile, plane>(
      s, sums, a.down.padded_cols, a.down.values,
      [&](int r) -> const Bf16* {
        if (r >= tile.rows) return nullptr;
        return scratch.hidden + static_cast<int64_t>(tile.first + r) * a.down.padded_cols;
      },
      [&](int r) -> MatrixRow {
        if (c0 + r >= a.down.rows) return {};
        return {&a.down, static_cast<int64_t>(tile.expert) * a.down.rows + c0 + r};
      });
  for_each_sum<Tile>(sums, [&](int row, int column, float sum) {
    if (row >= tile.rows || c0 + column >= a.down.rows) return;
    scratch.out[static_cast<int64_t>(scratch.order[tile.first + row]) * a.down.rows + c0 + column] = sum;
  });
}

__global__ void __launch_bounds__(kThreads) combine_kernel(const __grid_constant__ ExpertArgs a, Scratch scratch) {
  begin_in_order();
  const int c = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.y);
  if (c >= a.y.cols) return;
  float sum = 0;
  for (int j = 0; j < a.ids.cols; ++j) {
    const int64_t pair = static_cast<int64_t>(row) * a.ids.cols + j;
    sum += a.weights.data[row * a.weights.stride + j] * scratch.out[pair * a.down.rows + c];
  }
  a.y.data[row * a.y.stride + c] = sum;
}

void few(simt::Stream stream, const ExpertArgs& a, const Scratch& scratch) {
  const auto rows = static_cast<unsigned>(a.x.rows);
  with_plane(a.gate_up.plane, [&]<Plane plane>() {
    const dim3 grid(blocks_for(a.down.cols, kTileRows), static_cast<unsigned>(a.ids.cols), rows);
    simt::launch(few_up_kernel<plane>, grid, kProductThreads, sizeof(ProductShared<1, 2>), stream, a, scratch.few);
  });
  with_plane(a.down.plane, [&]<Plane plane>() {
    const dim3 grid(blocks_for(a.down.rows, kTileRows), rows);
    simt::launch(few_down_kernel<plane>, grid, kProductThreads, sizeof(FewDownShared), stream, a, scratch.few);
  });
}

void many(simt::Stream stream, const ExpertArgs& a, const Scratch& scratch) {
  const auto tiles = static_cast<unsigned>(scratch.n_tiles);
  round_rows(stream, {scratch.x, a.x.rows, a.gate_up.padded_cols, a.gate_up.padded_cols}, a.x);
  simt::launch(group_kernel, 1, kThreads, sizeof(GroupShared), stream, a, scratch);
  with_plane(a.gate_up.plane, [&]<Plane plane>() {
    const dim3 grid(tiles, blocks_for(a.down.padded_cols, Tile::kW / 2));
    simt::launch(many_up_kernel<plane>, grid, kGemmThreads, sizeof(GemmShared<Tile>), stream, a, scratch);
  });
  with_plane(a.down.plane, [&]<Plane plane>() {
    const dim3 grid(tiles, blocks_for(a.down.rows, Tile::kW));
    simt::launch(many_down_kernel<plane>, grid, kGemmThreads, sizeof(GemmShared<Tile>), stream, a, scratch);
  });
  const dim3 sum(blocks_for(a.y.cols, kThreads), static_cast<unsigned>(a.y.rows));
  simt::launch(combine_kernel, sum, kThreads, 0, stream, a, scratch);
}

}  // namespace

void route(Stream stream, View<int32_t> ids, Rows weights, ConstRows logits, const float* expert_scale) {
  if (logits.rows == 0) return;
  simt::launch(route_kernel, blocks_for(logits.rows, kThreads / kWarp), kThreads, 0, as_stream(stream), ids, weights,
               logits, expert_scale);
}

size_t experts_scratch_bytes(const ExpertArgs& args) { return layout(args).bytes; }

void experts(Stream stream, const ExpertArgs& args) {
  if (args.x.rows == 0) return;
  is_few(args) ? few(as_stream(stream), args, layout(args)) : many(as_stream(stream), args, layout(args));
}

}  // namespace gemmantle::cuda
