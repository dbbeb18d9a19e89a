// The Python module: build information, the choice of instruction set, the sizes of packed weights. Importing it registers the
// ops of this library.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "bindings/packing.h"
#include "bindings/threads.h"
#include "build_info.h"  // written by CMake
#include "cpu/cores.h"
#include "cpu/isa.h"

PYBIND11_MODULE(_C, m) {
  m.doc() =
      "Build information, the choice of instruction set, sizes of packed weights; importing it registers the ops of "
      "hifuse_fast.";
  m.def("build_info", [] { return std::map<std::string, std::string>{HIFUSE_BUILD_INFO}; });
  m.def("compiled_isas", &hifuse::isa::compiled, "Instruction sets in this library, slowest first.");
  m.def("usable_isas", &hifuse::isa::usable, "Those of them that this CPU and operating system run.");
  m.def("isa", &hifuse::isa::current, "The instruction set in use.");
  m.def("select_isa", &hifuse::isa::select, pybind11::arg("name"),
        "Use another usable instruction set from now on, in tests and benchmarks; ValueError for one that is not usable.");
  m.def("usable_cores", &hifuse::usable_cores,
        "How many threads can compute at the same time: the cores of the calling thread's affinity, within the CPU quota.");
  m.def(
      "lend_threads", &hifuse::lend_threads, pybind11::arg("count"),
      "From now on, the ops that this thread calls run on so many threads of the library's own; 0: on PyTorch's. Returns what "
      "held before, for another call; ValueError for a count below 0.");
  // For the fakes of the ops that pack, which know no layout.
  m.def(
      "packed_matrix_size",
      [](int64_t columns, int64_t depth, int64_t algorithm) {
        return hifuse::packed_matrix_size(columns, depth, static_cast<hifuse::Algorithm>(algorithm));
      },
      pybind11::arg("columns"), pybind11::arg("depth"), pybind11::arg("algorithm"), "Elements of a packed matrix.");
  m.def(
      "packed_int8_size",
      [](int64_t columns, int64_t depth, int64_t block) { return hifuse::packed_int8_size(columns, depth, block); },
      pybind11::arg("columns"), pybind11::arg("depth"), pybind11::arg("block"), "Bytes of a packed int8 matrix.");
  m.def(
      "packed_int8_filters_size",
      [](int64_t channels, int64_t algorithm) {
        return hifuse::packed_int8_filters_size(channels, static_cast<hifuse::Algorithm>(algorithm));
      },
      pybind11::arg("channels"), pybind11::arg("algorithm"), "Bytes of the packed int8 filters of a dense 3x3 convolution.");
  m.attr("mlp_block") = hifuse::kHidden;  // of the depth of the second weight of an MLP
  m.def(
      "packed_filters_size",
      [](int64_t channels, bool bfloat16, int64_t algorithm) {
        const auto dtype = bfloat16 ? hifuse::DType::bfloat16 : hifuse::DType::float32;
        return hifuse::packed_filters_size(channels, dtype, static_cast<hifuse::Algorithm>(algorithm));
      },
      pybind11::arg("channels"), pybind11::arg("bfloat16"), pybind11::arg("algorithm"),
      "Elements of the packed filters of a dense 3x3 convolution.");
}
