// device.h: a GPU as the backend sees it: memory, pinned memory, a stream, recorded steps.
//
// Two implementations: device_cuda.cpp on the CUDA run time, and one for tests in which device memory is the host's and
// kernels run at once. everything throws Error: out_of_memory with the bytes wanted and free, device for the rest.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

namespace gemmantle::cuda {

struct DeviceProperties {
  std::string name;
  int capability = 0;  // 10 * major + minor
  int multiprocessors = 0;
  size_t memory_bytes = 0;
  size_t free_bytes = 0;  // now
};

// From here on the calling thread takes memory, makes streams and launches on this device; the first one is 0.
void use_device(int ordinal);
// Of the device in use.
DeviceProperties device_properties();

// Memory of the device; its contents are undefined until written.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  explicit DeviceMemory(size_t bytes);
  std::byte* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<std::byte> data_;
  size_t bytes_ = 0;
};

// Host memory that the device reads and writes at the speed of the link.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  explicit PinnedMemory(size_t bytes);
  std::byte* data() const { return data_.get(); }
  size_t bytes() const { return bytes_; }

 private:
  std::shared_ptr<std::byte> data_;
  size_t bytes_ = 0;
};

// Work recorded once and replayed: same kernels, same arguments, same addresses.
class RecordedWork {
 public:
  virtual ~RecordedWork() = default;
};

// Work in order. Sources and targets in host memory are pinned, or the call waits for its copy.
class DeviceStream {
 public:
  DeviceStream();
  ~DeviceStream();
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;

  void* handle() const { return handle_; }  // what launchers take
  void upload(void* device, const void* host, size_t bytes);
  void download(void* host, const void* device, size_t bytes);
  void zero(void* device, size_t bytes);
  // Returns when all work is done; throws what the first refused launch or failed kernel since the last wait reported.
  void wait();

  // `work` only enqueues on this stream; nothing of it runs until it is replayed.
  std::unique_ptr<RecordedWork> record(const std::function<void()>& work);
  void replay(const RecordedWork& recorded);

 private:
  void* handle_ = nullptr;
};

}  // namespace gemmantle::cuda
