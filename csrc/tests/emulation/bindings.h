// The emulation's switches as the Python module `emulation` within the emulated library. csrc/bindings/cuda.cpp calls it where
// HIFUSE_EMULATION is defined.
#pragma once
#include <pybind11/pybind11.h>

namespace hifuse::emulation {
void bind(pybind11::module_& library);
}
