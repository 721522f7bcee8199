// product.cu: products of few activation rows, bound by the bytes of the weights.
//
// Two blocks share a multiprocessor: 65,536 registers over 512 threads.
// budget: product_kernel 128
// budget: geglu_kernel 128
#include "kernels/cuda/product.cuh"

namespace gemmantle::cuda {
namespace {

// y = x w^T, capped: a block takes `tiles` times sixteen rows of w.
template <Plane plane, int rows, int tiles>
__global__ void __launch_bounds__(kProductThreads, 2) product_kernel(Rows y, ConstRows x, const Matrix w, float cap) {
  auto& s = simt::shared<ProductShared<rows, tiles>>();
  const int base = static_cast<int>(blockIdx.x) * tiles * kTileRows;
  int64_t first[tiles];
  int left[tiles];
#pragma unroll
  for (int m = 0; m < tiles; ++m) {
    first[m] = base + m * kTileRows;
    left[m] = w.rows - base - m * kTileRows;
  }
  product_block<plane, rows, tiles>(s, w, w, first, left, x);
  for (int i = static_cast<int>(threadIdx.x); i < rows * tiles * kTileRows; i += kProductThreads) {
    const int r = i / (tiles * kTileRows), output = i % (tiles * kTileRows);
    if (r < y.rows && base + output < w.rows) y.data[r * y.stride + base + output] = capped(s.total(r, output), cap);
  }
}

// y = gelu_tanh(x gate^T) * (x up^T): a block takes sixteen rows of both.
template <Plane plane, int rows>
__global__ void __launch_bounds__(kProductThreads, 2)
    geglu_kernel(Rows y, ConstRows x, const Matrix gate, const Matrix up) {
  auto& s = simt::shared<ProductShared<rows, 2>>();
  const int base = static_cast<int>(blockIdx.x) * kTileRows, left = gate.rows - base;
  const int64_t first[2] = {base, base};
  const int lefts[2] = {left, left};
  product_block<plane, rows, 2>(s, gate, up, first, lefts, x);
  for (int i = static_cast<int>(threadIdx.x); i < rows * kTileRows; i += kProductThreads) {
    const int r = i / kTileRows, output = i % kTileRows;
    if (r >= y.rows || output >= left) continue;
    y.data[r * y.stride + base + output] = gelu_tanh(s.total(r, output)) * s.total(r, kTileRows + output);
  }
}

// Calls visit.operator()<plane, rows>() with the kernel's number of rows for `rows`.
template <class Visit>
void with_shape(Plane plane, int rows, Visit&& visit) {
  with_plane(plane, [&]<Plane p>() {
    if (rows == 1) return visit.template operator()<p, 1>();
    if (rows <= 8) return visit.template operator()<p, 8>();
    visit.template operator()<p, kFewRows>();
  });
}

}  // namespace

void product_few(Stream stream, Rows y, ConstRows x, const Matrix& w, float cap) {
  if (x.rows == 0) return;
  // Two tiles halve the reads of activations; one fills the multiprocessors where a matrix has few rows.
  constexpr int kManyRows = 264 * 2 * kTileRows;
  with_shape(w.plane, x.rows, [&]<Plane plane, int rows>() {
    const auto start = [&]<int tiles>() {
      simt::launch(product_kernel<plane, rows, tiles>, blocks_for(w.rows, tiles * kTileRows), kProductThreads,
                   sizeof(ProductShared<rows, tiles>), as_stream(stream), y, x, w, cap);
    };
    w.rows >= kManyRows ? start.template operator()<2>() : start.template operator()<1>();
  });
}

void product_geglu(Stream stream, Rows y, ConstRows x, const Matrix& gate, const Matrix& up) {
  if (x.rows == 0) return;
  with_shape(gate.plane, x.rows, [&]<Plane plane, int rows>() {
    simt::launch(geglu_kernel<plane, rows>, blocks_for(gate.rows, kTileRows), kProductThreads,
                 sizeof(ProductShared<rows, 2>), as_stream(stream), y, x, gate, up);
  });
}

}  // namespace gemmantle::cuda
