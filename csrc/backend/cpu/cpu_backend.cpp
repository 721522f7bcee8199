#include "backend/cpu/cpu_backend.h"

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_ops.h"
#include "backend/cpu/paged_kv.h"
#include "core/cpu_features.h"
#include "core/error.h"
#include "core/thread_pool.h"

namespace gemmantle {
namespace {

DType kv_type(const BackendOptions& options) {
  if (options.mode == Mode::exact && options.kv.value_or(DType::f32) != DType::f32) {
    throw Error(ErrorCode::invalid_argument, "mode 'exact' keeps K and V in f32; give mode='fast' or leave kv out",
                "kv");
  }
  return options.kv.value_or(options.mode == Mode::exact ? DType::f32 : DType::bf16);
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const BackendOptions& options, const CpuIsa& isa)
      : isa_(isa),
        kv_(kv_type(options)),
        pool_(thread_count(options.threads)),
        ops_(*isa.kernels, pool_, options.mode, kv_) {}

  BackendInfo info() const override { return {"cpu", isa_.kernels->name, pool_.threads()}; }
  DType activation_dtype() const override { return DType::f32; }
  DType kv_dtype() const override { return kv_; }
  int64_t kv_positions() const override { return kv_ == DType::f32 ? 1 : cpu::kPagePositions; }
  int64_t kv_bytes(const HeadLayout& heads, int64_t slots) const override {
    return kv_ == DType::f32 ? Backend::kv_bytes(heads, slots) : PagedKv::bytes(kv_, heads, slots);
  }

  // calloc of much memory maps pages that cost nothing until they are written, as a KV cache wants it.
  Buffer allocate(size_t bytes) override {
    constexpr size_t kLine = 64;
    void* memory = bytes <= SIZE_MAX - kLine ? std::calloc(bytes + kLine, 1) : nullptr;
    if (memory == nullptr) throw Error(ErrorCode::out_of_memory, str("no memory for ", bytes, " bytes"));
    std::shared_ptr<void> owner(memory, std::free);
    const auto address = reinterpret_cast<uintptr_t>(memory);
    auto* data = static_cast<std::byte*>(memory) + (kLine - address % kLine) % kLine;
    return {std::move(owner), data, bytes};
  }

  Buffer upload(const void* host, size_t bytes) override {
    Buffer buffer = allocate(bytes);
    if (bytes > 0) std::memcpy(buffer.data, host, bytes);
    return buffer;
  }

  // Kernels read every stored format where it lies.
  Weight place(const Weight& mapped, std::shared_ptr<const void> keep) override {
    if (keep_.empty() || keep_.back() != keep) keep_.push_back(std::move(keep));
    return mapped;
  }

  int run(const std::function<void(Ops&)>& step) override {
    ops_.take_not_finite();
    step(ops_);
    return ops_.take_not_finite();
  }

 private:
  const CpuIsa& isa_;
  DType kv_;
  ThreadPool pool_;
  CpuOps ops_;
  std::vector<std::shared_ptr<const void>> keep_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return make_cpu_backend(options, choose_cpu_isa());
}

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options, const CpuIsa& isa) {
  GEMMANTLE_CHECK(isa.usable(), isa.name, ": ", isa.missing());
  return std::make_unique<CpuBackend>(options, isa);
}

}  // namespace gemmantle
