#include "simulated_devices.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "simt_fibers.h"
#include "simt_memory.h"

namespace simt::host {
namespace {

using gemmantle::Error;
using gemmantle::ErrorCode;
using gemmantle::str;

constexpr size_t kRedZone = 256;
constexpr unsigned char kUnwritten = 0xff;  // NaN in every float format
constexpr unsigned char kRed = 0xa5;

void mark(std::byte* memory, size_t bytes) {
  std::memset(memory, kUnwritten, bytes);
  std::memset(memory + bytes, kRed, kRedZone);
}

void check_red_zone(const std::byte* memory, size_t bytes) {
  for (size_t i = 0; i < kRedZone; ++i) {
    if (memory[bytes + i] != std::byte{kRed}) die("a kernel wrote behind its device memory");
  }
}

class Devices {
 public:
  Devices() {
    const char* count = std::getenv("GEMMANTLE_CUDA_ON_HOST_DEVICES");
    const int n = count == nullptr ? 1 : std::atoi(count);
    if (n < 1 || n > 64) die("GEMMANTLE_CUDA_ON_HOST_DEVICES is 1 to 64");
    const char* memory = std::getenv("GEMMANTLE_CUDA_ON_HOST_MEMORY");
    std::istringstream list(memory == nullptr ? "8589934592" : memory);
    for (std::string bytes; std::getline(list, bytes, ',');) room_.push_back(std::stoull(bytes));
    room_.resize(static_cast<size_t>(n), room_.back());
    used_.resize(room_.size());
    if (n > 1) watch();
  }

  int count() const { return static_cast<int>(room_.size()); }
  int in_use() const { return in_use_; }
  size_t room(int ordinal) const { return room_.at(static_cast<size_t>(ordinal)); }
  size_t free(int ordinal) {
    const std::lock_guard lock(mutex_);
    return room(ordinal) - used_[static_cast<size_t>(ordinal)];
  }

  void use(int ordinal) {
    const std::lock_guard lock(mutex_);
    if (ordinal < 0 || ordinal >= count()) throw Error(ErrorCode::device, str("there is no device ", ordinal));
    if (ordinal == in_use_) return;
    in_use_ = ordinal;
    for (const auto& [data, range] : ranges_) open(data, range, range.device == ordinal);
  }

  std::byte* take(size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto device = static_cast<size_t>(in_use_);
    if (bytes > room_[device] - used_[device]) {
      throw Error(ErrorCode::out_of_memory, str(bytes, " bytes of device memory are not to be had: the device has ",
                                                room_[device] - used_[device], " of ", room_[device], " bytes free"));
    }
    const Range range{bytes, whole_pages(bytes + kRedZone), in_use_};
    void* memory = count() == 1
                       ? std::aligned_alloc(256, (bytes + kRedZone + 255) / 256 * 256)
                       : mmap(nullptr, range.mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == nullptr || memory == MAP_FAILED) throw Error(ErrorCode::out_of_memory, "the host has no memory left");
    auto* data = static_cast<std::byte*>(memory);
    mark(data, bytes);
    used_[device] += bytes;
    ranges_.emplace(data, range);
    return data;
  }

  void give_back(std::byte* data) {
    const std::lock_guard lock(mutex_);
    const auto found = ranges_.find(data);
    const Range range = found->second;
    ranges_.erase(found);
    used_[static_cast<size_t>(range.device)] -= range.bytes;
    open(data, range, true);
    check_red_zone(data, range.bytes);
    count() == 1 ? std::free(data) : static_cast<void>(munmap(data, range.mapped));
  }

  // The device whose memory `address` is; -1 for none. Without the lock: for the signal, which may hold it.
  int owner_of(const void* address) const {
    const auto* at = static_cast<const std::byte*>(address);
    for (const auto& [data, range] : ranges_) {
      if (at >= data && at < data + range.mapped) return range.device;
    }
    return -1;
  }

 private:
  struct Range {
    size_t bytes = 0;
    size_t mapped = 0;
    int device = 0;
  };

  static size_t whole_pages(size_t bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return (bytes + page - 1) / page * page;
  }

  void open(std::byte* data, const Range& range, bool is_open) const {
    if (count() > 1) mprotect(data, range.mapped, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
  }

  static void watch();

  std::mutex mutex_;
  std::vector<size_t> room_, used_;
  std::map<std::byte*, Range> ranges_;
  int in_use_ = 0;
};

Devices& devices() {
  static Devices& all = *new Devices;  // memory may be given back while the program ends
  return all;
}

void Devices::watch() {
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = [](int, siginfo_t* info, void*) {
    const int owner = devices().owner_of(info->si_addr);
    if (owner >= 0 && owner != devices().in_use()) {
      die(str("memory of device ", owner, " was touched while device ", devices().in_use(), " was in use").c_str());
    }
    std::signal(SIGSEGV, SIG_DFL);  // not ours: again, for whoever looks at crashes
  };
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace

int device_count() { return devices().count(); }
void use_device(int ordinal) { devices().use(ordinal); }
int device_in_use() { return devices().in_use(); }
size_t device_memory_bytes(int ordinal) { return devices().room(ordinal); }
size_t device_free_bytes(int ordinal) { return devices().free(ordinal); }

std::shared_ptr<std::byte> take_device_memory(size_t bytes) {
  std::byte* taken = devices().take(bytes);
  add_memory(reinterpret_cast<unsigned char*>(taken), bytes);
  return {taken, [](std::byte* data) {
            remove_memory(reinterpret_cast<unsigned char*>(data));
            devices().give_back(data);
          }};
}

std::shared_ptr<std::byte> take_pinned_memory(size_t bytes) {
  auto* data = static_cast<std::byte*>(std::malloc(bytes + kRedZone));
  if (data == nullptr) throw Error(ErrorCode::out_of_memory, str("no memory for ", bytes, " bytes"));
  mark(data, bytes);
  return {data, [bytes](std::byte* memory) {
            check_red_zone(memory, bytes);
            std::free(memory);
          }};
}

}  // namespace simt::host
