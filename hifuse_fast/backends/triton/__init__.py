"""What the Triton kernels of all ops share: how they are launched and compiled, and functions that several kernels call.

Only this package, `tuning` and the `triton*.py` of ops import Triton. They are loaded when a call needs them.
"""
