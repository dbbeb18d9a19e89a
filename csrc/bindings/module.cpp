// The Python module: build information and the choice of instruction set. Importing it registers the ops of this library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "build_info.h"  // written by CMake
#include "cpu/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information and the choice of instruction set; importing it registers the ops of hifuse_fast.";
  m.def("build_info", [] { return std::map<std::string, std::string>{HIFUSE_BUILD_INFO}; });
  m.def("compiled_isas", &hifuse::isa::compiled, "Instruction sets in this library, slowest first.");
  m.def("usable_isas", &hifuse::isa::usable, "Those of them that this CPU and operating system run.");
  m.def("isa", &hifuse::isa::current, "The instruction set in use.");
  m.def("select_isa", &hifuse::isa::select, pybind11::arg("name"),
        "Use another usable instruction set from now on, in tests and benchmarks; ValueError for one that is not usable.");
}
