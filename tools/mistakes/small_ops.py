"""Mistakes in the kernels that move memory and little else."""

from __future__ import annotations

from tools.mistakes.mistake import Mistake

_ROWS, _NORM, _COLUMNS = "rows.cuh", "norm_rows.cuh", "columns.cuh"
_DEPTHWISE, _BATCH, _MAX, _GATES = "depthwise_norm.cu", "batch_norm.cu", "max_mean.cu", "gated_concat.cu"
_MOMENTS, _POINTWISE, _ENDS, _BARRIER = "batch_norm_statistics.cuh", "pointwise.cuh", "ends.cu", "__syncthreads();"

MISTAKES = (
    Mistake("no barrier before a norm's weights are read", _NORM, "struct NormForward", _BARRIER, "", "narrow layer norm"),
    Mistake("a row too many is normalised", _NORM, "struct NormForward", "row >= p.count", "row > p.count", "layer norm"),
    Mistake("no barrier between the sums of a row's warps", _ROWS, "[turn_][warp][i] = x[i];", _BARRIER, "", "layer norm"),
    Mistake("sums of a row take no turns", _ROWS, "", "turn_ ^= 1;", "", "layer norm"),
    Mistake("no barrier before sums of rows are written", _ROWS, "void store(RowValues& x", _BARRIER, "", "layer norm"),
    Mistake("no barrier before sums of rows are read", _ROWS, "x[i / 8][i % 8];", _BARRIER, "", "layer norm"),
    Mistake("chunks beyond a row", _ROWS, "struct RowLane", "part[i] < s.parts ? ", "true ? ", "concat norm"),
    Mistake("two shares of images write one part", _NORM, "", "int64_t(blockIdx.y) * gridDim.x", "int64_t(0)", "concat norm"),
    Mistake(
        "the gate of the next pixel",
        "concat_norm.cu",
        "",
        "load_one(gate[m], row)",
        "load_one(gate[m], row + 1)",
        "concat norm",
    ),
    Mistake("gates of the first image", "concat_norm.cu", "", "int64_t(row / pixels)", "int64_t(0)", "concat norm"),
    Mistake("a column too many is convolved", _DEPTHWISE, "", "column < width", "column <= width", "depthwise norm"),
    Mistake("a line too many is convolved", _DEPTHWISE, "", "y < height", "y <= height", "depthwise norm"),
    Mistake("no barrier before the filters' biases are read", _DEPTHWISE, "", _BARRIER, "", "depthwise norm"),
    Mistake(
        "a pixel beside the map is stored",
        _DEPTHWISE,
        "",
        "at.x + k >= p.map.width",
        "at.x + k > p.map.width",
        "depthwise norm",
    ),
    Mistake(
        "two shares write one part of the taps", _DEPTHWISE, "", "int64_t(blockIdx.y) * 9", "int64_t(0) * 9", "depthwise shares"
    ),
    Mistake("the taps not turned round", _DEPTHWISE, "", "8 - 3 * dy - n", "3 * dy + n", "depthwise shares"),
    Mistake("no barrier before sums of columns are read", _COLUMNS, "struct ColumnSums", _BARRIER, "", "depthwise shares"),
    Mistake(
        "sums of the last warp left out",
        _COLUMNS,
        "",
        "other < kColumnThreads / 32",
        "other < kColumnThreads / 32 - 1",
        "depthwise shares",
    ),
    Mistake("no barrier before moments are read", _MOMENTS, "[lane * 8 + j] = m;", _BARRIER, "", "batch norm"),
    Mistake("no barrier before moments are merged", _MOMENTS, "struct BatchNormMerge", _BARRIER, "", "batch norm"),
    Mistake("a pixel too many has statistics", _MOMENTS, "", "row < s.rows ? c.left", "row <= s.rows ? c.left", "batch norm"),
    Mistake(
        "the pixels of a patch in one column",
        _BATCH,
        "",
        "pixel / 2 * 2 * p.width + pixel % 2",
        "pixel / 2 * 2 * p.width",
        "batch norm",
    ),
    Mistake(
        "shares of moments in one place",
        _MOMENTS,
        "struct BatchNormStatistics",
        "at = int64_t(blockIdx.y)",
        "at = int64_t(0)",
        "batch norm",
    ),
    Mistake("no barrier before the largest of warps", _MAX, "struct MaxMeanPixels {", _BARRIER, "", "largest pixel"),
    Mistake("the last share of pixels left out", _MAX, "", "share < s.shares", "share + 1 < s.shares", "largest pixel"),
    Mistake(
        "a share has the next one's first pixel", _MAX, "", "s.begin(share + 1)", "s.begin(share + 1) + 1", "largest pixel"
    ),
    Mistake("a row too many has a largest", _MAX, "", "lane > 0 || !kept", "lane > 0", "largest channel"),
    Mistake("lanes of a row left out", _MAX, "", "other = s.lanes / 2;", "other = s.lanes / 4;", "largest channel"),
    Mistake("no barrier before shares of warps are read", _GATES, "void over_pixels", _BARRIER, "", "gates"),
    Mistake(
        "a share of pixels left out", _GATES, "struct GatedConcatNorm", "share < s.shares", "share + 1 < s.shares", "gates"
    ),
    Mistake("no barrier before statistics of channels are read", _GATES, "struct GatedConcatNorm", _BARRIER, "", "gates"),
    Mistake("no barrier before units of gates are read", _GATES, "pixel_gate(p, shared", _BARRIER, "", "gates"),
    Mistake("no barrier before gates are read", _GATES, "channel_gate(p, shared, channel)", _BARRIER, "", "gates"),
    Mistake("a neighbour beside the map", _GATES, "", "x + dx >= s.width", "x + dx > s.width", "gates"),
    Mistake("a neighbour below the map", _GATES, "", "s.height - 1", "s.height", "gates"),
    Mistake("a pixel too many has statistics of channels", _GATES, "", "lane == 0 && kept", "lane == 0", "gates"),
    Mistake("pixels of the next run", _GATES, "struct GatedConcatNorm", "kept = pixel < end", "kept = pixel <= end", "gates"),
    Mistake("the statistics of the first image", _GATES, "of_image =", "int64_t(image)", "int64_t(0)", "gates"),
    Mistake(
        "a chunk of a pixel too many",
        _POINTWISE,
        "struct DepthwiseMixer",
        "pixel >= p.pixels",
        "pixel > p.pixels",
        "depthwise mixer",
    ),
    Mistake(
        "a neighbour on the next line",
        _POINTWISE,
        "",
        "unsigned(x + dx) < unsigned(p.width)",
        "unsigned(x + dx) <= unsigned(p.width)",
        "depthwise mixer",
    ),
    Mistake(
        "the last chunk of gradients left out",
        _POINTWISE,
        "struct GeluBackward",
        "at >= p.length",
        "at + kOfChunk<T> >= p.length",
        "depthwise mixer",
    ),
    Mistake("a column beside the image", _ENDS, "", "column < p.image_width", "column <= p.image_width", "ends"),
    Mistake("a line below the image", _ENDS, "", "line < p.image_height", "line <= p.image_height", "ends"),
    Mistake("a run of pixels too many", _ENDS, "", "i >= p.count", "i > p.count", "ends"),
    Mistake("patches of the next line", _ENDS, "", "line / kPatchSide", "(line + 1) / kPatchSide", "ends"),
    Mistake("no barrier before sums of pixels are read", _ENDS, "struct PixelMeanKernel", _BARRIER, "", "ends"),
    Mistake("a row of sums left out", _ENDS, "", "row < kColumnRows; ++row", "row + 1 < kColumnRows; ++row", "ends"),
    Mistake("a channel too many has a mean", _ENDS, "", "c.first + lane >= p.channels", "c.first + lane > p.channels", "ends"),
)
