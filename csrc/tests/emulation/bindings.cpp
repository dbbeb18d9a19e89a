// The emulation's switches, as the module `emulation` within the emulated library: csrc/bindings/cuda/module.cpp calls
// `bind_emulation`.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <utility>

#include "emulation.h"

namespace py = pybind11;

namespace hifuse::emulation {
namespace {

template <class T>
T named(const std::string& what, const std::string& name, std::initializer_list<std::pair<const char*, T>> all) {
  std::string known;
  for (const auto& [text, value] : all) {
    if (name == text) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw std::invalid_argument(what + " must be one of " + known + ", not " + name);
}

void set_options(const std::string& order, const std::string& landing, uint64_t seed, bool check, bool profile) {
  const auto o =
      named<Order>("order", order, {{"forward", Order::forward}, {"reverse", Order::reverse}, {"random", Order::random}});
  const auto l = named<Landing>("landing", landing, {{"late", Landing::late}, {"early", Landing::early}});
  options() = {o, l, seed, check, profile};
}

py::dict counted() {
  const Counters c = std::exchange(counters(), {});
  py::dict all;
  const auto add = [&](const char* name, uint64_t value) { all[name] = value; };
  add("launches", c.launches);
  add("blocks", c.blocks);
  add("switches", c.switches);
  add("collectives", c.collectives);
  add("barriers", c.barriers);
  add("products", c.products);
  add("copies", c.copies);
  add("shared_accesses", c.shared_accesses);
  add("device_accesses", c.device_accesses);
  add("ldmatrix_requests", c.ldmatrix_requests);
  add("ldmatrix_conflicts", c.ldmatrix_conflicts);
  add("shared_requests", c.shared_requests);
  add("shared_conflicts", c.shared_conflicts);
  add("load_requests", c.load_requests);
  add("load_sectors", c.load_sectors);
  add("load_bytes", c.load_bytes);
  add("store_requests", c.store_requests);
  add("store_sectors", c.store_sectors);
  add("store_bytes", c.store_bytes);
  return all;
}

}  // namespace
}  // namespace hifuse::emulation

namespace hifuse::cuda {
using namespace emulation;

void bind_emulation(py::module_& library);
void bind_emulation(py::module_& library) {
  py::module_ m = library.def_submodule("emulation", "How kernels run on the CPU, and what was found.");
  m.def("options", set_options, py::kw_only(), py::arg("order") = "forward", py::arg("landing") = "late", py::arg("seed") = 1,
        py::arg("check") = true, py::arg("profile") = false,
        "Sets all options of the launches to come. order: forward, reverse, random; landing: late, early.");
  m.def(
      "allow",
      [](uintptr_t pointer, size_t bytes, bool writable) { allow(reinterpret_cast<const void*>(pointer), bytes, writable); },
      py::arg("pointer"), py::arg("bytes"), py::arg("writable"), "Lets launches use this memory until `forget`.");
  m.def("forget", forget, "Forgets all memory that was allowed.");
  m.def("errors", errors, "What was found since the last call.");
  m.def("stages_used_once", stages_used_once,
        "Stages of pipelines that no launch since the last call has used twice in a block.");
  m.def("counters", counted, "What was counted since the last call. Requests, conflicts and sectors need the option profile.");
}

}  // namespace hifuse::cuda
