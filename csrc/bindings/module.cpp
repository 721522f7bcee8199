// module.cpp: the extension module gemmantle._core, and C++ errors as Python exceptions.
#include <exception>

#include "bindings/convert.h"

namespace gemmantle::bindings {
namespace {

struct ErrorClass {
  const char* name;
  const char* code;  // of a RequestError
};

ErrorClass error_class(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return {"RequestError", "invalid_value"};
    case ErrorCode::context_length: return {"RequestError", "context_length_exceeded"};
    case ErrorCode::queue_full: return {"RequestError", "engine_busy"};
    case ErrorCode::cancelled: return {"RequestError", "request_cancelled"};
    case ErrorCode::not_found: return {"ModelNotFound", nullptr};
    case ErrorCode::corrupt_file: return {"CorruptFile", nullptr};
    case ErrorCode::unsupported: return {"UnsupportedModel", nullptr};
    case ErrorCode::out_of_memory: return {"OutOfMemory", nullptr};
    case ErrorCode::device: return {"DeviceError", nullptr};
    case ErrorCode::closed: return {"EngineClosed", nullptr};
    case ErrorCode::forked: return {"ForkedEngineError", nullptr};
    case ErrorCode::internal: break;
  }
  return {"InternalError", nullptr};
}

void raise(const Error& error) {
  const ErrorClass target = error_class(error.code());
  const py::object type = py::module_::import("gemmantle.errors").attr(target.name);
  py::dict fields;
  if (target.code != nullptr) {
    fields["code"] = target.code;
    if (!error.param().empty()) fields["param"] = to_str(error.param());
  }
  const py::object exception = type(to_str(error.message()), **fields);
  PyErr_SetObject(type.ptr(), exception.ptr());
}

}  // namespace

void register_errors(py::module_&) {
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Error& error) {
      try {
        raise(error);
      } catch (py::error_already_set& failure) {
        failure.restore();
      }
    }
  });
}

}  // namespace gemmantle::bindings

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  namespace bindings = gemmantle::bindings;
  m.doc() = "The native core of gemmantle. Use the package gemmantle; this module may change between versions.";
  bindings::register_errors(m);
  bindings::bind_system(m);
  bindings::bind_probe(m);
  bindings::bind_model(m);
  bindings::bind_text(m);
  bindings::bind_merges(m);
  bindings::bind_engine(m);
}
