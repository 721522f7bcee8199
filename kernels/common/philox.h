// philox.h: counter-based random numbers (Philox4x32-10), the same on every device.
//
// Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. There is no state: a draw is a
// function of (seed, choice, position), so a request draws the same numbers alone, in a crowd and after a preemption.
#pragma once

#include <stdint.h>

#include "kernels/common/macros.h"

namespace gemmantle {

struct Philox4x32 {
  uint32_t v[4];
};

GEMMANTLE_HD static inline Philox4x32 philox4x32_10(Philox4x32 counter, uint32_t key0, uint32_t key1) noexcept {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(0xD2511F53u) * counter.v[0];
    const uint64_t b = static_cast<uint64_t>(0xCD9E8D57u) * counter.v[2];
    const Philox4x32 next = {{static_cast<uint32_t>(b >> 32) ^ counter.v[1] ^ key0, static_cast<uint32_t>(b),
                              static_cast<uint32_t>(a >> 32) ^ counter.v[3] ^ key1, static_cast<uint32_t>(a)}};
    counter = next;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// One uniform in [0, 1) with 53 bits. `choice` is the index of the choice, `position` that of the token in its
// sequence.
GEMMANTLE_HD static inline double philox_uniform(uint64_t seed, uint32_t choice, uint64_t position) noexcept {
  const Philox4x32 counter = {{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), choice, 0u}};
  const Philox4x32 out = philox4x32_10(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t bits = (static_cast<uint64_t>(out.v[0]) << 32 | out.v[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

}  // namespace gemmantle
