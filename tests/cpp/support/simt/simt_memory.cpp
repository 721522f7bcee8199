#include "simt_memory.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "simt_fibers.h"

namespace simt::host {
namespace {

constexpr unsigned char kHidden = 0xff;

struct Memory {
  size_t bytes = 0;
  bool is_constant = false;
  std::vector<unsigned char> contents;  // while it is hidden
};

std::mutex mutex;  // models are loaded by one thread and run by another
std::map<unsigned char*, Memory> all;
thread_local bool is_hidden = false;

}  // namespace

void add_memory(unsigned char* data, size_t bytes) {
  const std::lock_guard lock(mutex);
  all[data].bytes = bytes;
}

void remove_memory(const unsigned char* data) {
  const std::lock_guard lock(mutex);
  all.erase(const_cast<unsigned char*>(data));
}

void mark_constant(const void* data) {
  const std::lock_guard lock(mutex);
  all.at(static_cast<unsigned char*>(const_cast<void*>(data))).is_constant = true;
}

void hide_memory() {
  const std::lock_guard lock(mutex);
  is_hidden = true;
  for (auto& [data, memory] : all) {
    if (memory.is_constant) continue;
    memory.contents.assign(data, data + memory.bytes);
    std::memset(data, kHidden, memory.bytes);
  }
}

void show_memory() {
  const std::lock_guard lock(mutex);
  is_hidden = false;
  for (auto& [data, memory] : all) {
    if (memory.is_constant) continue;
    if (!std::all_of(data, data + memory.bytes, [](unsigned char byte) { return byte == kHidden; })) {
      die("a kernel wrote before it waited for the one ahead");
    }
    std::copy(memory.contents.begin(), memory.contents.end(), data);
  }
}

bool is_memory_hidden() { return is_hidden; }

}  // namespace simt::host
