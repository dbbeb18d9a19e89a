"""Mistakes in the shipped CUDA kernels, as edits of their files, and the calls that meet them.

tools/plant_mistakes.py plants them. A kernel that changes takes its edits along: one that no longer applies is an error.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """A call of window attention in bfloat16."""

    window: int
    shift: int
    head_dim: int
    num_heads: int
    shape: tuple[int, int, int]
    multiprocessors: int = 1


CALLS = {
    # A block of threads has four windows or more.
    "whole": Call(7, 3, 32, 1, (3, 12, 19)),
    "blocks": Call(9, 4, 8, 1, (2, 11, 20)),
    # The gradients of parameters have more parts than SumOfParts has warps, and the last warp that has any has fewer.
    "many parts": Call(2, 1, 8, 1, (1, 6, 22), multiprocessors=16),
}


@dataclass(frozen=True)
class Mistake:
    """An edit: of `old`, at its first place behind `behind`, into `new`. `call` and `backward` say which call meets it."""

    name: str
    file: str
    behind: str
    old: str
    new: str
    call: str = "whole"
    backward: bool = False

    def edited(self, text: str) -> str:
        """The text of the file with the mistake in it."""
        start = text.find(self.behind)
        at = text.find(self.old, start + len(self.behind)) if start >= 0 else -1
        if at < 0:
            raise ValueError(f"mistake {self.name!r}: {self.file} has no {self.old!r} behind {self.behind!r}")
        return text[:at] + self.new + text[at + len(self.old) :]


_WHOLE, _BLOCKS = "struct WindowAttentionForwardWhole", "struct WindowAttentionForwardBlocks"
_FORWARD, _BACKWARD = "window_attention_forward.cuh", "window_attention_backward.cuh"
_BACKWARD_BLOCKS, _WINDOWS = "window_attention_backward_blocks.cuh", "window_attention_windows.cuh"
_SUMS, _PARTS = "window_attention_sums.cuh", "sum_of_parts.cu"
_STAGE = "__syncthreads();  // this stage is there"

MISTAKES = (
    Mistake("no wait for copies", _FORWARD, _WHOLE, "cp_async_wait<0>();", "cp_async_wait<1>();"),
    Mistake("no barrier around a stage", _FORWARD, _WHOLE, _STAGE, "// "),
    Mistake("a stage is filled while it is read", _FORWARD, _WHOLE, "shared.q[stage ^ 1]", "shared.q[stage]"),
    Mistake("no __syncwarp between put and store", _FORWARD, "rows.put(shared.q[stage], out, factor);", "__syncwarp();", ""),
    Mistake("one window too many", _FORWARD, _WHOLE, "index + int(gridDim.y) < s.windows", "index < s.windows"),
    Mistake("rows beyond the window not zeroed", _FORWARD, _WHOLE, "clear_rows<kTokens, kThreads>(shared.q, 3 * kStages);", ""),
    Mistake(
        "a copy nobody waits for",
        _FORWARD,
        _WHOLE,
        "const float factor[2]",
        "cp_async_16(&shared.v[stage ^ 1].chunk[0], p.qkv.data, true); const float factor[2]",
    ),
    Mistake("two blocks write one window", _FORWARD, _WHOLE, "Window::at(s.grid, blockIdx.y)", "Window::at(s.grid, 0)"),
    Mistake("some threads pass no barrier", _FORWARD, _WHOLE, _STAGE, "if (threadIdx.x < 96) " + _STAGE),
    Mistake("some lanes pass no __syncwarp", _FORWARD, _WHOLE, "__syncwarp();", "if (threadIdx.x % 2) __syncwarp();"),
    Mistake("rows beyond the window are stored", _WINDOWS, "Targets targets(", "token < this->tokens", "true"),
    Mistake("padded tokens are stored", _WINDOWS, "Targets targets(", "t.stored[j] && at.on_map(s.grid)", "t.stored[j]"),
    Mistake("a row too many on the map", _WINDOWS, "struct Place", "y < grid.rows.length", "y <= grid.rows.length"),
    Mistake(
        "a key too many in a window",
        "window_attention_scores.cuh",
        "struct WindowBias",
        "key < kTokens ? table",
        "key <= kTokens ? table",
    ),
    Mistake("no barrier around a block of keys", _FORWARD, _BLOCKS, _STAGE, "// ", call="blocks"),
    Mistake(
        "a block of keys is filled while it is read",
        _FORWARD,
        _BLOCKS,
        "int(last), stage ^ 1",
        "int(last), stage",
        "blocks",
    ),
    Mistake("no __syncwarp before rows are stored", _FORWARD, "rows.put(shared.q[window_stage]", "__syncwarp();", "", "blocks"),
    Mistake(
        "channels beyond the head are read",
        _WINDOWS,
        "load_tokens(",
        "token < tokens && c < chunks",
        "token < tokens",
        "blocks",
    ),
    Mistake(
        "a key too many in a block",
        "window_attention_scores.cuh",
        "struct TableBias",
        "at < tokens ?",
        "at <= tokens ?",
        "blocks",
    ),
    Mistake("no wait in the backward", _BACKWARD, "", "cp_async_wait<0>();", "cp_async_wait<1>();", backward=True),
    Mistake("no barrier around a stage in the backward", _BACKWARD, "", _STAGE, "// ", backward=True),
    Mistake("no barrier before p is read", _BACKWARD, "", "__syncthreads();  // p and ds are there", "// ", backward=True),
    Mistake(
        "no __syncwarp before dv is stored",
        _BACKWARD,
        "rows.put(shared.v[stage], dv, one);",
        "__syncwarp();",
        "",
        backward=True,
    ),
    Mistake("no __syncwarp before dk is written", _BACKWARD, "of_head + 2 * stride);", "__syncwarp();", "", backward=True),
    Mistake("columns beyond the window not zeroed", _BACKWARD, "", "clear_columns(shared.ds);", "", backward=True),
    Mistake("sums of padded tokens not zeroed", _BACKWARD, "", "shared.padded.clear();", "", backward=True),
    Mistake("no barrier before the last sums", _BACKWARD, "// By way of", "__syncthreads();", "", backward=True),
    Mistake("no barrier before sums are read", _BACKWARD, "if (!p.table_parts) return;", "__syncthreads();", "", backward=True),
    Mistake(
        "two blocks write one part",
        _BACKWARD,
        "const int entries",
        "int64_t(blockIdx.y) * entries",
        "0 * entries",
        backward=True,
    ),
    Mistake(
        "a query too many in the table's sums", _SUMS, "sum_of_entries(", "query < count", "query <= count", "blocks", True
    ),
    Mistake("no barrier before parts are added", _PARTS, "struct SumOfParts", "__syncthreads();", "", backward=True),
    Mistake("a result too many of the parts", _PARTS, "struct SumOfParts", "i >= count", "i > count", backward=True),
    Mistake("no barrier around keys in the backward", _BACKWARD_BLOCKS, "", _STAGE, "// ", "blocks", True),
    Mistake(
        "no barrier around queries in the backward",
        _BACKWARD_BLOCKS,
        "struct WindowAttentionBackwardKeys",
        _STAGE,
        "// ",
        "blocks",
        True,
    ),
    Mistake(
        "no wait for queries in the backward",
        _BACKWARD_BLOCKS,
        "struct WindowAttentionBackwardKeys",
        "cp_async_wait<0>();",
        "cp_async_wait<1>();",
        "blocks",
        True,
    ),
    Mistake(
        "no __syncwarp before rows of k are stored",
        _BACKWARD_BLOCKS,
        "// the warp has read its rows of k and v",
        "__syncwarp();",
        "",
        "blocks",
        True,
    ),
    # The right instructions in a wrong order, of wrong lanes, or at wrong places.
    Mistake(
        "the wait comes behind the barrier",
        _FORWARD,
        _WHOLE,
        "cp_async_wait<0>();\n      __syncthreads();",
        "__syncthreads(); cp_async_wait<0>();",
    ),
    Mistake("half of the lanes shuffle", _FORWARD, _WHOLE, "raise(top, x);", "if (threadIdx.x % 32 < 16) raise(top, x);"),
    Mistake(
        "rows of another warp are written", _WINDOWS, "void put(", "pair + Tile::kEightRows", "pair + 2 * Tile::kEightRows"
    ),
    Mistake(
        "a row of a matrix between two chunks",
        "tiles.cuh",
        "left_of_rows(",
        "&tile.at(row, chunk)",
        "(char*)&tile.at(row, chunk) + 8",
    ),
    Mistake("the seam a row too far", "window_attention_scores.cuh", "region_of(", "row >= edge", "row > edge"),
    Mistake("padded tokens are zeros", _WINDOWS, "load_tokens(", ": padding;", ": nullptr;", "blocks"),
    Mistake("a window too many in a share", _FORWARD, _WHOLE, "index < s.windows; index +=", "index <= s.windows; index +="),
    Mistake(
        "statistics of the other stage",
        _BACKWARD_BLOCKS,
        "struct WindowAttentionBackwardKeys",
        "(shared.statistics[stage]);",
        "(shared.statistics[stage ^ 1]);",
        "blocks",
        True,
    ),
    Mistake(
        "a warp adds to the sums of another",
        _SUMS,
        "struct PaddedSums",
        "&sums[threadIdx.x / 32]",
        "&sums[threadIdx.x / 64]",
        backward=True,
    ),
    Mistake(
        "keys and queries exchanged in the bias",
        "window_attention_scores.cuh",
        "struct TableBias",
        "of_column - code[i]",
        "code[i] - of_column",
        "blocks",
        True,
    ),
    # In the middle of kernels, and where a call must be just so.
    Mistake("copies of no group", _FORWARD, "shared.q[stage ^ 1]", "cp_async_commit();", ""),
    Mistake(
        "no barrier before sums of queries are read",
        _BACKWARD_BLOCKS,
        "of_head);\n    }",
        "__syncthreads();",
        "",
        "blocks",
        True,
    ),
    Mistake(
        "no barrier before sums of keys are read",
        _BACKWARD_BLOCKS,
        "of_head + 2 * stride);\n    }",
        "__syncthreads();",
        "",
        "blocks",
        True,
    ),
    Mistake(
        "p of this warp alone is waited for",
        _BACKWARD,
        "",
        "__syncthreads();  // p and ds are there",
        "__syncwarp();  //",
        backward=True,
    ),
    Mistake("a column too many on the map", _WINDOWS, "struct Place", "x < grid.columns.length", "x <= grid.columns.length"),
    Mistake("the shift the other way", _WINDOWS, "first_offset(", "w.row * side + shift", "w.row * side - shift"),
    Mistake("the shift forgotten in a column", _WINDOWS, "first_offset(", "w.column * side + shift", "w.column * side"),
    Mistake(
        "keys and queries exchanged in the bias of whole windows",
        "window_attention_scores.cuh",
        "struct WindowBias",
        "bias_code<kWindow>(s, query) - bias_code<kWindow>(s, key)",
        "bias_code<kWindow>(s, key) - bias_code<kWindow>(s, query)",
    ),
    Mistake("the seams of rows and columns exchanged", _WINDOWS, "int seams(", "2 * int(", "int("),
    Mistake(
        "the last windows of a share left out",
        _FORWARD,
        _WHOLE,
        "index < s.windows; index +=",
        "index + 1 < s.windows; index +=",
    ),
    Mistake("sums of a row not shrunk", _FORWARD, _BLOCKS, "total[i] *= shrink;", "", "blocks"),
    Mistake(
        "the last part of each warp left out", _PARTS, "struct SumOfParts", "part < end;", "part < end - 1;", backward=True
    ),
    Mistake("the last part left out", _PARTS, "struct SumOfParts", "run, job.parts)", "run, job.parts - 1)", backward=True),
    Mistake(
        "parts that are no multiple left out",
        _PARTS,
        "struct SumOfParts",
        "(job.parts + kWarps - 1) / kWarps",
        "max(job.parts / kWarps, int64_t(1))",
        "many parts",
        True,
    ),
    Mistake(
        "a part added by two warps",
        _PARTS,
        "struct SumOfParts",
        "min((warp + 1) * run, job.parts)",
        "min((warp + 1) * run + 1, job.parts)",
        "many parts",
        True,
    ),
    Mistake(
        "the sum of the last warp left out",
        _PARTS,
        "struct SumOfParts",
        "other < kWarps;",
        "other < kWarps - 3;",
        "many parts",
        True,
    ),
)
