// backend.h: the seam between the graph and a machine.
//
// A Backend owns memory and threads or streams, places weights, and runs a step. It is used by one thread at a time
// (the engine's worker); info() may be called from any.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/ops.h"
#include "backend/weight.h"

namespace gemmantle {

enum class Mode { exact, fast };

struct BackendOptions {
  std::string device = "auto";  // auto, cpu, reference, cuda, cuda:N, cuda:N,M,...
  int threads = 0;              // 0: physical cores the process may use
  Mode mode = Mode::exact;
  std::optional<DType> kv = std::nullopt;  // type of K and V: f32, bf16, or i8 with scales; none: as the mode wants it
  bool deterministic = false;              // a row has the same bits alone and in company
  int ordinal = 0;                         // of several devices of a kind, as `device` names them
};

struct BackendInfo {
  std::string device;
  std::string isa;  // kernel table in use; empty where there is none
  int threads = 1;
};

// Zeroed memory of a backend, given back when the last copy goes.
struct Buffer {
  std::shared_ptr<void> owner;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual BackendInfo info() const = 0;
  virtual DType activation_dtype() const = 0;
  // Whether a row has the same bits alone, in a batch and in any chunk.
  virtual bool deterministic() const { return true; }
  // Bytes that allocate() can still give; -1 where that is the memory of the host.
  virtual int64_t free_bytes() const { return -1; }

  // The KV cache: its type, the number that a block of positions must be a multiple of, and the bytes of K (or of V) of
  // one layer for so many slots.
  virtual DType kv_dtype() const { return DType::f32; }
  virtual int64_t kv_positions() const { return 1; }
  virtual int64_t kv_bytes(const HeadLayout& heads, int64_t slots) const {
    return slots * heads.kv_dim() * size_bytes(kv_dtype());
  }

  virtual Buffer allocate(size_t bytes) = 0;

  // A copy of host memory: norms, frequencies, small tables.
  virtual Buffer upload(const void* host, size_t bytes) = 0;

  // Copies what a step left in memory of this backend to the host, and back.
  virtual void read(void* host, const void* from, size_t bytes) { std::memcpy(host, from, bytes); }
  virtual void write(void* to, const void* host, size_t bytes) { std::memcpy(to, host, bytes); }
  // Host memory between which and this backend copies are quick. Not zeroed.
  virtual Buffer staging(size_t bytes) {
    std::shared_ptr<std::byte[]> memory(new std::byte[bytes]);
    std::byte* data = memory.get();
    return {std::move(memory), data, bytes};
  }

  // Bytes that place() takes for a weight.
  virtual int64_t placed_bytes(const Weight& mapped) const { return mapped.rows * mapped.row_bytes * mapped.count; }

  // A weight as the file holds it (mapped, host memory, possibly unaligned), for as long as `keep` lives.
  virtual Weight place(const Weight& mapped, std::shared_ptr<const void> keep) = 0;

  // To how many rows a step of one row per sequence is filled up, so that steps have few shapes. Where that is more
  // than `rows`, ops take rows of padding (batch.h).
  virtual int64_t padded_rows(int64_t rows) const { return rows; }

  // Runs a step; returns after its results are visible to the host. Returns the smallest tag given to
  // Ops::check_finite whose tensor was not finite, or kFinite.
  static constexpr int kFinite = -1;
  virtual int run(const std::function<void(Ops&)>& step) = 0;
};

}  // namespace gemmantle
