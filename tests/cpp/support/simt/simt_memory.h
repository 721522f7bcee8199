// simt_memory.h: all device memory there is, and hiding it from a kernel that has not yet waited for the one ahead.
#pragma once

#include <cstddef>

namespace simt::host {

void add_memory(unsigned char* data, size_t bytes);
void remove_memory(const unsigned char* data);
// Written before the first kernel runs and never by one: what a kernel may read before it waits.
void mark_constant(const void* data);

// Fills everything that is not constant with NaN, until show_memory() brings it back; a write in between ends the
// program.
void hide_memory();
void show_memory();
bool is_memory_hidden();

}  // namespace simt::host
