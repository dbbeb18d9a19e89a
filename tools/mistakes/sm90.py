"""Mistakes in the kernels for sm_90a alone."""

from __future__ import annotations

from tools.mistakes.mistake import Mistake

_COMMON, _MLP, _MIXER = "product_sm90.cuh", "mlp_sm90.cuh", "mixer_sm90.cuh"
_OF_MLP, _OF_MIXER, _WIDE = "mlp of sm_90a", "mixer of sm_90a", "wide mixer of sm_90a"
_WRITER, _READER, _FINISH = "struct Writer", "struct Reader", "void finish(const Finish&"
_COPY, _MULTIPLY = "void copy(const Params&", "void multiply(const Params&"


def _mlp(name: str, file: str, behind: str, old: str, new: str) -> Mistake:
    return Mistake(name, file, behind, old, new, _OF_MLP)


def _mixer(name: str, file: str, behind: str, old: str, new: str) -> Mistake:
    return Mistake(name, file, behind, old, new, _OF_MIXER)


MISTAKES = (
    _mlp("a tile of the ring is filled while it is read", _COMMON, _WRITER, "mbarrier_wait(&ring.empty", "// "),
    _mlp("no wait for a tile of the ring", _COMMON, _READER, "mbarrier_wait(&ring.full", "// "),
    _mlp("the ring waits for the other round", _COMMON, _WRITER, "place.parity ^ 1", "place.parity"),
    _mlp("a round of the ring has no parity", _COMMON, "struct Place", "parity ^= 1", "parity ^= 0"),
    _mlp("no barrier behind the making of the ring", _COMMON, "", "__syncthreads();", ""),
    _mlp("a tile is given back while products read it", _COMMON, _READER, "wgmma_wait<1>();", "wgmma_wait<2>();"),
    _mlp("no wait for the last products", _COMMON, _READER, "wgmma_wait<0>();", ""),
    _mlp("no fence before products", _COMMON, _READER, "wgmma_fence();", ""),
    _mlp("every second warp gives a tile back", _COMMON, _READER, "threadIdx.x % 32 == 0", "threadIdx.x % 64 == 0"),
    _mlp("every second thread gives a tile back", _COMMON, _READER, "threadIdx.x % 32 == 0", "threadIdx.x % 2 == 0"),
    _mlp("a tile is given back twice", _COMMON, _READER, "read = -1;\n  }", "\n  }"),
    _mlp("neighbours give what they should keep", _COMMON, _FINISH, "odd ? first[0] : first[4]", "odd ? first[4] : first[0]"),
    _mlp("results in the neighbour's columns", _COMMON, _FINISH, "8 * odd + 2 * (lane & 2)", "8 * odd + 4 * (lane & 1)"),
    _mlp("the residual is another row's", _COMMON, _FINISH, "pair_at<T>(f.residual, at", "pair_at<T>(f.residual, c"),
    _mlp("each row has the first bias", _COMMON, _FINISH, "pair_at<T>(f.bias, c", "pair_at<T>(f.bias, 0"),
    _mlp("a row of results too many", _COMMON, _FINISH, "r >= f.rows", "r > f.rows"),
    _mlp("columns of results too many", _COMMON, _FINISH, "c >= f.columns", "c > f.columns"),
    _mlp("the copy of u is not waited for", _MLP, _COPY, "unit == 0 ? Slab<kRows>::kBytes : 0", "0"),
    _mlp("u comes again with the next hidden units", _MLP, _COPY, "if (unit == 0) copy_tile", "copy_tile"),
    _mlp("u is always that of the first rows", _MLP, _COPY, "int(row), full", "0, full"),
    _mlp("the first hidden units again", _MLP, _COPY, "i * kSlab, unit, full", "i * kSlab, 0, full"),
    _mlp("project of the first hidden units", _MLP, _COPY, "unit + i * kSlab, 0", "i * kSlab, 0"),
    _mlp("two blocks copy the same rows", _MLP, _COPY, "int64_t(gridDim.x) * kRows", "kRows"),
    _mlp("two blocks multiply the same rows", _MLP, _MULTIPLY, "int64_t(gridDim.x) * kRows", "kRows"),
    _mlp("two warpgroups multiply the same rows", _MLP, _MULTIPLY, "kWarpgroup - 1)", "kWarpgroup - 1) * 0"),
    _mlp("hidden units are added to those before", _MLP, _MULTIPLY, "i + k > 0", "unit + i + k > 0"),
    _mlp("products end behind the depth", _MLP, _MULTIPLY, "i * kSlab + k < kDepth", "i * kSlab + k < kDepth - 32"),
    _mlp("hidden units are read before they are there", _MLP, _MULTIPLY, "reader.finish();", ""),
    _mlp("the first hidden units' bias", _MLP, "void activate(", "unit + threadIdx.x", "threadIdx.x"),
    _mlp("the quarters of an operand exchanged", _MLP, "void activate(", "n % 2 * 2 + half", "n % 2 + 2 * half"),
    _mixer("no barrier behind the making of the mixer's ring", _COMMON, "", "__syncthreads();", ""),
    _mixer("the taps are turned round", _MIXER, _COPY, "tap % 3, tap / 3", "tap / 3, tap % 3"),
    _mixer("pixels of one column on", _MIXER, _COPY, "row % p.width - 1", "row % p.width"),
    _mixer("pixels of the image above", _MIXER, _COPY, "line % p.height - 1", "line % p.height - 2"),
    _mixer("pixels of the first image", _MIXER, _COPY, "line / p.height", "line / p.height * 0"),
    _mixer("each tap has the first weight", _MIXER, _COPY, "tap * channels + i", "i"),
    _mixer("the ring counts half of the weight", _MIXER, _COPY, "sizeof(Step)", "sizeof(Step) - sizeof(Slab<kWide>)"),
    _mixer("two blocks multiply the same pixels", _MIXER, _MULTIPLY, "tile += gridDim.x", "tile += 1"),
    _mixer("all products are of the first pixels", _MIXER, _MULTIPLY, "row(m * kRowsOfWarpgroup)", "row(0)"),
    _mixer("no wait for the mixer's last products", _MIXER, _MULTIPLY, "reader.finish();", ""),
    _mixer("a tap too few", _MIXER, _MULTIPLY, "tap < kTaps", "tap + 1 < kTaps"),
    Mistake("two warpgroups have the same weight", _MIXER, _MULTIPLY, "step.weight[own]", "step.weight[0]", _WIDE),
    Mistake("two warpgroups have the same results", _MIXER, _MULTIPLY, "own * kWide", "0", _WIDE),
    Mistake("all results are the first ones", _MIXER, "int first_column(", "p.column_tiles * kColumns", "1 * kColumns", _WIDE),
    Mistake("the second half of the first results", _MIXER, _COPY, "column + half * kWide", "half * kWide", _WIDE),
)
