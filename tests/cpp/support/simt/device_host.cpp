// device_host.cpp: device.h without a device: its memory is the host's, filled with NaN and checked for overruns, and a
// stream runs everything at once.
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "backend/cuda/device.h"
#include "core/error.h"
#include "simt_fibers.h"
#include "simt_memory.h"

namespace gemmantle::cuda {
namespace {

constexpr size_t kRedZone = 256;
constexpr unsigned char kUnwritten = 0xff;  // NaN in every float format
constexpr unsigned char kRed = 0xa5;

// Memory filled with NaN, whose end is looked at when it is given back.
std::shared_ptr<std::byte> take(size_t bytes) {
  auto* memory = static_cast<unsigned char*>(std::aligned_alloc(256, (bytes + kRedZone + 255) / 256 * 256));
  if (memory == nullptr) throw Error(ErrorCode::out_of_memory, str("no memory for ", bytes, " bytes"));
  std::memset(memory, kUnwritten, bytes);
  std::memset(memory + bytes, kRed, kRedZone);
  return {reinterpret_cast<std::byte*>(memory), [bytes](std::byte* data) {
            for (size_t i = 0; i < kRedZone; ++i) {
              if (data[bytes + i] != std::byte{kRed}) simt::host::die("a kernel wrote behind its device memory");
            }
            std::free(data);
          }};
}

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

DeviceProperties device_properties() { return {"host", 90, 4, size_t{1} << 33, size_t{1} << 33}; }

DeviceMemory::DeviceMemory(size_t bytes) : bytes_(bytes) {
  std::shared_ptr<std::byte> memory = take(bytes);
  auto* data = reinterpret_cast<unsigned char*>(memory.get());
  simt::host::add_memory(data, bytes);
  data_ = {memory.get(), [memory, data](std::byte*) mutable {
             simt::host::remove_memory(data);
             memory.reset();
           }};
}
PinnedMemory::PinnedMemory(size_t bytes) : data_(take(bytes)), bytes_(bytes) {}

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
