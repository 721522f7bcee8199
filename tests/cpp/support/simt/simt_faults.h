// simt_faults.h: mistakes planted in a kernel while it runs, without a line of it changed.
//
// A place is a call in kernel source, by file and line. A test collects the places a kernel comes by, plants a mistake
// at one of them, and wants the kernel to fail.
#pragma once

#include <set>
#include <string>
#include <tuple>

#include "simt_sanitizers.h"

namespace simt {

enum class Fault {
  none,
  no_barrier,   // __syncthreads() is not there
  short_wait,   // copy_wait<N>() waits for one group less
  no_guard,     // copy_async() copies what it should fill with zeros
  wrong_layout  // ldmatrix_x4_trans() does not transpose, ldmatrix_x4() does
};

struct Place {
  Fault fault = Fault::none;
  std::string file;
  unsigned line = 0;

  bool operator<(const Place& other) const {
    return std::tie(fault, file, line) < std::tie(other.fault, other.file, other.line);
  }
};

inline Place planted;
inline std::set<Place>* places = nullptr;  // where those that are come by go, while somebody collects them

namespace host {

inline bool is_planted(Fault fault, const char* file, unsigned line) {
  if (places != nullptr) {
    const Quiet quiet;
    places->insert({fault, file, line});
  }
  return planted.fault == fault && planted.line == line && planted.file == file;
}

}  // namespace host
}  // namespace simt
