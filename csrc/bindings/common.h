// What the bindings share. They alone know torch and Python: unwrap, check, allocate, call.
//
// Ops go through the dispatcher with the LibTorch stable ABI, so one build serves every torch from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "cpu/isa.h"

namespace hifuse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const Parallel kTorchThreads{[](int64_t count, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) {
                                      torch::stable::parallel_for(
                                          0, count, grain, [=](int64_t begin, int64_t end) { body(context, begin, end); });
                                    },
                                    [] { return static_cast<int64_t>(torch::stable::get_num_threads()); }};

inline const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

}  // namespace hifuse
