// device_host.cpp: device.h without a device: its memory is the host's (simulated_devices.h), and a stream runs
// everything at once.
#include <cstring>
#include <utility>
#include <vector>

#include "backend/cuda/device.h"
#include "simt_fibers.h"
#include "simulated_devices.h"

namespace gemmantle::cuda {
namespace {

struct Closures final : RecordedWork {
  std::vector<std::function<void()>> closures;
};

// Now, or when the recording is replayed.
void enqueue(std::function<void()> work) {
  if (simt::host::recording != nullptr) {
    simt::host::recording->push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace

void use_device(int ordinal) { simt::host::use_device(ordinal); }

DeviceProperties device_properties() {
  const int ordinal = simt::host::device_in_use();
  return {"host", 90, 4, simt::host::device_memory_bytes(ordinal), simt::host::device_free_bytes(ordinal)};
}

DeviceMemory::DeviceMemory(size_t bytes) : data_(simt::host::take_device_memory(bytes)), bytes_(bytes) {}
PinnedMemory::PinnedMemory(size_t bytes) : data_(simt::host::take_pinned_memory(bytes)), bytes_(bytes) {}

DeviceStream::DeviceStream() = default;
DeviceStream::~DeviceStream() = default;

void DeviceStream::upload(void* device, const void* host, size_t bytes) {
  enqueue([=] { std::memcpy(device, host, bytes); });
}
void DeviceStream::download(void* host, const void* device, size_t bytes) {
  enqueue([=] { std::memcpy(host, device, bytes); });
}
void DeviceStream::zero(void* device, size_t bytes) {
  enqueue([=] { std::memset(device, 0, bytes); });
}
void DeviceStream::wait() { ++simt::host::waits; }

std::unique_ptr<RecordedWork> DeviceStream::record(const std::function<void()>& work) {
  auto recorded = std::make_unique<Closures>();
  simt::host::recording = &recorded->closures;
  try {
    work();
  } catch (...) {
    simt::host::recording = nullptr;
    throw;
  }
  simt::host::recording = nullptr;
  return recorded;
}

void DeviceStream::replay(const RecordedWork& recorded) {
  ++simt::host::replays;
  for (const auto& closure : static_cast<const Closures&>(recorded).closures) closure();
}

}  // namespace gemmantle::cuda
