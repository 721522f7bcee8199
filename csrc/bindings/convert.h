// convert.h: errors, arrays and waiting between C++ and Python.
//
// Arrays come in contiguous and of the exact dtype, or not at all; they go out as numpy arrays that own their memory.
// A wait lets the interpreter lock go and looks for signals twenty times a second.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace gemmantle::bindings {

namespace py = pybind11;

void bind_system(py::module_& m);
void bind_probe(py::module_& m);
void bind_model(py::module_& m);
void bind_text(py::module_& m);
void bind_merges(py::module_& m);
void bind_engine(py::module_& m);

// gemmantle::Error -> the class of gemmantle/errors.py that stands for its code. Imported when it is raised.
void register_errors(py::module_& m);

inline py::str to_str(std::string_view text) {
  PyObject* object = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace");
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(object);
}

inline py::bytes to_bytes(std::string_view text) { return py::bytes(text.data(), text.size()); }

inline int32_t to_id(long long value, const char* field) {
  if (value < 0 || value > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorCode::invalid_argument, str(field, " has ", value, "; token ids are 0 or more"), field);
  }
  return static_cast<int32_t>(value);
}

inline std::vector<int32_t> to_ids(const std::vector<long long>& values, const char* field) {
  std::vector<int32_t> ids;
  ids.reserve(values.size());
  for (const long long value : values) ids.push_back(to_id(value, field));
  return ids;
}

// The ids of a contiguous int32 array of one dimension, copied: the caller may go on with its array.
inline std::vector<int32_t> to_ids(const py::array& array, const char* field) {
  if (!py::dtype::of<int32_t>().equal(array.dtype())) {
    throw py::type_error(str(field, " is an array of ", py::str(array.dtype()).cast<std::string>(),
                             "; it must be one of int32: numpy.asarray(ids, dtype=numpy.int32)"));
  }
  if (array.ndim() != 1 || (array.flags() & py::array::c_style) == 0) {
    throw Error(ErrorCode::invalid_argument,
                str(field, " is an array of ", array.ndim(), " dimensions; it must be contiguous and have one"), field);
  }
  const auto* data = static_cast<const int32_t*>(array.data());
  return {data, data + array.size()};
}

// An array of [rows, cols] that owns `values`.
inline py::array_t<float> to_matrix(std::shared_ptr<float[]> values, int64_t rows, int64_t cols) {
  float* data = values.get();
  auto owner = std::make_unique<std::shared_ptr<float[]>>(std::move(values));
  const py::capsule capsule(owner.get(), [](void* kept) { delete static_cast<std::shared_ptr<float[]>*>(kept); });
  [[maybe_unused]] auto* kept = owner.release();
  return py::array_t<float>({rows, cols}, data, capsule);
}

// What `wait(seconds)` gives within `timeout` seconds: asked again until its result is true. Raises KeyboardInterrupt
// in the main thread.
template <class Wait>
auto wait_interruptibly(std::optional<double> timeout, Wait&& wait) {
  constexpr double kSlice = 0.05;
  double left = timeout.value_or(std::numeric_limits<double>::infinity());
  while (true) {
    const double slice = std::fmin(std::fmax(left, 0.0), kSlice);
    auto got = [&] {
      const py::gil_scoped_release unlocked;
      return wait(slice);
    }();
    left -= slice;
    if (got || !(left > 0)) return got;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

}  // namespace gemmantle::bindings
