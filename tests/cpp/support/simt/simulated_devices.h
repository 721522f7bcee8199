// simulated_devices.h: the memory of one or several devices that are not there.
//
// Memory is NaN until it is written and is checked for overruns when it is given back. With several devices
// (GEMMANTLE_CUDA_ON_HOST_DEVICES) that of a device cannot be read or written while another one is in use: a kernel or
// a copy that does so ends the program with words. GEMMANTLE_CUDA_ON_HOST_MEMORY: bytes of each device, "a,b,..." or
// one number for all.
#pragma once

#include <cstddef>
#include <memory>

namespace simt::host {

int device_count();
void use_device(int ordinal);
int device_in_use();
size_t device_memory_bytes(int ordinal);
size_t device_free_bytes(int ordinal);

// Of the device in use; throws gemmantle::Error, out_of_memory, where it has no more.
std::shared_ptr<std::byte> take_device_memory(size_t bytes);
// Of the host.
std::shared_ptr<std::byte> take_pinned_memory(size_t bytes);

}  // namespace simt::host
