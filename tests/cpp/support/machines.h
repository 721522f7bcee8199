// machines.h: every backend, instruction set and thread count that a test of backends runs on.
#pragma once

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace gemmantle::test {

struct Machine {
  std::string device;
  std::string isa;  // of device "cpu"
  int threads = 1;
  std::string missing;  // why it cannot run here; empty when it can

  std::string name() const { return device + (isa.empty() ? "" : "_" + isa + "_" + std::to_string(threads)); }
  std::unique_ptr<Backend> make() const;
};

inline void PrintTo(const Machine& machine, std::ostream* out) { *out << machine.name(); }

std::vector<Machine> all_machines();

}  // namespace gemmantle::test
