// bind_probe.cpp: MachineProbe, the limits that speeds are compared with.
#include "backend/cpu/machine_probe.h"
#include "bindings/convert.h"

namespace gemmantle::bindings {

void bind_probe(py::module_& m) {
  py::class_<MachineProbe>(m, "MachineProbe", "How fast this machine reads memory and multiplies.")
      .def(py::init<int>(), py::arg("threads") = 0, "threads: 0 for one per physical core. Raises RequestError.")
      .def_property_readonly("threads", &MachineProbe::threads, "Threads that measure together.")
      .def("read_rate", &MachineProbe::read_rate, py::arg("seconds") = 0.2, py::call_guard<py::gil_scoped_release>(),
           "Bytes a second that all threads together read from memory: median of passes over 256 MiB. Raises "
           "OutOfMemory.")
      .def("product_rate", &MachineProbe::product_rate, py::arg("kind"), py::arg("seconds") = 0.2,
           py::call_guard<py::gil_scoped_release>(),
           "Multiplications and additions a second of \"f32\", \"bf16\" or \"i8\" products from registers.\n\n"
           "None where the instruction set in use has none of the kind. Raises RequestError for another kind.");
}

}  // namespace gemmantle::bindings
