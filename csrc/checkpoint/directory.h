// directory.h: what a container's header says, checked, before it becomes a Checkpoint.
//
// Both readers work on bytes in memory and never open a file, so that tests and fuzzers reach them directly. Spans
// point into the given bytes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace gemmantle {

struct TensorDirectory {
  std::vector<StoredTensor> tensors;                           // in the order of their bytes
  std::map<std::string, std::string, std::less<>> unreadable;  // name -> why its values cannot be read
};

// Product of the dimensions, or -1 when it does not fit.
int64_t checked_elements(const std::vector<int64_t>& shape);

// "[640, 2048]"
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace gemmantle
