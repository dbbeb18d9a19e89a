// The Python module of the CUDA kernels: `_cuda`, and `_cuda_emulated`, where the same kernels run on the CPU. It knows no
// torch. A file beside this one has the entry points of an op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_build_info.h"  // written by CMake

namespace hifuse {
void bind_batch_norm(pybind11::module_& m);
void bind_blocks(pybind11::module_& m);
void bind_concat_norm(pybind11::module_& m);
void bind_depthwise_norm(pybind11::module_& m);
void bind_ends(pybind11::module_& m);
void bind_gated_concat(pybind11::module_& m);
void bind_layer_norm(pybind11::module_& m);
void bind_max_mean(pybind11::module_& m);
void bind_product(pybind11::module_& m);
void bind_sm90(pybind11::module_& m);
void bind_window_attention(pybind11::module_& m);
}  // namespace hifuse

#ifdef HIFUSE_EMULATED
namespace hifuse::cuda {
void bind_emulation(pybind11::module_& module);  // csrc/tests/emulation/bindings.cpp
}
#endif

PYBIND11_MODULE(HIFUSE_MODULE, m) {
  m.doc() = "The CUDA kernels of hifuse_fast, given addresses, sizes and a stream.";
  m.def("build_info", [] { return std::map<std::string, std::string>{HIFUSE_CUDA_BUILD_INFO}; });
  m.def(
      "listed",
      [] {
        std::vector<std::tuple<std::string, std::string, int, int, int>> all;
        for (const auto& [name, type, threads, blocks, shared_bytes] : hifuse::cuda::listed())
          all.emplace_back(name, type, threads, blocks, shared_bytes);
        return all;
      },
      "Name, mangled type, threads, blocks that a multiprocessor is to hold, and bytes of shared memory of every kernel.");
  m.def(
      "begin_early", [](bool early) { hifuse::cuda::begin_early = early; },
      "Whether launches of this thread may begin before those before them have ended.");
  hifuse::bind_batch_norm(m);
  hifuse::bind_blocks(m);
  hifuse::bind_concat_norm(m);
  hifuse::bind_depthwise_norm(m);
  hifuse::bind_ends(m);
  hifuse::bind_gated_concat(m);
  hifuse::bind_layer_norm(m);
  hifuse::bind_max_mean(m);
  hifuse::bind_product(m);
  hifuse::bind_window_attention(m);
#ifdef HIFUSE_SM90
  hifuse::bind_sm90(m);
#endif
#ifdef HIFUSE_EMULATED
  hifuse::cuda::bind_emulation(m);
#endif
}
