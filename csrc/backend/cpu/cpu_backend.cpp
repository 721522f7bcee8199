#include "backend/cpu/cpu_backend.h"

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "backend/cpu/cpu_ops.h"
#include "core/cpu_features.h"
#include "core/error.h"
#include "core/thread_pool.h"

namespace gemmantle {
namespace {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const BackendOptions& options, const CpuIsa& isa)
      : isa_(isa), pool_(thread_count(options.threads)), ops_(*isa.kernels, pool_, options.mode) {}

  BackendInfo info() const override { return {"cpu", isa_.kernels->name, pool_.threads()}; }
  DType activation_dtype() const override { return DType::f32; }

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
