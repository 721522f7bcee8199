#include "core/error.h"

namespace gemmantle {

const char* name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::context_length: return "context_length";
    case ErrorCode::queue_full: return "queue_full";
    case ErrorCode::not_found: return "not_found";
    case ErrorCode::corrupt_file: return "corrupt_file";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::device: return "device";
    case ErrorCode::cancelled: return "cancelled";
    case ErrorCode::closed: return "closed";
    case ErrorCode::forked: return "forked";
    case ErrorCode::internal: return "internal";
  }
  return "unknown";
}

void throw_check_failed(const char* expression, const char* file, int line, const std::string& detail) {
  throw Error(ErrorCode::internal,
              str("internal check failed: ", expression, " at ", file, ":", line, detail.empty() ? "" : ": ", detail));
}

}  // namespace gemmantle
