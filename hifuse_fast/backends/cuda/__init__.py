"""What the CUDA kernels of all ops share: how their library is loaded, and how they are launched.

The kernels are C++ in csrc/cuda. With HIFUSE_CUDA_EMULATED=1 they run on CPU tensors, each step checked: for tests.
"""
