// What the bindings share. They alone know torch and Python: unwrap, check, allocate, call.
//
// Ops go through the dispatcher with the LibTorch stable ABI, so one build serves every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "bindings/threads.h"
#include "cpu/isa.h"

namespace hifuse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

}  // namespace hifuse
