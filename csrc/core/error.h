// error.h: the one exception the core throws.
//
// A message says what happened, the value found and what to change. `param` names the field of a request, where one is
// at fault. Bindings turn the code into a Python class; nothing else inspects messages.
#pragma once

#include <exception>
#include <sstream>
#include <string>
#include <utility>

#define GEMMANTLE_EXPORT __attribute__((visibility("default")))

namespace gemmantle {

enum class ErrorCode {
  invalid_argument,
  context_length,
  queue_full,
  not_found,
  corrupt_file,
  unsupported,
  out_of_memory,
  device,
  cancelled,
  closed,
  forked,
  internal,
};

const char* name(ErrorCode code) noexcept;

// Default visibility: an Error thrown inside the CUDA plugin is caught in the core.
class GEMMANTLE_EXPORT Error : public std::exception {
 public:
  Error(ErrorCode code, std::string message, std::string param = {})
      : code_(code), message_(std::move(message)), param_(std::move(param)) {}

  ErrorCode code() const noexcept { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }
  const std::string& message() const noexcept { return message_; }
  const std::string& param() const noexcept { return param_; }

 private:
  ErrorCode code_;
  std::string message_;
  std::string param_;
};

// str("layer ", 3, " needs ", 4): the pieces of a message, joined.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  ((void)(out << parts), ...);
  return out.str();
}

[[noreturn]] void throw_check_failed(const char* expression, const char* file, int line, const std::string& detail);

}  // namespace gemmantle

// A broken invariant of our own code: throws ErrorCode::internal with the expression. Extra arguments are joined by
// str().
#define GEMMANTLE_CHECK(condition, ...)                                                               \
  do {                                                                                                \
    if (!(condition)) [[unlikely]] {                                                                  \
      ::gemmantle::throw_check_failed(#condition, __FILE__, __LINE__, ::gemmantle::str(__VA_ARGS__)); \
    }                                                                                                 \
  } while (false)
