"""Mistakes in the kernels of whole blocks."""

from __future__ import annotations

from tools.mistakes.mistake import Mistake

_LOCAL, _GLOBAL, _COMMON, _FUSE = "local_block.cuh", "global_block.cuh", "whole_blocks.cuh", "fuse_path.cuh"
_TILE, _NORMED, _RESULTS = (
    f"__syncthreads();  // {words}" for words in ("the tile is there", "all pixels", "the results are there")
)
_KEYS, _READ = (f"__syncthreads();  // {words}" for words in ("k and v are there", "nobody reads k and v"))

MISTAKES = (
    Mistake("no wait for a tile of pixels", _LOCAL, "", "cp_async_wait<0>();", "", "local block"),
    Mistake("no barrier before pixels are convolved", _LOCAL, "", _TILE, "// ", "local block"),
    Mistake("no barrier before pixels are multiplied", _LOCAL, "", _NORMED, "// ", "local block"),
    Mistake("no barrier before pixels are stored", _LOCAL, "", _RESULTS, "// ", "local block"),
    Mistake(
        "a line of pixels too many",
        _LOCAL,
        "",
        "unsigned(v) < unsigned(p.height)",
        "unsigned(v) <= unsigned(p.height)",
        "local block",
    ),
    Mistake(
        "a column of pixels too many",
        _LOCAL,
        "",
        "unsigned(u) < unsigned(p.width)",
        "unsigned(u) <= unsigned(p.width)",
        "local block",
    ),
    Mistake("a line below the map is stored", _LOCAL, "", "to.y + row < p.height", "to.y + row <= p.height", "local block"),
    Mistake(
        "a column beside the map is stored", _LOCAL, "", "to.x + column >= p.width", "to.x + column > p.width", "local block"
    ),
    Mistake(
        "channels beyond the map in the spread",
        _LOCAL,
        "float sum = 0.0f, squares",
        "if (channel(j) >= p.channels) continue;",
        "",
        "local block",
    ),
    Mistake("results in the line above", _LOCAL, "add_gelu<T>(", "kAround + 1", "1", "local block"),
    Mistake("the taps turned round", _LOCAL, "const float4 tap", "3 * dy + dx", "3 * dx + dy", "local block"),
    Mistake(
        "a mean over two runs of pixels", _LOCAL, "over_lanes(float x) {", "other < kLanes", "other < 2 * kLanes", "local block"
    ),
    Mistake(
        "the halves of a weight's chunk exchanged",
        _COMMON,
        "",
        "half ? b[n].z : b[n].x",
        "half ? b[n].x : b[n].z",
        "local block",
    ),
    Mistake("the weight of the wrong columns", _COMMON, "", "(n * kSteps + k) * 32", "(k * kColumns + n) * 32", "local block"),
    Mistake("no wait for tokens", _GLOBAL, "Operands a;", "cp_async_wait<0>();", "", "global block"),
    Mistake("no __syncwarp before tokens are read", _GLOBAL, "Operands a;", "__syncwarp();", "", "global block"),
    Mistake("no barrier before keys are read", _GLOBAL, "", _KEYS, "// ", "global block"),
    Mistake("no barrier before keys are written", _GLOBAL, "", _READ, "// ", "global block"),
    Mistake("tokens come again too soon", _GLOBAL, "", "__syncwarp();  // they have been read", "// ", "global block"),
    Mistake("no wait for tokens that come again", _GLOBAL, "p.weight + column", "cp_async_wait<0>();", "", "global block"),
    Mistake("no __syncwarp before tokens are added to", _GLOBAL, "p.weight + column", "__syncwarp();", "", "global block"),
    Mistake(
        "no __syncwarp before tokens are stored", _GLOBAL, "", "__syncwarp();  // the results are there", "// ", "global block"
    ),
    Mistake("a padded token has the folded bias", _GLOBAL, "", "padded[m][i] ? padding.x : bias.x", "bias.x", "global block"),
    Mistake("tokens beyond the window", _GLOBAL, "", "first + lane < s.tokens && ", "", "global block"),
    Mistake("a window too many", _GLOBAL, "", " && index < s.windows", "", "global block"),
    Mistake("a token beside the map", _GLOBAL, "", "if (at.on_map(s.grid)) pixel", "pixel", "global block"),
    Mistake("seams that are not the window's", _GLOBAL, "", "(query ^ key) & seams", "query ^ key", "global block"),
    Mistake("keys of the other window", _GLOBAL, "", "shared.window[warp / 2]", "shared.window[warp % 2]", "global block"),
    Mistake("keys and values exchanged", _GLOBAL, "which < 3", "3 * head + which", "3 * head + 3 - which", "global block"),
    Mistake(
        "each head has the first one's bias", _GLOBAL, "const table", "head * (kRows / 16)", "0 * (kRows / 16)", "global block"
    ),
    Mistake("a head in the place of another", _GLOBAL, "reciprocal_fast", "kHead * head", "kHead * (head ^ 1)", "global block"),
    Mistake("no wait for the maps of a fusion", _FUSE, "", "cp_async_wait<0>();", "", "fuse path"),
    Mistake("no barrier before maps are multiplied", _FUSE, "", "__syncthreads();  // both maps", "// ", "fuse path"),
    Mistake(
        "a result takes the place of a map too soon",
        _FUSE,
        "",
        "__syncthreads();  // nobody reads this map",
        "// ",
        "fuse path",
    ),
    Mistake("no barrier before rows are normalised", _FUSE, "", "__syncthreads();  // all rows are there", "// ", "fuse path"),
    Mistake("no barrier before rows are multiplied", _FUSE, "", "__syncthreads();  // all rows are norm", "// ", "fuse path"),
    Mistake("results take the place of rows too soon", _FUSE, "", "__syncthreads();  // nobody reads rows", "// ", "fuse path"),
    Mistake("no barrier before fused pixels are stored", _FUSE, "", "__syncthreads();  // the results", "// ", "fuse path"),
    Mistake("no __syncwarp before a row changes", _FUSE, "", "__syncwarp();", "", "fuse path"),
    Mistake("a pixel too many", _FUSE, "const bool kept", "first + row < p.pixels", "first + row <= p.pixels", "fuse path"),
    Mistake("channels beyond a map of a fusion", _FUSE, "const bool kept", "&& chunk * 8 < p.channels", "", "fuse path"),
)
