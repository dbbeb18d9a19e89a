"""Ops of the frozen network, over packed weights: a folder an op, with the same files as those of functions."""
