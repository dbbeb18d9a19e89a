"""The Triton kernels of window attention; triton.py launches them.

A program owns one head, a block of tokens, and a fixed share of the windows. Where a window is one block (7 x 7 tokens in one
of 64), the position bias of the head is gathered from the table once, and stays in registers from window to window. Larger
windows walk over blocks with an online softmax, and gather the bias anew for each. Neighbouring programs take neighbouring
heads, whose channels share lines of memory. Roll, padding and partition are arithmetic on addresses: a padded token reads its
q, k and v from the qkv bias, and its gradients go to a list beside the map's.

The backward computes the attention weights again from q and k. Where a window is one block, one kernel does it all, the
gradient of the position bias in registers from window to window; else one kernel walks over blocks of keys, and another over
blocks of queries. The gradient of the bias is written once per program, as a partial sum, and a last kernel adds these up
into the table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hifuse_fast.backends.triton.device import INTERPRETED, dot

# Scores are in units of log2, so exp(s - top) is 2^(s - top). Written as 2^(s log2(e) - top log2(e)) it becomes one fused
# multiply-add, which rounds top log2(e) but not s log2(e): the largest score then differs from itself, by much if it is large.
LOG2E = tl.constexpr(1.4426950408889634)
MASK_VALUE = tl.constexpr(-100.0 * 1.4426950408889634)
SMALLEST = tl.constexpr(2.0**-126)  # normal float32
# One compilation serves all sizes of maps; only strides are looked at, for loads of 16 bytes.
GEOMETRY = ["windows", "rows", "columns", "height", "width"]

# ---- Windows, tokens and scores ----------------------------------------------------------------------------------------


@triton.jit
def window_place(window, rows, columns):
    """Image (int64), row and column of a window among rows x columns windows an image."""
    row = window // columns
    return (row // rows).to(tl.int64), row % rows, window % columns


@triton.jit
def token_place(token, row, column, rows, columns, height, width, M: tl.constexpr, SHIFT: tl.constexpr):
    """y and x on the map (int64) of the tokens of window (row, column), where the roll took them from; which lie on it."""
    y = row * M + token // M + SHIFT
    x = column * M + token % M + SHIFT
    y = tl.where(y >= rows * M, y - rows * M, y)
    x = tl.where(x >= columns * M, x - columns * M, x)
    return y.to(tl.int64), x.to(tl.int64), (token < M * M) & (y < height) & (x < width)


@triton.jit
def token_rows(qkv_ptr, padding_ptr, image, y, x, on_map, stride_b, stride_y, stride_x, PADDED: tl.constexpr):
    """Pointers [.., 1] to the channels of tokens: those of a padded one are the qkv bias."""
    pointer = qkv_ptr + (image * stride_b + y * stride_y + x * stride_x)
    if PADDED:
        pointer = tl.where(on_map, pointer, padding_ptr)
    return pointer[:, None]


@triton.jit
def position_bias(table_ptr, head, query, key, HEADS: tl.constexpr, M: tl.constexpr):
    """The bias [Q, K] of queries [Q] and keys [K] in units of log2, float32; -inf for keys beyond the window."""
    i, j = query[:, None], key[None, :]
    inside = (i < M * M) & (j < M * M)
    entry = (i // M - j // M + M - 1) * (2 * M - 1) + i % M - j % M + M - 1
    bias = tl.load(table_ptr + entry * HEADS + head, mask=inside, other=0.0).to(tl.float32)
    return tl.where(j < M * M, bias * LOG2E, float("-inf"))


@triton.jit
def region(token, row, column, rows, columns, M: tl.constexpr, SHIFT: tl.constexpr):
    """The part of a window at the seam that tokens are in: 0 to 3. The roll splits only the last row and column of windows."""
    # Masked by the window, not the comparisons: those would stay in registers from window to window, one for each key.
    part = 2 * (token // M >= M - SHIFT).to(tl.int32) + (token % M >= M - SHIFT).to(tl.int32)
    return part & (2 * (row == rows - 1).to(tl.int32) + (column == columns - 1).to(tl.int32))


@triton.jit
def scores(
    q, k, bias, query, key, row, column, rows, columns, scale,
    M: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scale q k^T + bias + mask, [Q, K] float32, in units of log2. Only windows at the seam have anything to mask."""
    s = tl.fma(dot(q, tl.trans(k), PRECISION), scale * LOG2E, bias)
    if SHIFT > 0:
        if (row == rows - 1) | (column == columns - 1):
            of_query = region(query, row, column, rows, columns, M, SHIFT)
            of_key = region(key, row, column, rows, columns, M, SHIFT)
            s += tl.where(of_query[:, None] == of_key[None, :], 0.0, MASK_VALUE)
    return s


@triton.jit
def exponential(s, top):
    """2^(s - top) for rows [Q, K] and their largest elements [Q]."""
    p = tl.exp2(s - top[:, None])
    if INTERPRETED:
        p = tl.where(p < SMALLEST, 0.0, p)  # as the instruction of the GPU does by itself
    return p


# ---- Forward -----------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=GEOMETRY)
def forward_kernel(
    qkv_ptr,  # [B, height, width, 3 HEADS D], strided
    table_ptr,  # [(2M - 1)^2, HEADS]
    padding_ptr,  # [3 HEADS D]: q, k, v of a padded token
    out_ptr,  # [B, height, width, HEADS D]
    windows, rows, columns, height, width, stride_b, stride_y, stride_x, scale,
    HEADS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, SHIFT: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    head, C = tl.program_id(0), HEADS * D
    query = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    within = tl.arange(0, BLOCK_D)[None, :]
    channel, is_channel = head * D + within, within < D
    if BLOCKS == 1:
        bias = position_bias(table_ptr, head, query, query, HEADS, M)
    for window in tl.range(tl.program_id(1), windows, tl.num_programs(1)):
        image, row, column = window_place(window, rows, columns)
        y, x, on_map = token_place(query, row, column, rows, columns, height, width, M, SHIFT)
        pointer = token_rows(qkv_ptr, padding_ptr, image, y, x, on_map, stride_b, stride_y, stride_x, PADDED)
        kept = (query < M * M)[:, None] & is_channel
        q = tl.load(pointer + channel, mask=kept, other=0.0)
        place = ((image * height + y) * width + x)[:, None] * C + channel
        stored = on_map[:, None] & is_channel
        top = tl.full([BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        out = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for block in tl.range(0, BLOCKS):
            if BLOCKS == 1:
                key, key_rows, is_key = query, pointer, kept
            else:
                key = block * BLOCK + tl.arange(0, BLOCK)
                bias = position_bias(table_ptr, head, query, key, HEADS, M)
                ky, kx, there = token_place(key, row, column, rows, columns, height, width, M, SHIFT)
                key_rows = token_rows(qkv_ptr, padding_ptr, image, ky, kx, there, stride_b, stride_y, stride_x, PADDED)
                is_key = (key < M * M)[:, None] & is_channel
            k = tl.load(key_rows + (C + channel), mask=is_key, other=0.0)
            v = tl.load(key_rows + (2 * C + channel), mask=is_key, other=0.0)
            s = scores(q, k, bias, query, key, row, column, rows, columns, scale, M, SHIFT, PRECISION)
            before = top
            top = tl.maximum(before, tl.max(s, 1))
            p = exponential(s, top)
            if BLOCKS > 1:
                shrink = tl.exp2(before - top)
                total *= shrink
                out *= shrink[:, None]
            total += tl.sum(p, 1)
            out = dot(p.to(v.dtype), v, PRECISION, out)
        out *= (1.0 / total)[:, None]
        tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=stored)


# ---- Backward ----------------------------------------------------------------------------------------------------------


@triton.jit
def gradient_rows(
    dqkv_ptr, dpadding_ptr, image, y, x, on_map, rows, columns, height, width,
    C: tl.constexpr, M: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """Pointers [N, 1] to where the gradients of tokens go; those of padded tokens go to a list of their own, image by image."""
    pointer = dqkv_ptr + ((image * height + y) * width + x) * (3 * C)
    if PADDED:
        right = columns * M - width
        place = tl.where(y < height, y * right + x - width, height * right + (y - height) * (columns * M) + x)
        place += image * (rows * columns * (M * M) - height * width)
        pointer = tl.where(on_map, pointer, dpadding_ptr + place * (3 * C))
    return pointer[:, None]


@triton.jit(do_not_specialize=GEOMETRY)
def backward_kernel(
    qkv_ptr,  # [B, height, width, 3 HEADS D], strided
    table_ptr,  # [(2M - 1)^2, HEADS]
    padding_ptr,  # [3 HEADS D]: q, k, v of a padded token
    grad_ptr,  # [B, height, width, HEADS D]
    dqkv_ptr,  # [B, height, width, 3 HEADS D]
    dpadding_ptr,  # [padded tokens, 3 HEADS D]
    dbias_ptr,  # [shares, HEADS, M^2, M^2] float32
    windows, rows, columns, height, width, stride_b, stride_y, stride_x, scale,
    HEADS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, SHIFT: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS: tl.constexpr, MAP: tl.constexpr,
):  # fmt: skip
    tl.static_assert(BLOCKS == 1)
    head, share, C = tl.program_id(0), tl.program_id(1), HEADS * D
    token = tl.arange(0, BLOCK)
    within = tl.arange(0, BLOCK_D)[None, :]
    channel, is_channel = head * D + within, within < D
    bias = position_bias(table_ptr, head, token, token, HEADS, M)
    dbias = tl.zeros([BLOCK, BLOCK], tl.float32)
    for window in tl.range(share, windows, tl.num_programs(1)):
        image, row, column = window_place(window, rows, columns)
        y, x, on_map = token_place(token, row, column, rows, columns, height, width, M, SHIFT)
        pointer = token_rows(qkv_ptr, padding_ptr, image, y, x, on_map, stride_b, stride_y, stride_x, PADDED)
        kept = (token < M * M)[:, None] & is_channel
        stored = on_map[:, None] & is_channel
        pixel = ((image * height + y) * width + x)[:, None]
        q = tl.load(pointer + channel, mask=kept, other=0.0)
        k = tl.load(pointer + (C + channel), mask=kept, other=0.0)
        v = tl.load(pointer + (2 * C + channel), mask=kept, other=0.0)
        grad = tl.load(grad_ptr + pixel * C + channel, mask=stored, other=0.0)

        s = scores(q, k, bias, token, token, row, column, rows, columns, scale, M, SHIFT, PRECISION)
        p = exponential(s, tl.max(s, 1))
        p *= (1.0 / tl.sum(p, 1))[:, None]
        place = gradient_rows(dqkv_ptr, dpadding_ptr, image, y, x, on_map, rows, columns, height, width, C, M, PADDED)
        if MAP:
            dv = dot(tl.trans(p.to(q.dtype)), grad, PRECISION)
            tl.store(place + (2 * C + channel), dv.to(q.dtype), mask=kept)
        dp = dot(grad, tl.trans(v), PRECISION)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        dbias += ds
        if MAP:
            ds = ds.to(q.dtype)
            dq = dot(ds, k, PRECISION) * scale
            tl.store(place + channel, dq.to(q.dtype), mask=kept)
            dk = dot(tl.trans(ds), q, PRECISION) * scale
            tl.store(place + (C + channel), dk.to(q.dtype), mask=kept)
    i, j = token[:, None], token[None, :]
    place = dbias_ptr + (share * HEADS + head).to(tl.int64) * (M * M * M * M) + i * (M * M) + j
    tl.store(place, dbias, mask=(i < M * M) & (j < M * M))


@triton.jit(do_not_specialize=GEOMETRY)
def queries_kernel(
    qkv_ptr,  # [B, height, width, 3 HEADS D], strided
    table_ptr,  # [(2M - 1)^2, HEADS]
    padding_ptr,  # [3 HEADS D]: q, k, v of a padded token
    grad_ptr,  # [B, height, width, HEADS D]
    dqkv_ptr,  # [B, height, width, 3 HEADS D]: its first third
    dpadding_ptr,  # [padded tokens, 3 HEADS D]: its first third
    statistics_ptr,  # [windows, HEADS, 3, BLOCKS BLOCK] float32: of a row of scores, see the end of the loop
    dbias_ptr,  # [shares, HEADS, M^2, M^2] float32, zero before
    windows, rows, columns, height, width, stride_b, stride_y, stride_x, scale,
    HEADS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, SHIFT: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    head, share, C = tl.program_id(0), tl.program_id(1), HEADS * D
    query = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    within = tl.arange(0, BLOCK_D)[None, :]
    channel, is_channel = head * D + within, within < D
    for window in tl.range(share, windows, tl.num_programs(1)):
        image, row, column = window_place(window, rows, columns)
        y, x, on_map = token_place(query, row, column, rows, columns, height, width, M, SHIFT)
        pointer = token_rows(qkv_ptr, padding_ptr, image, y, x, on_map, stride_b, stride_y, stride_x, PADDED)
        stored = on_map[:, None] & is_channel
        pixel = ((image * height + y) * width + x)[:, None]
        kept = (query < M * M)[:, None] & is_channel
        q = tl.load(pointer + channel, mask=kept, other=0.0)
        grad = tl.load(grad_ptr + pixel * C + channel, mask=stored, other=0.0)
        top = tl.full([BLOCK], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        delta = tl.zeros([BLOCK], tl.float32)
        dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        # First all blocks of keys for the statistics of the rows, then all again for the gradients.
        for step in tl.range(0, 2 * BLOCKS):
            key = step % BLOCKS * BLOCK + tl.arange(0, BLOCK)
            ky, kx, there = token_place(key, row, column, rows, columns, height, width, M, SHIFT)
            key_rows = token_rows(qkv_ptr, padding_ptr, image, ky, kx, there, stride_b, stride_y, stride_x, PADDED)
            is_key = (key < M * M)[:, None] & is_channel
            k = tl.load(key_rows + (C + channel), mask=is_key, other=0.0)
            v = tl.load(key_rows + (2 * C + channel), mask=is_key, other=0.0)
            bias = position_bias(table_ptr, head, query, key, HEADS, M)
            s = scores(q, k, bias, query, key, row, column, rows, columns, scale, M, SHIFT, PRECISION)
            dp = dot(grad, tl.trans(v), PRECISION)
            if step < BLOCKS:
                before = top
                top = tl.maximum(before, tl.max(s, 1))
                p = exponential(s, top)
                shrink = tl.exp2(before - top)
                total = total * shrink + tl.sum(p, 1)
                delta = delta * shrink + tl.sum(p * dp, 1)
            else:
                ds = exponential(s, top) * (1.0 / total)[:, None] * (dp - (delta / total)[:, None])
                dq = dot(ds.to(k.dtype), k, PRECISION, dq)
                i, j = query[:, None], key[None, :]
                place = dbias_ptr + (share * HEADS + head).to(tl.int64) * (M * M * M * M) + i * (M * M) + j
                inside = (i < M * M) & (j < M * M)
                tl.store(place, tl.load(place, mask=inside, other=0.0) + ds, mask=inside)  # this program's own
                tl.debug_barrier()  # the thread that reads it next may be another
        dq *= scale
        place = gradient_rows(dqkv_ptr, dpadding_ptr, image, y, x, on_map, rows, columns, height, width, C, M, PADDED)
        tl.store(place + channel, dq.to(q.dtype), mask=kept)
        kept_ptr = statistics_ptr + (tl.cast(window, tl.int64) * HEADS + head) * (3 * BLOCKS * BLOCK) + query
        tl.store(kept_ptr, top)
        tl.store(kept_ptr + BLOCKS * BLOCK, 1.0 / total)
        tl.store(kept_ptr + 2 * BLOCKS * BLOCK, delta / total)


@triton.jit(do_not_specialize=GEOMETRY)
def keys_kernel(
    qkv_ptr,  # [B, height, width, 3 HEADS D], strided
    table_ptr,  # [(2M - 1)^2, HEADS]
    padding_ptr,  # [3 HEADS D]: q, k, v of a padded token
    grad_ptr,  # [B, height, width, HEADS D]
    dqkv_ptr,  # [B, height, width, 3 HEADS D]: its second and last third
    dpadding_ptr,  # [padded tokens, 3 HEADS D]: its second and last third
    statistics_ptr,  # [windows, HEADS, 3, BLOCKS BLOCK] float32: of a row of scores, see `queries_kernel`
    windows, rows, columns, height, width, stride_b, stride_y, stride_x, scale,
    HEADS: tl.constexpr, D: tl.constexpr, M: tl.constexpr, SHIFT: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    head, share, C = tl.program_id(0), tl.program_id(1), HEADS * D
    key = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    within = tl.arange(0, BLOCK_D)[None, :]
    channel, is_channel = head * D + within, within < D
    for window in tl.range(share, windows, tl.num_programs(1)):
        image, row, column = window_place(window, rows, columns)
        y, x, on_map = token_place(key, row, column, rows, columns, height, width, M, SHIFT)
        pointer = token_rows(qkv_ptr, padding_ptr, image, y, x, on_map, stride_b, stride_y, stride_x, PADDED)
        kept = (key < M * M)[:, None] & is_channel
        k = tl.load(pointer + (C + channel), mask=kept, other=0.0)
        v = tl.load(pointer + (2 * C + channel), mask=kept, other=0.0)
        dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
        for block in tl.range(0, BLOCKS):
            query = block * BLOCK + tl.arange(0, BLOCK)
            qy, qx, there = token_place(query, row, column, rows, columns, height, width, M, SHIFT)
            query_rows = token_rows(qkv_ptr, padding_ptr, image, qy, qx, there, stride_b, stride_y, stride_x, PADDED)
            q = tl.load(query_rows + channel, mask=(query < M * M)[:, None] & is_channel, other=0.0)
            pixel = ((image * height + qy) * width + qx)[:, None]
            grad = tl.load(grad_ptr + pixel * C + channel, mask=there[:, None] & is_channel, other=0.0)
            kept_ptr = statistics_ptr + (tl.cast(window, tl.int64) * HEADS + head) * (3 * BLOCKS * BLOCK) + query
            top, inverse = tl.load(kept_ptr), tl.load(kept_ptr + BLOCKS * BLOCK)
            delta = tl.load(kept_ptr + 2 * BLOCKS * BLOCK)
            bias = position_bias(table_ptr, head, query, key, HEADS, M)
            s = scores(q, k, bias, query, key, row, column, rows, columns, scale, M, SHIFT, PRECISION)
            p = exponential(s, top) * inverse[:, None]
            dv = dot(tl.trans(p.to(q.dtype)), grad, PRECISION, dv)
            ds = p * (dot(grad, tl.trans(v), PRECISION) - delta[:, None])
            dk = dot(tl.trans(ds.to(q.dtype)), q, PRECISION, dk)
        dk *= scale
        place = gradient_rows(dqkv_ptr, dpadding_ptr, image, y, x, on_map, rows, columns, height, width, C, M, PADDED)
        tl.store(place + (C + channel), dk.to(k.dtype), mask=kept)
        tl.store(place + (2 * C + channel), dv.to(k.dtype), mask=kept)


@triton.jit
def table_kernel(
    dbias_ptr,  # [shares, HEADS, M^2, M^2] float32
    dtable_ptr,  # [(2M - 1)^2, HEADS]
    shares,
    HEADS: tl.constexpr, M: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head, entry, N = tl.program_id(0), tl.program_id(1), M * M
    dy, dx = entry // (2 * M - 1) - (M - 1), entry % (2 * M - 1) - (M - 1)
    query = tl.arange(0, BLOCK_N)
    y, x = query // M - dy, query % M - dx  # of the key
    inside = (query < N) & (y >= 0) & (y < M) & (x >= 0) & (x < M)
    place = (query * N + y * M + x)[None, :]
    total = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
    for start in range(0, shares, BLOCK_S):
        share = start + tl.arange(0, BLOCK_S)[:, None]
        offset = (share * HEADS + head).to(tl.int64) * (N * N)
        total += tl.load(dbias_ptr + offset + place, mask=(share < shares) & inside[None, :], other=0.0)
    tl.store(dtable_ptr + entry * HEADS + head, tl.sum(total).to(dtable_ptr.dtype.element_ty))
