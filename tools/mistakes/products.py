"""Mistakes in the kernels of products."""

from __future__ import annotations

from tools.mistakes.mistake import Mistake

_KERNEL, _ROWS, _RESULTS = "product.cuh", "product_rows.cuh", "product_results.cuh"
_LEFT, _NORM = "struct LeftRows", "struct RowNorm"

#: Those of `call` "tiles" are met by a linear of several tiles, those of "parts" where blocks have a part of a sum each.
MISTAKES = (
    Mistake("no wait for a step", _KERNEL, "", "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", "tiles"),
    Mistake("no barrier around a step", _KERNEL, "", "__syncthreads();  // this stage is there", "// ", "tiles"),
    Mistake("a step is filled while it is read", _KERNEL, "", "start(next);", "start(stage);", "tiles"),
    Mistake(
        "no barrier before results take the stages' place", _KERNEL, "", "__syncthreads();  // nobody reads", "// ", "tiles"
    ),
    Mistake("no wait for the residual", _RESULTS, "void finish(", "cp_async_wait<0>();", "", "tiles"),
    Mistake("no barrier before results are stored", _RESULTS, "put_pooled(tile, x);", "__syncthreads();", "", "tiles"),
    Mistake("a row of the weight too many", _ROWS, "start_weight(", "n < p.columns", "n <= p.columns", "tiles"),
    Mistake("a row of the map too many", _ROWS, _LEFT, "r < p.rows ?", "r <= p.rows ?", "tiles"),
    Mistake("channels beyond the map", _ROWS, _LEFT, "is_on_map(j) && left > 0", "is_on_map(j)", "tiles"),
    Mistake("no __syncwarp before statistics are read", _ROWS, _NORM, "__syncwarp();", "", "tiles"),
    Mistake("two blocks write one part of a sum", _KERNEL, "float* sums(", "int64_t(part) * gridDim.x", "int64_t(0)", "parts"),
    Mistake("a part begins a step late", _KERNEL, "alone ?", "int(blockIdx.y) * p.steps_of_part", "blockIdx.y", "parts"),
)
