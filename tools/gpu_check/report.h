// report.h: results as the lines of JSON that gpu_check reads.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

namespace gemmantle::gpu_check {

// Whether an error is within its limit; one that is no number is not.
inline bool report_result(const std::string& name, double error, double limit) {
  const bool right = error <= limit;
  // JSON knows neither NaN nor infinity.
  std::printf("{\"check\": \"%s\", \"error\": %.3g, \"limit\": %.3g, \"ok\": %s}\n", name.c_str(),
              std::isfinite(error) ? error : 1e300, limit, right ? "true" : "false");
  std::fflush(stdout);
  return right;
}

}  // namespace gemmantle::gpu_check
