"""Mistakes in the shipped CUDA kernels, as edits of their files, and the calls that meet them.

tools/plant_mistakes.py plants them. A kernel that changes takes its edits along: one that no longer applies is an error.
"""

from tools.mistakes import attention, blocks, products, sm90, small_ops
from tools.mistakes.calls import CALLS, Call
from tools.mistakes.mistake import Mistake

MISTAKES = (*attention.MISTAKES, *products.MISTAKES, *blocks.MISTAKES, *small_ops.MISTAKES, *sm90.MISTAKES)

__all__ = ["CALLS", "MISTAKES", "Call", "Mistake"]
