"""Mistakes in the kernels of products."""

from __future__ import annotations

from tools.mistakes.mistake import Mistake

_KERNEL, _ROWS, _RESULTS = "product.cuh", "product_rows.cuh", "product_results.cuh"
_LEFT, _NORM = "struct LeftRows", "struct RowNorm"
_LAST, _ADD = "bool is_last(", "void add_all_parts("

#: Those of `call` "tiles" are met by a linear of several tiles, those of "parts" where blocks have a part of a sum each, those
#: of "several products" by one launch of three.
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
    Mistake("two blocks write one part of a sum", _KERNEL, "float* sums(", "int64_t(part) * p.tiles", "int64_t(0)", "parts"),
    Mistake("a part begins a step late", _KERNEL, "alone ?", "part * p.steps_of_part", "part", "parts"),
    Mistake("no barrier before a part counts as there", _KERNEL, _LAST, "__syncthreads();", "", "parts"),
    Mistake("no barrier behind the count of parts", _KERNEL, "count_arrival(", "__syncthreads();", "", "parts"),
    Mistake("parts are added before the last one is there", _KERNEL, _LAST, "+ 1 == p.parts", "+ 2 == p.parts", "parts"),
    Mistake("parts are counted one short", _KERNEL, _LAST, "tile, p.parts)", "tile, p.parts - 1)", "parts"),
    Mistake("a part is added by its own block first", _KERNEL, _ADD, "y = part == 0 ?", "y = false ?", "parts"),
    Mistake("a tile counts the parts of another one", _KERNEL, _LAST, "p.counters + tile", "p.counters", "several products"),
    Mistake("a product takes the blocks of the next", _KERNEL, "", "block >= params", "block > params", "several products"),
    Mistake(
        "memory is touched before earlier launches are waited for", "start.cuh", "", "wait_for_earlier_launches();", "", "tiles"
    ),
)
