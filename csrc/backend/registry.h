// registry.h: the devices there are, with a reason for each one that cannot be used.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace gemmantle {

struct DeviceInfo {
  std::string name;  // what `device=` takes
  std::string description;
  bool available = false;
  std::string reason;  // why not; empty when available
};

std::vector<DeviceInfo> devices();

// Throws invalid_argument for an unknown name, unsupported with the reason for one that is not available, and where
// `device` names several.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);
// One for each device that `device` names, in its order.
std::vector<std::unique_ptr<Backend>> make_backends(const BackendOptions& options);

}  // namespace gemmantle
