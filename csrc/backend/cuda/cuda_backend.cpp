#include "backend/cuda/cuda_backend.h"

#include <bit>
#include <limits>

#include "backend/cuda/deterministic_ops.h"
#include "backend/cuda/device.h"
#include "backend/cuda/planes.h"
#include "backend/cuda/recordings.h"
#include "backend/cuda/step_memory.h"
#include "backend/cuda/weight_store.h"
#include "core/error.h"

namespace gemmantle::cuda {
namespace {

constexpr int kOldestCapability = 80;  // bf16 tensor cores and asynchronous copies

class CudaBackend final : public Backend {
 public:
  // The device in use becomes its own: every call chooses it again, since a thread may serve several.
  CudaBackend(int ordinal, const DeviceProperties& device, bool deterministic)
      : ordinal_(ordinal),
        device_(device),
        deterministic_(deterministic),
        memory_(stream_),
        recordings_(stream_),
        ops_(deterministic ? make_ops<DeterministicOps>() : make_ops<CudaOps>()) {}

  BackendInfo info() const override {
    return {ordinal_ == 0 ? "cuda" : str("cuda:", ordinal_), str("sm_", device_.capability), 1};
  }
  DType activation_dtype() const override { return DType::f32; }
  DType kv_dtype() const override { return DType::bf16; }
  int64_t free_bytes() const override {
    use_device(ordinal_);
    return static_cast<int64_t>(device_properties().free_bytes);
  }

  bool deterministic() const override { return deterministic_; }

  Buffer allocate(size_t bytes) override {
    use_device(ordinal_);
    auto memory = std::make_shared<DeviceMemory>(bytes);
    stream_.zero(memory->data(), bytes);
    stream_.wait();
    std::byte* data = memory->data();
    return {std::move(memory), data, bytes};
  }

  Buffer upload(const void* host, size_t bytes) override {
    use_device(ordinal_);
    auto memory = std::make_shared<DeviceMemory>(bytes);
    stream_.upload(memory->data(), host, bytes);
    stream_.wait();
    std::byte* data = memory->data();
    return {std::move(memory), data, bytes};
  }

  void read(void* host, const void* from, size_t bytes) override {
    use_device(ordinal_);
    stream_.download(host, from, bytes);
    stream_.wait();
  }

  void write(void* to, const void* host, size_t bytes) override {
    use_device(ordinal_);
    stream_.upload(to, host, bytes);
    stream_.wait();
  }

  Buffer staging(size_t bytes) override {
    use_device(ordinal_);
    auto memory = std::make_shared<PinnedMemory>(bytes);
    std::byte* data = memory->data();
    return {std::move(memory), data, bytes};
  }

  int64_t placed_bytes(const Weight& mapped) const override {
    return static_cast<int64_t>(PlaneLayout(mapped).bytes());
  }
  Weight place(const Weight& mapped, std::shared_ptr<const void>) override {
    use_device(ordinal_);
    return weights_.place(mapped);
  }

  int64_t padded_rows(int64_t rows) const override {
    constexpr int64_t kMost = 64;
    return rows > kMost ? rows : static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
  }

  int run(const std::function<void(Ops&)>& step) override {
    constexpr int32_t kNone = std::numeric_limits<int32_t>::max();
    int32_t smallest_tag = kNone;
    use_device(ordinal_);
    memory_.begin_plan();
    walk(step, &smallest_tag);
    if (memory_.begin_issue()) recordings_.clear();
    recordings_.run(ops_->key(), [&] { walk(step, &smallest_tag); });
    memory_.finish();
    return smallest_tag == kNone ? kFinite : smallest_tag;
  }

 private:
  template <class AnyOps>
  std::unique_ptr<CudaOps> make_ops() {
    return std::make_unique<AnyOps>(weights_, memory_, stream_.handle(), device_.multiprocessors);
  }

  void walk(const std::function<void(Ops&)>& step, int32_t* smallest_tag) {
    const StepMemory::Slot tag = memory_.result(smallest_tag, sizeof *smallest_tag);
    ops_->begin(memory_.address<int32_t>(tag));
    step(*ops_);
  }

  int ordinal_;
  DeviceProperties device_;
  bool deterministic_;
  DeviceStream stream_;
  WeightStore weights_;
  StepMemory memory_;
  Recordings recordings_;
  std::unique_ptr<CudaOps> ops_;
};

}  // namespace

std::unique_ptr<Backend> make_backend(const BackendOptions& options) {
  if (options.kv.value_or(DType::bf16) != DType::bf16) {
    throw Error(ErrorCode::invalid_argument, "device 'cuda' keeps K and V in bf16; give kv='bf16' or leave it out",
                "kv");
  }
  use_device(options.ordinal);
  const DeviceProperties device = device_properties();
  if (device.capability < kOldestCapability) {
    throw Error(ErrorCode::unsupported,
                str(device.name, " has compute capability ", device.capability / 10, ".", device.capability % 10,
                    "; the CUDA backend needs 8.0 or newer: use device 'cpu'"),
                "device");
  }
  return std::make_unique<CudaBackend>(options.ordinal, device, options.deterministic);
}

}  // namespace gemmantle::cuda
