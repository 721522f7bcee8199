// device_cuda.cpp: device.h on the CUDA run time.
#include <cuda_runtime_api.h>

#include "backend/cuda/device.h"
#include "core/error.h"

namespace gemmantle::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it is not reported twice
  throw Error(ErrorCode::device, str("the GPU failed at ", what, ": ", cudaGetErrorString(error)));
}

// Allocations that fail say what was wanted and what there is.
void check_memory(cudaError_t error, const char* kind, size_t bytes) {
  if (error != cudaErrorMemoryAllocation) return check(error, kind);
  cudaGetLastError();
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  throw Error(ErrorCode::out_of_memory,
              str(bytes, " bytes of ", kind, " are not to be had: the GPU has ", free, " of ", total, " bytes free"));
}

cudaStream_t stream_of(void* handle) { return static_cast<cudaStream_t>(handle); }

struct Graph final : RecordedWork {
  cudaGraphExec_t graph = nullptr;
  ~Graph() override {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
};

}  // namespace

void use_device(int ordinal) { check(cudaSetDevice(ordinal), "choosing a device"); }

DeviceProperties device_properties() {
  int ordinal = 0;
  check(cudaGetDevice(&ordinal), "asking for the device in use");
  cudaDeviceProp found{};
  check(cudaGetDeviceProperties(&found, ordinal), "reading its properties");
  DeviceProperties properties;
  properties.name = found.name;
  properties.capability = 10 * found.major + found.minor;
  properties.multiprocessors = found.multiProcessorCount;
  check(cudaMemGetInfo(&properties.free_bytes, &properties.memory_bytes), "reading its free memory");
  return properties;
}

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  if (bytes > 0) check_memory(cudaMalloc(&memory, bytes), "device memory", bytes);
  data_.reset(static_cast<std::byte*>(memory), cudaFree);
}

PinnedMemory::PinnedMemory(size_t bytes) : bytes_(bytes) {
  void* memory = nullptr;
  if (bytes > 0) check_memory(cudaMallocHost(&memory, bytes), "pinned memory", bytes);
  data_.reset(static_cast<std::byte*>(memory), cudaFreeHost);
}

DeviceStream::DeviceStream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  handle_ = stream;
}
DeviceStream::~DeviceStream() { cudaStreamDestroy(stream_of(handle_)); }

void DeviceStream::upload(void* device, const void* host, size_t bytes) {
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_of(handle_)), "an upload");
}
void DeviceStream::download(void* host, const void* device, size_t bytes) {
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_of(handle_)), "a download");
}
void DeviceStream::zero(void* device, size_t bytes) {
  check(cudaMemsetAsync(device, 0, bytes, stream_of(handle_)), "clearing memory");
}
void DeviceStream::wait() {
  check(cudaGetLastError(), "a launch");
  check(cudaStreamSynchronize(stream_of(handle_)), "a kernel");
}

std::unique_ptr<RecordedWork> DeviceStream::record(const std::function<void()>& work) {
  check(cudaStreamBeginCapture(stream_of(handle_), cudaStreamCaptureModeThreadLocal), "recording a step");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream_of(handle_), &graph);
    cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_of(handle_), &graph), "recording a step");
  auto recorded = std::make_unique<Graph>();
  const cudaError_t error = cudaGraphInstantiate(&recorded->graph, graph, 0);
  cudaGraphDestroy(graph);
  check(error, "making a recorded step ready");
  return recorded;
}

void DeviceStream::replay(const RecordedWork& recorded) {
  check(cudaGraphLaunch(static_cast<const Graph&>(recorded).graph, stream_of(handle_)), "replaying a step");
}

}  // namespace gemmantle::cuda
