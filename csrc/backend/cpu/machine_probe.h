// machine_probe.h: how fast this machine reads memory and multiplies, by loops that do nothing else.
//
// The limits that measured speeds are compared with. A probe owns its threads and its memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/cpu/kernel_table.h"

namespace gemmantle {

class MachineProbe {
 public:
  // threads as in BackendOptions. Throws invalid_argument, and out_of_memory for the memory it reads.
  explicit MachineProbe(int threads);

  int threads() const { return pool_.threads(); }

  // Bytes a second, of memory far larger than any cache: the median of several passes, for about `seconds`.
  double read_rate(double seconds);

  // Multiplications and additions a second of "f32", "bf16" or "i8" products with operands in registers. Nothing where
  // the instruction set in use has none of the kind; throws invalid_argument for another kind.
  std::optional<double> product_rate(std::string_view kind, double seconds);

 private:
  template <class Pass>
  double median_rate(double seconds, double work, Pass&& pass);

  struct alignas(64) Sink {
    uint8_t bytes[cpu::kPeakSink];
  };

  const cpu::PeakKernels& peaks_;
  ThreadPool pool_;
  std::vector<Sink> sinks_;  // one a thread
  std::unique_ptr<uint8_t[]> memory_;
};

}  // namespace gemmantle
