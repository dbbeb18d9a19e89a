"""What the Triton kernels of all ops stand on: how they are launched, their tile sizes, and what they compute in common.

Only this package and `ops/<op>/triton.py` import Triton, and they are loaded when a call needs them.
"""
