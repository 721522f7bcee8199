// op_profile.h: a backend that times every op of another one.
//
// An op counts under its name and the shape and format of its weight. `bytes` are weights and KV that have to be read
// at least once, `operations` the multiplications and additions of products and attention; what else an op reads or
// computes is left out, it is little.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "backend/backend.h"

namespace gemmantle {

class OpProfile {
 public:
  struct Use {
    int64_t calls = 0;
    double seconds = 0;
    int64_t bytes = 0;
    int64_t operations = 0;
  };
  struct Entry {
    std::string op;
    std::string format;  // of its weight; empty without one
    int64_t rows, cols;  // of its weight; query heads and their width for attend; else 0
    Use use;
  };

  // `op` is a literal.
  void add(const char* op, const Weight* weight, const Use& use);
  void add(const char* op, int64_t rows, int64_t cols, const Use& use);
  // What was added since the last call, longest first.
  std::vector<Entry> take();

 private:
  using Key = std::tuple<std::string_view, std::string_view, int64_t, int64_t>;  // names are literals
  void add(const Key& key, const Use& use);

  std::mutex mutex_;
  std::map<Key, Use> uses_;
};

// Throws invalid_argument for a device whose ops return before they are done.
std::unique_ptr<Backend> profiled(std::unique_ptr<Backend> backend, std::shared_ptr<OpProfile> profile);

}  // namespace gemmantle
