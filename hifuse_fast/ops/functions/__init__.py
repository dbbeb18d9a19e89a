"""Differentiable functions over maps: a folder an op, with its contract (api), its definition (reference) and its kernels."""
